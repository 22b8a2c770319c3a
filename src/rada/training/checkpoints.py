"""Checkpoints: all that a run needs to go on, to the bit; a folder each, written in one step."""

from __future__ import annotations

import json
import shutil
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rada.core.errors import CheckpointError
from rada.core.records import RunStateRecord, check_record
from rada.core.storage import read_json, whole_directory, write_json

__all__ = ["RUN_FILE", "Checkpoints", "RunState", "collect", "differences", "restore"]

_FORMAT = "rada-fft-1"

RUN_FILE = "run.json"


@dataclass
class RunState:
    """Where a run stands.

    Attributes:
        step: Steps that are done, over all epochs.
        history: One entry for each epoch that is done.
        sums: Sums over the steps of the epoch that is not.
        best: `{"epoch", "accuracy"}` of the best epoch on the validation split, if it is selected by.
        groups: The optimiser's groups.
        scaler: State of the gradient scaler; empty where there is none (it comes with fp16).
    """

    step: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    sums: dict[str, float] = field(default_factory=dict)
    best: dict[str, float] = field(default_factory=dict)
    groups: list[dict[str, Any]] = field(default_factory=list)
    scaler: dict[str, Any] = field(default_factory=dict)


def differences(found: dict[str, Any], wanted: dict[str, Any]) -> list[str]:
    """Name what differs between two runs.

    Example:
        >>> differences({"config": {"epochs": 2}}, {"config": {"epochs": 3}})
        ['config.epochs is 2 there and 3 here']
    """
    different = []
    for key in sorted(found.keys() | wanted.keys()):
        old, new = found.get(key), wanted.get(key)
        if isinstance(old, dict) and isinstance(new, dict):
            different += [f"{key}.{text}" for text in differences(old, new)]
        elif old != new:
            different.append(f"{key} is {old!r} there and {new!r} here")
    return different


class Checkpoints:
    """The checkpoints of one run.

    Args:
        folder: Holds `run.json` and a folder for each checkpoint.
        run: What determines the run, as plain JSON.
        keep: How many to keep.
    """

    def __init__(self, folder: Path, run: dict[str, Any], keep: int) -> None:
        self.folder, self.keep = folder, keep
        self.run = json.loads(json.dumps(run))

    def claim(self, *, overwrite: bool) -> None:
        """Take the folder for this run.

        Raises:
            CheckpointError: If it holds checkpoints of another run and `overwrite` is off; the message
                names what differs.
        """
        path = self.folder / RUN_FILE
        if path.exists():
            different = self._differences(path)
            if not different:
                # Of a process that was killed while it wrote.
                for rest in self.folder.glob(".step-*"):
                    shutil.rmtree(rest, ignore_errors=True)
                if overwrite:
                    self._drop_damaged()
                return
            if not overwrite:
                raise CheckpointError(
                    f"{str(self.folder)!r} holds another run ({'; '.join(different[:3])}): choose "
                    "another folder, or replace it with --overwrite (overwrite=True)"
                )
            shutil.rmtree(self.folder)
        write_json(path, self.run)

    def _differences(self, path: Path) -> list[str]:
        """Name what differs between the run in the folder and this one."""
        try:
            found = read_json(path, error=CheckpointError, what="the description of the run")
        except CheckpointError as error:
            return [str(error)]
        return differences(found if isinstance(found, dict) else {}, self.run)

    def _drop_damaged(self) -> None:
        """Delete the newest checkpoints until one can be read."""
        for newest in reversed(self.all()):
            try:
                self.load()
                return
            except CheckpointError:
                shutil.rmtree(newest)

    def all(self) -> list[Path]:
        """Return the checkpoints, oldest first."""
        return sorted(path for path in self.folder.glob("step-*") if path.is_dir())

    def save(self, state: RunState, weights: dict[str, Tensor], moments: dict[str, Tensor]) -> None:
        """Write a checkpoint, then drop those that are too many.

        Raises:
            StorageError: If it cannot be written; the older ones are kept then.
        """
        target = self.folder / f"step-{state.step:08d}"
        with whole_directory(target) as temporary:
            for name, tensors in (("weights", weights), ("optimizer", moments)):
                whole = {key: value.contiguous() for key, value in tensors.items()}
                save_file(whole, temporary / f"{name}.safetensors", metadata={"format": _FORMAT})
            write_json(temporary / "state.json", state.__dict__)
        for old in self.all()[: -self.keep]:
            shutil.rmtree(old, ignore_errors=True)

    def load(self) -> tuple[RunState, dict[str, Tensor], dict[str, Tensor]] | None:
        """Return the newest checkpoint; None if there is none.

        Raises:
            CheckpointError: If it is damaged.
        """
        found = self.all()
        if not found:
            return None
        newest = found[-1]
        values = read_json(newest / "state.json", error=CheckpointError, what="the checkpoint")
        what = f"the checkpoint {str(newest)!r}"
        check_record(RunStateRecord, values, error=CheckpointError, what=what)
        try:
            state = RunState(**values)
            tensors = [_read(newest / f"{name}.safetensors") for name in ("weights", "optimizer")]
        except (TypeError, SafetensorError, OSError) as error:
            raise CheckpointError(
                f"the checkpoint {str(newest)!r} is damaged ({error}): delete it to go on from an older one"
            ) from error
        return state, tensors[0], tensors[1]


