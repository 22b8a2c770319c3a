"""RAda as released: the head with the hyper-parameters of the authors' code, for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rada.core.config import Config
from rada.features import Features
from rada.methods.base import AdaptedModel, Method, Run
from rada.methods.rada import SOURCE, HeadModel
from rada.methods.registry import register_method
from rada.training.feature_loop import Recipe

__all__ = ["RAdaReleased", "ReleasedConfig"]


@dataclass(frozen=True)
class ReleasedConfig(Recipe):
    """The released values: Adam with coupled weight decay, batches of 4, no smoothness term.

    Coupled decay shrinks query, key and value layers even while their gradient is zero.

    Attributes:
        views: Cached random views; the released code augments anew in every epoch.
    """

    epochs: int = 5
    batch_size: int = 4
    learning_rate: float = 3.5e-3
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    views: int = 1


@dataclass(frozen=True)
class RAdaReleased(Method):
    """Starts as zero-shot; all classes in every step, strength 1."""

    config: ClassVar[type[Config]] = ReleasedConfig
    model = HeadModel

    def train(
        self, model: AdaptedModel, data: Features, config: ReleasedConfig, run: Run
    ) -> AdaptedModel:
        """Train the head."""
        return self.learn(model, data, config, run)


register_method(
    RAdaReleased(
        "rada_released", "RAda as released", SOURCE, trains="the head, as in the released code"
    )
)
