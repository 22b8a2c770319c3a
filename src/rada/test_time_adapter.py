"""`TestTimeAdapter`: a classifier that predicts each image from views of it."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from rada.classifier import Classifier
from rada.core.errors import ConfigError
from rada.core.values import check_count
from rada.data import ImageSplit
from rada.data.prompts import ClassNamesSource
from rada.encoders import DualEncoder
from rada.evaluating import evaluate_opened, open_to_evaluate, training_features
from rada.evaluation import Evaluation
from rada.features import ClassSet, Features, FeatureStore, ViewPixels
from rada.features.images import ImageItem
from rada.inputs import Data, data_name
from rada.methods import AdaptedModel
from rada.predictions import NamesImages, StreamAnswer, stream_features, stream_predictions
from rada.test_time import Explanation, ViewConfig, explain, get_test_time_method
from rada.test_time.base import TestTimeMethod, ViewPredictor, predict_data_set
from rada.test_time.rada import RAdaPredictor, RAdaTestTime
from rada.test_time.registry import test_time_method_of
from rada.test_time.views import pixels_of, view_transform

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rada.data.images import ImageLike

__all__ = ["TestTimeAdapter"]

IMAGES_AT_ONCE = 8
"""Images a batch of a stream: with their views they are some hundred."""
BASELINES = ("mean_of_views", "confident_views")


class TestTimeAdapter(NamesImages):
    """Predicts images by a test-time method, without labels.

    Args:
        model: A classifier, whose model is the start; or an encoder, or the name of one, for zero-shot;
            None to work on features alone.
        method: Name of a test-time method (`rada methods` lists them), or its configuration.
        classes: Candidate class names, where `model` is an encoder. None takes them from the data.
        config: The method's configuration where `method` is a name; its defaults when None.
        templates: Prompt templates, where `model` is an encoder.
        batch_size: Images that are adapted to at once; None chooses, 1 is the loop.
        options: `cache`, `workers`, `skip_bad`, `scale`, `progress`, `device`, `dtype`, `text_features` and
            `exact_decoding`, as for `Classifier`, where `model` is an encoder.

    Attributes:
        classifier: The classifier that is adapted; it stays as it is.
        method: The test-time method.
        config: Its configuration.

    Raises:
        ConfigError: If there is no such method, or classes or options are given beside a classifier.

    Example:
        >>> from torch.nn.functional import normalize
        >>> features = Features(
        ...     normalize(torch.randn(2, 20, 8), dim=-1), [0, 1], ("cat", "dog"),
        ...     text_features=torch.eye(8)[:2], scale=20.0,
        ... )
        >>> TestTimeAdapter(None, classes=["cat", "dog"], scale=20.0).predict_proba(features).shape
        (2, 2)
    """

    __test__ = False  # pytest takes every class whose name begins with Test for a test

    def __init__(
        self,
        model: Classifier | DualEncoder | str | Path | None = "embedded",
        method: str | ViewConfig = "rada",
        *,
        classes: Sequence[str] | Mapping[str, str] | None = None,
        config: ViewConfig | None = None,
        templates: str | Sequence[str] | None = None,
        batch_size: int | None = None,
        **options: Any,
    ) -> None:
        if not isinstance(model, Classifier):
            _check_options(options)
            model = Classifier(model, "zero_shot", classes, templates=templates, **options)
        elif classes is not None or templates is not None or options:
            raise ConfigError(
                "classes, templates and options belong to the classifier, which was given: "
                "set them there (classifier.classes = ...)"
            )
        self.classifier = model
        self.method, self.config = _resolved(method, config)
        self.batch_size = None if batch_size is None else check_count(batch_size, "batch_size")
        self._running: tuple[tuple[Any, ...], Tensor, ViewPredictor] | None = None

    @property
    def classes_(self) -> NDArray[Any]:
        """The candidate classes, `(K,)`."""
        return self.classifier.classes_

    def candidates(self) -> tuple[str, ...]:
        """Return the names of the candidate classes."""
        return self.classifier.candidates()

    def config_used(self) -> ViewConfig:
        """Return the configuration, with the words of templates that the classifier was given.

        Raises:
            ConfigError: If the method cannot start from these templates.
        """
        clf = self.classifier
        if clf.model_ is not None and clf.model_.method.learns:
            return self.config
        found: ViewConfig = self.method.from_templates(self.config, clf.inputs.templates)
        return found

    def __repr__(self) -> str:
        return f"TestTimeAdapter({self.classifier!r}, method={self.method.name!r})"

    # -- prediction ------------------------------------------------------------------------------

    def logits(self, images: Any) -> NDArray[np.float32]:
        """Return logits `(N, K)` over the classifier's candidates.

        Args:
            images: As for `Classifier.logits`; features need several views.

        Raises:
            DataError: If an image cannot be read; the message names it.
            FeatureError: If features have too few views.
            ConfigError: If the method cannot start from the classifier's model.
        """
        features, classes = self._to_predict(images)
        if features is None:
            return np.zeros((0, len(classes)), np.float32)
        scale = self.classifier.inputs.scale_for(features)
        views = features.image_features
        found: NDArray[np.float32] = self._predict(views, classes, scale, features).numpy()
        return found

    def predict_stream(
        self, images: Iterable[ImageLike] | Features | FeatureStore, top_k: int = 1
    ) -> Iterator[StreamAnswer]:
        """Name the class of each image of a stream, in order, in bounded memory.

        Arguments and predictions as `Classifier.predict_stream`.
        """
        inputs = self.classifier.inputs
        if isinstance(images, FeatureStore):
            for part in images.parts():
                yield from self.predict_stream(part, top_k)
            return
        if isinstance(images, Features):
            features, classes = self._to_predict(images)
            scale = inputs.scale_for(features)
            place = 0

            def of_rows(views: Tensor) -> Tensor:
                nonlocal place
                place += len(views)
                return self._predict(views, classes, scale, images, place - len(views))

            yield from stream_features(images, of_rows, classes.names, top_k)
            return
        classes = self.classifier.class_set()
        scale = inputs.scale_for()
        yield from stream_predictions(
            inputs.slot.get(),
            images,
            lambda views, behind: self._predict(views, classes, scale, behind),
            classes.names,
            top_k,
            batch_size=IMAGES_AT_ONCE,
            **self._view_options(),
            **inputs.streaming(),
        )

    def explain(self, image: Any) -> Explanation:
        """Tell for one image which views were kept, what changed and by how much (RAda alone).

        Its probabilities are those that `predict_proba` would give now: in the online mode the image is
        the next of the stream.

        Raises:
            ConfigError: If the method is another, or there is not one image.
        """
        if not isinstance(self.method, RAdaTestTime):
            raise ConfigError(f"{self.method.title} has no explanation: it exists for rada")
        features, classes = self._to_predict(image)
        count = 0 if features is None else len(features)
        if features is None or count != 1:
            raise ConfigError(f"explain takes one image, not {count}")
        views, scale = features.image_features, self.classifier.inputs.scale_for(features)
        predictor = self._stream(classes, views.shape[-1], scale)
        assert isinstance(predictor, RAdaPredictor)
        return explain(predictor.in_detail(views), classes.names)

    def reset(self) -> None:
        """Forget the stream of a method that goes on from image to image."""
        self._running = None

    # -- evaluation ------------------------------------------------------------------------------

    def score(self, data: Data) -> float:
        """Return the accuracy on labelled data, in [0, 1]."""
        found: float = self.evaluate(data, baselines=False)["test_time"]["accuracy"]
        return found

    def evaluate(
        self,
        data: Data,
        *,
        split: str | None = None,
        class_names: ClassNamesSource | None = None,
        baselines: bool = True,
        train: Data | None = None,
    ) -> Evaluation:
        """Evaluate the zero-shot, the adapted and the test-time model on labelled data.

        A method that goes on from image to image takes the data as a new stream, in an order that the
        configuration's seed draws.

        Args:
            data: As for `Classifier.evaluate`; features need several views.
            split: Name of the split to use instead of `test`, else `val`, else all.
            class_names: Names for the classes of the data, as for `Classifier.evaluate`.
            baselines: Also evaluate the mean of all views and of the confident ones, if there are several.
            train: The training images, as for `Classifier.evaluate`.

        Returns:
            What `Classifier.evaluate` returns, with the row "test_time" and the configuration under
            "test_time_config".
        """
        clf, config = self.classifier, self.config_used()
        opened = open_to_evaluate(clf, data, split, class_names)
        whole = opened.whole()  # views of each image are far more than the plain features
        views = clf.inputs.features(whole, opened.templates, **self._views(whole))
        classes, scale = views.class_set(), views.scale
        assert scale is not None
        # A stream of its own: the same data gives the same numbers, and predictions go on undisturbed.
        predict = self._predictor(classes, views.dim, scale)
        pixels = self._pixels(views, classes, scale)
        rows = {"test_time": predict_data_set(predict, views, self.config.seed, pixels)}
        if baselines and views.num_views > 1:
            model = self._model(classes, views.dim, scale)
            for name in BASELINES:
                predict = get_test_time_method(name).predictor(model, classes, self.config)
                rows[name] = predict(views.image_features)
        learned = None if train is None else training_features(clf, train)
        found = evaluate_opened(clf, opened._replace(found=views), data_name(data), learned, **rows)
        used: dict[str, Any] = {"method": self.method.name, "views": views.num_views}
        if getattr(self.config, "strength", 0) is None and clf.is_fitted:
            used["strength"] = clf.strength_for(classes.names)
        told = config.to_dict() | used
        images = views.images if isinstance(whole, ImageSplit) else None  # without the bad ones
        names = found["row_names"] | {"test_time": f"{self.method.title} at test time"}
        result = found.result | {"test_time_config": told, "row_names": names}
        return dataclasses.replace(found, result=result, images=images)

    # -- inner parts -----------------------------------------------------------------------------

    def _model(self, classes: ClassSet, dim: int, scale: float) -> AdaptedModel:
        """Return the model to start from, if the method can start from it."""
        clf, needs = self.classifier, bool(self.method.needs)
        model = clf.model_
        if model is None or (needs and model.encoder is None and not model.method.learns):
            model = clf.zero_shot_model(classes.names, dim, scale, encoder=needs)
        self.method.check(model)
        return model

    def _predict(
        self,
        views: Tensor,
        classes: ClassSet,
        scale: float,
        behind: Features | Sequence[ImageItem],
        first: int = 0,
    ) -> Tensor:
        """Return logits of views, those of the images `behind` from the number `first` on."""
        predictor = self._stream(classes, views.shape[-1], scale)
        pixels = self._pixels(behind, classes, scale)
        if pixels is None:
            return predictor(views)
        return predictor(views, lambda image, numbers: pixels(first + image, numbers))

    def _stream(self, classes: ClassSet, dim: int, scale: float) -> ViewPredictor:
        """Return what predicts images: the one before, which may go on, as long as nothing else is asked."""
        clf, running = self.classifier, self._running
        strength = clf.strength_for(classes.names)
        key = (classes.names, scale, clf.model_, strength, clf.inputs.templates)
        if (
            running is None
            or running[0] != key
            or not torch.equal(running[1], classes.text_features)
        ):
            predictor = self._predictor(classes, dim, scale)
            self._running = running = (key, classes.text_features, predictor)
        return running[2]

    def _pixels(
        self, behind: Features | Sequence[ImageItem], classes: ClassSet, scale: float
    ) -> ViewPixels | None:
        """Return what makes the views of images again, where the method reads pixels."""
        if not self.method.reads_pixels:
            return None
        model = self._model(classes, classes.text_features.shape[1], scale)
        exact = self.classifier.exact_decoding
        return pixels_of(self.method, model, behind, self.config, exact_decoding=exact)

    def _predictor(self, classes: ClassSet, dim: int, scale: float) -> ViewPredictor:
        """Return what predicts images, with a stream of its own."""
        return self.method.predictor(
            self._model(classes, dim, scale),
            classes,
            self.config_used(),
            batch_size=self.batch_size,
            progress=self.classifier.progress,
        )

    def _views(self, found: Any) -> dict[str, Any]:
        return {} if isinstance(found, Features) else self._view_options()

    def _view_options(self) -> dict[str, Any]:
        encoder = self.classifier.inputs.slot.get()
        return {
            "views": self.config.views,
            "seed": self.config.seed,
            "view_transform": view_transform(encoder, self.config),
        }

    def _to_predict(self, images: Any) -> tuple[Features | None, ClassSet]:
        """Return views of what is to be predicted, None for nothing at all, and the candidates."""
        return self.classifier.inputs.to_predict(images, self.candidates(), self._view_options)


def _check_options(options: Mapping[str, Any]) -> None:
    """Check that a zero-shot classifier has parameters of these names."""
    own = ("encoder", "method", "classes", "config", "templates")
    known = [name for name in Classifier(None).get_params() if name not in own]
    unknown = sorted(set(options) - set(known))
    if unknown:
        raise ConfigError(
            f"TestTimeAdapter has no option {unknown[0]!r}; beside model, method, classes, config, "
            f"templates and batch_size it takes {', '.join(known)} (fields of the method's configuration go "
            "into config)"
        )


def _resolved(
    method: str | ViewConfig, config: ViewConfig | None
) -> tuple[TestTimeMethod, ViewConfig]:
    if isinstance(method, ViewConfig):
        return test_time_method_of(method), method
    if not isinstance(method, str):
        raise ConfigError(f"method should be a name or a configuration, not {method!r}")
    found = get_test_time_method(method)
    config = found.config() if config is None else config
    if not isinstance(config, found.config):
        raise ConfigError(
            f"{found.name} takes {found.config.__name__}, not {type(config).__name__}"
        )
    return found, config
