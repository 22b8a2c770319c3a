"""The state of a training run on disk: safetensors and JSON, one file, exact to the bit."""

from __future__ import annotations

import hashlib
import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from rada.core.errors import CheckpointError
from rada.core.records import StateRecord, check_record
from rada.core.storage import atomic_path, parse_json

__all__ = ["TrainingState", "fingerprint_tensors"]

_SHARE = 0.05  # of the time of a run may go into writing its state


def fingerprint_tensors(*tensors: Tensor, extra: object = None) -> str:
    """Hash the content, shapes and types of tensors together with a JSON value.

    Example:
        >>> import torch
        >>> fingerprint_tensors(torch.zeros(2)) == fingerprint_tensors(torch.zeros(3))
        False
    """
    digest = hashlib.blake2b(digest_size=16)
    digest.update(json.dumps(extra, sort_keys=True).encode())
    for tensor in tensors:
        digest.update(f"{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


@dataclass
class TrainingState:
    """Where a run stands: finished epochs, weights, optimiser moments and the curve so far.

    Attributes:
        key: Fingerprint of everything that determines the run; a state with another key is another
            run's.
        epoch: Number of finished epochs.
        weights: The head's state dict.
        moments: Optimiser tensors under `"<parameter>.<moment>"`.
        history: One entry an epoch.
    """

    key: str
    epoch: int = 0
    weights: dict[str, Tensor] = field(default_factory=dict)
    moments: dict[str, Tensor] = field(default_factory=dict)
    history: list[dict[str, float]] = field(default_factory=list)
    _due: float = field(default=0.0, repr=False, compare=False)

    def due(self) -> bool:
        """Whether to save now: always at first, then so seldom that it costs little.

        Writing the state takes longer than a short epoch, so it waits for 20 times what the
        last writing took.
        """
        return time.monotonic() >= self._due

    def save(self, path: Path) -> None:
        """Write the state to `path` in one step.

        Raises:
            StorageError: If the place cannot be written.
        """
        began = time.monotonic()
        tensors = {f"weights/{name}": value for name, value in self.weights.items()}
        tensors |= {f"moments/{name}": value for name, value in self.moments.items()}
        metadata = {"key": self.key, "epoch": self.epoch, "history": self.history}
        with atomic_path(path) as temporary:
            save_file(
                {name: value.detach().cpu().contiguous() for name, value in tensors.items()},
                temporary,
                metadata={"rada_training": json.dumps(metadata)},
            )
        now = time.monotonic()
        self._due = now + (now - began) / _SHARE

    @classmethod
    def load(cls, path: Path) -> TrainingState:
        """Read a state.

        Raises:
            CheckpointError: If the file is damaged.
        """
        try:
            with safe_open(path, framework="pt") as stream:
                metadata: dict[str, Any] = parse_json(stream.metadata()["rada_training"])
                check_record(StateRecord, metadata, error=CheckpointError, what="its description")
                state = cls(metadata["key"], metadata["epoch"], history=metadata["history"])
                for name in stream.keys():  # noqa: SIM118 - safe_open is not a mapping
                    kind, _, rest = name.partition("/")
                    target = state.weights if kind == "weights" else state.moments
                    target[rest] = stream.get_tensor(name)
        except (
            *(SafetensorError, KeyError, TypeError, ValueError, OSError, RecursionError),
            CheckpointError,
        ) as error:
            raise CheckpointError(
                f"the training state {str(path)!r} is damaged ({error}): delete it to start afresh"
            ) from error
        return state


def optimizer_moments(head: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """Return the optimiser's tensors by parameter name."""
    return {
        f"{name}.{moment}": value
        for name, parameter in head.named_parameters()
        for moment, value in optimizer.state.get(parameter, {}).items()
    }


def restore_moments(
    head: nn.Module, optimizer: torch.optim.Optimizer, moments: dict[str, Tensor]
) -> None:
    """Put tensors from `optimizer_moments` back."""
    for name, parameter in head.named_parameters():
        for key, value in moments.items():
            owner, _, moment = key.rpartition(".")
            if owner == name:
                # Adam counts steps on the CPU in float32, whatever the parameter's place and type.
                place = value if moment == "step" else value.to(parameter.device, parameter.dtype)
                optimizer.state[parameter][moment] = place
