"""A fine-tuned model as a classifier: saved again, with its own configuration, options and strength."""

from __future__ import annotations

import dataclasses
import shutil

import numpy as np
import pytest
import torch

from encoders.test_kept_texts import counted
from rada import Classifier, EFTConfig, FFTConfig, FineTuner
from rada.cli.tables import comparison_table
from rada.data import open_dataset
from rada.encoders import load_encoder
from rada.features import FeatureCache
from rada.methods import get_method

QUICK = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "evaluate_every": 0}


def tuned(method, encoder, data, output_dir=None, **options):
    given = QUICK if get_method(method).train_encoder else {}
    given = given | ({"head_epochs": 1, "strength": 0.5} if method == "rada-ft" else {})
    config = get_method(method).config(**given)
    tuner = FineTuner(encoder, method, config, progress=False, **options)
    tuner.fit(data, seed=1, output_dir=output_dir)
    return tuner


@pytest.mark.parametrize("method", ["rada-ft", "ft", "flyp", "linear-probe"])
def test_what_was_tuned_is_saved_by_the_classifier_and_again_after_loading(
    method, encoder, data, tmp_path
):
    tuner = tuned(method, encoder, data, workers=0)
    clf = tuner.classifier()
    assert clf.score(data) == tuner.result["tuned"]["in_distribution"]["accuracy"]
    images = data / "test" / "red"
    expected = clf.predict_proba(images)
    clf.save_pretrained(tmp_path / "one")
    loaded = Classifier.from_pretrained(tmp_path / "one", progress=False)
    np.testing.assert_allclose(loaded.predict_proba(images), expected, atol=1e-6)
    loaded.save_pretrained(tmp_path / "two")
    again = Classifier.from_pretrained(tmp_path / "two", progress=False)
    np.testing.assert_allclose(again.predict_proba(images), expected, atol=1e-6)
    names = [sorted(p.name for p in (tmp_path / n).iterdir()) for n in ("one", "two")]
    assert names[0] == names[1]
    assert ("encoder" in names[0]) == get_method(method).train_encoder


@pytest.mark.parametrize("method", ["ft", "flyp", "rada", "linear-probe"])
def test_a_classifier_knows_the_names_that_its_data_was_given(method, encoder, data, tmp_path):
    """As after `Classifier.fit`: the classes of data are called as in training."""
    names = {"red": "dog", "green": "cat", "white": "black"}
    tuner = tuned(method, encoder, data, workers=0, classes=names, output_dir=tmp_path / "out")
    inside = tuner.result["tuned"]["in_distribution"]
    again = FineTuner(encoder, method, tuner.config, classes=names, progress=False, workers=0)
    again.fit(data, seed=1, output_dir=tmp_path / "out")  # is finished already
    loaded = Classifier.from_pretrained(tmp_path / "out", workers=0, progress=False)
    for clf in (tuner.classifier(), again.classifier(), loaded):
        assert clf.fitted_.aliases == names | {"blue": "blue"}
        found = clf.evaluate(data)
        assert found.classes == ("blue", "cat", "dog", "black")
        assert (found["trained_classes"], found["new_classes"]) == (4, [])
        assert found["adapted"]["accuracy"] == clf.score(data) == inside["accuracy"]
        before = tuner.result["zero_shot"]["in_distribution"]["accuracy"]
        assert found["zero_shot"]["accuracy"] == clf.zero_shot_score(data) == before


@pytest.mark.filterwarnings("ignore:the data has no test split")
def test_a_list_of_names_stands_for_numbers_after_training_too(encoder, data, tmp_path):
    root = tmp_path / "numbered"
    for split in ("train", "test"):
        for number, colour in enumerate(("red", "blue")):
            shutil.copytree(data / split / colour, root / split / str(number))
    clf = tuned("ft", encoder, root, workers=0, classes=["dog", "cat"]).classifier()
    assert clf.evaluate(root)["new_classes"] == []
    split = open_dataset(data).split("train")
    tuner = tuned("ft", encoder, split, workers=0, classes=["red", "white", "blue", "Green"])
    assert tuner.fitted.aliases["green"] == "Green"


@pytest.mark.parametrize("method", ["ft", "rada", "linear-probe"])
@pytest.mark.parametrize("templates", [None, "the red {}."])
def test_a_fine_tuner_keeps_with_a_model_what_a_classifier_keeps(method, templates, encoder, data):
    tuner = tuned(method, encoder, data, workers=0, templates=templates)
    options = {"config": tuner.config, "templates": templates, "workers": 0, "progress": False}
    fitted = Classifier(encoder, method, **options).fit(data, seed=1).fitted_
    for field in dataclasses.fields(fitted):
        one, other = getattr(tuner.fitted, field.name), getattr(fitted, field.name)
        if field.name in ("class_features", "baseline"):
            torch.testing.assert_close(one, other)
        elif field.name == "record":
            assert one.history == other.history and one.image_keys == other.image_keys
            assert one.details.keys() == other.details.keys()
            assert one.details.get("template_choice") == other.details.get("template_choice")
        elif field.name != "model":
            assert one == other
    found = tuner.classifier().evaluate(data)
    assert ("linear_probe" in found["rows"]) == (method == "rada")
    assert found["templates"] == list(tuner.fitted.templates)
    inside = tuner.result["zero_shot"]["in_distribution"]
    assert found["zero_shot"]["ece"] == pytest.approx(inside["ece"])


