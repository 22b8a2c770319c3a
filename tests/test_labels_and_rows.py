"""Labels, candidates and features as people hand them over: what comes back are their labels."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

import rada
from rada import Classifier, Features, list_methods
from rada.core.errors import DataError, FeatureError
from toy import NAMES, SCALE, toy

ON_FEATURES = [one.name for one in list_methods() if one.cost == "features" and not one.needs]
NUMBERS = np.array([1, 2, 5])


@pytest.fixture
def arrays() -> tuple[np.ndarray, np.ndarray, dict[str, torch.Tensor]]:
    images, labels, text = toy(classes=3, shots=6, seed=0)
    return images.double().numpy(), labels.numpy(), dict(zip(NAMES[:3], text, strict=True))


def of(method: str, **options: object) -> Classifier:
    return Classifier(None, method, scale=SCALE, progress=False, **options)


@pytest.mark.parametrize("method", ["zero_shot", "prior_probe", "linear_probe"])
def test_candidates_in_another_order_keep_their_labels(arrays, method: str) -> None:
    rows, labels, text = arrays
    names = np.array(NAMES[:3])[labels]
    turned = of(method, classes=list(NAMES[:3])[::-1], text_features=text).fit(rows, names)
    assert turned.classes_.tolist() == list(NAMES[:3])[::-1]
    assert turned.score(rows, names) == turned.score((rows, names)) > 0.9
    some = of(method, text_features=text).fit(rows, names)
    some.classes = [NAMES[2], NAMES[0]]
    kept = labels != 1
    assert some.classes_.tolist() == [NAMES[2], NAMES[0]]
    assert some.score(rows[kept], names[kept]) > 0.9


def test_label_values_keep_their_type_in_another_order(arrays) -> None:
    rows, labels, text = arrays
    values = NUMBERS[labels]
    vectors = {str(number): row for number, row in zip(NUMBERS, text.values(), strict=True)}
    clf = of("prior_probe", classes=["5", "1", "2"], text_features=vectors).fit(rows, values)
    assert clf.classes_.tolist() == [5, 1, 2]
    assert clf.score(rows, values) > 0.9


def test_numbers_are_the_classes_that_are_called_so(arrays, tmp_path) -> None:
    rows, labels, _ = arrays
    values, kept = NUMBERS[labels], labels < 2
    clf = of("prior_probe").fit(rows, values)
    clf.save_pretrained(tmp_path / "model")
    for found in (clf, Classifier.from_pretrained(tmp_path / "model", progress=False)):
        for mask in (kept, labels < 3):
            part, wanted = rows[mask], values[mask]
            assert found.score(part, wanted) == found.score((part, wanted)) > 0.9
            assert found.zero_shot_score((part, wanted)) > 0.9
            assert found.evaluate((part, wanted))["adapted"]["accuracy"] > 0.9
        # places, as everywhere, where they cannot be the names
        assert found.score((rows, labels)) > 0.9


def test_labels_of_another_shape_or_of_other_classes_are_refused(arrays) -> None:
    rows, labels, _ = arrays
    names = np.array(NAMES[:3])[labels]
    clf = of("prior_probe").fit(rows, names)
    assert clf.score(rows, names[:, None]) == clf.score(rows, names)
    for bad in (names[:1], names[:5], np.tile(names[:, None], (1, 2))):
        with pytest.raises(DataError, match="for 18 images"):
            clf.score(rows, bad)
    with pytest.raises(DataError, match="none of the labels is a class"):
        clf.score(rows, labels)


@pytest.mark.parametrize("method", ON_FEATURES)
@pytest.mark.parametrize("learned", [torch.float32, torch.float64])
def test_features_of_either_precision_can_be_asked(arrays, method: str, learned) -> None:
    rows, labels, text = arrays
    given = torch.stack(list(text.values())).to(learned)
    images = torch.from_numpy(rows).to(learned)
    data = Features(images, labels, NAMES[:3], text_features=given, scale=SCALE)
    clf = of(method).fit(data)
    wanted = clf.predict_proba(data)
    for asked in (rows, rows.astype(np.float32), torch.from_numpy(rows)):
        np.testing.assert_allclose(clf.predict_proba(asked), wanted, atol=1e-5)
        assert clf.evaluate((asked, np.array(NAMES[:3])[labels]))["images"] == len(rows)
    pair = (rows, np.array(NAMES[:3])[labels])
    assert of(method, text_features=text).fit(pair).score(pair) > 0.6


@pytest.mark.parametrize("method", ["rada_probe", "clip_adapter", "taskres"])
@pytest.mark.parametrize("off", [torch.no_grad, torch.inference_mode])
def test_a_fit_needs_no_gradients_of_its_caller(arrays, method: str, off) -> None:
    rows, labels, text = arrays
    given = (torch.from_numpy(rows).float(), labels, NAMES[:3])
    data = Features(*given, text_features=torch.stack(list(text.values())), scale=SCALE)
    wanted = of(method).fit(data).logits(data)
    with off():
        np.testing.assert_array_equal(of(method).fit(data).logits(data), wanted)


def test_a_fit_that_fails_changes_nothing(arrays) -> None:
    rows, labels, _ = arrays
    clf = of("prior_probe").fit(rows, labels)
    wanted = clf.logits(rows)
    with pytest.raises(DataError):
        clf.fit(rows[:, :9], labels, shots=1000)
    assert clf.n_features_in_ == rows.shape[1]
    np.testing.assert_array_equal(clf.logits(rows), wanted)


def test_tensors_of_torch_and_what_cannot_be_features(arrays) -> None:
    rows, labels, _ = arrays
    table = torch.from_numpy(rows)
    wanted = of("prior_probe").fit(rows, labels).predict(rows)
    for given in (table.clone().requires_grad_(), table.bfloat16(), table.half()):
        found = of("prior_probe").fit(given, torch.from_numpy(labels))
        np.testing.assert_array_equal(found.predict(given), wanted)
    broken = rows.copy()
    broken[3, 1] = np.nan
    for bad in (broken, rows[:0], rows[0], rows[:5]):
        with pytest.raises(FeatureError):
            of("prior_probe").fit(bad, labels)


def test_rows_are_chosen_by_number_or_by_mask() -> None:
    images, labels, _ = toy(classes=3, shots=2)
    data = Features(images, labels, NAMES[:3])
    assert data.subset(data.labels == 1).ids == data.subset([1, 4]).ids == ("1", "4")
    assert data.subset(np.array([True] + [False] * 5)).ids == ("0",)
    assert data.subset(range(2, 4)).ids == ("2", "3")
    for bad in ([0.5], ["a"], "a", None, [True, False], [[0, None]]):
        with pytest.raises(FeatureError):
            data.subset(bad)
        with pytest.raises(FeatureError):
            data.select_classes(bad)
    assert data.select_classes(torch.tensor([2, 0])).classes == (NAMES[2], NAMES[0])


@pytest.mark.parametrize("classes", [("a", "a", "b"), ("a", "", "b"), ("a", " ", "b"), (1, 2, 3)])
def test_classes_without_a_name_of_their_own_are_refused_at_once(classes) -> None:
    images, labels, _ = toy(classes=3, shots=2)
    with pytest.raises(FeatureError, match="class"):
        Features(images, labels, classes)


def test_features_do_not_take_the_place_of_another_file(tmp_path) -> None:
    images, labels, _ = toy(classes=3, shots=2)
    data = Features(images, labels, NAMES[:3])
    path = tmp_path / "notes.txt"
    path.write_text("mine")
    with pytest.raises(rada.errors.OutputError, match="no features file"):
        data.save(path)
    assert path.read_text() == "mine"
    data.save(path, overwrite=True)
    data.subset([0]).save(path)  # features give way to features
    assert len(Features.load(path)) == 1
    with pytest.raises(rada.errors.OutputError):
        data.save(path, overwrite=False)


def test_a_shifted_set_may_have_classes_of_its_own(arrays) -> None:
    """A linear probe has no answer there, and the mean is of the rows that all sets have."""
    images, labels, text = toy(classes=5, shots=4)
    every = Features(images, labels, NAMES[:5], text_features=text, scale=SCALE)
    clf = of("prior_probe").fit(every.select_classes([0, 1, 2]))
    found = clf.evaluate(every.select_classes([0, 1, 2]), ood={"more": every, "same": every})
    shifted = found["out_of_distribution"]
    assert set(shifted["mean"]) == {"zero_shot", "adapted"}
    assert shifted["mean"]["adapted"] == pytest.approx(shifted["more"]["adapted"]["accuracy"])


def test_class_features_of_unknown_templates_are_explained(arrays) -> None:
    rows, labels, text = arrays
    given = normalize(torch.stack(list(text.values())), dim=-1)
    data = Features(rows, labels, NAMES[:3], text_features=given, scale=SCALE)
    for clf in (of("prior_probe").fit(data), of("prior_probe").fit(rows, labels)):
        found = clf.explain(data.subset([0]), config=rada.ExplainConfig(where="none"))
        assert found.classes and "no words" in " ".join(found.notes)


def test_what_is_explained_as_zero_shot_is_what_zero_shot_says(arrays) -> None:
    rows, labels, text = arrays
    data = Features(
        rows, labels, NAMES[:3], text_features=torch.stack(list(text.values())), scale=SCALE
    )
    clf = of("prior_probe").fit(data)
    temperature = 1.7
    clf.model_.strength = dataclasses.replace(
        clf.model_.strength, temperature=temperature, trained_temperature=temperature
    )
    found = clf.explain(data.subset([0]), config=rada.ExplainConfig(where="none"))
    zero_shot = data.class_set().zero_shot_logits(data.plain()[:1], SCALE)[0]
    adapted = clf.predict_proba(data.subset([0]))[0]
    for one in found.classes:
        place = NAMES.index(one.name)
        assert one.zero_shot_probability == pytest.approx(
            float(zero_shot.softmax(0)[place]), abs=1e-5
        )
        assert one.zero_shot * temperature == pytest.approx(float(zero_shot[place]), abs=1e-3)
        assert one.probability == pytest.approx(float(adapted[place]), abs=1e-5)
    assert found.to_dict()["temperature"] == found.temperature == temperature
    assert f"at temperature {temperature:.2f}" in found.lines()[0]
