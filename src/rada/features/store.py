"""`FeatureStore`: features of more images than memory holds, in shards that are read one at a time.

A store is a folder with `features.json`, which names the shards and says what they share,
`classes.safetensors` with the class features, and the shards, each of which is a features file
(`rada.features.files`) of some rows. They are mapped, so what is not asked for is not read.
"""

from __future__ import annotations

import bisect
import dataclasses
import functools
import itertools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import FeatureError
from rada.core.hashing import fingerprint_tensors
from rada.core.records import StoreRecord, check_record
from rada.core.storage import read_json
from rada.core.values import check_indices
from rada.features.features import Features
from rada.features.files import SUFFIXES, load_features

__all__ = [
    "CLASSES",
    "INDEX",
    "STORE_FORMAT",
    "FeatureStore",
    "Keys",
    "Shard",
    "is_store",
    "names_features",
]

INDEX = "features.json"
CLASSES = "classes.safetensors"
STORE_FORMAT = "rada-feature-store-1"
_LARGEST_INDEX = 1 << 30
PART_NUMBERS = 1 << 22  # more need more memory, and are slower: each table is new pages


def is_store(path: str | Path) -> bool:
    """Return whether a path is a folder that holds a feature store."""
    try:
        folder = Path(path).expanduser()
        # One without its index is unfinished, which `FeatureStore.open` says.
        return (folder / INDEX).is_file() or (folder / "shard-00000.safetensors").is_file()
    except (RuntimeError, OSError, ValueError):  # nobody's home, far too long, a NUL: no path
        return False


def names_features(spec: str | Path) -> bool:
    """Return whether data of a name is features: a file by its suffix, or a store.

    Example:
        >>> names_features("mine.npz"), names_features("photos")
        (True, False)
    """
    return str(spec).lower().endswith(SUFFIXES) or is_store(spec)


@dataclass(frozen=True)
class Shard:
    """A file of a store.

    Attributes:
        file: Its name.
        rows: How many images it has; none where all of its images were unreadable.
        key: Hash of all that decides its content.
    """

    file: str
    rows: int
    key: str


