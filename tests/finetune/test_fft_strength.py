"""RAda in full fine-tuning chooses its mask strength by the rules for frozen encoders."""

from __future__ import annotations

import dataclasses
import json

import pytest
import torch

from rada import FFTConfig, FineTuner, RAdaClassifier
from rada.core.config import EFTConfig
from rada.core.errors import ConfigError
from rada.data import open_dataset
from rada.encoders import load_encoder
from rada.features import extract_features
from rada.methods.finetune import strength as module
from rada.training import train_head
from rada.training.encoder_loop import TowerTraining
from rada.training.strength import STRENGTHS

CONFIG = FFTConfig(
    epochs=2, batch_size=8, learning_rate=1e-3, num_heads=2, head_epochs=2, evaluate_every=0
)


def tuner(method, encoder, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return FineTuner(encoder, method, config, progress=False, workers=0)


def test_the_default_is_to_choose():
    assert FFTConfig().strength == "auto"
    with pytest.raises(ConfigError, match="strength should be 'auto' or in"):
        FFTConfig(strength=1.5)


def test_the_head_alone_chooses_as_rada_fit_does(encoder, data, tmp_path):
    it = tuner("rada", encoder)
    result = it.fit(data, seed=3, output_dir=tmp_path / "out")
    split = open_dataset(data).split("train")
    features = extract_features(encoder, split, cache=False, workers=0, progress=False)
    text = encoder.encode_classes(split.classes)
    config = EFTConfig(epochs=2, num_heads=2)
    trained = train_head(
        features.image_features, features.labels, text, encoder.scale, config, 3, progress=False
    )
    assert trained.trained_strength is not None
    expected = json.loads(json.dumps(trained.strength_choice.to_dict()))
    assert result["strength_choice"] == expected
    assert (result["strength"], result["trained_strength"]) == (
        trained.strength,
        trained.trained_strength,
    )
    assert result["effective"] == {"epochs": 300, "steps": 300}
    test = open_dataset(data).split("test")
    images = extract_features(encoder, test, cache=False, workers=0, progress=False)
    logits = trained.head(images.plain(), text, encoder.scale, trained.trained_strength).logits
    accuracy = float((logits.argmax(1) == images.labels).double().mean())
    assert result["tuned"]["in_distribution"]["accuracy"] == pytest.approx(accuracy)
    loaded = RAdaClassifier.from_pretrained(tmp_path / "out", progress=False)
    assert loaded.strength_for(split.classes) == trained.trained_strength
    assert loaded.strength_for(["red", "dog"]) == loaded.strength == trained.strength
    assert loaded.score(data) == pytest.approx(accuracy)


@pytest.fixture(scope="module")
def chosen(data, model_folder, tmp_path_factory):
    """A run of RAda-FT that chooses, with the steps of each training that it made."""
    counts = []
    run, step = TowerTraining.run, TowerTraining._step

    def watched_run(self):
        counts.append(0)
        return run(self)

    def watched_step(self, *args):
        counts[-1] += 1
        return step(self, *args)

    patch = pytest.MonkeyPatch()
    patch.setattr(TowerTraining, "run", watched_run)
    patch.setattr(TowerTraining, "_step", watched_step)
    it = tuner("rada-ft", load_encoder(model_folder))
    out = tmp_path_factory.mktemp("chosen") / "out"
    result = it.fit(data, seed=1, output_dir=out)
    patch.undo()
    return it, result, counts, out


def test_folds_are_whole_runs_of_as_many_steps(chosen):
    _, result, counts, _ = chosen
    # 20 images in batches of 8, twice; of four classes two folds, and the run itself.
    assert counts == [6] * 3
    choice = result["strength_choice"]
    assert choice["method"] == "classes"
    assert result["strength"] == choice["strength"] and result["strength"] in STRENGTHS
    base = choice["base_accuracy"]
    assert base[STRENGTHS.index(result["trained_strength"])] == max(base)
    assert result["effective"] == {"epochs": 2, "steps": 6}


def test_folds_leave_no_trace_in_the_weights(chosen, data, model_folder):
    it, _, _, _ = chosen
    other = tuner("rada-ft", load_encoder(model_folder), strength=1.0)
    other.fit(data, seed=1)
    mine, theirs = it.model.tuned(), other.model.tuned()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_the_chosen_strengths_are_used_and_saved(chosen, data):
    it, result, _, out = chosen
    model = it.model
    assert model.strength_for(model.classes) == result["trained_strength"]
    assert model.strength_for(["red", "dog"]) == result["strength"]
    for clf in (it.classifier(), RAdaClassifier.from_pretrained(out, progress=False)):
        assert clf.strength_for(model.classes) == result["trained_strength"]
        assert clf.strength_for(["red", "dog"]) == result["strength"]
        assert clf.score(data) == result["tuned"]["in_distribution"]["accuracy"]


def test_counts_are_those_of_the_tuned_model_at_every_strength(chosen, data):
    it, _, _, _ = chosen
    split = open_dataset(data).split("test").rename(it.model.classes)
    counts = module._counted(it.model, split, skip_bad=False)
    images = it.encoder.infer_images(
        torch.stack([it.encoder.preprocess(split.load(i)) for i in range(len(split))])
    )
    text = it.encoder.encode_classes(it.model.classes)
    for strength, right in zip(STRENGTHS, counts.correct.tolist(), strict=True):
        logits = it.model.head(images, text, it.encoder.scale, strength).logits
        assert abs(int((logits.argmax(1) == torch.tensor(split.labels)).sum()) - right) <= 1


def test_a_run_that_stops_in_a_fold_goes_on_there(
    chosen, data, model_folder, tmp_path, monkeypatch
):
    _, result, _, _ = chosen
    out, done = tmp_path / "out", []
    step = TowerTraining._step

    def breaking(self, at, batches, state):
        if len(done) == 9:  # half-way through the second fold
            raise RuntimeError("the machine is gone")
        done.append(at)
        return step(self, at, batches, state)

    monkeypatch.setattr(TowerTraining, "_step", breaking)
    options = {"seed": 1, "output_dir": out}
    with pytest.raises(RuntimeError, match="gone"):
        tuner("rada-ft", load_encoder(model_folder)).fit(data, **options)
    done[:] = [None] * 10  # from here on nothing breaks
    again = tuner("rada-ft", load_encoder(model_folder)).fit(data, **options)
    assert len(done) - 10 == 3 + 6  # the rest of the second fold, and the run itself
    assert again["strength_choice"] == result["strength_choice"]
    assert again["tuned"] == result["tuned"]
