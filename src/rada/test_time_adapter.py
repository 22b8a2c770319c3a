"""`TestTimeAdapter`: test-time training on pictures."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor

from rada.classifier import Evaluated, RAdaClassifier
from rada.convert import images_to_predict
from rada.core.errors import ConfigError, FeatureError
from rada.core.values import check_count
from rada.data import ImageSplit
from rada.data.prompts import ClassNamesSource
from rada.encoders import DualEncoder
from rada.evaluation import compare
from rada.features import Features, extract_features
from rada.inputs import Data, data_name
from rada.predictions import (
    Prediction,
    StreamAnswer,
    probabilities_of,
    rank,
    warn_of_one_class,
)
from rada.test_time.adapt import adapt_in_detail, adapt_views
from rada.test_time.baselines import view_baselines
from rada.test_time.config import TTTConfig
from rada.test_time.explanation import Explanation, explain
from rada.test_time.online import OnlineAdapter
from rada.test_time.views import view_transform

if TYPE_CHECKING:
    from rada.data.images import ImageLike

__all__ = ["TestTimeAdapter"]

PICTURES_AT_ONCE = 8
"""Pictures a batch of a stream: with their views they are some hundred."""


class TestTimeAdapter:
    """Predicts pictures after adapting to each one, without labels.

    Args:
        model: A classifier, whose head is the start; or an encoder, or the name of one, for the untrained
            head; None to work on features alone.
        classes: Candidate class names, where `model` is an encoder. None takes them from the data.
        templates: Prompt templates, where `model` is an encoder.
        config: How to adapt; the defaults of `TTTConfig` when None.
        batch_size: Pictures that are adapted to at once; None chooses, 1 is the loop.
        options: `cache`, `workers`, `skip_bad`, `scale`, `progress` and `device`, as for
            `RAdaClassifier`, where `model` is an encoder.

    Attributes:
        classifier: The classifier that is adapted; it stays as it is.
        config: How to adapt.
        online: The state of the online mode (`episodic=False`); None before its first picture.

    Raises:
        EncoderError: If the encoder cannot be loaded.
        ConfigError: If classes or options are given beside a classifier, or if that is a fine-tuned model
            with one learned vector a class.

    Example:
        >>> from torch.nn.functional import normalize
        >>> features = Features(
        ...     normalize(torch.randn(2, 20, 8), dim=-1), [0, 1], ("cat", "dog"),
        ...     text_features=torch.eye(8)[:2], scale=20.0,
        ... )
        >>> TestTimeAdapter(None, classes=["cat", "dog"], scale=20.0).predict_proba(features).shape
        torch.Size([2, 2])
    """

    __test__ = False  # pytest takes every class whose name begins with Test for a test

    def __init__(
        self,
        model: RAdaClassifier | DualEncoder | str | Path | None = "embedded",
        config: TTTConfig | None = None,
        *,
        classes: Sequence[str] | Mapping[str, str] | None = None,
        templates: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, RAdaClassifier):
            model = RAdaClassifier(model, classes, templates=templates, **options)
        elif classes is not None or templates is not None or options:
            raise ConfigError(
                "classes, templates and options belong to the classifier, which was given: "
                "set them there (classifier.classes = ...)"
            )
        if model.closed:
            raise ConfigError(
                "the model learned one vector and one bias for each of its classes; test-time training "
                "adapts a head on class features, which knows no biases: give a model that asks "
                "its text encoder (rada, rada-ft or flyp)"
            )
        self.classifier = model
        self.config = config or TTTConfig()
        self.batch_size = batch_size
        self.online: OnlineAdapter | None = None

    # -- prediction ------------------------------------------------------------------------------

    def predict_proba(self, images: Any) -> Tensor:
        """Return softmax probabilities `(N, K)` after adaptation.

        Args:
            images: A picture, a path, a folder, a list of these, an `ImageSplit`, or `Features` with
                several views.

        Raises:
            DataError: If a picture cannot be read; the message names it.
            FeatureError: If features have too few views.
        """
        classes = self.classifier.classes
        warn_of_one_class(classes)
        found = self._encoded(images)
        if found is None:
            return torch.empty(0, len(classes))
        return probabilities_of(self._logits(*found, classes))

    @overload
    def predict(self, images: Any, top_k: None = None) -> list[str]: ...
    @overload
    def predict(self, images: Any, top_k: int) -> list[list[Prediction]]: ...
    def predict(self, images: Any, top_k: int | None = None) -> list[str] | list[list[Prediction]]:
        """Name the class of each picture; arguments and result as `RAdaClassifier.predict`."""
        if top_k is not None:
            top_k = check_count(top_k, "top_k")
        ranked = rank(self.predict_proba(images), self.classifier.classes, top_k or 1)
        return ranked if top_k is not None else [row[0].name for row in ranked]

    def predict_stream(
        self, pictures: Iterable[ImageLike], top_k: int = 1
    ) -> Iterator[StreamAnswer]:
        """Name the class of each picture of a stream, in order, in bounded memory.

        Arguments and answers as `RAdaClassifier.predict_stream`.
        """
        text, classes = self.classifier.text_features(), self.classifier.classes
        scale = self.classifier.scale
        yield from self.classifier.stream(
            pictures,
            lambda views: self._logits(views, text, scale, classes),
            top_k,
            batch_size=PICTURES_AT_ONCE,
            **self._view_options(),
        )

    def explain(self, image: Any) -> Explanation:
        """Tell for one picture which views were kept, what changed and by how much.

        The picture is looked at on its own, also in the online mode.
        """
        found, classes = self._encoded(image), self.classifier.classes
        count = 0 if found is None else len(found[0])
        if found is None or count != 1:
            raise ConfigError(f"explain takes one picture, not {count}")
        views, text, scale = found
        head = self.classifier.trained
        detail = adapt_in_detail(views, text, scale, head, self._config_for(classes))
        return explain(detail, classes)

    def reset(self) -> None:
        """Forget the stream of the online mode."""
        self.online = None

    # -- evaluation ------------------------------------------------------------------------------

    def evaluate(
        self,
        data: Data,
        *,
        split: str | None = None,
        class_names: ClassNamesSource | None = None,
        baselines: bool = True,
    ) -> tuple[dict[str, Any], Evaluated]:
        """Judge the zero-shot, the trained and the test-time adapted model on labelled data.

        Args:
            data: As for `RAdaClassifier.evaluate`; features need several views.
            split: Name of the split to use instead of `test`, else `val`, else all.
            class_names: Names for the classes of the data, as for `RAdaClassifier.evaluate`.
            baselines: Also judge the mean of all views and of the confident ones.

        Returns:
            The result of `RAdaClassifier.evaluate` with the row "test_time" and the configuration under
            "test_time_config", and what it was computed from.
        """
        opened = self.classifier.open_to_evaluate(data, split, class_names)
        found = opened.found
        pictures = found if isinstance(found, ImageSplit) else None
        opened = opened._replace(found=self._features(found))
        result, evaluated = self.classifier.evaluate_opened(opened, data_name(data))
        text, classes, features = evaluated.text_features, evaluated.classes, evaluated.features
        views, scale = features.image_features, result["scale"]
        rows = {"test_time": self._logits(views, text, scale, classes)}
        if baselines:
            rows |= view_baselines(views, text, scale, self.config)
            del rows["zero_shot"]
        result |= compare(
            evaluated.zero_shot, evaluated.adapted, features.labels, classes, extra=rows
        )
        used = {"views": features.num_views, "strength": self._config_for(classes).strength}
        result["test_time_config"] = self.config.to_dict() | used
        return result, evaluated._replace(pictures=pictures)

    # -- inner parts -----------------------------------------------------------------------------

    def _config_for(self, classes: Sequence[str]) -> TTTConfig:
        """Return the configuration with the strength that the classifier has for these candidates."""
        if self.config.strength is not None or self.classifier.trained is None:
            return self.config
        return dataclasses.replace(self.config, strength=self.classifier.strength_for(classes))

    def _logits(self, views: Tensor, text: Tensor, scale: float, classes: Sequence[str]) -> Tensor:
        trained, config = self.classifier.trained, self._config_for(classes)
        if self.config.episodic:
            return adapt_views(
                views,
                text,
                scale,
                trained,
                config,
                self.batch_size,
                progress=self.classifier.progress,
            )
        if self.online is None or not torch.equal(self.online.start.text, text):
            self.online = OnlineAdapter(text, scale, trained, config)
        return self.online.predict(views)

    def _view_options(self) -> dict[str, Any]:
        encoder = self._encoder()
        return {
            "views": self.config.views,
            "seed": self.config.seed,
            "view_transform": view_transform(encoder, self.config),
        }

    def _encoder(self) -> DualEncoder:
        encoder = self.classifier.encoder
        if not isinstance(encoder, DualEncoder):
            raise FeatureError("pictures need an encoder: give one, or features with several views")
        return encoder

    def _encoded(self, images: Any) -> tuple[Tensor, Tensor, float] | None:
        """Return views `(N, V, D)`, class features `(K, D)` and the scale; None for no images."""
        found = images_to_predict(images, self.classifier.classes)
        if found is None:
            self._encoder()
            return None
        features = self._features(found)
        text = self.classifier.candidates(features)
        return features.image_features, text, self.classifier.scale_for(features)

    def _features(self, found: ImageSplit | Features) -> Features:
        if isinstance(found, Features):
            self.classifier.check_origin(found)
            return found
        return extract_features(
            self._encoder(),
            found,
            cache=self.classifier.cache,
            workers=self.classifier.workers,
            progress=self.classifier.progress,
            skip_bad=self.classifier.skip_bad,
            **self._view_options(),
        )
