"""Tip-Adapter-F: the cache of Tip-Adapter with keys that learn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

from rada.core.config import Config
from rada.features import Features
from rada.methods.base import AdaptedModel, Run
from rada.methods.registry import register_method
from rada.methods.tip_adapter import _SOURCE, TipAdapter, TipConfig
from rada.training.feature_loop import Recipe

__all__ = ["TipAdapterF", "TipTrainedConfig"]


@dataclass(frozen=True)
class TipTrainedConfig(TipConfig):
    """Configuration of Tip-Adapter-F; AdamW as in the paper's section 4.1.

    Attributes:
        epochs: Passes over the shots.
        learning_rate: Its peak.
        batch_size: Shots a step.
    """

    epochs: int = 20
    learning_rate: float = 1e-3
    batch_size: int = 256

    def recipe(self) -> Recipe:
        """Return the recipe: AdamW with epsilon 1e-4 and a cosine over the steps."""
        return Recipe(
            epochs=self.epochs,
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer="adamw",
            weight_decay=0.01,
            schedule="steps",
            epsilon=1e-4,
        )


@dataclass(frozen=True)
class TipAdapterF(TipAdapter):
    """Starts as Tip-Adapter; alpha and beta are chosen before training and kept."""

    config: ClassVar[type[Config]] = TipTrainedConfig

    def train(
        self, model: AdaptedModel, data: Features, config: TipTrainedConfig, run: Run
    ) -> AdaptedModel:
        """Train the keys on the plain images."""
        # With random views, view 0 is the image itself: the queries of the training.
        queries = dataclasses.replace(data, image_features=data.plain())
        return self.learn(model, queries, config.recipe(), run)


register_method(
    TipAdapterF(
        "tip_adapter_f", "Tip-Adapter-F", f"{_SOURCE}, section 3.2", trains="the keys of the cache"
    )
)
