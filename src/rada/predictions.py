"""From logits to names: the best classes of an image, and of each image of a stream."""

from __future__ import annotations

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import FeatureError
from rada.core.finite import broken_rows
from rada.core.values import check_count
from rada.core.warn import warn
from rada.features import Features, iter_features
from rada.features.images import ImageItem, portable

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rada.data.images import ImageLike
    from rada.encoders import DualEncoder

__all__ = [
    "NamesImages",
    "Prediction",
    "StreamAnswer",
    "finite_logits",
    "probabilities_of",
    "rank",
    "stream_features",
    "stream_predictions",
    "warn_of_one_class",
]


class Prediction(NamedTuple):
    """One candidate class of an image.

    Attributes:
        name: The class.
        probability: Its softmax probability among the candidates.
    """

    name: str
    probability: float


class StreamAnswer(NamedTuple):
    """What `predict_stream` says of one image.

    Attributes:
        name: Path of the image, or its number.
        predictions: The best classes, best first; None if the image could not be read.
        reason: Why it could not.
    """

    name: str
    predictions: list[Prediction] | None
    reason: str


def warn_of_one_class(classes: Sequence[str]) -> None:
    """Warn where there is nothing to choose between."""
    if len(classes) == 1:
        warn(
            f"{classes[0]!r} is the only candidate class, so its probability is 1 whatever the image "
            "shows: name another class to compare it with",
            UserWarning,
            stacklevel=3,
        )


def finite_logits(logits: Tensor) -> Tensor:
    """Return logits `(N, K)` that name a class.

    Raises:
        FeatureError: If one is NaN or infinite: a softmax would name a class all the same.
    """
    broken = broken_rows(logits)
    if broken.any():
        raise FeatureError(
            f"the logits of {int(broken.sum())} of {len(logits)} images are NaN or infinite: the "
            "features, the class features, the head or the scale hold far too large numbers"
        )
    return logits


def probabilities_of(logits: Tensor) -> Tensor:
    """Return the softmax of logits `(N, K)`, which must be finite."""
    return finite_logits(logits).softmax(-1)


def rank(probabilities: Tensor, classes: Sequence[str], top_k: int) -> list[list[Prediction]]:
    """Turn probabilities `(N, K)` into the `top_k` best of K classes of each row, best first.

    Example:
        >>> import torch
        >>> rank(torch.tensor([[0.25, 0.75]]), ("cat", "dog"), 1)
        [[Prediction(name='dog', probability=0.75)]]
    """
    values, indices = probabilities.topk(min(top_k, len(classes)), dim=-1)
    return [
        [Prediction(classes[i], p) for i, p in zip(row, chances, strict=True)]
        for row, chances in zip(indices.tolist(), values.tolist(), strict=True)
    ]


def stream_predictions(
    encoder: DualEncoder,
    images: Iterable[ImageLike],
    predict: Callable[[Tensor, Sequence[ImageItem]], Tensor],
    classes: Sequence[str],
    top_k: int = 1,
    **options: Any,
) -> Iterator[StreamAnswer]:
    """Name the class of each image of a stream, in order, in bounded memory.

    Args:
        encoder: Encodes the images.
        images: What `rada.data.open_image` takes, consumed as predictions are taken.
        predict: Makes logits `(n, K)` of views `(n, V, D)`, and of the images behind them.
        classes: The K classes.
        top_k: Classes to name for each, best first.
        options: As for `rada.features.iter_features`.

    Raises:
        DataError: If an image cannot be read and bad ones are not to be skipped.
    """
    warn_of_one_class(classes)
    waiting: deque[tuple[str, ImageItem]] = deque()

    def named() -> Iterator[Any]:
        for index, image in enumerate(images):
            path = os.fspath(image) if isinstance(image, str | os.PathLike) else f"image {index}"
            item = portable(image)  # an open file can be read but once
            waiting.append((path, item))
            yield item

    for batch in iter_features(encoder, named(), **options):
        bad = {image.index: image.reason for image in batch.bad}
        here = range(batch.start, batch.stop)
        found = {index: waiting.popleft() for index in here}
        ranked: Iterator[list[Prediction]] = iter(())
        if len(batch.features):
            items = [item for index, (_, item) in found.items() if index not in bad]
            ranked = iter(rank(probabilities_of(predict(batch.features, items)), classes, top_k))
        for index in here:
            name = found[index][0]
            if index in bad:
                yield StreamAnswer(name, None, bad[index])
            else:
                yield StreamAnswer(name, next(ranked), "")


def stream_features(
    features: Features,
    predict: Callable[[Tensor], Tensor],
    classes: Sequence[str],
    top_k: int = 1,
    *,
    at_once: int = 1024,
) -> Iterator[StreamAnswer]:
    """Name the class of each row of features, in order; memory does not grow with their number.

    Args:
        features: The features; their ids are the names of the predictions.
        predict: Makes logits `(n, K)` of views `(n, V, D)`.
        classes: The K classes.
        top_k: Classes to name for each, best first.
        at_once: Rows that are predicted at once.
    """
    warn_of_one_class(classes)
    ids = iter(features.ids)
    for views in features.image_features.split(at_once):
        for ranked in rank(probabilities_of(predict(views)), classes, top_k):
            yield StreamAnswer(next(ids), ranked, "")


class NamesImages(ABC):
    """Names and probabilities of images, by the logits of a subclass."""

    @property
    @abstractmethod
    def classes_(self) -> NDArray[Any]:
        """The candidate classes, `(K,)`."""

    @abstractmethod
    def candidates(self) -> tuple[str, ...]:
        """Return the names of the candidate classes."""

    @abstractmethod
    def logits(self, images: Any) -> NDArray[np.float32]:
        """Return logits `(N, K)` over the candidates."""

    def predict_proba(self, images: Any) -> NDArray[np.float32]:
        """Return softmax probabilities `(N, K)` over the candidates; arguments as for `logits`."""
        warn_of_one_class(self.candidates())
        found: NDArray[np.float32] = probabilities_of(torch.from_numpy(self.logits(images))).numpy()
        return found

    @overload
    def predict(self, images: Any, top_k: None = None) -> NDArray[Any]: ...
    @overload
    def predict(self, images: Any, top_k: int) -> list[list[Prediction]]: ...
    def predict(
        self, images: Any, top_k: int | None = None
    ) -> NDArray[Any] | list[list[Prediction]]:
        """Name the class of each image.

        Args:
            images: As for `logits`.
            top_k: None for the best name alone; a number for so many `Prediction(name, probability)` an
                image, best first.

        Returns:
            Names `(N,)`, or a list for each image.
        """
        if top_k is None:
            best = finite_logits(torch.from_numpy(self.logits(images))).argmax(1)
            names: NDArray[Any] = self.classes_[best.numpy()]
            return names
        count = check_count(top_k, "top_k")
        return rank(torch.from_numpy(self.predict_proba(images)), self.candidates(), count)
