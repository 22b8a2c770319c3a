"""The tuning ground: its problems, its cells, and tables that say what the logits say."""

from __future__ import annotations

import importlib
import json
import sys
from argparse import Namespace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from rada import Features
from rada.evaluation import evaluate_logits
from rada.methods import Run, get_method

BENCHMARKS = Path(__file__).resolve().parents[2] / "benchmarks"
PROBLEMS = ("fish", "snakes", "insects", "cifar10", "pacs-photo")


@pytest.fixture
def suite(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    if not (BENCHMARKS / "suite.py").is_file():
        pytest.skip("the benchmarks are not part of this installation")
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("suite")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Namespace:
    """Stand-ins for ImageNet, CIFAR-10 and PACS: other numbers, the same files."""
    folder = tmp_path_factory.mktemp("suite")
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(1000, 16, generator=generator), dim=-1)
    noise = torch.randn(3000, 16, generator=generator) / 4
    images = normalize(text.repeat_interleave(3, 0) + noise, dim=-1)
    labels = torch.arange(1000).repeat_interleave(3)
    one = torch.arange(3000) % 3 == 2
    np.savez(
        folder / "clip.npz",
        text=text.numpy().astype(np.float16),
        one_shot=images[one].numpy().astype(np.float16),
        one_shot_labels=labels[one].numpy(),
        two_shot=images[~one].numpy().astype(np.float16),
        two_shot_labels=labels[~one].numpy(),
    )
    domains = ("photo", "art_painting", "cartoon", "sketch")
    for name in ("cifar10", *(f"pacs-{domain}" for domain in domains)):
        for split, count in (("train", 20), ("test", 9)):
            rows = torch.arange(3).repeat_interleave(count)
            noise = torch.randn(len(rows), 16, generator=generator)
            features = Features(
                normalize(text[rows] + noise / 3, dim=-1),
                rows,
                ("cat", "dog", "eel"),
                ids=tuple(f"{split} {row}.jpg" for row in range(len(rows))),
                text_features=text[:3],
                scale=20.0,
            )
            features.save(folder / f"{name}-{split}.safetensors")
    return Namespace(imagenet=str(folder / "clip.npz"), features=str(folder))


def options(places: Namespace, out: Path, **changes: object) -> Namespace:
    values = {
        "out": str(out),
        "report": None,
        "into": None,
        "methods": ["linear_probe", "mild"],
        "set": ["mild.method=tip_adapter", "mild.alpha=0.5"],
        "part": "all",
        "problems": PROBLEMS,
        "seeds": [1, 2],
        "reference": "mild",
        "jobs": 1,
        "limit": float("inf"),
    }
    return Namespace(**vars(places), **(values | changes))


def test_the_parts_share_no_class_and_are_large_enough(suite: ModuleType) -> None:
    found = suite.groups()
    classes = {
        part: [k for own, labels in found.values() if own == part for k in labels]
        for part in suite.PARTS
    }
    assert not set(classes["tune"]) & set(classes["confirm"])
    assert len(found) >= 24
    for part in suite.PARTS:
        assert sum(own == part for own, _ in found.values()) >= 12
    for _, labels in found.values():
        assert 12 <= len(labels) <= 100
        assert len(set(labels)) == len(labels)
        assert set(labels) <= set(range(1000))


def test_nothing_that_is_learned_from_is_tested_on(suite: ModuleType, places: Namespace) -> None:
    for shots in (1, 2):
        for seed in (1, 2, 3):
            task = suite.base_to_new(places.imagenet, "snakes", shots, seed)
            base, new = task.tests["base"], task.tests["new"]
            assert len(task.train) == shots * len(base.classes)
            assert not set(task.train.ids) & set(base.ids)
            assert len(set(task.train.ids) | set(base.ids)) == 3 * len(base.classes)
            assert not set(base.classes) & set(new.classes)
            assert len(new) == 3 * len(new.classes)
            # The right rows of the file: an image is nearest to its own class, mostly.
            for data in (task.train, base, new):
                right = (data.plain() @ data.text_features.T).argmax(1) == data.labels
                assert right.float().mean() > 0.8
    task = suite.few_shot(places.features, "tune", "pacs-photo", 4, 1)
    assert not set(task.train.ids) & set(task.tests["base"].ids)
    assert len(task.tests["base"]) == 60 - 12
    assert set(task.tests) == {"base", "shifted art_painting", "shifted cartoon", "shifted sketch"}


def test_a_cell_keeps_what_the_metrics_need(
    suite: ModuleType, places: Namespace, tmp_path: Path
) -> None:
    tables = importlib.import_module("suite_tables")
    task = suite.few_shot(places.features, "confirm", "cifar10", 4, 1)
    model = get_method("linear_probe").fit(task.train, None, Run(seed=1))
    data = task.tests["base"]
    expected = evaluate_logits(
        model.logits(data.plain(), data.class_set()), data.labels, data.classes
    )
    found = tables.metrics([tables.Scores.of("base", suite.scored(model, data))])
    assert found["accuracy"] == expected.accuracy
    assert found["balanced"] == pytest.approx(expected.balanced_accuracy)
    assert found["ece"] == pytest.approx(expected.ece, abs=1e-5)