def _read(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as stream:
        return {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118


def collect(
    model: nn.Module, optimizer: torch.optim.Optimizer, names: Collection[str]
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, Any]]]:
    """Return weights, the optimiser's tensors and its groups, on the CPU.

    Works on a plain model, a distributed and a sharded one; all processes must call it, and those
    beside the first get nothing.

    Args:
        model: The model as it is trained.
        optimizer: Its optimiser.
        names: Which weights.
    """
    from torch.distributed.checkpoint.state_dict import StateDictOptions, get_state_dict

    options = StateDictOptions(full_state_dict=True, cpu_offload=True)
    weights, found = get_state_dict(model, optimizer, options=options)
    if not found:
        return {}, {}, []
    state: Any = found["state"]  # torch's type admits far more than what an optimiser of ours holds
    moments = {
        f"{name}|{moment}": value
        for name, entry in state.items()
        for moment, value in entry.items()
    }
    chosen: dict[str, Any] = {name: value for name, value in weights.items() if name in names}
    groups: Any = found["param_groups"]
    return chosen, moments, groups


def _unused(optimizer: torch.optim.Optimizer, weight: Tensor) -> dict[str, Tensor]:
    """Return the moments of a parameter that took no step yet."""
    if isinstance(optimizer, torch.optim.SGD):
        return {"momentum_buffer": torch.zeros_like(weight)}
    zeros = {moment: torch.zeros_like(weight) for moment in ("exp_avg", "exp_avg_sq")}
    return {"step": torch.tensor(0.0), **zeros}


def restore(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    weights: dict[str, Tensor],
    moments: dict[str, Tensor],
    groups: list[dict[str, Any]],
) -> None:
    """Put back what `collect` returned."""
    from torch.distributed.checkpoint.state_dict import StateDictOptions, set_state_dict

    model.zero_grad(set_to_none=True)  # with gradients about, torch makes no room for the moments
    entries: dict[str, dict[str, Tensor]] = {}
    for key, value in moments.items():
        name, _, moment = key.rpartition("|")
        entries.setdefault(name, {})[moment] = value
    for name in {name for group in groups for name in group["params"]} - entries.keys():
        # No loss has reached this parameter yet, but the optimiser wants to hear of all of them.
        entries[name] = _unused(optimizer, weights[name])
    set_state_dict(
        model,
        optimizer,
        model_state_dict=cast("Any", weights),
        optim_state_dict=cast("Any", {"state": entries, "param_groups": groups}),
        options=StateDictOptions(full_state_dict=True, cpu_offload=True, strict=False),
    )
