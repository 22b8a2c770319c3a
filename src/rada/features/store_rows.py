"""`StoreRows`: some of the images of a feature store, which are still read a part at a time."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from rada.core.errors import FeatureError
from rada.core.values import check_indices
from rada.features.features import Features
from rada.features.store import FeatureStore, Keys

__all__ = ["StoreRows"]


@dataclass(frozen=True, eq=False)
class StoreRows:
    """Some images of a store, in its order.

    Attributes:
        store: The store, under the classes that are wanted.
        rows: The numbers of the images in it, `(N,)` int64, ascending.

    Raises:
        FeatureError: If there are none.
    """

    store: FeatureStore
    rows: Tensor

    def __post_init__(self) -> None:
        if not len(self.rows):
            raise FeatureError(
                f"no image of {str(self.store.folder)!r} is left: none has one of the classes "
                f"{', '.join(map(repr, self.store.classes[:5]))}"
            )

    @classmethod
    def all_of(cls, store: FeatureStore) -> StoreRows:
        """Return all images of a store."""
        return cls(store, torch.arange(len(store)))

    def __len__(self) -> int:
        return len(self.rows)

    @property
    def classes(self) -> tuple[str, ...]:
        """The K class names."""
        return self.store.classes

    @property
    def labels(self) -> Tensor:
        """Labels `(N,)` int64."""
        return self.store.labels[self.rows]

    @property
    def ids(self) -> Sequence[str]:
        """One stable key an image; those of one shard are in memory at a time."""
        keys, rows = self.store.ids, self.rows
        return Keys(len(self), lambda place: keys[int(rows[place])])

    def parts(self) -> Iterator[Features]:
        """Yield the features, part by part.

        Raises:
            FeatureError: If a shard is damaged.
        """
        start = 0
        for part in self.store.parts():
            first, last = torch.searchsorted(self.rows, torch.tensor([start, start + len(part)]))
            if last - first == len(part):
                yield part
            elif last > first:
                yield part.subset(self.rows[first:last] - start)
            start += len(part)

    def load(self) -> Features:
        """Return the features, in memory."""
        return self.store.subset(self.rows)

    def subset(self, indices: Sequence[int] | Tensor) -> StoreRows:
        """Return the images at some places of these, in the order of the store."""
        chosen = (
            torch.from_numpy(check_indices(indices, len(self), error=FeatureError)).sort().values
        )
        return StoreRows(self.store, self.rows[chosen])

    def select_classes(self, classes: Sequence[int]) -> StoreRows:
        """Return the images of some classes, relabelled in the order of `classes`."""
        chosen = [int(label) for label in classes]
        place = {label: number for number, label in enumerate(chosen)}
        store, text = self.store, self.store.text_features
        renamed = store.with_classes(
            [store.classes[label] for label in chosen],
            [place.get(label, -1) for label in range(len(store.classes))],
            None if text is None else text[chosen],
        )
        return StoreRows(renamed, self.rows[renamed.labels[self.rows] >= 0])

    def few_shot(self, shots: int, seed: int, *, allow_fewer: bool = False) -> Features:
        """Draw `shots` images of each class, as `Features.few_shot` does, and read these alone."""
        from rada.data.sampling import few_shot_indices

        chosen = few_shot_indices(
            self.labels.numpy(),
            self.ids,
            shots,
            seed,
            classes=self.classes,
            allow_fewer=allow_fewer,
        )
        return self.store.subset(self.rows[chosen])
