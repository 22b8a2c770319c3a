"""`Features`: the images of a data set as unit vectors, with their labels and classes."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import FeatureError
from rada.core.values import check_indices, check_scale
from rada.data import DEFAULT_TEMPLATE
from rada.features.checks import check_features, numbered_labels
from rada.features.classes import ClassSet
from rada.features.files import load_features, save_features

if TYPE_CHECKING:
    from rada.data import ImageSplit

__all__ = ["Features"]


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """Image features of a data set, their labels and, where known, the class features.

    Everything is checked on construction: shapes, finite values, no zero rows, labels in range.
    Rows that are not of unit norm are normalised with a warning.

    Attributes:
        image_features: `(N, V, D)` float32 (float64 stays): V views of N images, view 0 the plain
            image. `(N, D)` is accepted and becomes `(N, 1, D)`.
        labels: `(N,)` int64, -1 where an image has no label; names of classes are accepted and become
            their numbers.
        classes: The K class names, index = label.
        ids: One stable key an image; default: its index.
        text_features: `(K, D)` class features, or None.
        scale: The exponentiated logit scale, or None.
        encoder: Name of the encoder, or None.
        encoder_fingerprint: Hash of its weights and preprocessing, or None.
        templates: Prompt templates behind `text_features`; empty where unknown.
        skipped: `(id, reason)` of each image that was left out as unreadable.
        decoding: "exact" where JPEGs were decoded whole, "fast" where large ones were at a fraction of their
            size (`iter_features`); None if unknown.
        images: The images behind the rows, row by row, for methods that read pixels; None where there
            are features alone. They are not saved.

    Raises:
        FeatureError: If anything does not fit; the message names the value.

    Example:
        >>> features = Features(torch.eye(3), [0, 1, 1], ("cat", "dog"))
        >>> features.image_features.shape, features.plain().shape
        (torch.Size([3, 1, 3]), torch.Size([3, 3]))
        >>> features.subset([2]).ids
        ('2',)
    """

    image_features: Tensor
    labels: Tensor
    classes: tuple[str, ...]
    ids: tuple[str, ...] = ()
    text_features: Tensor | None = None
    scale: float | None = None
    encoder: str | None = None
    encoder_fingerprint: str | None = None
    templates: tuple[str, ...] = ()
    skipped: tuple[tuple[str, str], ...] = ()
    decoding: str | None = None
    images: ImageSplit | None = None

    def __post_init__(self) -> None:
        checked = check_features(
            self.image_features,
            self.text_features,
            numbered_labels(self.labels, self.classes),
            num_classes=len(self.classes),
            allow_unlabelled=True,
        )
        images, texts, labels = checked
        self._set(
            image_features=images if images.ndim == 3 else images[:, None],
            text_features=texts,
            labels=labels,
            classes=_class_names(self.classes),
            ids=tuple(self.ids) or tuple(str(index) for index in range(len(images))),
            templates=tuple(self.templates),
            skipped=tuple((key, reason) for key, reason in self.skipped),
        )
        if len(self.ids) != len(images):
            raise FeatureError(f"{len(self.ids)} ids for {len(images)} images: give one an image")
        if self.images is not None and len(self.images) != len(images):
            raise FeatureError(f"{len(self.images)} images stand behind {len(images)} features")
        if self.scale is not None:
            self._set(scale=check_scale(self.scale, error=FeatureError))

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def __len__(self) -> int:
        return len(self.image_features)

    @property
    def num_views(self) -> int:
        """V, the number of views of each image."""
        return self.image_features.shape[1]

    @property
    def dim(self) -> int:
        """D, the width of the features."""
        return self.image_features.shape[2]

    def parts(self) -> Iterator[Features]:
        """Yield itself: all of it is in memory, other than that of a `FeatureStore`."""
        yield self

    def plain(self) -> Tensor:
        """Return view 0 of every image, `(N, D)`."""
        return self.image_features[:, 0]

    def class_set(self) -> ClassSet:
        """Return the classes with their features.

        Raises:
            FeatureError: If there are no text features.
        """
        if self.text_features is None:
            raise FeatureError("the features lack text_features, the class features (K, D)")
        return ClassSet(self.classes, self.text_features, self.templates or (DEFAULT_TEMPLATE,))

    def labelled_images(self) -> ImageSplit:
        """Return the images with these labels and classes.

        Raises:
            FeatureError: If there are features alone.
        """
        if self.images is None:
            raise FeatureError("there are features alone, but images are needed")
        return dataclasses.replace(
            self.images, classes=self.classes, labels=self.labels.cpu().numpy()
        )

    @functools.cached_property
    def fingerprint(self) -> str:
        """Hash of all that training can see: features, labels, classes, class features and scale.

        Example:
            >>> one = Features(torch.eye(2), [0, 1], ("cat", "dog"))
            >>> one.fingerprint == Features(torch.eye(2), [1, 0], ("cat", "dog")).fingerprint
            False
        """
        digest = hashlib.blake2b(digest_size=16)
        described = [self.classes, self.ids, self.scale, self.templates, self.encoder_fingerprint]
        digest.update(json.dumps([*described, list(self.image_features.shape)]).encode())
        for tensor in (self.image_features, self.labels, self.text_features):
            if tensor is not None:
                digest.update(tensor.cpu().contiguous().numpy().data)
        return digest.hexdigest()

    def subset(self, indices: Sequence[int] | np.ndarray | Tensor) -> Features:
        """Return the images at `indices`, in that order, with the same classes.

        Args:
            indices: (n,) integers, or (N,) booleans that say which images to keep.

        Raises:
            FeatureError: If there are none, an index is out of range, or a mask is not as long as they are.
        """
        rows = torch.from_numpy(check_indices(indices, len(self), error=FeatureError))
        outside = rows[(rows < 0) | (rows >= len(self))]
        if len(outside):
            raise FeatureError(
                f"index {int(outside[0])} is out of range: there are {len(self)} images"
            )
        if not len(rows):
            raise FeatureError(f"none of the {len(self)} images is left")
        return dataclasses.replace(
            self,
            image_features=self.image_features[rows],
            labels=self.labels[rows],
            ids=tuple(self.ids[row] for row in rows.tolist()),
            images=None if self.images is None else self.images.subset(rows.numpy()),
        )

    def select_classes(self, classes: Sequence[int], *, relabel: bool = True) -> Features:
        """Return the images of some classes.

        Args:
            classes: Labels to keep, in the order that they are to have.
            relabel: Whether labels, class names and class features shrink to those classes
                (default), or stay as they are.

        Raises:
            FeatureError: If a class is named twice or unknown, or no image is left.

        Example:
            >>> features = Features(torch.eye(3), [0, 1, 2], ("cat", "dog", "eel"))
            >>> features.select_classes([2, 0]).labels
            tensor([1, 0])
        """
        chosen = check_indices(classes, len(self.classes), error=FeatureError).tolist()
        if len(set(chosen)) != len(chosen) or not set(chosen) <= set(range(len(self.classes))):
            raise FeatureError(
                f"classes {chosen} should be different labels in 0 to {len(self.classes) - 1}"
            )
        kept = self.subset(torch.isin(self.labels, torch.tensor(chosen)).nonzero().flatten())
        if not relabel:
            return kept
        new_label = torch.full((len(self.classes),), -1)
        new_label[chosen] = torch.arange(len(chosen))
        return dataclasses.replace(
            kept,
            labels=new_label[kept.labels],
            classes=tuple(self.classes[label] for label in chosen),
            text_features=None if self.text_features is None else self.text_features[chosen],
        )

    def few_shot(self, shots: int, seed: int, *, allow_fewer: bool = False) -> Features:
        """Draw `shots` images of each class, whatever the order of the images.

        Args:
            shots: Images a class.
            seed: Chooses the images.
            allow_fewer: Whether a class may have fewer; it then gives all it has.

        Raises:
            DataError: If a class has too few images; the message names it.
        """
        from rada.data.sampling import few_shot_indices

        labels = self.labels.numpy()
        indices = few_shot_indices(
            labels, self.ids, shots, seed, classes=self.classes, allow_fewer=allow_fewer
        )
        return self.subset(indices)

    def save(self, path: str | Path, *, overwrite: bool | None = None) -> Path:
        """Write the features to a safetensors file, in one step.

        Args:
            path: The file.
            overwrite: Whether to replace a file that is there; None replaces a features file alone.

        Raises:
            OutputError: If there is a file that is not to be replaced.
            StorageError: If the place cannot be written.
        """
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return save_features(values, path, overwrite=overwrite)

    @classmethod
    def load(cls, path: str | Path) -> Features:
        """Read a features file, `.safetensors` or `.npz`, that may come from anybody.

        Raises:
            FeatureError: If it is missing, damaged, or holds what features cannot be.
        """
        return load_features(path, cls)


def _class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return names of classes, of which no two are equal."""
    found = tuple(names)
    seen: set[str] = set()
    for place, name in enumerate(found):
        if not isinstance(name, str) or not name.strip():
            raise FeatureError(
                f"the name of class {place} is {name!r}: give every class a name, as text"
            )
        if name in seen:
            raise FeatureError(f"the class names hold {name!r} twice: give each class its own name")
        seen.add(name)
    return found
