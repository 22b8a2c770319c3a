"""Changes of a fitted classifier: other encoders are refused, and what is saved is what predicts."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from data.images import draw_folder
from encoders.tiny_models import MAKERS
from rada import Classifier
from rada.core.errors import CheckpointError, ConfigError, FeatureError
from rada.data import open_dataset
from rada.encoders import load_encoder
from rada.features import extract_features
from rada.methods import get_method

QUIET = {"progress": False, "cache": False, "workers": 0}
SHORT = {"epochs": 1, "batch_size": 4}


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images of two classes, and two models of the same shapes."""
    root = tmp_path_factory.mktemp("changed")
    draw_folder(root / "data", {"dog": 4, "cat": 4})
    with torch.random.fork_rng():
        for number, name in enumerate(("one", "other")):
            torch.manual_seed(number)
            MAKERS["clip"](root / name)
    return root


def fitted(place, method="rada", encoder="one", **options):
    """Return a classifier of one short fit."""
    config = get_method(method).config
    short = {key: value for key, value in SHORT.items() if key in config.__dataclass_fields__}
    name = str(place / encoder) if isinstance(encoder, str) else encoder
    found = Classifier(name, method, config=config(**short), **QUIET, **options)
    return found.fit(place / "data", seed=1)


def images(place):
    return sorted((place / "data").rglob("*.png"))


@pytest.mark.parametrize("method", ["rada", "linear_probe", "coop"])
@pytest.mark.parametrize("loaded", [False, True])
def test_another_encoder_is_refused(place, tmp_path, method, loaded):
    classifier = fitted(place, method)
    wanted = classifier.predict_proba(images(place))
    if loaded:
        classifier.save_pretrained(tmp_path / "model")
        classifier = Classifier.from_pretrained(tmp_path / "model", **QUIET)
    classifier.set_params(encoder=str(place / "other"))
    for ask in (classifier.predict, classifier.logits, classifier.evaluate, classifier.explain):
        with pytest.raises(CheckpointError, match=r"trained with the encoder .*one"):
            ask(place / "data")
    classifier.set_params(encoder=str(place / "one"))
    assert np.array_equal(classifier.predict_proba(images(place)), wanted)
    classifier.set_params(encoder=str(place / "other")).fit(place / "data", seed=1)
    assert len(classifier.predict(images(place))) == 8


@pytest.mark.parametrize("method", ["rada", "linear_probe"])
def test_an_encoder_that_learned_since_is_refused(place, method):
    encoder = load_encoder(place / "one")
    classifier = fitted(place, method, encoder)
    wanted = classifier.predict_proba(images(place))
    with torch.no_grad():
        weight = next(encoder.image_module.parameters())
        before = weight.clone()
        weight.mul_(2)
    with pytest.raises(CheckpointError, match="differ"):
        classifier.predict(images(place))
    with torch.no_grad():
        weight.copy_(before)
    assert np.array_equal(classifier.predict_proba(images(place)), wanted)


def test_another_precision_is_taken_by_the_next_fit(place):
    classifier = fitted(place, "linear_probe")
    classifier.set_params(dtype="bfloat16")
    with pytest.raises(CheckpointError, match="bfloat16"):
        classifier.predict(images(place))
    classifier.fit(place / "data", seed=1)
    assert classifier.fitted_.encoder.dtype == "bfloat16"
    direct = fitted(place, "linear_probe", dtype="bfloat16")
    proba = direct.predict_proba(images(place))
    assert np.array_equal(classifier.predict_proba(images(place)), proba)


FROZEN = ["zero_shot", "rada", "rada_probe", "coop", "prolip"]
TUNED = ["rada_ft", "flyp", "clip_lora"]
TEMPLATES = ["red image of the {}", "blue {} ."]


@pytest.mark.parametrize("method", [*FROZEN, *TUNED])
@pytest.mark.parametrize("what", ["templates", "both"])
def test_what_is_saved_is_what_predicts(place, tmp_path, method, what):
    classifier = fitted(place, method)
    before = classifier.predict_proba(images(place))
    classifier.templates = TEMPLATES
    if method in TUNED:  # both encoders learned with the templates
        for ask in (classifier.predict, lambda _: classifier.save_pretrained(tmp_path / "m")):
            with pytest.raises(ConfigError, match=f"red image of .*{method}"):
                ask(images(place))
        classifier.templates = None
    if what == "both" or method in TUNED:
        classifier.classes = ["dog", "car", "cat"]
    wanted = classifier.predict_proba(images(place))
    moved = before.shape != wanted.shape or not np.array_equal(before, wanted)
    assert moved or (method == "coop" and what == "templates")  # its context is the template
    classifier.save_pretrained(tmp_path / "model")
    again = Classifier.from_pretrained(tmp_path / "model", **QUIET)
    assert again.candidates() == classifier.candidates()
    assert np.array_equal(again.predict_proba(images(place)), wanted)
    # Others than the saved ones are made of the same templates.
    classifier.classes = again.classes = ["cat", "dog", "image", "car"]
    wanted = classifier.predict_proba(images(place))
    assert np.array_equal(again.predict_proba(images(place)), wanted)


def test_class_features_name_the_templates_that_they_are_made_of(place, tmp_path):
    classifier = fitted(place)
    classifier.classes, classifier.templates = ["car", "dog"], TEMPLATES
    classifier.save_pretrained(tmp_path / "model")
    again = Classifier.from_pretrained(tmp_path / "model", **QUIET)
    made = load_encoder(place / "one").encode_classes(["car", "dog"], TEMPLATES)
    assert torch.equal(again.class_set().text_features, made)
    assert again.fitted_.record.details["template_choice"]["templates"] == TEMPLATES
    again.templates = ["a photo of a {}."]
    made = load_encoder(place / "one").encode_classes(["car", "dog"])
    assert torch.allclose(again.class_set().text_features, made, atol=1e-6)


def test_templates_are_not_saved_without_an_encoder_to_use_them(place, tmp_path):
    found = extract_features(
        load_encoder(place / "one"), open_dataset(place / "data").splits["all"], **QUIET
    )
    text = load_encoder(place / "one").encode_classes(found.classes)
    found = dataclasses.replace(
        found, text_features=text, templates=("a photo of a {}.",), scale=20.0
    )
    classifier = Classifier(None, "prior_probe", progress=False).fit(found)
    classifier.templates = TEMPLATES
    with pytest.raises(FeatureError, match="red image of"):
        classifier.save_pretrained(tmp_path / "model")
    assert not (tmp_path / "model").exists()


@pytest.mark.parametrize(("method", "changes"), [("ft", {}), ("flyp", {"train": "image"})])
def test_templates_count_where_the_text_encoder_did_not_learn(place, method, changes):
    config = get_method(method).config(**SHORT, **changes)
    classifier = Classifier(str(place / "one"), method, config=config, **QUIET)
    classifier.fit(place / "data", seed=1)
    before = classifier.evaluate(place / "data")["zero_shot"]["ece"]
    classifier.templates = TEMPLATES
    assert classifier.evaluate(place / "data")["zero_shot"]["ece"] != before
