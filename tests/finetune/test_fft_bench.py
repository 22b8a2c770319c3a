"""Methods that train an encoder as methods like others: on features with the images behind them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rada import extract_features
from rada.bench.plan import Plan
from rada.bench.run import run_plan
from rada.core.errors import ConfigError, UnknownClassError
from rada.data import open_dataset
from rada.features import ClassSet, Features
from rada.methods import Run, get_method, list_methods

NAMES = [method.name for method in list_methods() if "images" in method.needs]
CONFIG = {"epochs": 3, "batch_size": 8, "learning_rate": 1e-3}
OWN = {"rada_ft": {"head_epochs": 2, "num_heads": 2, "strength": 1.0}}


def config(name):
    return get_method(name).config(**CONFIG | OWN.get(name, {}))


@pytest.fixture
def features(encoder, data) -> Features:
    split = open_dataset(data).split("train")
    found = extract_features(encoder, split, workers=0, progress=False)
    text = encoder.encode_classes(split.classes)
    return dataclasses.replace(found, text_features=text, scale=encoder.scale)


def test_those_that_train_an_encoder_are_there():
    assert NAMES == ["ft", "l2_sp", "lp_ft", "flyp", "rada_ft"]
    for name in NAMES:
        method = get_method(name)
        assert method.train_encoder and method.cost == "image encoder"


@pytest.mark.parametrize("name", NAMES)
def test_fit_and_predict(name, features, encoder):
    method = get_method(name)
    before = {key: value.clone() for key, value in encoder.model.state_dict().items()}
    model = method.fit(features, config(name), Run(seed=1, encoder=encoder))
    classes, images = features.class_set(), model.features_of(features)
    found = model.logits(images, classes)
    assert all(torch.equal(v, before[k]) for k, v in encoder.model.state_dict().items())
    loss = torch.nn.functional.cross_entropy
    first = loss(model.facts.scale * features.plain() @ classes.text_features.T, features.labels)
    assert loss(found, features.labels) < first
    order = [3, 1, 0, 2]
    torch.testing.assert_close(model.logits(images, classes.take(order)), found[:, order])
    strange = ClassSet(("red", "dog"), classes.text_features[:2])
    if method.new_classes:
        assert model.logits(images, strange).shape == (len(found), 2)
    else:
        with pytest.raises(UnknownClassError, match="'dog'"):
            model.logits(images, strange)
    with pytest.raises(ConfigError, match="features alone"):
        alone = dataclasses.replace(features, images=None)
        method.fit(alone, config(name), Run(seed=1, encoder=encoder))


def test_goes_on_from_its_state(features, encoder, tmp_path, monkeypatch):
    from rada.training.encoder_loop import EncoderLoop

    method = get_method("rada_ft")

    def fit(folder):
        run = Run(seed=1, encoder=encoder, state_dir=tmp_path / folder)
        return method.fit(features, config("rada_ft"), run)

    whole = fit("whole")
    step = EncoderLoop._step

    def breaking(self, at, batches, state):
        if state.step == 5:
            raise RuntimeError("the machine is gone")
        return step(self, at, batches, state)

    monkeypatch.setattr(EncoderLoop, "_step", breaking)
    with pytest.raises(RuntimeError, match="gone"):
        fit("broken")
    monkeypatch.undo()
    again = fit("broken")
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
