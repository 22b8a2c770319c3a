"""Tip-Adapter-F: the cache of Tip-Adapter with keys that learn."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from rada.core.config import Config
from rada.methods.base import Predictor, Task
from rada.methods.registry import register_method
from rada.methods.tip_adapter import _SOURCE, TipAdapter, TipSettings
from rada.training.feature_loop import Recipe, train

__all__ = ["TipAdapterF", "TipTrainedSettings"]


@dataclass(frozen=True)
class TipTrainedSettings(TipSettings):
    """Settings of Tip-Adapter-F; AdamW as in the paper's section 4.1.

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

    settings: ClassVar[type[Config]] = TipTrainedSettings

    def train(
        self,
        predictor: Predictor,
        task: Task,
        config: Any,
        *,
        state_path: Path | None,
        progress: bool | None,
    ) -> Predictor:
        """Train the keys on the plain pictures."""
        # With random views, view 0 is the picture itself: the queries of the training.
        plain = dataclasses.replace(task.examples, image_features=task.examples.plain())
        queries = dataclasses.replace(task, examples=plain)
        return train(predictor, queries, config.recipe(), state_path=state_path, progress=progress)


register_method(TipAdapterF("tip_adapter_f", "Tip-Adapter-F", f"{_SOURCE}, section 3.2"))
