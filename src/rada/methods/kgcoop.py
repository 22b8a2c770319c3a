"""KgCoOp: CoOp whose class features stay near those of the hand-written prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from rada.core.config import Config
from rada.features import ClassSet
from rada.methods.prompts import PromptConfig, PromptMethod, PromptModel
from rada.methods.registry import register_method
from rada.training.feature_loop import Losses, class_logits_loss

__all__ = ["KGCOOP", "KgCoOp", "KgCoOpConfig", "drift"]


@dataclass(frozen=True)
class KgCoOpConfig(PromptConfig):
    """Configuration of KgCoOp, as published.

    Attributes:
        weight: Weight of the distance to the hand-written prompts.
    """

    epochs: int = 100
    batch_size: int = 128
    weight: float = 8.0

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.weight >= 0, "weight", "0 or more")


def drift(learned: Tensor, written: Tensor) -> Tensor:
    """Return one minus the mean cosine of unit-norm features, `(K, D)` both."""
    return 1 - (learned * written.to(learned)).sum(-1).mean()


class KgCoOpModel(PromptModel):
    """A context whose class features are held near those of the data set's own prompts."""

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Losses:
        """Return cross-entropy plus the weighted distance to the hand-written prompts."""
        assert isinstance(self.config, KgCoOpConfig)
        prepared = self.prepare(classes)
        far = self.config.weight * drift(prepared.text_features, classes.text_features)
        return class_logits_loss(self.score(images, prepared), labels, drift=far)


@dataclass(frozen=True)
class KgCoOp(PromptMethod):
    """Starts as zero-shot with the prompt "CONTEXT NAME."."""

    config: ClassVar[type[Config]] = KgCoOpConfig
    model = KgCoOpModel


KGCOOP = KgCoOp(
    "kgcoop",
    "KgCoOp",
    "Yao et al., Visual-Language Prompt Tuning with Knowledge-guided Context Optimization, CVPR 2023",
)
register_method(KGCOOP)
