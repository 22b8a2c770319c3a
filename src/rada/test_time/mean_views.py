"""The mean prediction of all views, and of the confident ones: no adaptation at all."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from rada.features import ClassSet
from rada.methods import AdaptedModel
from rada.test_time.base import TestTimeMethod, ViewPredictor, confident_mean, view_logits
from rada.test_time.config import ViewConfig
from rada.test_time.registry import register_test_time_method
from rada.test_time.selection import mean_log_probability

__all__ = ["ConfidentViews", "MeanOfViews"]


@dataclass(frozen=True)
class MeanOfViews(TestTimeMethod):
    """The logarithm of the mean probability of all views, by any model."""

    def check_config(self, config: ViewConfig) -> None:
        """Do nothing: every view has a part, and one is enough."""

    def predictor(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        config: ViewConfig,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> ViewPredictor:
        """Return what averages all views."""
        return lambda views: mean_log_probability(view_logits(model, views, classes))


@dataclass(frozen=True)
class ConfidentViews(TestTimeMethod):
    """The same of the part `selection` of the views whose predictions have the lowest entropy."""

    def predictor(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        config: ViewConfig,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> ViewPredictor:
        """Return what averages the confident views."""

        def predict(views: Any) -> Tensor:
            logits = view_logits(model, views, classes)
            return confident_mean(logits, config.kept(logits.shape[1]))

        return predict


register_test_time_method(
    MeanOfViews("mean_of_views", "Mean of views", "the usual test-time augmentation")
)
register_test_time_method(
    ConfidentViews(
        "confident_views",
        "Mean of confident views",
        "the selection of TPT (Shu et al., NeurIPS 2022) without its adaptation",
    )
)
