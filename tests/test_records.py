"""What is read back from disk is checked by one schema: hostile values are named, not crashed on."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from rada.bench.cells import FORMAT, Cell, Folder
from rada.core.errors import CheckpointError, ConfigError
from rada.core.records import ResultRecord, check_record
from rada.training.checkpoints import Checkpoints, RunState
from rada.training.state import TrainingState

HUGE = 10**400
CELL = Cell("few-shot", "zero_shot", "zero_shot", "textiles", 0, 0)
PART = {"name": "test", "images": 4, "classes": 2, "accuracy": 0.5}
RESULT: dict[str, Any] = {
    "parts": {"test": PART},
    "trainable_parameters": 0,
    "fit_seconds": 0.0,
    "predict_seconds": 0.0,
    "memory": None,
    "config": {},
    "environment": {},
}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("parts", []),
        ("parts", {"test": 1}),
        ("parts", {"test": PART | {"accuracy": HUGE}}),
        ("parts", {"test": PART | {"accuracy": "high"}}),
        ("parts", {"test": PART | {"images": -1}}),
        ("cell", "few-shot"),
        ("cell", {}),
        ("cell", CELL.to_dict() | {"seed": HUGE}),
        ("rada_version", 1),
        ("format", HUGE),
        ("memory", "much"),
        ("fit_seconds", None),
    ],
)
def test_results_of_a_benchmark(tmp_path: Path, field: str, value: object) -> None:
    folder = Folder(tmp_path / "out")
    folder.open({"model": "embedded"})
    folder.write(CELL, RESULT)
    assert folder.finished(CELL) and len(list(folder.results())) == 1
    path = folder.result_path(CELL)
    assert json.loads(path.read_text())["format"] == FORMAT
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises((CheckpointError, ConfigError), match=field):
        list(folder.results())


@pytest.mark.parametrize(
    ("field", "value"),
    [("epoch", HUGE), ("epoch", "1"), ("key", 1), ("history", 1), ("history", [1]), ("more", 1)],
)
def test_states_of_training(tmp_path: Path, field: str, value: object) -> None:
    path = tmp_path / "state.safetensors"
    values = {"key": "k", "epoch": 1, "history": [{"loss": 1.0}]} | {field: value}
    for text in (json.dumps(values), '{"key": NaN}', "[" * 100_000, "\\ud800"):
        save_file({"weights/a": torch.ones(1)}, path, metadata={"rada_training": text})
        with pytest.raises(CheckpointError, match="damaged"):
            TrainingState.load(path)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("step", HUGE),
        ("step", None),
        ("sums", {"loss": "a"}),
        ("best", 1),
        ("groups", [1]),
        ("x", 1),
    ],
)
def test_checkpoints(tmp_path: Path, field: str, value: object) -> None:
    store = Checkpoints(tmp_path / "c", {}, 2)
    store.claim(overwrite=False)
    for step in (1, 2):
        store.save(RunState(step=step), {"w": torch.ones(1)}, {})
    path = store.all()[-1] / "state.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {field: value}))
    with pytest.raises(CheckpointError, match=field):
        store.load()
    store.claim(overwrite=True)  # gets out: the older one is whole
    found = store.load()
    assert found is not None and found[0].step == 1
    (store.folder / "run.json").write_text("{")
    with pytest.raises(CheckpointError, match="--overwrite"):
        store.claim(overwrite=False)
    store.claim(overwrite=True)
    assert store.load() is None


def test_results_of_fine_tuning() -> None:
    judged = {"accuracy": 0.5, "images": 4}
    both = {"in_distribution": judged, "out_of_distribution": {"dark": judged, "mean": 0.5}}
    whole = {"method": "ft", "data": None, "zero_shot": both, "tuned": both, "wise": []}
    check_record(ResultRecord, whole, error=CheckpointError, what="it")
    for broken in (
        [],
        {},
        whole | {"wise": [{}]},
        whole | {"tuned": {"in_distribution": None}},
        whole | {"tuned": both | {"out_of_distribution": {"dark": {"accuracy": HUGE}}}},
        whole | {"zero_shot": both | {"in_distribution": {"accuracy": "high", "images": 1}}},
    ):
        with pytest.raises(CheckpointError, match="cannot be used"):
            check_record(ResultRecord, broken, error=CheckpointError, what="it")
