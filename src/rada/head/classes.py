"""Work that depends on the class set alone, done once and reused over batches."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

__all__ = ["PreparedCache", "PreparedClasses", "apply_linear", "prepare_classes"]

_LARGEST = 1 << 28
"""Bytes that a cache may hold."""


class PreparedClasses(NamedTuple):
    """A class set as the head uses it.

    Attributes:
        text: `sqrt(s) h`, `(K, D)`.
        query: `query_text(text)`, `(K, D)`.
    """

    text: Tensor
    query: Tensor


def apply_linear(layer: nn.Linear, features: Tensor) -> Tensor:
    """Apply a layer in the type of the features."""
    weight, bias = layer.weight.to(features.dtype), layer.bias.to(features.dtype)
    return nn.functional.linear(features, weight, bias)


def prepare_classes(
    text_features: Tensor, scale: float | Tensor, layer: nn.Linear
) -> PreparedClasses:
    """Scale and project the text features.

    Args:
        text_features: unit-norm, `(K, D)`.
        scale: the logit scale.
        layer: `query_text`.

    Returns:
        The class set, differentiable in all three.
    """
    text = text_features * scale**0.5
    return PreparedClasses(text, apply_linear(layer, text))


class PreparedCache:
    """Remembers the last class set where no gradient is needed.

    It keeps copies of what the class set was made from and compares their contents on every call
    (a third of a microsecond per thousand numbers), so that no way of editing a weight or a feature, not
    even through `.data` or a shared NumPy array, can bring back a stale one. Copies, pickles and
    state dicts of a head leave it behind.

    Example:
        >>> cache, layer = PreparedCache(), nn.Linear(2, 2)
        >>> with torch.no_grad():
        ...     first = cache.get(torch.eye(2), 4.0, layer)
        ...     again = cache.get(torch.eye(2), 4.0, layer)
        >>> again is first
        True
    """

    def __init__(self) -> None:
        self._entry: tuple[tuple[Tensor, ...], float, PreparedClasses] | None = None

    def __reduce__(self) -> tuple[type[PreparedCache], tuple[()]]:
        return PreparedCache, ()

    def clear(self) -> None:
        """Forget the class set."""
        self._entry = None

    def get(
        self, text_features: Tensor, scale: float | Tensor, layer: nn.Linear
    ) -> PreparedClasses:
        """Return the class set, the remembered one if it was made from equal contents."""
        sources = (text_features, layer.weight, layer.bias)
        differentiable = (*sources, scale) if isinstance(scale, Tensor) else sources
        if torch.is_grad_enabled() and any(t.requires_grad for t in differentiable):
            self.clear()
            return prepare_classes(text_features, scale, layer)
        number = float(scale)
        entry = self._entry
        if entry is not None and entry[1] == number and _all_equal(entry[0], sources):
            return entry[2]
        with torch.inference_mode(False), torch.no_grad():
            made = prepare_classes(text_features, number, layer)
            size = 4 * text_features.numel() + layer.weight.numel()
            if size * text_features.element_size() <= _LARGEST:
                copies = tuple(t.detach().clone() for t in sources)
                self._entry = (copies, number, made)
            else:
                self.clear()
        return made


def _all_equal(left: tuple[Tensor, ...], right: tuple[Tensor, ...]) -> bool:
    return all(
        a.shape == b.shape
        and a.dtype == b.dtype
        and a.device == b.device
        and float((a - b).abs_().amax()) == 0  # several times as fast as torch.equal
        for a, b in zip(left, right, strict=True)
    )
