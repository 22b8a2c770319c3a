"""Where a benchmark's images come from: data sets read by an encoder, or features files."""

from __future__ import annotations

import dataclasses
import hashlib
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch

from rada.core.errors import DataError, FeatureError
from rada.core.hashing import fingerprint_tensors
from rada.data import ImageDataset, ImageSplit, Naming, data_identity, few_shot, open_dataset
from rada.data.checks import check_labelled
from rada.data.sources import id_bytes
from rada.data.templates import AUTO, asks_for_choice
from rada.encoders.kept_texts import kept_classes
from rada.features import ClassSet, FeatureCache, Features, ViewTransform, extract_features
from rada.features.files import SUFFIXES
from rada.features.store import FeatureStore, is_store
from rada.features.store_rows import StoreRows
from rada.inputs import open_labelled
from rada.test_time import ViewConfig
from rada.test_time.views import view_transform

if TYPE_CHECKING:
    from rada.encoders import DualEncoder
    from rada.encoders.slot import EncoderSlot

__all__ = ["EncodedSource", "FeatureSource", "Source", "domain_folders", "open_source"]


class Source(ABC):
    """A data set in a benchmark.

    Attributes:
        name: What to call it.
        classes: Its class names.
        scale: The exponentiated logit scale.
        encoder: The encoder; None for features.
        groups: For each candidate of `class_set` the class that it stands for, where several
            candidates share one; None where every class is its own candidate.
        choose: Whether templates are chosen on the shots.
    """

    name: str
    classes: tuple[str, ...]
    scale: float
    encoder: DualEncoder | None
    groups: tuple[int, ...] | None = None
    choose: bool = False

    @abstractmethod
    def identity(self, shots: int, seed: int, *, whole: bool = False) -> dict[str, str]:
        """Hash what a cell learns from and is tested on as it is now, under "train" and "test".

        Args:
            shots: As for `draw`; 0 where nothing is learned.
            seed: As for `draw`.
            whole: As for `test`.
        """

    @abstractmethod
    def class_set(self) -> ClassSet:
        """Return all candidates."""

    @abstractmethod
    def draw(
        self, classes: Sequence[int], shots: int, seed: int, *, views: int, allow_fewer: bool
    ) -> Features:
        """Return shots of some classes, relabelled in their order, with class features and scale."""

    @abstractmethod
    def test(self, *, whole: bool = False, views: ViewConfig | None = None) -> Features | StoreRows:
        """Return the test images; those of a store are not read yet, unless there are views.

        Args:
            whole: Whether to take everything where there is no split.
            views: How to make views of them, for test-time methods; None for the plain images.
        """

    def complete(self, features: Features) -> Features:
        """Return features with the class features and the scale of the source."""
        names = {name: row for row, name in enumerate(self.class_set().names)}
        if features.text_features is not None or not set(features.classes) <= names.keys():
            return dataclasses.replace(features, scale=self.scale)
        chosen = self.class_set().take([names[name] for name in features.classes])
        return dataclasses.replace(
            features,
            text_features=chosen.text_features,
            templates=chosen.templates,
            scale=self.scale,
        )

    @abstractmethod
    def trained(self) -> list[int]:
        """Return the labels that have training images, in order."""


