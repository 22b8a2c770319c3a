"""The models that a service offers, by name, with the class features of every request kept for the next."""

from __future__ import annotations

import contextlib
import io
import threading
from collections import OrderedDict
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rada.classifier import Classifier
from rada.core.errors import ConfigError, RadaError
from rada.data.prompts import check_class_names
from rada.predictions import finite_logits
from rada.serving.batches import Batches, Scorer
from rada.serving.metrics import Metrics
from rada.serving.problems import RequestError, shortened
from rada.serving.settings import ServeSettings

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["Models", "Served", "View"]

_KEPT = 64
"""Sets of classes that a model remembers."""


@dataclass(frozen=True, eq=False)
class View:
    """Candidate classes of a model.

    Attributes:
        names: Their K names.
        score: Makes logits `(N, K)` of features.
    """

    names: tuple[str, ...]
    score: Scorer


@dataclass(eq=False)
class Served:
    """One model of a service.

    Attributes:
        name: What requests call it.
        classifier: The model.
        batches: Encodes its images.
    """

    name: str
    classifier: Classifier
    batches: Batches
    _views: OrderedDict[tuple[str, ...], View] = field(default_factory=OrderedDict)
    _lock: threading.Lock = field(default_factory=threading.Lock)
    _scoring: threading.RLock = field(default_factory=threading.RLock)

    def candidates(self) -> tuple[str, ...]:
        """Return the model's own classes; empty for an encoder as it is."""
        known = self.classifier.is_fitted or self.classifier.classes is not None
        return self.classifier.candidates() if known else ()

    def known_view(self, names: tuple[str, ...] | None) -> View | None:
        """Return what `view` would, if nothing has to be made for it, without waiting for one being made."""
        key = names or self.candidates()
        found = self._views.get(key)
        if found is not None:
            with contextlib.suppress(KeyError):  # dropped since
                self._views.move_to_end(key)
        return found

    def view(self, names: tuple[str, ...] | None) -> View:
        """Return the model among some classes; class features that were made before are kept.

        Args:
            names: The candidates; None for the model's own.

        Raises:
            RequestError: If the model has none of its own, or cannot score these.
        """
        names = names or self.candidates()
        if not names:
            raise RequestError(
                422,
                "no_classes",
                f"model {self.name!r}",
                "is an encoder without classes of its own",
                "name the candidate classes in the request",
            )
        with self._lock:  # one thread at the text encoder
            known = self.known_view(names)
            if known is not None:
                return known
            try:
                found = View(names, self._scorer(check_class_names(names)))
            except RadaError as error:
                kind = type(error).__name__
                raise RequestError(
                    422, kind, "classes", str(error), "ask for other classes, or for none"
                ) from error
            self._views[names] = found
            if len(self._views) > _KEPT:
                self._views.popitem(last=False)
            return found

    def _scorer(self, names: tuple[str, ...]) -> Scorer:
        classifier, encoder = self.classifier, self.batches.encoder
        classes = classifier.class_set(names)
        model = classifier.model_ or classifier.zero_shot_model(names, encoder.dim)
        with torch.no_grad(), self._scoring:
            score = model.logit_function(classes)

        def finite(features: Tensor) -> Tensor:
            with self._scoring:  # a method may remember parts of its last batch, as CoCoOp does
                return finite_logits(score(features))

        finite(torch.nn.functional.one_hot(torch.zeros(1, dtype=torch.long), encoder.dim).float())
        return finite

    def describe(self) -> dict[str, Any]:
        """Return what a client wants to know of it."""
        method, _ = self.classifier.resolved()
        return {
            "name": self.name,
            "method": method.name,
            "encoder": self.batches.encoder.name,
            "classes": list(self.candidates()),
        }


class Models:
    """All models of a service; those of one encoder share it.

    Args:
        classifiers: The models by name; the first is asked where a request names none.
        settings: The limits.
        metrics: What is counted.

    Raises:
        ConfigError: If there is none.
        FeatureError: If one has no encoder, so that it knows features alone.
    """

    def __init__(
        self, classifiers: Mapping[str, Classifier], settings: ServeSettings, metrics: Metrics
    ) -> None:
        if not classifiers:
            raise ConfigError("there is no model to serve: name one or more")
        self._lanes: dict[int, Batches] = {}
        self.served: dict[str, Served] = {}
        shared: dict[tuple[str, str | None], DualEncoder] = {}
        for name, classifier in classifiers.items():
            encoder = _encoder_of(name, classifier, shared)
            if id(encoder) not in self._lanes:
                self._lanes[id(encoder)] = Batches(encoder, settings, metrics)
            self.served[name] = Served(name, classifier, self._lanes[id(encoder)])
        self.first = next(iter(self.served))
        self._texts = ThreadPoolExecutor(1, "rada-text")

    def get(self, name: str | None) -> Served:
        """Return a model by name, the first for None.

        Raises:
            RequestError: 404 if there is none.
        """
        name = self.first if name is None else name
        if name not in self.served:
            raise RequestError(
                404,
                "unknown_model",
                f"model {name!r}",
                "is not served here",
                f"ask for one of {', '.join(map(repr, self.served))}",
            )
        return self.served[name]

    def warm(self) -> None:
        """Make the class features and encode one image, so that the first request need not wait."""
        from PIL import Image

        grey = io.BytesIO()
        Image.new("RGB", (64, 64), (128,) * 3).save(grey, "PNG")
        for served in self.served.values():
            if served.candidates():
                view = served.view(None)
                served.batches.submit(grey.getvalue(), view.score).result()

    @property
    def texts(self) -> ThreadPoolExecutor:
        """The thread that makes class features."""
        return self._texts

    def stop(self) -> None:
        """Finish what waits, and end all threads and processes."""
        for lane in self._lanes.values():
            lane.stop()
        self._texts.shutdown(wait=False, cancel_futures=True)


def _encoder_of(
    name: str, classifier: Classifier, shared: dict[tuple[str, str | None], DualEncoder]
) -> DualEncoder:
    """Return the encoder of a model's images, the one that another model has already loaded if it may be."""
    fitted = classifier.fitted_ if classifier.is_fitted else None
    saved = None if fitted is None else fitted.encoder
    if fitted is not None and fitted.model.method.train_encoder:
        return classifier.inputs.slot.get()
    if not classifier.slot:
        raise ConfigError(
            f"the model {shortened(name)!r} knows features alone, and no encoder of images: give its encoder "
            "with --encoder, or fit it on images"
        )
    if saved is None or classifier.slot.loaded is not None:
        return classifier.inputs.slot.get()
    key = (saved.fingerprint, saved.dtype)
    if fitted is not None and fitted.model.encoder is not None:
        shared.setdefault(key, fitted.model.encoder)
    if key in shared:
        classifier.encoder = shared[key]
        classifier.check_loaded(shared[key])
    return shared.setdefault(key, classifier.inputs.slot.get())
