"""`ClassSet`: the candidate classes of a prediction, as names and as features."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from torch import Tensor

from rada.data import DEFAULT_TEMPLATE

__all__ = ["ClassSet"]


@dataclass(frozen=True, eq=False)
class ClassSet:
    """The candidate classes of a prediction.

    Attributes:
        names: K display names.
        text_features: `(K, D)` unit-norm.
        templates: The prompt templates behind the text features.
    """

    names: tuple[str, ...]
    text_features: Tensor
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)

    def __len__(self) -> int:
        return len(self.names)

    @property
    def template(self) -> str:
        """The first template; the usual one where it is not known what the features were made of."""
        return self.templates[0] if self.templates else DEFAULT_TEMPLATE

    def zero_shot_logits(self, images: Tensor, scale: float) -> Tensor:
        """Return `scale * cosine` of image features `(N, D)` with every class, `(N, K)`."""
        return scale * images @ self.text_features.T.to(images)

    def take(self, rows: Sequence[int] | Tensor) -> ClassSet:
        """Return the classes at `rows`, in that order.

        Example:
            >>> import torch
            >>> ClassSet(("cat", "dog"), torch.eye(2)).take([1]).names
            ('dog',)
        """
        chosen = [int(row) for row in rows]
        names = tuple(self.names[row] for row in chosen)
        return replace(self, names=names, text_features=self.text_features[chosen])

    def take_names(self, names: Sequence[str]) -> ClassSet | None:
        """Return the classes of some names, in that order; None if one is not here.

        Example:
            >>> import torch
            >>> ClassSet(("cat", "dog"), torch.eye(2)).take_names(["owl"]) is None
            True
        """
        place = {name: row for row, name in enumerate(self.names)}
        if not all(name in place for name in names):
            return None
        return self.take([place[name] for name in names])

    def rows_among(self, known: Sequence[str]) -> list[int | None]:
        """Return for each class its index in `known`, None where it is not there."""
        place = {name: index for index, name in enumerate(known)}
        return [place.get(name) for name in self.names]
