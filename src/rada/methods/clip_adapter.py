"""CLIP-Adapter: a bottleneck on the image features, mixed with them."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor, nn
from torch.nn.functional import normalize

from rada.core.config import Config
from rada.methods.base import ClassSet, Method, Predictor, Task
from rada.methods.registry import register_method
from rada.training.feature_loop import Recipe, seeded, train

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["ClipAdapter", "ClipAdapterSettings"]


@dataclass(frozen=True)
class ClipAdapterSettings(Recipe):
    """Settings of CLIP-Adapter; the training recipe is CoOp's, as in its public code.

    Attributes:
        epochs: Passes with more than 4 shots; a half of them with 2 to 4, a quarter with 1.
        reduction: The bottleneck has D / reduction units.
        ratio: Part of the adapter in the mixture.
    """

    epochs: int = 200
    reduction: int = 4
    ratio: float = 0.2

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.reduction >= 1, "reduction", "a positive integer")
        self.require(0 < self.ratio <= 1, "ratio", "in (0, 1]")


class AdapterPredictor(Predictor):
    """`normalise(ratio A(f) + (1 - ratio) f)` against the class features."""

    def __init__(self, dim: int, hidden: int, ratio: float, scale: float) -> None:
        super().__init__(
            "clip_adapter", {"dim": dim, "hidden": hidden, "ratio": ratio, "scale": scale}
        )
        self.ratio, self.scale = ratio, scale
        self.adapter = nn.Sequential(
            nn.Linear(dim, hidden, bias=False),
            nn.ReLU(),
            nn.Linear(hidden, dim, bias=False),
            nn.ReLU(),
        )

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return `scale * cosine` of the mixed features."""
        mixed = self.ratio * self.adapter(images) + (1 - self.ratio) * images
        return self.scale * normalize(mixed, dim=-1) @ classes.text_features.T


@dataclass(frozen=True)
class ClipAdapter(Method):
    """Starts from random weights: zero-shot but for `ratio` of noise."""

    settings: ClassVar[type[Config]] = ClipAdapterSettings

    def start(self, task: Task, config: ClipAdapterSettings) -> Predictor:
        """Return the predictor with PyTorch's initial weights."""
        dim = task.classes.text_features.shape[1]
        hidden = max(1, dim // config.reduction)
        with seeded(task.seed):
            return AdapterPredictor(dim, hidden, config.ratio, task.scale)

    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return a predictor of the right shapes."""
        return AdapterPredictor(**facts)

    def train(
        self,
        predictor: Predictor,
        task: Task,
        config: ClipAdapterSettings,
        *,
        state_path: Path | None,
        progress: bool | None,
    ) -> Predictor:
        """Train the two layers."""
        shots = len(task.labels) / len(task.labels.bincount().nonzero())
        part = 4 if shots <= 1 else 2 if shots <= 4 else 1
        recipe = replace(config, epochs=max(1, config.epochs // part))
        return train(predictor, task, recipe, state_path=state_path, progress=progress)


register_method(
    ClipAdapter(
        "clip_adapter",
        "CLIP-Adapter",
        "Gao et al., CLIP-Adapter: Better Vision-Language Models with Feature Adapters, IJCV 2024",
    )
)
