"""RAda at test time: the head adapts to each image from its confident views."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from rada.core.errors import ConfigError
from rada.features import ClassSet
from rada.head import RAdaHead
from rada.methods import AdaptedModel
from rada.methods.rada import SOURCE, HeadModel
from rada.methods.rada_adapter import AdaptedHeadModel
from rada.test_time.adapt import adapt_in_detail
from rada.test_time.base import TestTimeMethod, check_views
from rada.test_time.config import TTTConfig, ViewConfig
from rada.test_time.online import OnlineAdapter
from rada.test_time.pair_head import PairHead, pair
from rada.test_time.registry import register_test_time_method
from rada.test_time.start import Adaptation

__all__ = ["RAdaPredictor", "RAdaTestTime"]


@dataclass(frozen=True)
class RAdaTestTime(TestTimeMethod):
    """Starts from a trained head, or from the untrained one, whose mask is one.

    Example:
        >>> RAdaTestTime.config().steps
        1
    """

    config: ClassVar[type[ViewConfig]] = TTTConfig

    def check(self, model: AdaptedModel) -> None:
        """Check that the model is zero-shot or has a head."""
        super().check(model)
        if model.method.learns and model.head is None:
            raise ConfigError(
                f"{self.title} at test time adapts a RAda head, and {model.method.title} has none: start "
                "from zero_shot, rada or rada_adapter, or choose another test-time method"
            )

    def predictor(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        config: TTTConfig,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> RAdaPredictor:
        """Return what adapts to each image; with `episodic=False` it goes on from image to image."""
        return RAdaPredictor(_Start(model, classes, config), batch_size, progress)


class RAdaPredictor:
    """What adapts to images, and tells of one what it did if asked.

    Args:
        start: The head to start from.
        batch_size: Images at once; None chooses.
        progress: Show a bar.
    """

    def __init__(self, start: _Start, batch_size: int | None, progress: bool | None) -> None:
        self._start, self._batch_size, self._progress = start, batch_size, progress
        self._online: OnlineAdapter | None = None
        if not start.config.episodic:
            self._online = OnlineAdapter(start.text, start.scale, start.head, start.config)

    def __call__(self, views: Tensor) -> Tensor:
        """Return logits `(N, K)` of views `(N, V, D)`."""
        if self._online is None:
            return self._start.adapt(views, self._batch_size, self._progress).logits
        return self._start.finished(views, self._online.predict(self._start.views(views)))

    def in_detail(self, views: Tensor) -> Adaptation:
        """Predict one image, `(1, V, D)`, and tell all about it; online it is the next of the stream."""
        start, online = self._start, self._online
        if online is None:
            return start.adapt(views, None, False)
        own = start.views(views).to(online.start.text.dtype)
        return start.told(views, online.step_in_detail(own))


class _Start:
    """The head to start from, and the features as it wants them."""

    def __init__(self, model: AdaptedModel, classes: ClassSet, config: TTTConfig) -> None:
        self.model, self.classes, self.scale = model, classes, model.facts.scale
        if isinstance(model, HeadModel) and model.listed(len(classes)) is not None:
            raise ConfigError(
                f"the test-time method 'rada' adapts to all {len(classes)} candidates, but the model was "
                f"fitted with shortlist={model.shortlist!r}: choose another test-time method "
                "(`rada methods`), fewer candidates, or fit without a shortlist"
            )
        self.head: RAdaHead | None = model.head
        strength = config.strength
        self.temperature = 1.0
        if strength is None:
            strength = 1.0 if self.head is None else model.strength.for_classes(classes.names)
            self.temperature = model.strength.temperature_for(classes.names)
        self.config = dataclasses.replace(config, strength=strength)
        # The strength mixes what adapters do, too; at full strength the head alone does the same.
        self.paired = isinstance(model, AdaptedHeadModel) and strength != 1
        if self.paired and self.head is not None:
            self.head = PairHead.of(self.head)
        text = model.prepare(classes).text_features
        self.dim = text.shape[1]
        self.text = self._adapted(text, text=True)

    def _adapted(self, features: Tensor, *, text: bool = False) -> Tensor:
        model = self.model
        if not isinstance(model, HeadModel):
            return features
        with torch.no_grad():
            found = model.adapted_text(features) if text else model.adapted_images(features)
            return pair(found, features) if self.paired else found

    def views(self, views: Tensor) -> Tensor:
        """Return the views as the head gets them."""
        return self._adapted(check_views(views, self.dim))

    def adapt(self, views: Tensor, batch_size: int | None, progress: bool | None) -> Adaptation:
        found = adapt_in_detail(
            self.views(views),
            self.text,
            self.scale,
            self.head,
            self.config,
            batch_size,
            progress=progress,
        )
        return self.told(views, found)

    def told(self, views: Tensor, found: Adaptation) -> Adaptation:
        """Return what the head did with the model's logits in place of the head's."""
        return dataclasses.replace(
            found,
            logits=self.finished(views, found.logits),
            before=self.finished(views, found.before),
        )

    @torch.no_grad()
    def finished(self, views: Tensor, head_logits: Tensor) -> Tensor:
        """Return the model's logits, given those of its head, as `AdaptedModel.logits` gives them."""
        if not isinstance(self.model, HeadModel):
            return head_logits / self.temperature
        images = views[:, 0].to(head_logits)
        strength = float(self.config.strength or 0.0)
        found = self.model.with_head(images, head_logits, self.classes, strength)
        return found / self.temperature


register_test_time_method(
    RAdaTestTime("rada", "RAda", f"{SOURCE}; the length of its step and the gate are ours")
)