@dataclass(frozen=True, eq=False)
class FeatureStore:
    """The features of a data set in shards; labels, classes and class features as in `Features`.

    Made by `rada encode DATA --out FOLDER`, opened by `FeatureStore.open`. What needs a row of an image
    reads the shard that has it; `parts` goes through all of them, one at a time.

    Attributes:
        folder: Where it is.
        shards: Its files, in order.
        classes: The K class names.
        dim: D, the width of the features.
        num_views: V, the views of each image.
        text_features: `(K, D)` class features, or None.
        scale: The exponentiated logit scale, or None.
        encoder: Name of the encoder, or None.
        encoder_fingerprint: Hash of its weights and preprocessing, or None.
        templates: Prompt templates behind `text_features`.
        decoding: As in `Features`.
        lookup: For each label in the files its label among `classes`, the last for -1; None where they
            are the same.
    """

    folder: Path
    shards: tuple[Shard, ...]
    classes: tuple[str, ...]
    dim: int
    num_views: int = 1
    text_features: Tensor | None = None
    scale: float | None = None
    encoder: str | None = None
    encoder_fingerprint: str | None = None
    templates: tuple[str, ...] = ()
    decoding: str | None = None
    lookup: Tensor | None = None

    @classmethod
    def open(cls, path: str | Path) -> FeatureStore:
        """Open a store, which may come from anybody; no shard is read yet.

        Raises:
            FeatureError: If it is missing, unfinished or damaged; the message names the file.
        """
        folder = Path(path).expanduser()
        if not (folder / INDEX).is_file():
            raise FeatureError(
                f"{str(folder)!r} holds no {INDEX}: it is no feature store, or its `rada encode` did "
                "not end; say that command again to finish it"
            )
        what = f"the feature store {str(folder)!r}"
        found = read_json(folder / INDEX, error=FeatureError, what=what, limit=_LARGEST_INDEX)
        if isinstance(found, dict) and found.get("format") != STORE_FORMAT:
            raise FeatureError(f"{what} does not say {STORE_FORMAT!r}: another version wrote it")
        check_record(StoreRecord, found, error=FeatureError, what=what)
        shards = tuple(Shard(**one) for one in found["shards"])
        for shard in shards:
            if not (folder / shard.file).is_file():
                raise FeatureError(f"{what} lacks its shard {shard.file!r}: encode again")
        store = cls(
            folder,
            shards,
            tuple(found["classes"]),
            found["dim"],
            found["views"],
            scale=found.get("scale"),
            encoder=found.get("encoder"),
            encoder_fingerprint=found.get("encoder_fingerprint"),
            templates=tuple(found.get("templates", ())),
            decoding=found.get("decoding"),
        )
        return dataclasses.replace(store, text_features=store._class_features())

    def _class_features(self) -> Tensor | None:
        if not (self.folder / CLASSES).is_file():
            return None
        text: Tensor = load_features(self.folder / CLASSES, lambda **f: f["image_features"])
        if text.shape != (len(self.classes), self.dim):
            raise FeatureError(
                f"the class features of {str(self.folder)!r} have the shape {tuple(text.shape)}, not "
                f"{(len(self.classes), self.dim)}: encode again"
            )
        return text

    def __len__(self) -> int:
        return sum(shard.rows for shard in self.shards)

    def with_classes(
        self, classes: Sequence[str], places: Sequence[int], text_features: Tensor | None
    ) -> FeatureStore:
        """Return the same images under other classes.

        Args:
            classes: The new names.
            places: For each class of now its place among them.
            text_features: The class features of the new names, if they are known.
        """
        lookup = torch.tensor([*places, -1])
        renamed = dataclasses.replace(
            self,
            classes=tuple(classes),
            text_features=text_features,
            lookup=lookup if self.lookup is None else lookup[self.lookup],
        )
        if "labels" in vars(self):  # they are known, and need not be read from all shards again
            vars(renamed)["labels"] = lookup[self.labels]
        return renamed

    # -- what is read ----------------------------------------------------------------------------

    @functools.cached_property
    def labels(self) -> Tensor:
        """Labels `(N,)` int64, -1 where an image has none."""
        return torch.cat([self._labels(self._fields(n)) for n in range(len(self.shards))])

    @property
    def ids(self) -> Sequence[str]:
        """One stable key an image; those of one shard are in memory at a time."""
        return Keys(len(self), _ShardKeys(self))

    @property
    def skipped(self) -> tuple[tuple[str, str], ...]:
        """`(id, reason)` of each image that was left out as unreadable."""
        fields = map(self._fields, range(len(self.shards)))
        return tuple(itertools.chain.from_iterable(one["skipped"] for one in fields))

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all that training can see, by the hashes that the shards were written with."""
        lookup = [] if self.lookup is None else self.lookup.tolist()
        described = [self.classes, self.scale, self.templates, self.encoder_fingerprint, lookup]
        shards = [dataclasses.astuple(shard) for shard in self.shards]
        text = () if self.text_features is None else (self.text_features,)
        return fingerprint_tensors(*text, extra=[*described, shards])

    def parts(self) -> Iterator[Features]:
        """Yield all features in order, some rows of a shard at a time.

        A part is so short that its features and its logits of the K classes are small.

        Raises:
            FeatureError: If a shard is damaged.
        """
        rows = max(1, PART_NUMBERS // max(len(self.classes), self.num_views * self.dim))
        for number, shard in enumerate(self.shards):
            if shard.rows:
                fields = self._fields(number)
                fields["labels"] = self._labels(fields)
                for start in range(0, shard.rows, rows):
                    yield self._features(fields, shard.file, slice(start, start + rows))

    def load(self) -> Features:
        """Return all features, in memory."""
        return self.subset(torch.arange(len(self)))

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> Features:
        """Return the images at `indices`, in that order; of each shard only these rows are read.

        Raises:
            FeatureError: If there are none, an index is out of range, or a shard is damaged.
        """
        rows = torch.from_numpy(check_indices(indices, len(self), error=FeatureError))
        if not len(rows) or int(rows.min()) < 0 or int(rows.max()) >= len(self):
            raise FeatureError(f"rows should be from 0 to {len(self) - 1}, and at least one")
        images = torch.empty(len(rows), self.num_views, self.dim)
        labels, ids = torch.empty(len(rows), dtype=torch.int64), [""] * len(rows)
        shard = torch.bucketize(rows, torch.tensor(self._starts[1:]), right=True)
        for number in shard.unique().tolist():
            fields = self._fields(number)
            places = (shard == number).nonzero().flatten()
            inside = rows[places] - self._starts[number]
            images[places] = _views(fields["image_features"])[inside].float()
            labels[places] = self._labels(fields)[inside]
            for place, row in zip(places.tolist(), inside.tolist(), strict=True):
                ids[place] = fields["ids"][row]
        shown: dict[str, Any] = {"image_features": images, "labels": labels, "ids": tuple(ids)}
        return Features(**shown, **self._shared())

    def few_shot(self, shots: int, seed: int, *, allow_fewer: bool = False) -> Features:
        """Draw `shots` images of each class, as `Features.few_shot` does, and read these alone."""
        from rada.data.sampling import few_shot_indices

        labels = self.labels.numpy()
        return self.subset(
            few_shot_indices(
                labels, self.ids, shots, seed, classes=self.classes, allow_fewer=allow_fewer
            )
        )

    @functools.cached_property
    def _starts(self) -> list[int]:
        return list(itertools.accumulate((shard.rows for shard in self.shards), initial=0))

    def _fields(self, number: int) -> dict[str, Any]:
        shard = self.shards[number]
        found: dict[str, Any] = load_features(self.folder / shard.file, dict)
        shape = tuple(_views(found["image_features"]).shape)
        wanted = (shard.rows, self.num_views, self.dim)
        if shape != wanted or len(found["ids"]) != shard.rows:
            raise FeatureError(
                f"the shard {str(self.folder / shard.file)!r} has the shape {shape} and "
                f"{len(found['ids'])} ids, not {wanted}: it is not the one that the store names"
            )
        return found

    def _labels(self, fields: dict[str, Any]) -> Tensor:
        labels: Tensor = fields["labels"].to(torch.int64)
        known = len(self.classes) if self.lookup is None else len(self.lookup) - 1
        if labels.shape != (len(fields["ids"]),) or not bool(
            ((labels >= -1) & (labels < known)).all()
        ):
            raise FeatureError(f"labels of {str(self.folder)!r} are out of range: encode again")
        return labels if self.lookup is None else self.lookup[labels]

    def _features(self, fields: dict[str, Any], file: str, place: slice) -> Features:
        own: dict[str, Any] = {
            key: fields[key][place] for key in ("image_features", "labels", "ids")
        }
        if place.start == 0:
            own["skipped"] = fields["skipped"]
        try:
            return Features(**own, **self._shared())
        except FeatureError as error:
            where = f"{str(self.folder / file)!r}, from its row {place.start} on"
            raise FeatureError(f"{where}: {error}") from error

    def _shared(self) -> dict[str, Any]:
        names = ("classes", "text_features", "scale", "encoder", "encoder_fingerprint")
        return {name: getattr(self, name) for name in (*names, "templates", "decoding")}


def _views(table: Tensor) -> Tensor:
    return table if table.ndim == 3 else table[:, None]


class Keys(Sequence[str]):
    """Keys that are read where they are asked for.

    Args:
        count: How many there are.
        read: Returns that at a place from 0 on.

    Example:
        >>> list(Keys(3, "abc".__getitem__)[1:])
        ['b', 'c']
    """

    def __init__(self, count: int, read: Callable[[int], str]) -> None:
        self._count, self._read = count, read

    def __len__(self) -> int:
        return self._count

    @overload
    def __getitem__(self, index: int) -> str: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[str]: ...
    def __getitem__(self, index: int | slice) -> str | Sequence[str]:
        if isinstance(index, slice):
            return [self[place] for place in range(*index.indices(len(self)))]
        place = index + len(self) if index < 0 else index
        if not 0 <= place < len(self):
            raise IndexError(index)
        return self._read(place)


class _ShardKeys:
    """Reads the keys of a store's images, of which those of one shard are held."""

    def __init__(self, store: FeatureStore) -> None:
        self._store = store
        self._held: tuple[int, tuple[str, ...]] | None = None

    def __call__(self, row: int) -> str:
        starts = self._store._starts
        number = bisect.bisect_right(starts, row) - 1
        if self._held is None or self._held[0] != number:
            self._held = number, self._store._fields(number)["ids"]
        return self._held[1][row - starts[number]]
