"""The epoch that does best on the validation split."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from safetensors.torch import load_file, save_file

from rada.core.storage import atomic_path
from rada.evaluation.robustness import Judge, TestSet
from rada.methods.finetune.model import TunedModel
from rada.training.checkpoints import Checkpoints, RunState

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

__all__ = ["BestEpoch"]


class BestEpoch:
    """Keeps the weights of the epoch that did best on the validation split."""

    def __init__(
        self,
        model: TunedModel,
        validation: TestSet,
        judge: Judge,
        checkpoints: Checkpoints | None,
    ) -> None:
        self.model, self.validation, self.judge = model, validation, judge
        self.path = None if checkpoints is None else checkpoints.folder / "best.safetensors"
        self.weights: dict[str, Tensor] | None = None

    def __call__(self, epoch: int, state: RunState, accelerator: Accelerator) -> dict[str, Any]:
        """Judge an epoch; return its metrics."""
        self.model.eval()
        pretrained = "image" not in self.model.trained_towers
        found = self.judge.judge(self.model, self.validation, pretrained=pretrained)
        if found["accuracy"] > state.best.get("accuracy", -1.0):
            state.best = {"epoch": epoch + 1, "accuracy": found["accuracy"]}
            self.weights = self.model.tuned()
            if self.path is not None and accelerator.is_main_process:
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
