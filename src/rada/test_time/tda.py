"""TDA: a stream of images, of which two caches remember the telling ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rada.core.progress import progress_bar
from rada.features import ClassSet
from rada.methods import AdaptedModel
from rada.test_time.base import TestTimeMethod, ViewPredictor, check_views, view_logits
from rada.test_time.config import ViewConfig
from rada.test_time.registry import register_test_time_method
from rada.test_time.selection import (
    entropy,
    gather_views,
    keep_confident,
    mean_log_probability,
    view_entropies,
)

__all__ = ["TDA", "Stream", "TDAConfig"]


@dataclass(frozen=True)
class TDAConfig(ViewConfig):
    """Configuration of TDA, with the published values.

    Attributes:
        views: 1, the image itself; more are needed for `predict_with="kept"`.
        predict_with: "original" takes the image itself, as the paper; "kept" the means of features and
            logits over the confident views, as the public code does on ImageNet's variants.
        positive_size: Features of each predicted class in the positive cache, those of lowest entropy.
        positive_weight: Weight of what the positive cache adds to the logits (alpha).
        positive_sharpness: How much nearer features count for more (beta); 3 to 8 by data set in the
            public code.
        negative_size: The same of the negative cache, which subtracts.
        negative_weight: Its weight.
        negative_sharpness: Its sharpness.
        lowest_entropy: The negative cache takes images of at least this part of the largest entropy,
        highest_entropy: and of at most this part.
        least_probability: It subtracts from the classes that had more than this probability.
    """

    views: int = 1
    predict_with: Literal["original", "kept"] = "original"
    positive_size: int = 3
    positive_weight: float = 2.0
    positive_sharpness: float = 5.0
    negative_size: int = 2
    negative_weight: float = 0.117
    negative_sharpness: float = 1.0
    lowest_entropy: float = 0.2
    highest_entropy: float = 0.5
    least_probability: float = 0.03

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        for name in ("positive_size", "negative_size"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        for name in ("positive", "negative"):
            for part in ("weight", "sharpness"):
                field = f"{name}_{part}"
                self.require(getattr(self, field) >= 0, field, "0 or more")
        self.require(0 <= self.lowest_entropy <= 1, "lowest_entropy", "in [0, 1]")
        self.require(
            self.lowest_entropy <= self.highest_entropy <= 1,
            "highest_entropy",
            "in [lowest_entropy, 1]",
        )
        self.require(0 < self.least_probability < 1, "least_probability", "above 0 and below 1")


@dataclass(frozen=True)
class TDA(TestTimeMethod):
    """Goes on from image to image, by any model; nothing is trained."""

    config: ClassVar[type[ViewConfig]] = TDAConfig

    def check_config(self, config: TDAConfig) -> None:
        """Check the number of views where the confident ones are taken."""
        if config.predict_with == "kept":
            super().check_config(config)

    def predictor(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        config: TDAConfig,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> ViewPredictor:
        """Return what predicts the next images of one stream."""
        stream = Stream(config)

        def predict(views: Tensor) -> Tensor:
            features, logits, beliefs = _described(model, views, classes, config)
            with progress_bar("TDA", len(features), enabled=progress, unit="images") as advance:
                found = []
                for image in zip(features, logits, beliefs, strict=True):
                    found.append(stream.step(*image))
                    advance(1)
            return torch.stack(found)

        return predict


def _described(
    model: AdaptedModel, views: Tensor, classes: ClassSet, config: TDAConfig
) -> tuple[Tensor, Tensor, Tensor]:
    """Return features `(N, D)`, logits `(N, K)` and logarithms of probabilities `(N, K)`."""
    checked = check_views(views, classes.text_features.shape[1])
    if config.predict_with == "original":
        logits = model.logits(checked[:, 0], classes)
        return checked[:, 0], logits, logits.log_softmax(-1)
    logits = view_logits(model, checked, classes)
    kept = keep_confident(view_entropies(logits), config.kept(logits.shape[1]))
    confident = gather_views(logits, kept)
    features = normalize(gather_views(checked, kept).mean(1), dim=-1)
    return features, confident.mean(1), mean_log_probability(confident)


class _Entry(NamedTuple):
    """An image that a cache remembers."""

    entropy: float
    feature: Tensor
    classes: Tensor  # the numbers of those that it speaks of


class _Cache:
    """The images of lowest entropy, `size` of each predicted class."""

    def __init__(self, size: int, weight: float, sharpness: float) -> None:
        self.size, self.weight, self.sharpness = size, weight, sharpness
        self.entries: dict[int, list[_Entry]] = {}

    def add(self, predicted: int, entry: _Entry) -> None:
        """Remember an image, if its class has room or a less certain one to give up."""
        own = self.entries.setdefault(predicted, [])
        if len(own) < self.size or entry.entropy < own[-1].entropy:
            own.append(entry)
            own.sort(key=lambda other: other.entropy)
            del own[self.size :]

    def logits(self, feature: Tensor, count: int) -> Tensor:
        """Return `weight sum_i exp(-sharpness (1 - f . f_i)) v_i` over the entries, `(count,)`."""
        found = feature.new_zeros(count)
        entries = [entry for own in self.entries.values() for entry in own]
        if entries:
            nearness = torch.stack([entry.feature for entry in entries]) @ feature
            share = self.weight * (-self.sharpness * (1 - nearness)).exp()
            sizes = torch.tensor([len(entry.classes) for entry in entries], device=share.device)
            classes = torch.cat([entry.classes for entry in entries])
            found.index_add_(0, classes, share.repeat_interleave(sizes))
        return found


class Stream:
    """Both caches of one stream.

    Args:
        config: Their sizes and weights.

    Example:
        >>> stream, eye = Stream(TDAConfig()), torch.eye(3)
        >>> stream.step(eye[0], 9 * eye[0], (9 * eye[0]).log_softmax(-1))
        tensor([11.,  0.,  0.])
    """

    def __init__(self, config: TDAConfig) -> None:
        self.config = config
        self.positive = _Cache(
            config.positive_size, config.positive_weight, config.positive_sharpness
        )
        self.negative = _Cache(
            config.negative_size, config.negative_weight, config.negative_sharpness
        )

    def step(self, feature: Tensor, logits: Tensor, log_probabilities: Tensor) -> Tensor:
        """Remember the next image and return its logits `(K,)`.

        Args:
            feature: Its feature, `(D,)`.
            logits: What the model predicts, `(K,)`.
            log_probabilities: The same, or the mean over views, as logarithms of probabilities.
        """
        count = len(logits)
        uncertain = float(entropy(log_probabilities.double()))
        predicted = logits.argmax()
        self.positive.add(int(predicted), _Entry(uncertain, feature, predicted[None]))
        part = uncertain / math.log(count) if count > 1 else 0.0
        if self.config.lowest_entropy < part < self.config.highest_entropy:
            spoken_of = (log_probabilities.exp() > self.config.least_probability).nonzero()[:, 0]
            self.negative.add(int(predicted), _Entry(uncertain, feature, spoken_of))
        added = self.positive.logits(feature, count) - self.negative.logits(feature, count)
        return logits + added


register_test_time_method(
    TDA(
        "tda",
        "TDA",
        "Karmanov et al., Efficient Test-Time Adaptation of Vision-Language Models, CVPR 2024; online: it "
        "remembers images of the stream",
    )
)
