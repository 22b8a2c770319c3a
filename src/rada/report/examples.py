"""Images for the report: those that the adaptation turned right or wrong, and those still wrong."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rada.core.errors import FeatureError
from rada.evaluation.metrics import ArrayLike, checked_labels, checked_logits

if TYPE_CHECKING:
    import PIL.Image

__all__ = ["Images", "changed_examples", "error_examples", "report_examples", "wrong_examples"]


class Images(Protocol):
    """What `changed_examples` needs of a split: images by index, keys, labels and classes."""

    @property
    def classes(self) -> Sequence[str]:
        """Class names."""

    @property
    def ids(self) -> Sequence[str]:
        """A key for each image."""

    @property
    def labels(self) -> Any:
        """`(N,)` integers."""

    def load(self, index: int) -> PIL.Image.Image:
        """Return one image."""


def changed_examples(
    split: Images, zero_shot_logits: ArrayLike, adapted_logits: ArrayLike, *, limit: int = 6
) -> list[dict[str, Any]]:
    """Pick images for the report, those where the probability of the true class moved most.

    The true classes take turns, so that one class does not fill the page.

    Args:
        split: The test images, labelled.
        zero_shot_logits: `(N, K)` logits before adaptation.
        adapted_logits: `(N, K)` logits after adaptation.
        limit: Most images in either direction.

    Returns:
        `{"image": PIL image, "id", "true", "zero_shot": {"class", "probability"}, "adapted":
        {...}}` for each, wrong-to-right before right-to-wrong.

    Raises:
        FeatureError: If logits, labels and images do not fit together.
        DataError: If a chosen image cannot be read.
    """
    labels, before, after = _probabilities(split, zero_shot_logits, adapted_logits)
    row = torch.arange(len(labels))
    shift = (after[row, labels] - before[row, labels]).tolist()
    right_before, right_after = (rows.argmax(dim=1) == labels for rows in (before, after))
    chosen: list[int] = []
    for changed, sign in ((~right_before & right_after, 1), (right_before & ~right_after, -1)):
        candidates = changed.nonzero().flatten().tolist()
        candidates.sort(key=lambda index: (-sign * shift[index], index))
        chosen += _take_turns(candidates, labels.tolist(), limit)
    return [_example(split, index, labels, before, after) for index in chosen]


def wrong_examples(
    split: Images,
    zero_shot_logits: ArrayLike,
    adapted_logits: ArrayLike | None = None,
    *,
    limit: int = 6,
) -> list[dict[str, Any]]:
    """Pick images that are still wrong, those where the model is most certain of its error.

    The true classes take turns, so that one class does not fill the page.

    Args:
        split: The test images, labelled.
        zero_shot_logits: `(N, K)` logits before adaptation.
        adapted_logits: `(N, K)` logits after adaptation; None where there was none.
        limit: Most images.

    Returns:
        As `changed_examples`; without adaptation the entries have no "adapted".

    Raises:
        FeatureError: If logits, labels and images do not fit together.
        DataError: If a chosen image cannot be read.
    """
    labels, before, after = _probabilities(split, zero_shot_logits, adapted_logits)
    wrong = before.argmax(dim=1) != labels
    return _most_certain(split, labels, before, after, wrong, limit)


def error_examples(
    split: Images,
    zero_shot_logits: ArrayLike,
    adapted_logits: ArrayLike | None = None,
    *,
    limit: int = 6,
) -> list[dict[str, Any]]:
    """Pick the most confident errors, those of images that the adaptation turned wrong among them.

    Arguments, results and errors are those of `wrong_examples`.
    """
    labels, before, after = _probabilities(split, zero_shot_logits, adapted_logits)
    every = torch.ones(len(labels), dtype=torch.bool)
    return _most_certain(split, labels, before, after, every, limit)


def _most_certain(
    split: Images,
    labels: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor | None,
    among: torch.Tensor,
    limit: int,
) -> list[dict[str, Any]]:
    """Return the most certain errors among some images, the true classes in turn."""
    last = before if after is None else after
    wrong = among & (last.argmax(dim=1) != labels)
    certainty = last.amax(dim=1).tolist()
    candidates = sorted(
        wrong.nonzero().flatten().tolist(), key=lambda index: (-certainty[index], index)
    )
    chosen = _take_turns(candidates, labels.tolist(), limit)
    return [_example(split, index, labels, before, after) for index in chosen]


def report_examples(
    split: Images,
    zero_shot_logits: ArrayLike,
    adapted_logits: ArrayLike | None,
    *,
    limit: int = 6,
) -> list[dict[str, Any]]:
    """Pick the images of a report: `changed_examples`, where there was adaptation, and `wrong_examples`."""
    found = wrong_examples(split, zero_shot_logits, adapted_logits, limit=limit)
    if adapted_logits is None:
        return found
    return changed_examples(split, zero_shot_logits, adapted_logits, limit=limit) + found


def _probabilities(
    split: Images, zero_shot_logits: ArrayLike, adapted_logits: ArrayLike | None
) -> tuple[torch.Tensor, torch.Tensor, Any]:
    """Return labels and probabilities before and, where there was adaptation, after it."""
    labels = checked_labels(split.labels, split.classes)
    before = checked_logits(zero_shot_logits, split.classes)
    after = None if adapted_logits is None else checked_logits(adapted_logits, split.classes)
    if len(before) != len(labels) or (after is not None and len(after) != len(labels)):
        adapted = "no" if after is None else len(after)
        raise FeatureError(
            f"{len(labels)} images, but {len(before)} zero-shot and {adapted} adapted "
            f"rows of logits; every image needs both"
        )
    chances = [None if each is None else each.double().softmax(dim=1) for each in (before, after)]
    assert chances[0] is not None
    return labels, chances[0], chances[1]


def _example(
    split: Images,
    index: int,
    labels: torch.Tensor,
    before: torch.Tensor,
    after: torch.Tensor | None,
) -> dict[str, Any]:
    example = {
        "image": split.load(index),
        "id": split.ids[index],
        "true": split.classes[int(labels[index])],
        "zero_shot": _prediction(before[index], split.classes),
    }
    if after is not None:
        example["adapted"] = _prediction(after[index], split.classes)
    return example


def _prediction(probabilities: torch.Tensor, classes: Sequence[str]) -> dict[str, Any]:
    best = int(probabilities.argmax())
    return {"class": classes[best], "probability": float(probabilities[best])}


def _take_turns(candidates: Sequence[int], labels: Sequence[int], limit: int) -> list[int]:
    """Reorder so that the n-th image of every class comes before the n+1-th of any."""
    seen: dict[int, int] = {}
    turns = []
    for index in candidates:
        turn = seen[labels[index]] = seen.get(labels[index], -1) + 1
        turns.append((turn, index))
    return [index for _, index in sorted(turns, key=lambda pair: pair[0])][:limit]