def test_parts_with_other_numbers_of_classes_are_pooled(suite: ModuleType) -> None:
    tables = importlib.import_module("suite_tables")
    few = tables.Scores(2, 0.5, ("a",), np.array([0]), np.array([0]), np.array([0.75]))
    many = tables.Scores(50, 2.0, ("b",), np.array([7]), np.array([40]), np.array([0.25]))
    found = tables.metrics([few, many])
    assert found["accuracy"] == 0.5
    assert found["nll"] == 1.25
    assert found["ece"] == pytest.approx((abs(1 - 0.75) + abs(0 - 0.25)) / 2)


def test_the_gap_counts_every_image_once(suite: ModuleType) -> None:
    tables = importlib.import_module("suite_tables")
    labels, ids = np.zeros(4, dtype=np.int64), ("a", "b", "c", "d")
    worse, better = (
        tables.Scores(2, 0.0, ids, labels, np.array(predicted), np.ones(4))
        for predicted in ([1, 1, 0, 0], [0, 0, 0, 0])
    )
    mean, error = tables.gap([worse], [better])
    assert (mean, error) == (-0.5, pytest.approx(np.sqrt(0.25 / 4)))
    # The same images tested twice say no more than once.
    assert tables.gap([worse, worse], [better, better]) == (mean, error)
    unequal = tables.Scores(2, 0.0, ids, np.array([0, 0, 0, 1]), np.array([1, 1, 1, 1]), np.ones(4))
    right = tables.Scores(2, 0.0, ids, np.array([0, 0, 0, 1]), np.array([0, 0, 0, 1]), np.ones(4))
    assert tables.gap([unequal], [right])[0] == -0.75
    assert tables.gap([unequal], [right], balanced=True) == (-0.5, 0.0)


def test_a_run_is_whole_goes_on_and_is_reported(
    suite: ModuleType,
    places: Namespace,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    tables = importlib.import_module("suite_tables")
    chosen = options(places, tmp_path, part="tune", problems=("fish", "cifar10"))
    cells = 2 * 3 * (2 + 3)  # seeds, methods, numbers of shots
    assert suite.run_all(Namespace(**vars(chosen) | {"limit": 0.0}), 0.0) == []
    assert f"{cells} cells, {cells} to run\n0 cells run, {cells} left" in capsys.readouterr().out
    assert suite.run_all(chosen, suite.time.monotonic()) == []
    assert f"{cells} cells run, 0 left, 0 failed" in capsys.readouterr().out
    assert len(list((tmp_path / "cells").rglob("*.json"))) == cells
    text = tables.write_tables(chosen)
    assert (tmp_path / "tables.md").read_text() == text
    result = json.loads((tmp_path / "result.json").read_text())["parts"]["tune"]
    probe, zero = (result["base to new"][name] for name in ("linear_probe", "zero_shot"))
    assert probe["new"] is None  # it refuses new classes
    assert probe["hm"] is None
    assert zero["new"]["accuracy"] > 0.5
    assert zero["below_zero_shot"]["new"]["count"] == 0
    assert result["CIFAR-10"]["mild"]["accuracy"].keys() == {"1", "4", "16"}
    # Whatever was run is not run again, and a second report is the same.
    assert not any(suite.missing(cell, suite.planned(chosen), tmp_path) for cell in _cells(suite))
    again = Namespace(**vars(chosen) | {"out": None, "report": str(tmp_path)})
    assert tables.write_tables(again) == text
    # Other values under the same label are refused, not mixed.
    monkeypatch.setattr(
        sys, "argv", _command(Namespace(**vars(chosen) | {"set": ["mild.method=tip_adapter"]}))
    )
    assert suite.main() == 2
    assert "another configuration" in capsys.readouterr().err


def _cells(suite: ModuleType) -> list[object]:
    return [suite.Cell("tune", "fish", 1, 1, label) for label in ("zero_shot", "mild")]


def _command(chosen: Namespace) -> list[str]:
    return [
        *("suite.py", "--out", chosen.out, "--imagenet", chosen.imagenet, "--methods", "mild"),
        *("--set", *chosen.set, "--part", "tune", "--problems", "fish", "--seeds", "1"),
    ]


def test_methods_that_need_an_encoder_are_refused(
    suite: ModuleType, places: Namespace, tmp_path: Path
) -> None:
    from rada.errors import ConfigError

    for method in ("coop", "ft", "zero_shot+tpt"):
        with pytest.raises(ConfigError, match="features alone"):
            suite.planned(options(places, tmp_path, methods=[method], set=[]))


def test_a_failure_is_a_file_and_the_others_go_on(
    suite: ModuleType, places: Namespace, tmp_path: Path
) -> None:
    cell = suite.Cell("tune", "cifar10", 99, 1, "zero_shot")  # there are 20 images a class
    where = suite.Places(places.imagenet, places.features)
    message = suite.work(where, cell, "zero_shot", {}, str(tmp_path))
    assert "DataError" in message
    assert (tmp_path / "failed" / cell.path).exists()
    assert not (tmp_path / "cells").exists()
