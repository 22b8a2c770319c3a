"""Tip-Adapter-F: the cache of Tip-Adapter with keys that learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch.nn.functional import one_hot

from rada.core.config import Config
from rada.methods.base import Predictor, Task
from rada.methods.registry import register_method
from rada.methods.strength import places
from rada.methods.tip_adapter import (
    _SOURCE,
    CachePredictor,
    Held,
    TipAdapter,
    TipSettings,
    choose_mixture,
    fewest_shots,
)
from rada.training.feature_loop import Recipe, train

__all__ = ["TipAdapterF", "TipTrainedSettings"]

_MOST_FOLDS = 4


@dataclass(frozen=True)
class TipTrainedSettings(TipSettings):
    """Settings of Tip-Adapter-F; the training is that of its public code.

    `alpha` and `beta` are those of the finished cache.

    Attributes:
        training_alpha: Weight of the cache while its keys learn.
        training_beta: Sharpness of the similarity while they learn.
        epochs: Passes over the shots.
        learning_rate: Its peak.
        batch_size: Shots a step.
    """

    training_alpha: float = 4.0
    training_beta: float = 8.0
    epochs: int = 20
    learning_rate: float = 1e-3
    batch_size: int = 256

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        for name in ("training_alpha", "training_beta"):
            self.require(getattr(self, name) > 0, name, "above 0")
        self.recipe()

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
    """The keys learn at a fixed alpha and beta; those of the finished cache are chosen afterwards.

    The public code takes the epoch that is best on the test images; here the last one is kept.
    """

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
        """Train the keys on the plain images, then choose alpha and beta.

        With one shot of some class nothing can be held out; the values of the training stay then.
        """
        assert isinstance(predictor, CachePredictor)
        self._learn(predictor, task, config, state_path, progress)
        alpha = config.alpha or config.training_alpha
        beta = config.beta or config.training_beta
        if fewest_shots(task) >= 2 and (config.alpha is None or config.beta is None):
            alpha, beta = choose_mixture(list(self._held(task, config)), config)
        predictor.mix(alpha, beta)
        predictor.record |= {"alpha": alpha, "beta": beta}
        return predictor

    def _held(self, task: Task, config: TipTrainedSettings) -> Iterator[Held]:
        """Yield every shot once, asked of keys that were trained without it.

        Keys that learned to name a shot would say nothing of how they name others.
        """
        place = places(task, torch.Generator().manual_seed(task.seed + 7_919))
        folds = min(_MOST_FOLDS, fewest_shots(task))
        everything = torch.arange(len(task.classes))
        for fold in range(folds):
            learned, asked = (
                task.on_classes(everything, keep)
                for keep in (place % folds != fold, place % folds == fold)
            )
            cache = self._learn(self.start(learned, config), learned, config, None, False)
            images = asked.examples.plain()
            yield Held(
                task.scale * images @ task.classes.text_features.T,
                images @ cache.keys.detach().T,
                one_hot(learned.labels, len(task.classes)).to(images.dtype),
                asked.labels,
            )

    def _learn(
        self,
        predictor: CachePredictor,
        task: Task,
        config: TipTrainedSettings,
        state_path: Path | None,
        progress: bool | None,
    ) -> CachePredictor:
        # With random views, view 0 is the image itself: the queries of the training.
        plain = dataclasses.replace(task.examples, image_features=task.examples.plain())
        queries = dataclasses.replace(task, examples=plain)
        predictor.mix(config.training_alpha, config.training_beta)
        train(predictor, queries, config.recipe(), state_path=state_path, progress=progress)
        return predictor


register_method(TipAdapterF("tip_adapter_f", "Tip-Adapter-F", f"{_SOURCE}, section 3.2"))
