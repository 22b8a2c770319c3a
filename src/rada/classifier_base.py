"""What a classifier is made of: its parameters, encoder, model, candidates and reader of data."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize, one_hot

from rada.core import notebook
from rada.core.config import Config
from rada.core.errors import ConfigError, DataError, FeatureError
from rada.core.estimator import Estimator
from rada.core.values import DEFAULT_METHOD
from rada.data.prompts import DEFAULT_TEMPLATE, check_class_names, load_templates
from rada.data.templates import asks_for_choice
from rada.encoders.slot import EncoderSlot
from rada.features import ClassSet, Features
from rada.fitting import labelled_arrays, unit_rows
from rada.inputs import Inputs
from rada.methods import AdaptedModel, Facts, Method, get_method
from rada.methods.registry import method_of
from rada.predictions import NamesImages, finite_logits
from rada.pretrained import EncoderId, Fitted, check_encoder
from rada.training.strength import Strength

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rada.encoders import DualEncoder
    from rada.features import FeatureCache

__all__ = ["ClassifierBase"]

_MOST_NAMES = 12


class ClassifierBase(Estimator, NamesImages):
    """Parameters and parts of `rada.Classifier`, which documents them."""

    _fitted: Fitted | None = None
    _values: NDArray[Any] | None = None
    _slot: EncoderSlot | None = None
    train_features_: Features | None = None
    n_features_in_: int

    def __init__(
        self,
        encoder: str | Path | DualEncoder | None = "embedded",
        method: str | Config | None = None,
        classes: Sequence[str] | Mapping[str, str] | None = None,
        *,
        config: Config | None = None,
        templates: str | Sequence[str] | None = None,
        text_features: Mapping[str, Any] | None = None,
        scale: float | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        cache: FeatureCache | Literal[False] | None = None,
        workers: int | None = None,
        skip_bad: bool = False,
        progress: bool | None = None,
        exact_decoding: bool = False,
    ) -> None:
        self.encoder, self.method, self.classes = encoder, method, classes
        self.config, self.templates, self.text_features = config, templates, text_features
        self.scale, self.device, self.dtype = scale, device, dtype
        self.cache, self.workers, self.skip_bad = cache, workers, skip_bad
        self.progress, self.exact_decoding = progress, exact_decoding

    def __repr__(self) -> str:
        encoder = getattr(self.encoder, "name", self.encoder)
        known = self._fitted is not None or self.classes is not None
        count = len(self.candidates()) if known else None
        state = "fitted" if self._fitted is not None else "not fitted"
        return (
            f"{type(self).__name__}(encoder={encoder!r}, method={self.resolved()[0].name!r}, "
            f"classes={count}, {state})"
        )

    def _repr_html_(self) -> str:
        rows = [tuple(map(notebook.text, entry)) for entry in _summary(self).items()]
        return notebook.fragment(type(self).__name__, notebook.table(("", ""), rows))

    # -- what it is made of ----------------------------------------------------------------------

    def resolved(self) -> tuple[Method, Config]:
        """Return the method and its configuration.

        Raises:
            ConfigError: If there is no such method, or the configuration is another method's.
        """
        if isinstance(self.method, Config):
            return method_of(self.method), self.method
        if self.method is None and self.config is not None:
            return method_of(self.config), self.config
        name = DEFAULT_METHOD if self.method is None else self.method
        if not isinstance(name, str):
            raise ConfigError(
                f"method should be a name or a configuration, not {self.method!r}: name the classes with "
                "classes="
            )
        method = get_method(name)
        return method, method.config() if self.config is None else self.config

    @property
    def slot(self) -> EncoderSlot:
        """The encoder as it was given, loaded when it is first needed."""
        asked = self.encoder, self.device, self.dtype
        if self._slot is None or not self._slot.is_of(*asked):
            self._slot = EncoderSlot(*asked)
        return self._slot

    @property
    def checked_slot(self) -> EncoderSlot:
        """The same encoder, which has to be the one that the model was trained with, if there is one."""
        known = self._fitted is not None and self._fitted.encoder is not None
        return self.slot.checked(self.check_loaded) if known else self.slot

    @property
    def encoder_(self) -> DualEncoder | None:
        """The loaded encoder of the images, the tuned one after a method that tunes it; or None."""
        model = self.model_
        if model is not None and model.method.train_encoder:
            return model.encoder
        return self.checked_slot.get() if self.slot else None

    @property
    def model_(self) -> AdaptedModel | None:
        """What `fit` learned, an `AdaptedModel`; None before."""
        return None if self._fitted is None else self._fitted.model

    @property
    def is_fitted(self) -> bool:
        """Whether `fit` was called, or a saved model loaded."""
        return self._fitted is not None

    def __sklearn_is_fitted__(self) -> bool:
        """Say so to scikit-learn."""
        return self.is_fitted

    @property
    def fitted_(self) -> Fitted:
        """The model with all that is known of it.

        Raises:
            ConfigError: Before `fit`.
        """
        if self._fitted is None:
            raise ConfigError("the classifier is not fitted yet: call fit first")
        return self._fitted

    @property
    def classes_(self) -> NDArray[Any]:
        """The candidate classes, `(K,)`; label values of any type after `fit(X, y)`.

        Raises:
            DataError: If they are not known yet.
        """
        names = self.candidates()
        if self._values is None:
            return np.asarray(names)
        return _label_values(names, self._values, self.fitted_.aliases)

    def candidates(self) -> tuple[str, ...]:
        """Return the names of the candidate classes.

        Raises:
            DataError: If they are not known yet, blank or doubled.
        """
        if self.classes is not None and not isinstance(self.classes, Mapping):
            return check_class_names(self.classes)
        if self._fitted is not None:
            return self._fitted.classes
        if self.classes is None:
            raise DataError("the classes are not known yet: name them, or fit the classifier first")
        return check_class_names(dict.fromkeys(self.classes.values()))

    @property
    def strength(self) -> float:
        """Strength where some candidates are new to the model; setting it sets it for all of them."""
        return 0.0 if self.model_ is None else self.model_.strength.value

    @strength.setter
    def strength(self, value: float) -> None:
        model = self.fitted_.model
        model.strength = Strength(float(value), classes=model.strength.classes)

    def strength_for(self, classes: Iterable[str]) -> float:
        """Return the strength among candidates: another where the model was trained on all of them."""
        return 0.0 if self.model_ is None else self.model_.strength.for_classes(classes)

    @property
    def fresh_inputs(self) -> Inputs:
        """Reads data for a fit: nothing of an earlier one is in it."""
        templates = _named(self.templates)
        return Inputs(
            self.slot,
            templates,
            _class_set(self.text_features, templates),
            self.scale,
            None,
            self.cache,
            self.workers,
            self.skip_bad,
            self.progress,
            self.exact_decoding,
            asks_for_choice(self.templates),
        )

    @property
    def inputs(self) -> Inputs:
        """Reads data into features of the encoder in use.

        Raises:
            ConfigError: If other templates are wanted than those that the text encoder learned with.
        """
        fresh, fitted = self.fresh_inputs, self._fitted
        if fitted is None:
            return fresh.for_use()
        _refuse_templates(fitted.model, fresh.templates)
        changes: dict[str, Any] = {"choose": False}
        if fresh.templates is None and _keeps_templates(fitted):
            changes["templates"] = fitted.templates or None
        if self.scale is None:
            changes["scale"] = fitted.model.facts.scale
        if fitted.encoder is not None:
            changes["origin"] = (fitted.encoder.name, fitted.encoder.fingerprint)
        tuned = fitted.model.encoder if fitted.model.method.train_encoder else None
        if tuned is not None:
            changes |= {"slot": EncoderSlot(tuned), "origin": (tuned.name, tuned.fingerprint)}
            changes["embedded"] = fitted.model.embedded
        else:
            changes["slot"] = self.checked_slot
            if (text := fitted.class_features) is not None:
                changes["known"] = ClassSet(fitted.classes, text, fitted.templates)
        return dataclasses.replace(fresh, **changes)

    @property
    def pretrained_inputs(self) -> Inputs | None:
        """Reads data into features of the encoder before a method tuned it; None without one."""
        if not self.slot:
            return None
        slot = self.checked_slot
        return dataclasses.replace(
            self.inputs, slot=slot, origin=None, known=None, scale=self.scale, embedded=None
        )

    def adopt(self, fitted: Fitted, slot: EncoderSlot | None = None) -> None:
        """Take over a fitted model, and the encoder that was loaded for it."""
        self._fitted, self._values = fitted, None
        if slot is not None:
            self._slot = slot

    def check_loaded(self, encoder: DualEncoder) -> None:
        """Check the encoder of a saved model; a fingerprint as rada 0.1.0 wrote it is renewed.

        Raises:
            CheckpointError: If it is another one than the model was trained with.
        """
        saved = self.fitted_.encoder
        if saved is None:
            return
        check_encoder(encoder, saved, self.fitted_.model.facts.dim)
        if encoder.fingerprint != saved.fingerprint:
            renewed = dataclasses.replace(saved, fingerprint=encoder.fingerprint)
            self._fitted = dataclasses.replace(self.fitted_, encoder=renewed)

    def encoder_id(self) -> EncoderId | None:
        """Return which encoder makes the features, as far as it is known."""
        model, fitted = self.model_, self._fitted
        tuned = model is not None and model.method.train_encoder
        if fitted is not None and fitted.encoder is not None and not tuned:
            return fitted.encoder
        encoder = self.encoder_
        return None if encoder is None else EncoderId.of(encoder)

    def class_set(self, classes: Sequence[str] | None = None) -> ClassSet:
        """Return candidates with their class features `(K, D)`; None for the classifier's own.

        Raises:
            FeatureError: If there is no encoder to make the features.
        """
        return self.inputs.class_set(self.candidates() if classes is None else tuple(classes))

    # -- features and logits ---------------------------------------------------------------------

    def arrays(self, rows: Any, labels: Any) -> tuple[Features, NDArray[Any]]:
        """Return features with class features and scale; without an encoder, class means serve."""
        features, values = labelled_arrays(rows, labels)
        if not self.slot and self.text_features is None:
            places = one_hot(features.labels, len(values)).float()
            means = normalize(places.T @ features.plain(), dim=-1)
            features = dataclasses.replace(features, text_features=means)
        return dataclasses.replace(features, scale=features.scale or self.scale or 100.0), values

    def rows(self, values: Any) -> Tensor:
        """Return an array of features for a classifier that was fitted on one, `fit(X, y)`.

        Raises:
            ValueError: If it has another width, or scikit-learn refuses it.
        """
        table = unit_rows(values)
        if table.shape[1] != self.n_features_in_:
            raise FeatureError(
                f"X has {table.shape[1]} features, but {type(self).__name__} is expecting "
                f"{self.n_features_in_} features as input"
            )
        return table

    def to_predict(self, images: Any) -> tuple[Features | None, ClassSet]:
        """Return features of what is to be predicted, None for nothing at all, and the candidates."""
        given = self._values is not None and not isinstance(images, Features)
        given = given and (not self.slot or _are_rows(images))
        return self.inputs.to_predict(self.rows(images) if given else images, self.candidates())

    def model_logits(
        self,
        images: Tensor,
        classes: ClassSet,
        strength: float | None = None,
        scale: float | None = None,
        zero_shot: Tensor | None = None,
    ) -> Tensor:
        """Return logits `(N, K)` of features `(N, D)`.

        Args:
            images: Features of the encoder in use.
            classes: The candidates.
            strength: 0 for zero-shot; None for the model's own.
            scale: The scale of the zero-shot model before `fit`; None for the encoder's.
            zero_shot: The model's logits at strength 0, where they are known.
        """
        model = self.model_ or self.zero_shot_model(classes.names, images.shape[1], scale)
        images, classes = model.as_learned(images, classes)
        return finite_logits(model.logits(images, classes, strength=strength, zero_shot=zero_shot))

    def zero_shot_model(
        self,
        classes: tuple[str, ...],
        dim: int,
        scale: float | None = None,
        *,
        encoder: bool = False,
    ) -> AdaptedModel:
        """Return the model before any adaptation.

        Args:
            classes: The candidates.
            dim: Width of the features.
            scale: Their scale; None for the encoder's.
            encoder: Whether the model is to have the encoder at hand.
        """
        method = get_method("zero_shot")
        scale = self.inputs.scale_for() if scale is None else scale
        asked = self.slot.get() if encoder and self.slot else None
        return method.build(Facts(dim, scale, classes), method.config(), {}, asked)


def _summary(classifier: ClassifierBase) -> dict[str, Any]:
    """Return what a notebook shows of a classifier."""
    method, fitted = classifier.resolved()[0], classifier._fitted
    known = fitted is not None or classifier.classes is not None
    said = {
        "encoder": getattr(classifier.encoder, "name", classifier.encoder),
        "method": f"{method.title} ({method.name})",
        "classes": _some_of(classifier.candidates()) if known else "not known yet",
    }
    if fitted is None:
        return said | {"state": "zero-shot: nothing is learned yet"}
    return said | {
        "state": f"learned from {fitted.record.images:,} images, seed {fitted.record.seed}",
        "strength": f"{classifier.strength_for(classifier.candidates()):g}",
    }


def _some_of(names: Sequence[str]) -> str:
    """Return the first names, and how many more there are."""
    more = len(names) - _MOST_NAMES
    return ", ".join(names[:_MOST_NAMES]) + (f" and {more} more" if more > 0 else "")


def _label_values(
    names: Sequence[str], values: NDArray[Any], aliases: Mapping[str, str]
) -> NDArray[Any]:
    """Return the labels of candidates as they were given to `fit(X, y)`; names where one is another."""
    known = [aliases.get(name, name) for name in map(str, values.tolist())]
    if len(set(known)) < len(known) or not set(names) <= set(known):
        return np.asarray(names)
    found: NDArray[Any] = values[[known.index(name) for name in names]]
    return found


def _are_rows(images: Any) -> bool:
    """Whether it is an array, or a list, of rows of numbers, and not of images."""
    if isinstance(images, list | tuple):
        return all(isinstance(row, list | tuple) for row in images)
    return getattr(images, "ndim", 0) == 2


def _named(templates: str | Sequence[str] | None) -> tuple[str, ...] | None:
    known = templates is not None and not asks_for_choice(templates)
    return load_templates(templates) if known else None


def _refuse_templates(model: AdaptedModel, templates: tuple[str, ...] | None) -> None:
    """Refuse other templates than those that the text encoder of a model learned with."""
    learned = model.facts.templates
    if not model.embeds_classes or templates in (None, learned):
        return
    more = f" and {len(learned) - 1} more" if len(learned) > 1 else ""
    raise ConfigError(
        f"the templates {list(templates or ())} cannot be used: the text encoder of {model.method.name!r} "
        f"has learned with {learned[0]!r}{more}; leave the templates out, or fit again with others"
    )


def _keeps_templates(fitted: Fitted) -> bool:
    """Whether a model has templates of its own, from its user or its method, and takes none of the data."""
    plain = (DEFAULT_TEMPLATE,)
    return (
        "template_choice" in fitted.record.details or fitted.model.method.templates(plain) != plain
    )


def _class_set(
    text_features: Mapping[str, Any] | None, templates: tuple[str, ...] | None
) -> ClassSet | None:
    """Return class features as a user gives them."""
    if text_features is None:
        return None
    rows = [torch.as_tensor(row).float() for row in text_features.values()]
    return ClassSet(tuple(text_features), torch.stack(rows), templates or ())
