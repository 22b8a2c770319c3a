"""The epoch that does best on the validation split."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_file, save_file
from torch import Tensor

from rada.core.storage import atomic_path
from rada.training.checkpoints import RunState

__all__ = ["BestEpoch", "Tunable"]


class Tunable(Protocol):
    """A model whose weights can be taken out and put back."""

    def tuned(self) -> dict[str, Tensor]:
        """Return copies on the CPU of all that can differ from the pretrained model."""

    def load_tuned(self, weights: Mapping[str, Tensor]) -> None:
        """Put weights back that `tuned` returned."""


class BestEpoch:
    """Keeps the weights of the epoch that did best on the validation split.

    Args:
        model: The model.
        evaluate: Returns its metrics on the validation split, "accuracy" among them.
        path: File that the best weights are kept in; None keeps them in memory alone.
    """

    def __init__(
        self, model: Tunable, evaluate: Callable[[], dict[str, Any]], path: Path | None
    ) -> None:
        self.model, self.evaluate, self.path = model, evaluate, path
        self.weights: dict[str, Tensor] | None = None

    def __call__(self, epoch: int, state: RunState, *, write: bool) -> dict[str, Any]:
        """Evaluate an epoch; return its metrics.

        Args:
            epoch: The epoch, from 0.
            state: Gets which epoch is the best so far.
            write: Whether this process writes the file.
        """
        found = self.evaluate()
        if found["accuracy"] > state.best.get("accuracy", -1.0):
            state.best = {"epoch": epoch + 1, "accuracy": found["accuracy"]}
            self.weights = self.model.tuned()
            if self.path is not None and write:
                with atomic_path(self.path) as temporary:
                    # The image encoder's convolutions lie channels last, which safetensors refuses.
                    save_file({k: v.contiguous() for k, v in self.weights.items()}, temporary)
        return found

    def restore(self) -> None:
        """Put the best weights back."""
        if self.weights is None and self.path is not None:
            self.weights = load_file(self.path)
        if self.weights is not None:
            self.model.load_tuned(self.weights)
