"""What every test-time method has in common: it predicts an image from views of it, without labels."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor

from rada.core.errors import ConfigError, FeatureError
from rada.data.sampling import drawn_order
from rada.features import ClassSet, Features
from rada.features.checks import check_rows
from rada.methods import AdaptedModel
from rada.test_time.config import ViewConfig
from rada.test_time.selection import (
    gather_views,
    keep_confident,
    mean_log_probability,
    view_entropies,
)

__all__ = [
    "CombinesViews",
    "PixelsOf",
    "TestTimeMethod",
    "ViewPredictor",
    "check_views",
    "confident_mean",
    "predict_data_set",
    "view_logits",
]

ViewPredictor = Callable[..., Tensor]
"""Turns views `(N, V, D)`, view 0 the original, into logits `(N, K)`. It may remember what it has seen.
That of a method that reads pixels takes a `PixelsOf` behind the views."""

PixelsOf = Callable[[int, Sequence[int]], Tensor]
"""Returns the pixels `(m, 3, H, W)` of m views of one of the N images, by their numbers."""


@dataclass(frozen=True)
class TestTimeMethod(ABC):
    """A way to predict an image from views of it; one file and one registered object each.

    Attributes:
        name: How to ask for it.
        title: How tables name it.
        source: Where it is described, and what of it is ours.
        needs: Capabilities of the encoder (`rada.encoders.CAPABILITIES`).
        config: Its configuration class.
        reads_pixels: Whether its predictors look at the images behind the views again.
    """

    __test__ = False  # pytest takes every class whose name begins with Test for a test

    name: str
    title: str
    source: str
    needs: frozenset[str] = field(default_factory=frozenset)
    config: ClassVar[type[ViewConfig]] = ViewConfig
    reads_pixels: ClassVar[bool] = False

    def check(self, model: AdaptedModel) -> None:
        """Check that a model offers what the method starts from.

        Raises:
            ConfigError: If it does not; the message names the model's method.
        """
        if self.needs and model.encoder is None:
            raise ConfigError(
                f"{self.title} works through the encoder, but there are features alone: give images"
            )
        for capability in sorted(self.needs):
            assert model.encoder is not None
            model.encoder.require(capability)

    def check_config(self, config: Any) -> None:
        """Check that a configuration makes as many views as the method needs, before any is made.

        Raises:
            FeatureError: If it keeps no view of them.
        """
        config.kept(config.views)

    def from_templates(self, config: Any, templates: Sequence[str] | None) -> Any:
        """Return a configuration to start from zero-shot with, whose words are those of chosen templates.

        A method that works on class features starts from theirs, whatever the templates.

        Args:
            config: The method's configuration.
            templates: Templates that the user chose; None where nobody did.

        Raises:
            ConfigError: If the method has words of its own and cannot start from these.
        """
        return config

    @abstractmethod
    def predictor(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        config: Any,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> ViewPredictor:
        """Return what predicts images among some classes.

        Args:
            model: The model to start from; it stays as it is.
            classes: The candidates.
            config: The method's configuration.
            batch_size: Images at once; None chooses.
            progress: Show a bar; None shows it on a terminal only.
        """


class CombinesViews(TestTimeMethod):
    """A method that makes one prediction of a model's predictions of the views, and adapts nothing."""

    def predictor(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        config: Any,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> ViewPredictor:
        """Return what combines the predictions of all views of an image."""
        return lambda views: self.combined(view_logits(model, views, classes), config)

    @abstractmethod
    def combined(self, logits: Tensor, config: Any) -> Tensor:
        """Return logits `(N, K)` of images, given those of their views `(N, V, K)`."""


def predict_data_set(
    predict: ViewPredictor, data: Features, seed: int, pixels: PixelsOf | None = None
) -> Tensor:
    """Return a predictor's logits of the images of a data set, `(N, K)`; `pixels` for one that reads them.

    It gets them in an order that `seed` and their ids decide: data sets are sorted by class, and a method
    that goes on from image to image would see one class after the other.
    """
    order = torch.as_tensor(drawn_order(data.ids, seed))
    views = data.image_features[order]
    if pixels is None:
        found = predict(views)
    else:
        found = predict(views, lambda image, numbers: pixels(int(order[image]), numbers))
    logits = torch.empty_like(found)
    logits[order] = found
    return logits


def check_views(view_features: Any, dim: int | None = None) -> Tensor:
    """Check views `(N, V, D)` and return them with unit-norm rows.

    Raises:
        FeatureError: If they cannot be used.
    """
    views = check_rows(view_features, "view_features", ndims=(3,))
    if dim is not None and views.shape[-1] != dim:
        raise FeatureError(
            f"view_features have {views.shape[-1]} dimensions and text_features {dim}: both must come "
            "from the same encoder"
        )
    return views


def view_logits(model: AdaptedModel, views: Tensor, classes: ClassSet) -> Tensor:
    """Return a model's logits of views, `(N, V, D)` to `(N, V, K)`."""
    dim = classes.text_features.shape[1]
    checked = check_views(views, dim)
    logits = model.logits(checked.flatten(0, 1), classes)
    return logits.reshape(*checked.shape[:2], -1)


def confident_mean(logits: Tensor, count: int) -> Tensor:
    """Return the logarithm of the mean probability of the `count` views of lowest entropy.

    Args:
        logits: `(N, V, K)`.
        count: Views to keep.

    Returns:
        `(N, K)`.

    Example:
        >>> import torch
        >>> logits = torch.tensor([[[4.0, 0.0], [0.1, 0.0], [0.0, 0.2]]])
        >>> bool((confident_mean(logits, 1)[0] == logits[0, 0].log_softmax(-1)).all())
        True
    """
    kept = keep_confident(view_entropies(logits), count)
    return mean_log_probability(gather_views(logits, kept))
