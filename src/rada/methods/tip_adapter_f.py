"""Tip-Adapter-F: the cache of Tip-Adapter with keys that learn."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar

from rada.core.config import Config
from rada.features import Features
from rada.methods.base import AdaptedModel, Run
from rada.methods.registry import register_method
from rada.methods.tip_adapter import (
    _SOURCE,
    CacheModel,
    Held,
    TipAdapter,
    TipConfig,
    choose_mixture,
    fewest_shots,
    held,
)
from rada.training.feature_loop import Recipe
from rada.training.strength import position_in_class

__all__ = ["TipAdapterF", "TipTrainedConfig"]

_MOST_FOLDS = 4


@dataclass(frozen=True)
class TipTrainedConfig(TipConfig):
    """Configuration of Tip-Adapter-F; the training is that of its public code.

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

    config: ClassVar[type[Config]] = TipTrainedConfig

    def train(
        self, model: AdaptedModel, data: Features, config: TipTrainedConfig, run: Run
    ) -> AdaptedModel:
        """Train the keys on the plain images, then choose alpha and beta.

        With one shot of some class nothing can be held out; the values of the training stay then.
        """
        cache = self._trained(model, data, config, run)
        alpha = config.alpha or config.training_alpha
        beta = config.beta or config.training_beta
        if fewest_shots(data) >= 2 and (config.alpha is None or config.beta is None):
            alpha, beta = choose_mixture(list(self._held(data, config, run)), config)
        cache.mix(alpha, beta)
        cache.record |= {"alpha": alpha, "beta": beta}
        return cache

    def _held(self, data: Features, config: TipTrainedConfig, run: Run) -> Iterator[Held]:
        """Yield every shot once, asked of keys that were trained without it.

        Keys that learned to name a shot would say nothing of how they name others.
        """
        place = position_in_class(data, run.seed)
        folds = min(_MOST_FOLDS, fewest_shots(data))
        quiet = dataclasses.replace(run, state_dir=None, progress=False)
        for fold in range(folds):
            learned = data.subset((place % folds != fold).nonzero())
            asked = data.subset((place % folds == fold).nonzero())
            cache = self._trained(self.started(learned, config, quiet), learned, config, quiet)
            yield held(cache, learned, asked)

    def _trained(
        self, model: AdaptedModel, data: Features, config: TipTrainedConfig, run: Run
    ) -> CacheModel:
        assert isinstance(model, CacheModel)
        # With random views, view 0 is the image itself: the queries of the training.
        queries = dataclasses.replace(data, image_features=data.plain())
        model.mix(config.training_alpha, config.training_beta)
        self.learn(model, queries, config.recipe(), run)
        return model


register_method(
    TipAdapterF(
        "tip_adapter_f", "Tip-Adapter-F", f"{_SOURCE}, section 3.2", trains="the keys of the cache"
    )
)
