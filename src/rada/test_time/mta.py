"""MTA: the mode of the views' features, found by mean shift with weights of the views."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rada.features import ClassSet
from rada.methods import AdaptedModel
from rada.test_time.base import TestTimeMethod, ViewPredictor, check_views, view_logits
from rada.test_time.config import ViewConfig
from rada.test_time.registry import register_test_time_method

__all__ = ["MTA", "MTAConfig", "mode_of_views"]


@dataclass(frozen=True)
class MTAConfig(ViewConfig):
    """Configuration of MTA, with the published values; all views have a part, `selection` has none.

    Attributes:
        entropy_weight: Weight of the entropy of the views' weights (lambda_y): the larger, the more
            even they are.
        affinity_weight: Weight of what makes views with like predictions have like weights (lambda).
        neighbours: Part of the other views whose mean squared distance is a view's bandwidth.
        iterations: Rounds, and in each the updates of the weights and of the mode.
    """

    entropy_weight: float = 0.2
    affinity_weight: float = 4.0
    neighbours: float = 0.3
    iterations: int = 5

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.entropy_weight > 0, "entropy_weight", "above 0")
        self.require(self.affinity_weight >= 0, "affinity_weight", "0 or more")
        self.require(0 < self.neighbours <= 1, "neighbours", "above 0 and at most 1")
        self.require(self.iterations >= 1, "iterations", "a positive integer")


@dataclass(frozen=True)
class MTA(TestTimeMethod):
    """Predicts the mode of the views' features in the place of the image's own, by any model."""

    config: ClassVar[type[ViewConfig]] = MTAConfig

    def check_config(self, config: ViewConfig) -> None:
        """Do nothing: every view has a part, and one is enough."""

    def predictor(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        config: MTAConfig,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> ViewPredictor:
        """Return what finds the modes and predicts them."""

        def predict(views: Tensor) -> Tensor:
            probabilities = view_logits(model, views, classes).softmax(-1)
            return model.logits(mode_of_views(check_views(views), probabilities, config), classes)

        return predict


def mode_of_views(views: Tensor, probabilities: Tensor, config: MTAConfig) -> Tensor:
    """Return the mode of each image's views.

    The mode m and the weights y of the views, which sum to one, increase
    `sum_p y_p k_p(m) + lambda/2 sum_pq a_pq y_p y_q + lambda_y H(y)` in turns, with the kernel
    `k_p(m) = exp(-|f_p - m|^2 / h_p^2)` and the affinity `a_pq` of the predictions of two views.

    Args:
        views: Unit-norm `(N, V, D)`, view 0 the original, where the search begins.
        probabilities: Their predictions, `(N, V, K)`.
        config: Weights and numbers of iterations.

    Returns:
        Unit-norm `(N, D)`.

    Example:
        >>> views = normalize(torch.tensor([[[1.0, 0.0], [1.0, 0.1], [1.0, 0.2], [0.0, 1.0]]]), dim=-1)
        >>> mode = mode_of_views(views, torch.full((1, 4, 2), 0.5), MTAConfig())[0]
        >>> bool(mode[0] > 0.98)
        True
    """
    count = views.shape[1]
    squared = (2 - 2 * views @ views.transpose(1, 2)).clamp(min=0)
    near = max(1, int(config.neighbours * (count - 1)))
    # The nearest one is the view itself. Equal views have no width: every distance is then far.
    bandwidth = squared.sort(-1).values[..., 1 : near + 1].sum(-1) / near
    bandwidth = bandwidth.clamp(min=torch.finfo(views.dtype).eps)
    affinity = probabilities @ probabilities.transpose(1, 2)
    weights = views.new_full(views.shape[:2], 1 / count)
    mode = views[:, 0]

    def density() -> Tensor:
        return (-(views - mode[:, None]).square().sum(-1) / bandwidth).exp()

    for _ in range(config.iterations):
        kernel = density()
        for _ in range(config.iterations):
            alike = (affinity @ weights[..., None])[..., 0]
            weights = ((kernel + config.affinity_weight * alike) / config.entropy_weight).softmax(
                -1
            )
        for _ in range(config.iterations):
            mode = normalize(((weights * density())[..., None] * views).sum(1), dim=-1)
    return mode


register_test_time_method(
    MTA(
        "mta",
        "MTA",
        "Zanella and Ben Ayed, On the Test-Time Zero-Shot Generalization of Vision-Language Models: Do We "
        "Really Need Prompt Learning?, CVPR 2024",
    )
)
