"""Checks that features from anywhere must pass before anything is trained or evaluated on them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import FeatureError
from rada.core.warn import warn

__all__ = [
    "CheckedFeatures",
    "FeatureWarning",
    "check_features",
    "check_labels",
    "check_rows",
    "numbered_labels",
]

# Rows of a unit-norm table that was rounded to float16 deviate by less; they are left as they are.
NORM_TOLERANCE = 1e-3
# Below this a row has no direction left.
SMALLEST_NORM = 1e-12
_AT_ONCE = 1 << 18  # numbers
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)


class FeatureWarning(UserWarning):
    """Features that had to be mended before use."""


class CheckedFeatures(NamedTuple):
    """What `check_features` returns: float32 or float64 features and int64 labels."""

    image_features: Tensor
    text_features: Tensor | None
    labels: Tensor | None


def check_features(
    image_features: Any,
    text_features: Any = None,
    labels: Any = None,
    *,
    num_classes: int | None = None,
    dim: int | None = None,
    allow_unlabelled: bool = False,
) -> CheckedFeatures:
    """Check features and labels, and bring them to unit norm and to the types rada computes in.

    Args:
        image_features: `(N, D)` or `(N, V, D)` tensor or array, floating point.
        text_features: `(K, D)`, or None.
        labels: `(N,)` integers in [0, K), or None.
        num_classes: K where there are no text features; default: the rows of `text_features`.
        dim: The width D that is needed; default: any.
        allow_unlabelled: Whether a label may be -1.

    Returns:
        `CheckedFeatures(image_features, text_features, labels)`. float64 stays float64, any other
        type becomes float32; labels become int64. Rows whose norm is more than 1e-3 away from one
        are normalised, with a `FeatureWarning`; all others are left to the bit as they are.

    Raises:
        FeatureError: If a shape or type is wrong, a value is NaN or infinite, a row is zero, a
            label is out of range, or the widths differ. The message names the place and the value.

    Example:
        >>> checked = check_features(torch.eye(3), torch.eye(3), [2, 0, 1])
        >>> checked.labels
        tensor([2, 0, 1])
    """
    images = check_rows(image_features, "image_features", ndims=(2, 3), dim=dim)
    texts = None
    if text_features is not None:
        texts = check_rows(text_features, "text_features", ndims=(2,), dim=dim)
        if texts.shape[-1] != images.shape[-1]:
            raise FeatureError(
                f"image_features have {images.shape[-1]} dimensions and text_features "
                f"{texts.shape[-1]}: both must come from the same encoder"
            )
        if num_classes is not None and num_classes != len(texts):
            raise FeatureError(
                f"text_features has {len(texts)} rows for {num_classes} classes: give a row a class"
            )
        num_classes = len(texts)
    if labels is None:
        return CheckedFeatures(images, texts, None)
    checked = check_labels(labels, len(images), num_classes, allow_unlabelled=allow_unlabelled)
    return CheckedFeatures(images, texts, checked)


def check_rows(
    values: Any, name: str, *, ndims: Sequence[int] = (2,), dim: int | None = None
) -> Tensor:
    """Check one table of features and return it with unit-norm rows (see `check_features`).

    Raises:
        FeatureError: If the table cannot be used; the message begins with `name`.

    Example:
        >>> check_rows(np.eye(2, dtype=np.float16), "mine").dtype
        torch.float32
    """
    table = _as_tensor(values, name)
    if table.dtype not in _FLOATS:
        raise FeatureError(
            f"{name} is of type {table.dtype}: give float16, bfloat16, float32 or float64"
        )
    if table.ndim not in ndims:
        wanted = " or ".join({2: "(rows, D)", 3: "(rows, views, D)"}[n] for n in ndims)
        raise FeatureError(f"{name} has the shape {tuple(table.shape)}, but {wanted} is needed")
    if 0 in table.shape:
        raise FeatureError(f"{name} is empty: its shape is {tuple(table.shape)}")
    if dim is not None and table.shape[-1] != dim:
        raise FeatureError(
            f"{name} has {table.shape[-1]} dimensions, but {dim} are needed: "
            "features, head and text must come from the same encoder"
        )
    if table.dtype is not torch.float64:
        table = table.float()
    return _unit_rows(table, name)


def _as_tensor(values: Any, name: str) -> Tensor:
    try:
        return torch.as_tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise FeatureError(f"{name} cannot be read as a tensor: {error}") from error


def _unit_rows(table: Tensor, name: str) -> Tensor:
    # The sum of squares of float32 cannot overflow in float64, so a norm that is not finite means
    # a value that is not finite, and one pass over the table finds everything.
    rows = table.detach()
    norms = torch.empty(rows.shape[:-1], dtype=torch.float64, device=rows.device)
    size = max(1, _AT_ONCE // rows[0].numel())  # a whole copy in float64 would take gigabytes
    for part, found in zip(rows.split(size), norms.split(size), strict=True):
        torch.linalg.vector_norm(part, dim=-1, dtype=torch.float64, out=found)
    broken = ~torch.isfinite(norms)
    if broken.any():
        raise FeatureError(
            f"{name} holds NaN or infinite values in {_count(broken)}: "
            "leave these rows out or encode them again"
        )
    zero = norms < SMALLEST_NORM
    if zero.any():
        raise FeatureError(
            f"{name} is zero in {_count(zero)}, which has no direction: "
            "leave these rows out or encode them again"
        )
    off = (norms - 1).abs() > NORM_TOLERANCE
    if not off.any():
        return table
    worst = float(norms[off].flatten()[(norms[off] - 1).abs().argmax()])
    warn(
        f"{name} is not of unit norm in {_count(off)} (a norm of {worst:.4g}, for one): normalised",
        FeatureWarning,
        stacklevel=4,
    )
    safe = torch.where(off, norms, torch.ones_like(norms)).to(table.dtype).unsqueeze(-1)
    return table / safe


def _count(rows: Tensor) -> str:
    """Say how many rows are marked and where the first one is."""
    first = tuple(int(i) for i in rows.nonzero()[0])
    place = f"row {first[0]}" + (f", view {first[1]}" if len(first) > 1 else "")
    total = int(rows.sum())
    return place if total == 1 else f"{total} of {rows.numel()} rows (the first: {place})"


def numbered_labels(labels: Any, classes: Sequence[str]) -> Any:
    """Return labels that are names of classes as their places among them; others as they are.

    Raises:
        FeatureError: If a name is none of the classes.

    Example:
        >>> numbered_labels(["dog", "cat"], ("cat", "dog"))
        [1, 0]
    """
    if not isinstance(labels, list | tuple | np.ndarray) or not len(labels):
        return labels
    if not all(isinstance(label, str) for label in labels):
        return labels
    place = {name: index for index, name in enumerate(classes)}
    for row, name in enumerate(labels):
        if name not in place:
            raise FeatureError(
                f"label {str(name)!r} of row {row} is none of the classes "
                f"{', '.join(map(repr, list(classes)[:10]))}: name it among them"
            )
    return [place[name] for name in labels]


def check_labels(
    labels: Any, count: int, num_classes: int | None, *, allow_unlabelled: bool = False
) -> Tensor:
    """Check labels and return them as `(N,)` int64.

    Args:
        labels: Integers, one a row of the features.
        count: N, the number of rows.
        num_classes: K; None leaves the upper end open.
        allow_unlabelled: Whether -1, "no label", is allowed.

    Raises:
        FeatureError: If their type, shape or range is wrong; the message names the first bad one.

    Example:
        >>> check_labels([0, 3], 2, num_classes=3)
        Traceback (most recent call last):
        ...
        rada.core.errors.FeatureError: label 3 of row 1 is out of range: 3 classes have the labels 0 to 2
    """
    table = _as_tensor(np.asarray(labels) if isinstance(labels, list | tuple) else labels, "labels")
    if table.dtype.is_floating_point or table.dtype.is_complex or table.dtype is torch.bool:
        raise FeatureError(f"labels is of type {table.dtype}: give integers")
    if table.shape != (count,):
        raise FeatureError(
            f"labels has the shape {tuple(table.shape)} for {count} images: one an image is needed"
        )
    table = table.to(torch.int64)
    lowest = -1 if allow_unlabelled else 0
    bad = table < lowest
    if num_classes is not None:
        bad |= table >= num_classes
    if bad.any():
        row = int(bad.nonzero()[0, 0])
        allowed = (
            "labels begin at 0"
            if num_classes is None
            else f"{num_classes} classes have the labels 0 to {num_classes - 1}"
        )
        raise FeatureError(f"label {int(table[row])} of row {row} is out of range: {allowed}")
    return table
