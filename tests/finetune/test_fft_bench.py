"""Full fine-tuning through the interface of every method: fit, predict, save and load, go on, benchmark."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import cross_entropy

from rada.bench.plan import Plan
from rada.bench.run import run_plan
from rada.core.errors import ConfigError, FeatureError
from rada.features import ClassSet
from rada.methods import Run, UnknownClassError, get_method, list_methods
from rada.methods.finetune.base import EncoderConfig
from rada.pretrained import EncoderId, Fitted, load_model, save_model
from rada.training.strength import Strength

INSIDE = [
    "clip_lora",
    "maple",
    "promptsrc",
    "mma",
    "mmrl",
    "dept_maple",
    "dept_promptsrc",
    "rada_promptsrc",
]  # they put something into the encoders
NAMES = ["prolip", *INSIDE, "ft", "l2_sp", "lp_ft", "flyp", "rada_ft"]
QUICK = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3}
OWN = {
    "rada_ft": {"head_epochs": 2, "num_heads": 2, "strength": 1.0},
    "prolip": {"iterations": 20, "learning_rate": 1e-3},
}


def config(name, **changes):
    common = QUICK if name != "prolip" else {}
    return get_method(name).config(**common | OWN.get(name, {}) | changes)


def predicted(model, examples, classes=None):
    return model.logits(model.features_of(examples), classes or examples.class_set())


def saved_and_loaded(model, examples, encoder, folder):
    origin = EncoderId(encoder.name, encoder.fingerprint)
    save_model(folder, Fitted(model, examples.classes, encoder=origin))
    return load_model(folder).model


def test_those_that_train_encoders_are_there():
    tuned = [m.name for m in list_methods() if issubclass(m.config, EncoderConfig)]
    assert ["prolip", *tuned] == NAMES
    assert [method.name for method in list_methods() if method.train_encoder] == NAMES
    assert [method.name for method in list_methods() if "images" in method.needs] == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_fit_predict_save_and_load(name, examples, encoder, tmp_path):
    method, run = get_method(name), Run(seed=1, encoder=encoder)
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    model = method.fit(examples, config(name), run)
    found = predicted(model, examples)
    assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())
    start = method.start(examples, config(name), run)
    first = cross_entropy(predicted(start, examples), examples.labels)
    assert cross_entropy(found, examples.labels) < first
    loaded = saved_and_loaded(model, examples, encoder, tmp_path / "model")
    torch.testing.assert_close(predicted(loaded, examples), found)
    order = [3, 1, 0, 2]
    permuted = predicted(model, examples, examples.class_set().take(order))
    torch.testing.assert_close(permuted, found[:, order])
    others = ClassSet(("red", "dog"), examples.text_features[:2])
    if method.new_classes:
        assert predicted(model, examples, others).shape == (len(found), 2)
    else:
        with pytest.raises(UnknownClassError, match="'dog'"):
            predicted(model, examples, others)
    alone = dataclasses.replace(examples, images=None)
    with pytest.raises(FeatureError, match="features alone"):
        predicted(model, alone)
    with pytest.raises(ConfigError, match="features alone"):
        method.fit(alone, config(name), run)


def test_rada_ft_chooses_its_strength_and_keeps_it(examples, encoder, tmp_path):
    chosen = config("rada_ft", epochs=1, strength="auto", strength_folds=2)
    model = get_method("rada_ft").fit(examples, chosen, Run(seed=1, encoder=encoder))
    choice = model.record["strength_choice"]
    assert choice["method"] == "classes" and model.record["effective"]["steps"] == 3
    assert model.strength.classes == examples.classes
    model.strength = Strength(0.0, 0.5, examples.classes)
    found = predicted(model, examples)
    loaded = saved_and_loaded(model, examples, encoder, tmp_path / "model")
    torch.testing.assert_close(predicted(loaded, examples), found)
    for it in (model, loaded):
        assert it.strength.for_classes(examples.classes) == 0.5
        assert it.strength.for_classes(("red", "dog")) == 0.0


def test_goes_on_from_its_state(examples, encoder, tmp_path, monkeypatch):
    from rada.training.encoder_loop import EncoderLoop

    method = get_method("rada_ft")

    def fit(folder):
        return method.fit(
            examples, config("rada_ft"), Run(seed=1, encoder=encoder, state_dir=folder)
        )

    whole = fit(tmp_path / "whole")
    step = EncoderLoop._step

    def breaking(self, at, batches, state):
        if state.step == 5:
            raise RuntimeError("the machine is gone")
        return step(self, at, batches, state)

    monkeypatch.setattr(EncoderLoop, "_step", breaking)
    with pytest.raises(RuntimeError, match="gone"):
        fit(tmp_path / "broken")
    monkeypatch.undo()
    again = fit(tmp_path / "broken")
    pairs = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_in_a_benchmark(data, model_folder, tmp_path):
    plan = Plan(
        methods=("zero_shot", "flyp"),
        datasets=(str(data),),
        protocols=("base-to-new",),
        shots=(2,),
        seeds=(1,),
        model=str(model_folder),
        options={"flyp": {"epochs": 1, "batch_size": 8}},
    )
    summary = run_plan(plan, tmp_path / "out", progress=False)
    assert not summary.failed and summary.done == 2