class EncodedSource(Source):
    """Images and an encoder."""

    def __init__(
        self,
        dataset: ImageDataset,
        encoder: DualEncoder,
        cache: FeatureCache | Literal[False] | None,
        progress: bool | None,
        *,
        choose: bool = False,
    ) -> None:
        self.dataset, self.encoder, self.choose = dataset, encoder, choose
        self.name, self.classes = dataset.name, dataset.classes
        self.scale = float(encoder.scale)
        self._cache, self._progress = cache, progress
        self.groups = getattr(dataset, "groups", None)
        self._candidates: tuple[str, ...] = getattr(dataset, "candidates", None) or dataset.classes
        self._train, self._test = _splits(dataset)
        self._text: ClassSet | None = None
        self._tested: dict[tuple[bool, str], Features] = {}
        self._identities: dict[tuple[int, int, bool], dict[str, str]] = {}

    def identity(self, shots: int, seed: int, *, whole: bool = False) -> dict[str, str]:
        """Hash images, labels and names, templates and encoder; only the images used are read."""
        assert self.encoder is not None
        key = (shots, seed, whole)
        if key not in self._identities:
            test = self._tested_on(whole and "all" in self.dataset.splits)
            drawn = self._train.subset([])
            if shots:
                drawn = few_shot(self._train, shots, seed, allow_fewer=True)
            common: list[object] = [self._candidates, self.groups, self.dataset.templates]
            common += [self.encoder.fingerprint, self.trained(), *([AUTO] if self.choose else [])]
            self._identities[key] = {
                name: fingerprint_tensors(extra=[data_identity(part), *common])
                for name, part in (("train", drawn), ("test", test))
            }
        return self._identities[key]

    def _tested_on(self, whole: bool) -> ImageSplit:
        return self.dataset.splits["all"] if whole else self._test

    def class_set(self) -> ClassSet:
        """Encode the class names, once."""
        if self._text is None:
            assert self.encoder is not None
            templates = self.dataset.templates
            keep = self._cache is not False
            text = kept_classes(self.encoder, self._candidates, templates, keep=keep)
            self._text = ClassSet(self._candidates, text, templates)
        return self._text

    def trained(self) -> list[int]:
        """Return the labels that have training images."""
        return np.flatnonzero(self._train.counts()).tolist()

    def draw(
        self, classes: Sequence[int], shots: int, seed: int, *, views: int, allow_fewer: bool
    ) -> Features:
        """Draw from the training split and encode what was drawn."""
        pool = self._train.select_classes(classes)
        chosen = few_shot(pool, shots, seed, allow_fewer=allow_fewer)
        return self.complete(self._encoded(chosen, views=views, seed=seed))

    def test(self, *, whole: bool = False, views: ViewConfig | None = None) -> Features:
        """Encode the test split, once."""
        whole = whole and "all" in self.dataset.splits
        key = (whole, "" if views is None else repr(views))
        if key not in self._tested:
            split = self._tested_on(whole)
            check_labelled(split.labels, split.ids, f"testing on {self.name!r}")
            self._tested = {
                known: kept for known, kept in self._tested.items() if not known[1] or not key[1]
            }  # views are large: those of one configuration are enough
            self._tested[key] = self._viewed(split, views)
        return self._tested[key]

    def _viewed(self, split: ImageSplit, views: ViewConfig | None) -> Features:
        if views is None:
            return self._encoded(split)
        assert self.encoder is not None
        transform = view_transform(self.encoder, views)
        return self._encoded(split, views=views.views, seed=views.seed, view_transform=transform)

    def _encoded(
        self,
        split: ImageSplit,
        views: int = 1,
        seed: int = 0,
        view_transform: ViewTransform | None = None,
    ) -> Features:
        assert self.encoder is not None
        return extract_features(
            self.encoder,
            split,
            views=views,
            seed=seed,
            cache=self._cache,
            progress=self._progress,
            view_transform=view_transform,
        )


class FeatureSource(Source):
    """Features that somebody made; there are no images and no encoder.

    Args:
        name: What to call it.
        train: What there is to learn from; of a store only what is drawn is read.
        test: What to test on, part by part if it is a store; None to halve `train`.
    """

    encoder = None

    def __init__(
        self, name: str, train: Features | StoreRows, test: Features | StoreRows | None
    ) -> None:
        whole = train
        if test is None:
            first, second = _halves(train.ids, train.labels.numpy())
            train, test = whole.subset(first), whole.subset(second)
            self._whole = whole
        else:
            _same_classes(name, _facts(train), _facts(test))
            self._whole = test
        facts = _facts(train)
        if facts.text_features is None or facts.scale is None:
            raise FeatureError(
                f"the features {name!r} lack text_features or scale, which a benchmark needs: "
                "write them with `rada encode`"
            )
        self.name, self.classes, self.scale = name, facts.classes, float(facts.scale)
        self.fingerprint = facts.encoder_fingerprint
        self._text = facts.text_features
        self._templates = facts.templates
        self._train, self._test = train, test

    def identity(self, shots: int, seed: int, *, whole: bool = False) -> dict[str, str]:
        """Hash all features; a store knows those of its shards."""
        test = self._whole if whole else self._test
        return {"train": _fingerprint(self._train), "test": _fingerprint(test)}

    def class_set(self) -> ClassSet:
        """Return the class features of the file."""
        if self._templates:
            return ClassSet(self.classes, self._text, self._templates)
        return ClassSet(self.classes, self._text)

    def trained(self) -> list[int]:
        """Return the labels that have training examples."""
        labels = self._train.labels
        counts = torch.bincount(labels[labels >= 0], minlength=len(self.classes))
        return [int(row) for row in counts.nonzero()]

    def draw(
        self, classes: Sequence[int], shots: int, seed: int, *, views: int, allow_fewer: bool
    ) -> Features:
        """Draw from the training features."""
        self._need(self._train, views)
        pool = self._train.select_classes(classes)
        chosen = pool.few_shot(shots, seed, allow_fewer=allow_fewer)
        kept = dataclasses.replace(chosen, image_features=chosen.image_features[:, :views])
        return self.complete(kept)

    def test(self, *, whole: bool = False, views: ViewConfig | None = None) -> Features | StoreRows:
        """Return the plain view of the test features, or as many views as they are asked for.

        What is asked of view 0 alone is answered part by part; views are put in another order, all at once.
        """
        found = self._whole if whole else self._test
        check_labelled(found.labels, found.ids, f"testing on {self.name!r}")
        count = 1 if views is None else views.views
        self._need(found, count)
        if isinstance(found, StoreRows):
            if views is None:
                return found
            found = found.load()
        return dataclasses.replace(found, image_features=found.image_features[:, :count])

    def _need(self, features: Features | StoreRows, views: int) -> None:
        there = _facts(features).num_views
        if there < views:
            raise FeatureError(
                f"the method wants {views} views, but the features {self.name!r} have "
                f"{there}: write them with `rada encode --views {views}`"
            )


