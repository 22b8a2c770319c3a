"""From what a user hands over to labelled features: opened, named, drawn, encoded and checked."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch

from rada.convert import convert_data, images_to_predict
from rada.core.errors import ConfigError, DataError, FeatureError
from rada.core.printable import escape
from rada.core.values import check_scale
from rada.data import (
    ImageDataset,
    ImageSplit,
    Naming,
    announce,
    few_shot,
    fold_name,
    open_dataset,
    readable_shots,
)
from rada.data.checks import name_classes, place_labels
from rada.data.naming import Matched
from rada.data.prompts import DEFAULT_TEMPLATE
from rada.data.registry import check_spec
from rada.encoders.kept_texts import kept_classes
from rada.encoders.slot import EncoderSlot
from rada.evaluation.sharing import shown_name
from rada.features import (
    ClassSet,
    FeatureCache,
    Features,
    FeatureStore,
    ViewTransform,
    extract_features,
    names_features,
)
from rada.features.store import is_store

__all__ = [
    "TEST_SPLITS",
    "TRAIN_SPLITS",
    "Data",
    "Inputs",
    "Opened",
    "check_named",
    "data_name",
    "open_labelled",
    "refuse_features",
]

Data = Any
TRAIN_SPLITS = ("train", "all")
TEST_SPLITS = ("test", "val", "all", "train")


class Opened(NamedTuple):
    """Opened data.

    Attributes:
        found: Images, features, or features that may be too many for memory; their labels count in
            the names that are wanted.
        aliases: Class names by what the data calls the classes.
        templates: Prompt templates of the data, or None where it has none.
        skipped: `(id, reason)` of each image that was left out, since its file is missing.
        others: Splits of the data that were not opened.
    """

    found: ImageSplit | Features | FeatureStore
    aliases: dict[str, str]
    templates: tuple[str, ...] | None
    skipped: tuple[tuple[str, str], ...] = ()
    others: tuple[str, ...] = ()

    def parts(self) -> Iterator[ImageSplit | Features]:
        """Yield what was opened in parts of a bounded size; images are one part."""
        yield from (self.found,) if isinstance(self.found, ImageSplit) else self.found.parts()

    def whole(self) -> ImageSplit | Features:
        """Return what was opened, in memory."""
        return self.found.load() if isinstance(self.found, FeatureStore) else self.found


@dataclass
class Inputs:
    """Turns data into features of one encoder, with class features and scale.

    Attributes:
        slot: The encoder.
        templates: Prompt templates that the user chose; None takes the data's.
        known: Class features that are known without the encoder, with their templates.
        scale: The scale that the user chose, or None.
        origin: Name and fingerprint of the encoder that features must come from; None for any.
        cache: The feature cache.
        workers: Processes that decode images.
        skip_bad: Leave out images that cannot be read.
        progress: Show bars.
        exact_decoding: Decode large JPEGs whole, as for `iter_features`.
        choose: Choose the templates on the labelled images of a fit.
        embedded: `AdaptedModel.embedded` of a model with an encoder of its own, which is asked before it.

    Raises:
        ConfigError: If there is nothing to choose templates with, or no use in it.
    """

    slot: EncoderSlot
    templates: tuple[str, ...] | None = None
    known: ClassSet | None = None
    scale: float | None = None
    origin: tuple[str, str] | None = None
    cache: FeatureCache | Literal[False] | None = None
    workers: int | None = None
    skip_bad: bool = False
    progress: bool | None = None
    exact_decoding: bool = False
    choose: bool = False
    embedded: Callable[[tuple[str, ...], tuple[str, ...]], torch.Tensor | None] | None = None
    _text: dict[tuple[tuple[str, ...], tuple[str, ...]], torch.Tensor] = dataclasses.field(
        default_factory=dict
    )

    def __post_init__(self) -> None:
        if not self.choose:
            return
        if not self.slot:
            raise ConfigError(
                "the templates 'auto' need the encoder, which embeds the prompts to choose from: give "
                "the one that made the features (--model), or leave the templates out"
            )
        if self.known is not None:
            raise ConfigError(
                "the templates 'auto' choose class features, but text_features are given: leave one of "
                "them out"
            )

    def for_use(self) -> Inputs:
        """Return it, for anything but a fit.

        Raises:
            ConfigError: If the templates are yet to be chosen.
        """
        if self.choose:
            raise ConfigError(
                "the templates 'auto' are chosen on labelled images: call fit first, or name templates"
            )
        return self

    def draw(
        self,
        opened: Opened,
        shots: int | None,
        seed: int,
        allow_fewer: bool,
    ) -> tuple[ImageSplit | Features, list[tuple[str, str]]]:
        """Return `shots` images of each class, or all, and the bad ones that were passed over."""
        if shots is None:
            return opened.whole(), []
        found = opened.found
        if isinstance(found, Features | FeatureStore):
            return found.few_shot(shots, seed, allow_fewer=allow_fewer), []
        if not self.skip_bad:
            return few_shot(found, shots, seed, allow_fewer=allow_fewer), []
        good, bad = readable_shots(
            found, shots, seed, allow_fewer=allow_fewer, progress=self.progress
        )
        return good, [(entry.id, entry.reason) for entry in bad]

    def features(
        self,
        found: ImageSplit | Features,
        templates: tuple[str, ...] | None = None,
        *,
        views: int = 1,
        seed: int = 0,
        view_transform: ViewTransform | None = None,
    ) -> Features:
        """Return features with class features and scale; features pass through, if they fit.

        Args:
            found: Images or features.
            templates: Templates that the data names.
            views: Views of each image.
            seed: Chooses the views.
            view_transform: How views above 0 are made; None for the encoder's own.

        Raises:
            FeatureError: If features come from another encoder, or there is no encoder for images.
            DataError: If an image cannot be read.
        """
        features = self.encode(found, views=views, seed=seed, view_transform=view_transform)
        classes = self.class_set(features.classes, features, templates)
        return dataclasses.replace(
            features,
            text_features=classes.text_features,
            templates=classes.templates,
            scale=self.scale_for(features),
        )

    def to_predict(
        self, images: Any, names: tuple[str, ...], views: Callable[[], dict[str, Any]] = dict
    ) -> tuple[Features | None, ClassSet]:
        """Return features of what is to be predicted, None for nothing at all, and the candidates.

        Args:
            images: What a user hands over, as `rada.convert.ACCEPTED_IMAGES` says.
            names: The candidates.
            views: Returns options of `encode` for images.
        """
        found = images_to_predict(images, names)
        if found is None:
            return None, self.class_set(names)
        features = self.encode(found, **({} if isinstance(found, Features) else views()))
        return features, self.class_set(names, features)

    def encode(
        self,
        found: ImageSplit | Features,
        *,
        views: int = 1,
        seed: int = 0,
        view_transform: ViewTransform | None = None,
    ) -> Features:
        """Return features of images, without class features; features pass through, if they fit."""
        if isinstance(found, Features):
            self.check_origin(found)
            if found.num_views < views:
                raise FeatureError(
                    f"the method wants {views} views of each image, but the features have "
                    f"{found.num_views}: encode them with --views {views}"
                )
            return found
        return extract_features(
            self.slot.get(),
            found,
            views=views,
            seed=seed,
            view_transform=view_transform,
            progress=self.progress,
            **self.streaming(),
        )

    def class_set(
        self,
        names: tuple[str, ...],
        features: Features | None = None,
        templates: tuple[str, ...] | None = None,
    ) -> ClassSet:
        """Return candidates with the class features that go with some features.

        The features' own class features serve, then those that are known, if they are of the wanted
        templates; else the encoder makes them.

        Args:
            names: The candidates.
            features: Features whose class features may serve; None for none.
            templates: Templates that the data names.

        Raises:
            FeatureError: If there are none and no encoder to make them.
        """
        own = None if features is None or not features.templates else features.templates
        wanted = self.templates or templates or (self.known and self.known.templates) or own
        for source in (_class_set_of(features), self.known):
            if source is None or not self._may_use(source, wanted):
                continue
            rows = source.take_names(names)
            if rows is not None:
                return rows
        if not self.slot:
            self._refuse_templates(own, None if features is None else features.encoder)
            raise FeatureError(
                "there is no encoder to embed class names: give features with text_features, "
                "or a classifier with an encoder" + self._hint()
            )
        key = (names, tuple(wanted or (DEFAULT_TEMPLATE,)))
        if key not in self._text:
            found = None if self.embedded is None else self.embedded(*key)
            if found is None:
                keep = self.cache is not False
                found = kept_classes(self.slot.get(), *key, keep=keep, progress=self.progress)
            self._text[key] = found
        return ClassSet(names, self._text[key], key[1])

    def _may_use(self, source: ClassSet, wanted: tuple[str, ...] | None) -> bool:
        """Whether class features are of the wanted templates; what the user chose has to be proven."""
        if self.templates is not None:
            return source.templates == tuple(self.templates)
        return not source.templates or not self.slot or wanted in (None, source.templates)

    def _refuse_templates(self, own: tuple[str, ...] | None, encoder: str | None) -> None:
        if self.templates is not None:
            maker = "that made the features" if encoder is None else repr(encoder)
            raise FeatureError(
                f"the templates {list(self.templates)} are wanted, but the features hold class features of "
                f"{list(own or ()) or 'templates that they do not name'}, and there is no encoder to make "
                f"others: give the encoder {maker} (--model), or leave the templates out"
            )

    def _hint(self) -> str:
        return f"; the features come from the encoder {self.origin[0]!r}" if self.origin else ""

    def scale_for(self, features: Features | None = None) -> float:
        """Return the scale: the chosen one, else the encoder's, else that of the features.

        Raises:
            ConfigError: If none of these says it.
        """
        if self.scale is not None:
            return check_scale(self.scale)
        if features is not None and features.scale is not None and not self.slot:
            return float(features.scale)
        if self.slot:
            return float(self.slot.get().scale)
        raise ConfigError("the logit scale is not known: pass scale=, 100 for CLIP models")

    def check_origin(self, features: Features) -> None:
        """Check that features come from the encoder in use.

        Raises:
            FeatureError: If they do not; the message names both.
        """
        given, origin = features.encoder_fingerprint, self.origin
        if given is None or (origin is not None and given == origin[1]):
            return
        if self.slot:
            encoder = self.slot.get()
            if encoder.has_fingerprint(given):
                return
            origin = origin or (encoder.name, encoder.fingerprint)
        if origin is not None:
            raise FeatureError(
                f"the features come from the encoder {features.encoder!r} ({given}), but {origin[0]!r} "
                f"({origin[1]}) is needed: encode them again"
            )

    def streaming(self) -> dict[str, Any]:
        """Return the options of `iter_features` that say how images are read."""
        return {
            "workers": self.workers,
            "cache": self.cache,
            "skip_bad": self.skip_bad,
            "exact_decoding": self.exact_decoding,
        }


def _class_set_of(features: Features | None) -> ClassSet | None:
    if features is None or features.text_features is None:
        return None
    return ClassSet(features.classes, features.text_features, features.templates)


def open_labelled(
    data: Data,
    splits: Sequence[str],
    naming: Naming,
    *,
    skip_bad: bool,
    embed: bool = False,
    known: Sequence[str] | None = None,
) -> Opened:
    """Open the first of `splits` that the data has.

    Args:
        data: A path, the name of a data set, a features file, any of these opened, or data of another
            library (`rada.convert.ACCEPTED`).
        splits: Names of splits.
        naming: The class names that are wanted.
        skip_bad: Leave out images whose file is missing.
        embed: Whether class features of a features file are dropped where the names are others than
            the file's, since they are to be computed anew.
        known: Class names that integer labels are places in where neither `naming` nor the data has any.

    Raises:
        DataError: If the data cannot be used or the names do not fit it.
        FeatureError: If features cannot be used.
    """
    if isinstance(data, str | Path) and names_features(data):
        data = FeatureStore.open(data) if is_store(data) else Features.load(data)
    if isinstance(data, str | Path):
        data = open_dataset(data, class_names=naming, skip_bad=skip_bad)
    else:
        data = convert_data(data, naming.classes or known, skip_bad=skip_bad)
        if isinstance(data, ImageDataset):
            data = name_classes(data, naming)
    if isinstance(data, ImageDataset):
        found = data.split(*splits)
        part = next(name for name in splits if name in data.splits)
        announce(data.name, part, found)
        others = tuple(name for name in data.splits if name != part)
        return Opened(found, data.aliases, data.templates, data.skipped_of(part), others)
    of_features = isinstance(data, Features | FeatureStore)
    templates = (data.templates or None) if of_features else None
    if not naming.wanted:
        return Opened(data, dict(zip(data.classes, data.classes, strict=True)), templates)
    matched = naming.match(data.classes)
    if of_features:
        return Opened(_place_features(data, matched, embed), matched.aliases, templates)
    return Opened(place_labels(data, matched), matched.aliases, templates)


def check_named(data: str) -> None:
    """Check that there may be data of a name, without opening it: before a model is loaded for it.

    Raises:
        DataError: If there certainly is none.
        FeatureError: If it is a features file that does not exist.
    """
    if not names_features(data):
        check_spec(data)
    elif is_store(data):
        FeatureStore.open(data)
    elif not Path(data).is_file():
        Features.load(data)  # says what is wrong


def refuse_features(data: Data, purpose: str) -> None:
    """Refuse features, a features file or a store where the images themselves are needed.

    Raises:
        DataError: If it is one; the message says what to give.
    """
    named = isinstance(data, str | Path) and names_features(data)
    if named or isinstance(data, Features | FeatureStore):
        what = repr(str(data)) if named else f"data of the type {type(data).__name__}"
        raise DataError(
            f"{purpose} opens images, but {what} holds features of them: give images, or use Classifier "
            "(rada fit), which learns from features"
        )


def data_name(data: Data) -> str | None:
    """Return what to call data in the record of a run, None where it has no name.

    The folders above it are left out: a record is handed on with the model. Bytes of a name that are no
    Unicode are shown with escapes, which every JSON file can hold.
    """
    name = data if isinstance(data, str | Path) else getattr(data, "name", None)
    return escape(shown_name(str(name))) if isinstance(name, str | Path) else None


def _place_features(
    features: Features | FeatureStore, matched: Matched, embed: bool
) -> Features | FeatureStore:
    """Return the same features with labels, and rows of class features, in the order of the names."""
    lookup = torch.tensor([*matched.places, -1])  # the last stands for -1
    text = features.text_features
    others = [
        name
        for name, place in zip(features.classes, matched.places, strict=True)
        if fold_name(name) != fold_name(matched.classes[place])
    ]
    if len(matched.places) != len(matched.classes) or (embed and others):
        text = None  # class features of other names, or of some of the candidates only
    elif text is not None:
        text = torch.empty_like(text).index_copy(0, lookup[:-1], text)
    if isinstance(features, FeatureStore):
        return features.with_classes(matched.classes, matched.places, text)
    return dataclasses.replace(
        features, labels=lookup[features.labels], classes=matched.classes, text_features=text
    )
