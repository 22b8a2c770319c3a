"""RAda: the head on frozen encoders, with this library's defaults."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rada.core.config import Config, EFTConfig
from rada.head import RAdaHead
from rada.methods.base import ClassSet, Method, Predictor, Task
from rada.methods.registry import register_method
from rada.methods.strength import keep_choice, strength_for
from rada.training import train_head
from rada.training.eft import describe
from rada.training.feature_loop import seeded

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["HeadPredictor", "RAda"]

SOURCE = "One Last Attention for Your Vision-Language Model, ICCV 2025, arXiv 2507.15480"


class HeadPredictor(Predictor):
    """A RAda head with its strength.

    Attributes:
        alpha: Weight of the smoothness term in `loss`.
    """

    strength: Tensor

    def __init__(
        self, method: str, head: RAdaHead, scale: float, strength: float = 1.0, alpha: float = 0.0
    ) -> None:
        facts = {"dim": head.dim, "num_heads": head.num_heads, "temperature": head.temperature}
        super().__init__(method, facts | {"scale": scale, "alpha": alpha})
        self.head, self.scale, self.alpha = head, scale, alpha
        self.register_buffer("strength", torch.tensor(strength, dtype=torch.float64))

    @classmethod
    def from_facts(cls, method: str, facts: dict[str, Any]) -> HeadPredictor:
        """Return a predictor of the right shapes."""
        head = RAdaHead(int(facts["dim"]), int(facts["num_heads"]), float(facts["temperature"]))
        predictor = cls(method, head, float(facts["scale"]), alpha=float(facts["alpha"]))
        predictor.facts = dict(facts)
        return predictor

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the head's logits; the head sees exactly these classes."""
        strength = strength_for(self, classes)
        logits: Tensor = self.head(images, classes.text_features, self.scale, strength).logits
        return logits

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Tensor:
        """Return cross-entropy plus `alpha * mean_b max |M - 1|`, at full strength."""
        output = self.head(images, classes.text_features, self.scale)
        smoothness: Tensor = output.max_deviation.mean()
        return cross_entropy(output.logits, labels) + self.alpha * smoothness


@dataclass(frozen=True)
class RAda(Method):
    """Starts as zero-shot; trained by `rada.train_head`."""

    settings: ClassVar[type[Config]] = EFTConfig

    def start(self, task: Task, config: EFTConfig) -> Predictor:
        """Return the head whose mask is one."""
        dim = task.classes.text_features.shape[1]
        with seeded(task.seed):
            head = RAdaHead(dim, config.num_heads, config.temperature)
        return HeadPredictor(self.name, head, task.scale, alpha=config.alpha)

    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return a head of the right shapes."""
        return HeadPredictor.from_facts(self.name, facts)

    def train(
        self,
        predictor: Predictor,
        task: Task,
        config: EFTConfig,
        *,
        state_path: Path | None,
        progress: bool | None,
    ) -> Predictor:
        """Train the head and choose its strength."""
        trained = train_head(
            task.examples.image_features,
            task.labels,
            task.classes.text_features,
            task.scale,
            config,
            task.seed,
            checkpoint_dir=state_path and state_path.with_suffix(""),
            progress=progress,
        )
        found = HeadPredictor(self.name, trained.head, task.scale, alpha=config.alpha)
        keep_choice(found, task, trained.strength, trained.strength_choice)
        found.record |= {key: describe(trained)[key] for key in ("history", "effective")}
        return found


register_method(RAda("rada", "RAda", SOURCE))
