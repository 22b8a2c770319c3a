"""What a classifier answers: logits, streams of predictions, explanations."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from rada.classifier_base import ClassifierBase
from rada.core.threads import one_thread
from rada.explain import ExplainConfig, Explainer, ImageExplanation
from rada.features import Features, FeatureStore
from rada.inputs import Data
from rada.predictions import StreamAnswer, stream_features, stream_predictions

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rada.data.images import ImageLike

__all__ = ["ClassifierAnswers"]

_SMALL_HEAD = 1 << 19
"""Images times classes times width below which a batch takes one thread some 35 ms at most."""


class ClassifierAnswers(ClassifierBase):
    """The answers of `rada.Classifier`."""

    def logits(self, images: Any) -> NDArray[np.float32]:
        """Return logits `(N, K)` over the candidates.

        Args:
            images: Whatever `rada.convert.ACCEPTED_IMAGES` says: an image, a path, a folder, a list of
                these, features.

        Raises:
            DataError: If an image cannot be read; the message names it.
            UnknownClassError: If the method cannot score one of the candidates.
        """
        features, classes = self.to_predict(images)
        if features is None:
            return np.zeros((0, len(classes)), np.float32)
        scale = self.inputs.scale_for(features)
        found = self.model_logits(features.plain(), classes, scale=scale)
        logits: NDArray[np.float32] = found.numpy()
        return logits

    def predict_stream(
        self, images: Iterable[ImageLike] | Features | FeatureStore, top_k: int = 1
    ) -> Iterator[StreamAnswer]:
        """Name the class of each image of a stream, in order, in bounded memory.

        Args:
            images: What `rada.data.open_image` takes, consumed as predictions are taken, features, or
                a feature store.
            top_k: Classes to name for each, best first.

        Yields:
            `StreamAnswer(name, predictions, reason)`.

        Raises:
            DataError: If an image cannot be read and the classifier does not skip bad ones.
        """
        if isinstance(images, FeatureStore):
            for part in images.parts():
                yield from self.predict_stream(part, top_k)
            return
        inputs, features = self.inputs, images if isinstance(images, Features) else None
        classes = inputs.class_set(self.candidates(), features)
        scale = None if features is None else inputs.scale_for(features)

        def predict(views: Tensor, _: object = None) -> Tensor:
            # threads of a small head would wait for the cores that are encoding the next images
            small = len(views) * classes.text_features.numel() < _SMALL_HEAD
            with one_thread(views.device.type == "cpu" and small):
                return self.model_logits(views[:, 0], classes, scale=scale)

        if isinstance(images, Features):
            inputs.check_origin(images)
            yield from stream_features(images, predict, classes.names, top_k)
            return
        yield from stream_predictions(
            inputs.slot.get(), images, predict, classes.names, top_k, **inputs.streaming()
        )

    def explain(
        self,
        image: Any,
        *,
        target: str | None = None,
        against: str | None = None,
        config: ExplainConfig | None = None,
        train: Data | None = None,
    ) -> ImageExplanation:
        """Tell why an image is given its class: the exact sum, words, a heat map, similar images.

        Args:
            image: One image, as for `predict`; of features there is no heat map.
            target: The class to explain; None for the predicted one.
            against: The class to compare it with; None for the best other one.
            config: What to say, and how much.
            train: The training images, as for `fit`; those in memory since `fit` when None.

        Raises:
            ConfigError: If the method's logits cannot be taken apart, or a class is no candidate.
            DataError: If an image cannot be read.
            MissingExtraError: If a heat map is wanted and captum is not installed.
        """
        return Explainer(self, config, train=train).explain(image, target=target, against=against)