def _facts(features: Features | StoreRows) -> Features | FeatureStore:
    """Return what tells the width, the encoder and the classes."""
    return features.store if isinstance(features, StoreRows) else features


def _fingerprint(features: Features | StoreRows) -> str:
    if isinstance(features, Features):
        return features.fingerprint
    return fingerprint_tensors(features.rows, extra=[features.store.fingerprint])


@dataclass(frozen=True)
class _Files:
    train: Path
    test: Path | None


def _feature_files(spec: str) -> _Files | None:
    path = Path(spec).expanduser()
    if path.suffix.lower() in SUFFIXES or is_store(path):
        return _Files(path, None)
    if is_store(path / "train") and is_store(path / "test"):
        return _Files(path / "train", path / "test")
    for suffix in SUFFIXES:
        train, test = path / f"train{suffix}", path / f"test{suffix}"
        if train.is_file() and test.is_file():
            return _Files(train, test)
    return None


def open_source(
    spec: str,
    encoder: EncoderSlot,
    *,
    templates: Sequence[str] = (),
    naming: Naming | None = None,
    cache: FeatureCache | Literal[False] | None = None,
    progress: bool | None = None,
) -> Source:
    """Open a data set for a benchmark.

    Args:
        spec: What `rada.data.open_dataset` opens; a features file or store, whose images are halved into
            train and test; or a folder with `train.safetensors` and `test.safetensors`, or with the
            stores `train` and `test`.
        encoder: Loads the encoder if it is needed.
        templates: Prompt templates instead of the data set's own.
        naming: The class names that are wanted.
        cache: The feature cache.
        progress: Show bars.

    Raises:
        DataError: If there is no such data or it cannot be used.
        FeatureError: If features cannot be used.
    """
    files, choose = _feature_files(spec), asks_for_choice(templates)
    if files is not None and choose:
        raise FeatureError(
            f"the templates 'auto' need the encoder, but {spec!r} is a features file: name the images, or "
            "leave the templates out"
        )
    if files is not None:
        name = files.train.stem if files.test is None else files.train.parent.name
        test = None if files.test is None else _features(files.test, naming)
        return FeatureSource(name, _features(files.train, naming), test)
    named = None if choose else tuple(templates) or None
    dataset = open_dataset(spec, class_names=naming, templates=named)
    return EncodedSource(dataset, encoder.get(), cache, progress, choose=choose)


def _features(path: Path, naming: Naming | None) -> Features | StoreRows:
    found = open_labelled(path, (), naming or Naming(), skip_bad=False).found
    assert isinstance(found, Features | FeatureStore)
    return StoreRows.all_of(found) if isinstance(found, FeatureStore) else found


def domain_folders(spec: str) -> list[str]:
    """Return the domains of a folder `domain/class/...` or `domain/train/class/...`.

    Raises:
        DataError: If it holds fewer than two folders that are data sets.
    """
    root = Path(spec).expanduser()
    if not root.is_dir():
        raise DataError(
            f"{spec!r} is not a folder of domains; give other domains with --targets instead"
        )
    from rada.data.scan import list_folders

    names = list_folders(root)
    if len(names) < 2 or {name.lower() for name in names} <= {"train", "val", "test"}:
        raise DataError(
            f"{spec!r} should hold one folder for each domain, with class folders inside; it holds "
            f"{', '.join(names) or 'no folders'}"
        )
    return [str(root / name) for name in names]


def _splits(dataset: ImageDataset) -> tuple[ImageSplit, ImageSplit]:
    """Return what to learn from and what to test on; without a split, two halves of every class."""
    if "test" in dataset.splits and "train" not in dataset.splits:  # a set for testing alone
        test = dataset.splits["test"]
        return test.subset([]), test
    train = dataset.split("train", "all")
    for name in ("test", "val"):
        if name in dataset.splits:
            return train, dataset.splits[name]
    first, second = _halves(train.ids, train.labels)
    return train.subset(first), train.subset(second)


def _halves(ids: Sequence[str], labels: np.ndarray) -> tuple[list[int], list[int]]:
    """Halve every class by a hash of the images' keys, whatever their order."""
    check_labelled(labels, ids, "halving into train and test")
    ranks = [hashlib.blake2b(b"half/" + id_bytes(key), digest_size=16).digest() for key in ids]
    first: list[int] = []
    second: list[int] = []
    for label in np.unique(labels):
        members = sorted(np.flatnonzero(labels == label).tolist(), key=lambda row: ranks[row])
        first += members[: (len(members) + 1) // 2]
        second += members[(len(members) + 1) // 2 :]
    return sorted(first), sorted(second)


def _same_classes(name: str, train: Features | FeatureStore, test: Features | FeatureStore) -> None:
    if train.classes != test.classes:
        strangers = sorted(set(train.classes) ^ set(test.classes))
        raise FeatureError(
            f"the classes of train and test differ in {name!r}: "
            f"{', '.join(map(repr, strangers[:5])) or 'they stand in another order'}"
        )
    if train.dim != test.dim or train.encoder_fingerprint != test.encoder_fingerprint:
        raise FeatureError(f"train and test of {name!r} come from different encoders")
