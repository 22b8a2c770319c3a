"""The sums of an explanation add up to the differences of the logits; every method explains or is refused."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import pytest
import torch

from fits import OPTIONS
from golden.make import quick_config, write_images
from rada import Classifier, ExplainConfig, list_methods
from rada.core.errors import ConfigError
from rada.explain import Explainer
from rada.methods.terms import Terms
from toy import NAMES, toy_features

PLAIN = ExplainConfig(where="none", words=0)
REFUSED = {"svm_probe"}
EXPLAINED = [method for method in list_methods() if method.name not in REFUSED]
IN_WORDS = {
    "coop",
    "rada_ft",
}  # one with an encoder as it is, one with its own: the search takes seconds
ON_FEATURES = [method.name for method in EXPLAINED if not method.needs]


def fitted(name, data):
    return Classifier(None, name, config=quick_config(name), progress=False).fit(data, seed=1)


def check_sums(found, logits, names):
    """The parts add up, and to the logits that the classifier itself gives."""
    place = {name: row for row, name in enumerate(names)}
    for one in found.evidence:
        wanted = logits[place[one.target]] - logits[place[one.against]]
        size = sum(abs(part.total) for part in one.parts)  # float32 rounds logits of hundreds
        assert one.adapted == pytest.approx(wanted, abs=max(1e-5, 3e-7 * size))
        for parts in (one.parts, one.words or one.parts):
            assert sum(part.total for part in parts) == pytest.approx(
                one.adapted, rel=1e-9, abs=1e-9
            )
            before = sum(part.zero_shot for part in parts)
            assert before == pytest.approx(one.zero_shot, rel=1e-9, abs=1e-9)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_the_sum_behind_a_difference_is_exact(name):
    data = toy_features()
    clf = fitted(name, data)
    row = data.subset([7])
    found = clf.explain(row, config=PLAIN)
    logits = clf.logits(row)[0].astype(np.float64)
    check_sums(found, logits, NAMES)
    best = NAMES[int(logits.argmax())]
    assert found.classes[0].name == best == found.evidence[0].target
    assert found.classes[0].adapted == pytest.approx(logits.max(), rel=1e-5, abs=1e-5)
    chances = clf.predict_proba(row)[0]
    assert found.classes[0].probability == pytest.approx(float(chances.max()), abs=1e-5)
    dimensions = [part for part in found.evidence[0].parts if part.dimension is not None]
    totals = [abs(part.total) for part in dimensions]
    assert len(dimensions) == 8 and totals == sorted(totals, reverse=True)
    assert json.dumps(found.to_dict()) and found.lines()


@pytest.mark.parametrize("name", [m.name for m in EXPLAINED if m.needs])
def test_methods_through_the_encoder_explain_themselves(name, fits):
    clf = fits.load(name)
    image = str(fits.images / "red" / "1.png")
    config = ExplainConfig(where="none", words=4 if name in IN_WORDS else 0)
    found = clf.explain(image, config=config, train=str(fits.images))
    assert any(one.words for one in found.evidence) == (name in IN_WORDS)
    check_sums(found, clf.logits(image)[0].astype(np.float64), clf.candidates())
    tuned = clf.model_.method.train_encoder
    assert found.before == ("the tuned encoder alone" if tuned else "zero-shot")
    assert found.nearest.all[0].similarity == pytest.approx(1.0, abs=1e-4)  # it was trained on


def test_before_a_fit_the_zero_shot_model_is_explained():
    data = toy_features()
    clf = Classifier(
        None,
        "zero_shot",
        NAMES,
        text_features=dict(zip(NAMES, data.text_features, strict=True)),
        scale=20.0,
    )
    found = clf.explain(data.subset([0]), config=PLAIN)
    assert all(part.change == 0 for part in found.evidence[0].parts)
    assert found.nearest is None and "train" in found.notes[0]


def test_the_classes_can_be_chosen():
    data = toy_features()
    clf = fitted("linear_probe", data)
    row = data.subset([3])
    found = clf.explain(row, target=NAMES[1], against=NAMES[4], config=PLAIN)
    assert (found.evidence[0].target, found.evidence[0].against) == (NAMES[1], NAMES[4])
    check_sums(found, clf.logits(row)[0].astype(np.float64), NAMES)
    best = clf.predict(row)[0]
    found = clf.explain(row, against=best, config=PLAIN)
    assert found.evidence[0].against == best != found.evidence[0].target
    with pytest.raises(ConfigError, match=r"'owl' is no candidate.*class 0"):
        clf.explain(row, target="owl", config=PLAIN)
    with pytest.raises(ConfigError, match="itself"):
        clf.explain(row, target=NAMES[1], against=NAMES[1], config=PLAIN)
    with pytest.raises(ConfigError, match="not 24"):
        clf.explain(data, config=PLAIN)
    clf.classes = [NAMES[0]]
    with pytest.raises(ConfigError, match="one candidate"):
        clf.explain(row, config=PLAIN)


def test_biases_and_votes_are_parts_of_their_own():
    data = toy_features()
    found = fitted("linear_probe", data).explain(data.subset([0]), config=PLAIN)
    assert found.evidence[0].parts[-1].name == "bias"
    found = fitted("tip_adapter", data).explain(data.subset([0]), config=PLAIN)
    votes = found.evidence[0].parts[-1]
    assert votes.name == "similar training images" and votes.change > 0 == votes.zero_shot


@pytest.mark.parametrize("name", sorted(REFUSED))
def test_a_method_whose_logits_are_no_sum_is_refused_by_name(name):
    clf = fitted(name, toy_features())
    with pytest.raises(ConfigError, match=f"{clf.model_.method.title} cannot be explained"):
        clf.explain(toy_features().subset([0]), config=PLAIN)


def test_dimensions_that_the_mask_takes_away_are_told():
    before = Terms.of(torch.ones(1, 3), torch.tensor([[2.0, 1.0, 1.0], [0.0, 0.0, 0.0]]))
    after = Terms.of(torch.ones(1, 3), torch.tensor([[2.0, 0.0, 1.0], [0.0, 0.0, 0.0]]))
    from rada.explain.evidence import compare_terms

    found = compare_terms(before, after, ("a", "b"), 0, 1, most=1)
    names = [part.name for part in found.parts]
    assert names == ["dimension 0", "1 other for", "1 that are masked out"]
    assert sum(part.total for part in found.parts) == found.adapted == 3
    assert sum(part.zero_shot for part in found.parts) == found.zero_shot == 4


def test_similar_training_images_come_from_memory_or_are_asked_for(fits, tmp_path):
    images = fits.images
    clf = Classifier(str(fits.encoder), "rada", config=quick_config("rada"), **OPTIONS)
    clf.fit(str(images), seed=1)
    image = str(images / "blue" / "2.png")
    here = clf.explain(image, config=PLAIN)
    assert here.nearest.all[0].label == "blue" and here.nearest.all[0].image.size == (36, 36)
    assert {one.label for one in here.nearest.other} == {here.nearest.other_class}
    clf.save_pretrained(tmp_path / "model")
    loaded = Classifier.from_pretrained(tmp_path / "model", workers=0, cache=False)
    without = loaded.explain(image, config=PLAIN)
    assert without.nearest is None and "--train DATA" in without.notes[0]
    again = loaded.explain(image, config=PLAIN, train=str(images))
    same = [
        [(one.label, round(one.similarity, 5)) for one in found.nearest.all]
        for found in (here, again)
    ]
    assert same[0] == same[1]
    others = write_images(tmp_path / "others")
    with pytest.warns(UserWarning, match="none of the images given as training images"):
        loaded.explain(image, config=PLAIN, train=str(others))


def test_an_explainer_serves_many_images(fits):
    explainer = Explainer(fits.load("rada"), dataclasses.replace(PLAIN, classes=2))
    found = [explainer.explain(str(path)) for path in sorted(fits.images.glob("*/0.png"))]
    assert len({entry.name for entry in found}) == 3
    assert all(len(entry.evidence) <= 2 for entry in found)


@pytest.mark.parametrize("bad", [{"classes": 1}, {"words": -1}, {"grid": 1}, {"where": "nowhere"}])
def test_a_bad_configuration_is_refused(bad):
    with pytest.raises(ConfigError, match=next(iter(bad))):
        ExplainConfig(**bad)
