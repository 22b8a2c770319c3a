"""Pictures whose prediction the adaptation turned from wrong to right or from right to wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rada.core.errors import FeatureError
from rada.evaluation.metrics import ArrayLike, checked_labels, checked_logits

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["Pictures", "changed_examples"]


class Pictures(Protocol):
    """What `changed_examples` needs of a split: pictures by index, keys, labels and classes."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names."""

    @property
    def ids(self) -> Sequence[str]:
        """A key for each picture."""

    @property
    def labels(self) -> Any:
        """`(N,)` integers."""

    def load(self, index: int) -> PIL.Image.Image:
        """Return one picture."""


def changed_examples(
    split: Pictures, zero_shot_logits: ArrayLike, adapted_logits: ArrayLike, *, limit: int = 6
) -> list[dict[str, Any]]:
    """Pick pictures for the report, those where the probability of the true class moved most.

    The true classes take turns, so that one class does not fill the page.

    Args:
        split: The test images, labelled.
        zero_shot_logits: `(N, K)` logits before adaptation.
        adapted_logits: `(N, K)` logits after adaptation.
        limit: Most pictures in either direction.

    Returns:
        `{"image": PIL picture, "id", "true", "zero_shot": {"class", "probability"}, "adapted":
        {...}}` for each, wrong-to-right before right-to-wrong.

    Raises:
        FeatureError: If logits, labels and pictures do not fit together.
        DataError: If a chosen picture cannot be read.
    """
    classes, labels = list(split.classes), checked_labels(split.labels, split.classes)
    logits = [checked_logits(rows, classes) for rows in (zero_shot_logits, adapted_logits)]
    if any(len(rows) != len(labels) for rows in logits):
        raise FeatureError(
            f"{len(labels)} pictures, but {len(logits[0])} zero-shot and {len(logits[1])} adapted "
            f"rows of logits; every picture needs both"
        )
    before, after = (rows.softmax(dim=1) for rows in logits)
    row = torch.arange(len(labels))
    shift = (after[row, labels] - before[row, labels]).tolist()
    right_before, right_after = (rows.argmax(dim=1) == labels for rows in (before, after))
    chosen: list[int] = []
    for changed, sign in ((~right_before & right_after, 1), (right_before & ~right_after, -1)):
        candidates = changed.nonzero().flatten().tolist()
        candidates.sort(key=lambda index: (-sign * shift[index], index))
        chosen += _take_turns(candidates, labels.tolist(), limit)
    return [
        {
            "image": split.load(index),
            "id": split.ids[index],
            "true": classes[int(labels[index])],
            "zero_shot": _prediction(before[index], classes),
            "adapted": _prediction(after[index], classes),
        }
        for index in chosen
    ]


def _prediction(probabilities: torch.Tensor, classes: Sequence[str]) -> dict[str, Any]:
    best = int(probabilities.argmax())
    return {"class": classes[best], "probability": float(probabilities[best])}


def _take_turns(candidates: Sequence[int], labels: Sequence[int], limit: int) -> list[int]:
    """Reorder so that the n-th picture of every class comes before the n+1-th of any."""
    seen: dict[int, int] = {}
    turns = []
    for index in candidates:
        turn = seen[labels[index]] = seen.get(labels[index], -1) + 1
        turns.append((turn, index))
    return [index for _, index in sorted(turns, key=lambda pair: pair[0])][:limit]
