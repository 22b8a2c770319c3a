"""`Evaluation`: what `Classifier.evaluate` returns."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rada.core import notebook
from rada.features import Features

if TYPE_CHECKING:
    from rada.data import ImageSplit

__all__ = ["Evaluation"]


@dataclass(frozen=True, eq=False)
class Evaluation:
    """The models side by side on labelled images.

    Attributes:
        result: Everything as plain JSON values.
        features: The encoded test images; None where a store has them, which are not held in memory.
        classes: Candidate class names.
        logits: Logits `(N, K)` of each row of the result, by its name; none of a store.
        images: The images, where the data has them.
        train: The encoded training images, where they are known.

    Example:
        >>> from rada.evaluation import compare
        >>> import torch
        >>> features = Features(torch.eye(2), [0, 1], ("cat", "dog"))
        >>> rows = {"zero_shot": torch.eye(2), "adapted": torch.eye(2)}
        >>> result = compare(*rows.values(), features.labels, features.classes)
        >>> Evaluation(result, features, features.classes, rows)["adapted"]["accuracy"]
        1.0
    """

    result: dict[str, Any]
    features: Features | None
    classes: tuple[str, ...]
    logits: dict[str, Tensor]
    images: ImageSplit | None = None
    train: Features | None = None

    def __getitem__(self, name: str) -> Any:
        return self.result[name]

    def _repr_html_(self) -> str:
        names = self.result.get("row_names") or {}
        rows = []
        for key in self.result["rows"]:
            row = self.result[key]
            low, high = (f"{100 * bound:.1f}" for bound in row["interval"])
            against = row.get("against_zero_shot")
            gain = ""
            if against is not None:
                ends = " to ".join(f"{100 * bound:+.1f}" for bound in against["interval"])
                gain = f"{100 * against['difference']:+.1f} ({ends})"
            said = f"{100 * row['accuracy']:.1f} % ({low} to {high})"
            name = names.get(key) or key.replace("_", " ")
            rows.append(
                (notebook.text(name), notebook.bar(row["accuracy"], 1.0, said), notebook.text(gain))
            )
        images, classes = self.result["images"], len(self.classes)
        chance = f"Chance is {100 * self.result['chance']:.1f} %; intervals are of 95 %."
        return notebook.fragment(
            f"{images:,} test image{'s'[: images != 1]}, {classes} class{'es'[: 2 * (classes != 1)]}",
            notebook.table(("", "accuracy", "points more than zero-shot"), rows),
            notebook.paragraph(chance, note=True),
        )

    def to_dict(self) -> dict[str, Any]:
        """Return everything as plain JSON values."""
        return dict(self.result)
