"""RAda-FT chooses its mask strength by the one rule, on whole runs."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rada import Classifier, EFTConfig, FFTConfig, FineTuner, train_head
from rada.core.errors import ConfigError
from rada.data import open_dataset
from rada.encoders import load_encoder
from rada.features import Features, extract_features
from rada.pretrained import load_model
from rada.training.encoder_loop import EncoderLoop
from rada.training.strength import PLAIN_GRID, STRENGTHS, score

CONFIG = FFTConfig(
    epochs=2, batch_size=8, learning_rate=1e-3, num_heads=2, head_epochs=2, evaluate_every=0
)


def tuner(encoder, **changes):
    config = dataclasses.replace(CONFIG, **changes)
    return FineTuner(encoder, "rada-ft", config, progress=False, workers=0)


def test_the_default_is_to_choose():
    assert FFTConfig().strength == "auto"
    with pytest.raises(ConfigError, match="strength should be 'auto' or in"):
        FFTConfig(strength=1.5)


def test_the_head_alone_chooses_as_train_head_does(encoder, data, tmp_path):
    config = EFTConfig(epochs=2, num_heads=2)
    it = FineTuner(encoder, "rada", config, progress=False, workers=0)
    result = it.fit(data, seed=3, output_dir=tmp_path / "out")
    split = open_dataset(data).split("train")
    features = extract_features(encoder, split, cache=False, workers=0, progress=False)
    text = encoder.encode_classes(split.classes)
    options = {"classes": split.classes, "progress": False}
    trained = train_head(
        features.image_features, features.labels, text, encoder.scale, config, 3, **options
    )
    assert trained.strength.trained is not None
    assert result["strength_choice"] == trained.record["strength_choice"]
    found = (result["strength"], result["trained_strength"])
    assert found == (trained.strength.value, trained.strength.trained)
    assert result["effective"] == {"epochs": 300, "steps": 300}
    test = open_dataset(data).split("test")
    images = extract_features(encoder, test, cache=False, workers=0, progress=False)
    logits = trained.head(images.plain(), text, encoder.scale, trained.strength.trained).logits
    accuracy = float((logits.argmax(1) == images.labels).double().mean())
    assert result["tuned"]["in_distribution"]["accuracy"] == pytest.approx(accuracy)
    loaded = Classifier.from_pretrained(tmp_path / "out", progress=False)
    assert loaded.strength_for(split.classes) == trained.strength.trained
    assert loaded.strength_for(["red", "dog"]) == loaded.strength == trained.strength.value
    assert loaded.score(data) == pytest.approx(accuracy)


@pytest.fixture(scope="module")
def chosen(data, model_folder, tmp_path_factory):
    """A run that chooses, with the steps of each training that it made."""
    counts = []
    run, step = EncoderLoop.run, EncoderLoop._step

    def watched_run(self):
        counts.append(0)
        return run(self)

    def watched_step(self, *args):
        counts[-1] += 1
        return step(self, *args)

    patch = pytest.MonkeyPatch()
    patch.setattr(EncoderLoop, "run", watched_run)
    patch.setattr(EncoderLoop, "_step", watched_step)
    it = tuner(load_encoder(model_folder))
    out = tmp_path_factory.mktemp("chosen") / "out"
    result = it.fit(data, seed=1, output_dir=out)
    patch.undo()
    return it, result, counts, out


def test_folds_are_whole_runs_of_as_many_steps(chosen):
    _, result, counts, _ = chosen
    assert counts == [6] * 3  # 20 images in batches of 8, twice; two folds and the run itself
    choice = result["strength_choice"]
    assert choice["method"] == "classes"
    assert result["strength"] == choice["strength"] and result["strength"] in STRENGTHS
    base = choice["base_likelihood"]
    assert base[STRENGTHS.index(result["trained_strength"])] == max(base)
    assert choice["linear_probe"] is None  # on features of which encoder?
    assert result["effective"] == {"epochs": 2, "steps": 6}


def test_folds_leave_no_trace_in_the_weights(chosen, data, model_folder):
    it, _, _, _ = chosen
    other = tuner(load_encoder(model_folder), strength=1.0)
    other.fit(data, seed=1)
    mine, theirs = it.model.tuned(), other.model.tuned()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())


def test_the_chosen_strengths_are_used_and_saved(chosen, data):
    it, result, _, out = chosen
    for clf in (it.classifier(), Classifier.from_pretrained(out, progress=False)):
        assert clf.strength_for(it.model.facts.classes) == result["trained_strength"]
        assert clf.strength_for(["red", "dog"]) == result["strength"]
        assert clf.score(data) == result["tuned"]["in_distribution"]["accuracy"]
    for model in (it.model, load_model(out).model):
        assert model.strength.for_classes(model.facts.classes) == result["trained_strength"]
        assert model.strength.for_classes(["red", "dog"]) == result["strength"]


def test_counts_are_those_of_the_tuned_model_at_every_strength(chosen, data):
    it, _, _, _ = chosen
    model, split = it.model, open_dataset(data).split("test")
    features = extract_features(it.encoder, split, cache=False, workers=0, progress=False)
    text = it.encoder.encode_classes(split.classes)
    part = dataclasses.replace(features, text_features=text, scale=it.encoder.scale)
    assert isinstance(part, Features)
    points = model.at_points(model.features_of(part), part.class_set(), PLAIN_GRID.points)
    counts = score(points, part.labels)
    own = model.encoder
    images = own.infer_images(
        torch.stack([own.preprocess(split.load(i)) for i in range(len(split))])
    )
    text = own.encode_classes(split.classes)
    for strength, right in zip(STRENGTHS, counts.correct.tolist(), strict=True):
        logits = model.head(images, text, own.scale, strength).logits
        assert abs(int((logits.argmax(1) == torch.tensor(split.labels)).sum()) - right) <= 1


def test_a_run_that_stops_in_a_fold_goes_on_there(
    chosen, data, model_folder, tmp_path, monkeypatch
):
    it, result, _, _ = chosen
    out, done = tmp_path / "out", []
    step = EncoderLoop._step

    def breaking(self, at, batches, state):
        if len(done) == 9:  # half-way through the second fold
            raise RuntimeError("the machine is gone")
        done.append(at)
        return step(self, at, batches, state)

    monkeypatch.setattr(EncoderLoop, "_step", breaking)
    options = {"seed": 1, "output_dir": out}
    with pytest.raises(RuntimeError, match="gone"):
        tuner(load_encoder(model_folder)).fit(data, **options)
    left = [path.name for path in (out / ".rada-state" / "training").iterdir()]
    assert "strength-classes-0" not in left  # counted, so its checkpoints are gone
    done.clear()
    monkeypatch.setattr(EncoderLoop, "_step", lambda *a: done.append(a) or step(*a))
    again = tuner(load_encoder(model_folder))
    found = again.fit(data, **options)
    assert len(done) == 9  # of 18, 9 were made: the second fold goes on from its checkpoint
    assert found["strength_choice"] == result["strength_choice"]
    mine, theirs = it.model.tuned(), again.model.tuned()
    assert all(torch.equal(value, theirs[name]) for name, value in mine.items())
