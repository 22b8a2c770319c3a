"""What adaptation did to one image, in numbers that a person can read."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rada.test_time.start import Adaptation

__all__ = ["ClassChange", "Explanation", "explain"]


@dataclass(frozen=True)
class ClassChange:
    """Probability of one class before and after adaptation."""

    name: str
    before: float
    after: float


@dataclass(frozen=True)
class Explanation:
    """What adaptation did to one image.

    Attributes:
        adapted: Whether it was adapted to (`max_entropy` leaves uncertain images alone).
        kept: Numbers of the kept views, lowest entropy first; 0 is the original.
        kept_entropies: Entropy of their predictions before adaptation, in nats.
        views: Number of views.
        median_entropy: Median of the entropies of all views; `largest_entropy` is that of K equal classes.
        largest_entropy: `log K`.
        mean_entropy: Entropy of the kept views' mean prediction before adaptation.
        classes: All classes, the most probable after adaptation first.
        before: The class named before.
        after: The class named after.
        max_deviation: Largest `|M - 1|` of the adapted mask.
    """

    adapted: bool
    kept: tuple[int, ...]
    kept_entropies: tuple[float, ...]
    views: int
    median_entropy: float
    largest_entropy: float
    mean_entropy: float
    classes: tuple[ClassChange, ...]
    before: str
    after: str
    max_deviation: float

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return dataclasses.asdict(self)

    def lines(self, classes: int = 3) -> list[str]:
        """Return the explanation in words, with the `classes` most probable classes."""
        shown = ", ".join(
            f"{view} ({value:.2f})"
            for view, value in zip(self.kept, self.kept_entropies, strict=True)
        )
        text = [
            f"kept {len(self.kept)} of {self.views} views: {shown}; "
            f"entropy in nats, the median view has {self.median_entropy:.2f}, "
            f"no idea at all would be {self.largest_entropy:.2f}"
        ]
        if not self.adapted:
            text.append(
                f"not adapted: the kept views together have the entropy {self.mean_entropy:.2f}"
            )
        changed = "stays" if self.before == self.after else f"{self.before} becomes"
        text.append(
            f"{changed} {self.after}; the mask moved by at most {self.max_deviation:.3f} from one"
        )
        text += [
            f"{entry.name}: {entry.before:.4f} -> {entry.after:.4f} "
            f"({entry.after - entry.before:+.4f})"
            for entry in self.classes[:classes]
        ]
        return text


def explain(detail: Adaptation, names: Sequence[str], index: int = 0) -> Explanation:
    """Put the explanation of one image of an `Adaptation` together.

    Args:
        detail: What `adapt_in_detail` or `OnlineAdapter.step_in_detail` returned.
        names: K class names.
        index: Number of the image.
    """
    before = detail.before[index].softmax(-1).tolist()
    after = detail.logits[index].softmax(-1).tolist()
    kept = detail.kept[index].tolist()
    entropies = detail.entropies[index]
    changes = [ClassChange(*entry) for entry in zip(names, before, after, strict=True)]
    changes.sort(key=lambda entry: -entry.after)
    return Explanation(
        adapted=bool(detail.adapted[index]),
        kept=tuple(kept),
        kept_entropies=tuple(entropies[kept].tolist()),
        views=len(entropies),
        median_entropy=float(entropies.median()),
        largest_entropy=math.log(len(names)),
        mean_entropy=float(detail.mean_entropy[index]),
        classes=tuple(changes),
        before=names[before.index(max(before))],
        after=changes[0].name,
        max_deviation=float(detail.max_deviation[index]),
    )