@pytest.mark.parametrize("parts", ["both", "image"])
def test_flyp_is_evaluated_with_its_80_templates_before_and_after(parts, encoder, data, tmp_path):
    config = get_method("flyp").config(**QUICK, train=parts)
    tuner = FineTuner(encoder, "flyp", config, workers=0, progress=False)
    result = tuner.fit(data, seed=1, output_dir=tmp_path / "out")
    fitted = Classifier(encoder, "flyp", config=config, workers=0, progress=False)
    loaded = Classifier.from_pretrained(tmp_path / "out", workers=0, progress=False)
    for clf in (tuner.classifier(), fitted.fit(data, seed=1), loaded):
        found = clf.evaluate(data)
        assert found["templates"] == result["templates"] and len(found["templates"]) == 80
        for row, part in (("zero_shot", "zero_shot"), ("adapted", "tuned")):
            assert found[row]["ece"] == pytest.approx(result[part]["in_distribution"]["ece"])
        torch.testing.assert_close(
            torch.from_numpy(clf.predict_proba(data / "test")),
            (found.logits["adapted"] / clf.model_.strength.temperature).softmax(1),
        )


def test_a_tuned_encoder_embeds_the_classes_once_for_many_predictions(encoder, data, monkeypatch):
    config = get_method("flyp").config(**QUICK)
    clf = Classifier(encoder, "flyp", config=config, cache=False, workers=0, progress=False)
    clf.fit(data, seed=1)
    runs = counted(clf.encoder_, monkeypatch)
    for split in ("test", "val", "test"):
        clf.predict(data / split / "red")
    assert sum(runs) == 4 * 80


def test_the_configuration_is_that_of_the_fine_tuning(encoder, data, tmp_path):
    tuner = tuned("rada-ft", encoder, data, workers=0)
    tuner.save(tmp_path / "out")
    for clf in (tuner.classifier(), Classifier.from_pretrained(tmp_path / "out")):
        assert clf.config == tuner.config and isinstance(clf.config, FFTConfig)
        assert clf.model_.config == tuner.config and clf.resolved()[0].name == "rada_ft"
        assert clf.strength == 0.5
    clf.set_params(method="rada", config=None)
    clf.fit(data, shots=2)  # another method
    assert clf.model_.config == EFTConfig()


def test_the_options_of_the_run_go_on_with_the_classifier(encoder, data, tmp_path):
    cache = FeatureCache(tmp_path / "cache")
    clf = tuned("ft", encoder, data, cache=cache, workers=0, skip_bad=True).classifier()
    assert (clf.cache, clf.workers, clf.skip_bad, clf.progress) == (cache, 0, True, False)


def test_a_head_fitted_on_a_tuned_encoder_is_saved_and_names_it(model_folder, data, tmp_path):
    tuner = tuned("ft", load_encoder(model_folder), data, workers=0)
    tuner.save(tmp_path / "tuned")
    encoder = load_encoder(tmp_path / "tuned" / "encoder")
    assert encoder.fingerprint == tuner.model.encoder.fingerprint != tuner.encoder.fingerprint
    config = EFTConfig(epochs=1, min_steps=0, num_heads=4, strength=1.0)
    clf = Classifier(encoder, config, workers=0, progress=False)
    clf.fit(data, shots=2, seed=1)
    # The learned weights of the classes are no part of the new model.
    found = clf.class_set(["red", "a class that is new"])
    assert found.text_features.shape == (2, clf.encoder_.dim)
    clf.save_pretrained(tmp_path / "head")
    loaded = Classifier.from_pretrained(tmp_path / "head", progress=False)
    images = data / "test" / "red"
    np.testing.assert_allclose(loaded.predict_proba(images), clf.predict_proba(images), atol=1e-6)
    assert loaded.encoder_.fingerprint == encoder.fingerprint


def test_zero_shot_is_the_model_before_it_was_tuned(model_folder, data, tmp_path):
    folder = shutil.copytree(model_folder, tmp_path / "clip")
    tuner = tuned("ft", load_encoder(folder), data, workers=0)
    tuner.save(tmp_path / "out")
    base = Classifier(load_encoder(folder), workers=0, progress=False)
    expected = base.evaluate(data)
    clf = Classifier.from_pretrained(tmp_path / "out", workers=0, progress=False)
    found = clf.evaluate(data)
    rows = found.logits
    torch.testing.assert_close(rows["zero_shot"], expected.logits["zero_shot"], atol=1e-5, rtol=0)
    assert not torch.allclose(rows["adapted"], rows["zero_shot"], atol=1e-3)
    title = get_method("ft").title
    assert found["row_names"] == {"adapted": title} and found["trained_classes"] == 4
    assert clf.zero_shot_score(data) == found["zero_shot"]["accuracy"]
    with pytest.warns(UserWarning, match="20 of the 20 test images are images that the model was"):
        clf.evaluate(data, split="train")
    folder.rename(tmp_path / "moved")
    clf = Classifier.from_pretrained(tmp_path / "out", workers=0, progress=False)
    with pytest.warns(UserWarning, match="zero-shot accuracy cannot be measured"):
        found = clf.evaluate(data)
    assert found["row_names"]["zero_shot"] == f"{title}, no head"
    assert f"{title}, no head" in str(list(comparison_table(found.to_dict()).columns[0].cells))
