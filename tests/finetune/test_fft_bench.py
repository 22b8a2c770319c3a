"""Full fine-tuning as methods of the benchmark."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rada import FFTConfig, extract_features
from rada.bench.plan import Plan
from rada.bench.run import run_plan
from rada.core.errors import ConfigError
from rada.data import open_dataset
from rada.methods import (
    ClassSet,
    Examples,
    Task,
    UnknownClassError,
    get_method,
    list_methods,
    load_predictor,
)

NAMES = [method.name for method in list_methods() if "pictures" in method.needs]
CONFIG = FFTConfig(
    epochs=3, batch_size=8, learning_rate=1e-3, head_epochs=2, num_heads=2, strength=1.0
)


@pytest.fixture
def task(encoder, data) -> Task:
    split = open_dataset(data).split("train")
    features = extract_features(encoder, split, workers=0, progress=False)
    classes = ClassSet(split.classes, encoder.encode_classes(split.classes))
    examples = Examples(features.image_features, split)
    return Task(examples, features.labels, classes, encoder.scale, seed=1, encoder=encoder)


def test_those_that_train_towers_are_there():
    assert NAMES == ["ft", "l2_sp", "lp_ft", "flyp", "rada_ft"]


@pytest.mark.parametrize("name", NAMES)
def test_fit_predict_save_and_load(name, task, encoder, tmp_path):
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    predictor = get_method(name).fit(task, CONFIG)
    found = predictor.predict(task.examples, task.classes)
    assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())
    start = get_method(name).start(task, CONFIG)
    loss = torch.nn.functional.cross_entropy
    first = loss(start.predict(task.examples, task.classes), task.labels)
    assert loss(found, task.labels) < first
    predictor.save(tmp_path / "p.safetensors")
    loaded = load_predictor(tmp_path / "p.safetensors", encoder)
    torch.testing.assert_close(loaded.predict(task.examples, task.classes), found)
    order = [3, 1, 0, 2]
    permuted = predictor.predict(task.examples, task.classes.take(order))
    torch.testing.assert_close(permuted, found[:, order])
    strange = ClassSet(("red", "dog"), task.classes.text_features[:2])
    if get_method(name).open_set:
        assert predictor.predict(task.examples, strange).shape == (len(found), 2)
    else:
        with pytest.raises(UnknownClassError, match="'dog'"):
            predictor.predict(task.examples, strange)
    with pytest.raises(ConfigError, match="features alone"):
        predictor.predict(Examples(task.examples.image_features), task.classes)


def test_rada_ft_chooses_its_strength_and_keeps_it(task, encoder, tmp_path):
    config = dataclasses.replace(CONFIG, epochs=1, strength="auto", strength_folds=2)
    predictor = get_method("rada_ft").fit(task, config)
    choice = predictor.record["strength_choice"]
    assert choice["method"] == "classes" and predictor.record["effective"]["steps"] == 3
    predictor.model.strength = dataclasses.replace(
        predictor.model.strength, strength=0.0, trained_strength=0.5
    )
    predictor.facts["strength"] = predictor.model.strength.to_dict()
    found = predictor.predict(task.examples, task.classes)
    predictor.save(tmp_path / "p.safetensors")
    loaded = load_predictor(tmp_path / "p.safetensors", encoder)
    torch.testing.assert_close(loaded.predict(task.examples, task.classes), found)
    strange = ClassSet(("red", "dog"), task.classes.text_features[:2])
    for it in (predictor, loaded):
        assert it.model.strength_for(task.classes.names) == 0.5
        assert it.model.strength_for(strange.names) == 0.0


def test_goes_on_from_its_state(task, tmp_path, monkeypatch):
    from rada.training.encoder_loop import TowerTraining

    method = get_method("rada_ft")
    whole = method.fit(task, CONFIG, state_path=tmp_path / "whole")
    step = TowerTraining._step

    def breaking(self, at, batches, state):
        if state.step == 5:
            raise RuntimeError("the machine is gone")
        return step(self, at, batches, state)

    monkeypatch.setattr(TowerTraining, "_step", breaking)
    with pytest.raises(RuntimeError, match="gone"):
        method.fit(task, CONFIG, state_path=tmp_path / "broken")
    monkeypatch.undo()
    again = method.fit(task, CONFIG, state_path=tmp_path / "broken")
    pairs = zip(whole.state_dict().values(), again.state_dict().values(), strict=True)
    assert all(torch.equal(a, b) for a, b in pairs)


def test_in_a_benchmark(data, model_folder, tmp_path):
    settings = {"epochs": 1, "batch_size": 8, "head_epochs": 1, "num_heads": 2}
    plan = Plan(
        methods=("zero_shot", "flyp"),
        datasets=(str(data),),
        protocols=("base-to-new",),
        shots=(2,),
        seeds=(1,),
        model=str(model_folder),
        options={"flyp": settings},
    )
    summary = run_plan(plan, tmp_path / "out", progress=False)
    assert not summary.failed and summary.done == 2


def test_functions_of_ones_own_are_refused(task):
    from rada import CustomEncoder

    layer = torch.nn.Linear(3, 24)
    encoder = CustomEncoder(
        lambda x: layer(x.mean((2, 3))),
        lambda texts: torch.ones(len(texts), 24),
        scale=10.0,
        dim=24,
        image_module=layer,
    )
    with pytest.raises(ConfigError, match=r"use rada\.FineTuner"):
        get_method("ft").fit(dataclasses.replace(task, encoder=encoder), CONFIG)
