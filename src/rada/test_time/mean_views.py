"""The mean prediction of all views, and of the confident ones: no adaptation at all."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from rada.test_time.base import CombinesViews, confident_mean
from rada.test_time.config import ViewConfig
from rada.test_time.registry import register_test_time_method
from rada.test_time.selection import mean_log_probability

__all__ = ["ConfidentViews", "MeanOfViews"]


@dataclass(frozen=True)
class MeanOfViews(CombinesViews):
    """The logarithm of the mean probability of all views, by any model."""

    def check_config(self, config: ViewConfig) -> None:
        """Do nothing: every view has a part, and one is enough."""

    def combined(self, logits: Tensor, config: ViewConfig) -> Tensor:
        """Return the mean over all views."""
        return mean_log_probability(logits)


@dataclass(frozen=True)
class ConfidentViews(CombinesViews):
    """The same of the part `selection` of the views whose predictions have the lowest entropy."""

    def combined(self, logits: Tensor, config: ViewConfig) -> Tensor:
        """Return the mean over the confident views."""
        return confident_mean(logits, config.kept(logits.shape[1]))


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
