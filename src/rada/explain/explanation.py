"""An explanation of one image: what it says, in lines, as JSON, as figures and in a notebook."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from rada.core import notebook
from rada.core.errors import ConfigError
from rada.evaluation.sharing import shown_name
from rada.explain.evidence import ClassScore, Evidence
from rada.explain.neighbours import Neighbour
from rada.explain.where import HeatMap
from rada.explain.words import InWords

if TYPE_CHECKING:
    from matplotlib.figure import Figure
    from PIL.Image import Image

__all__ = ["ImageExplanation", "Nearest", "Words"]


@dataclass(frozen=True)
class Words:
    """What an image, its classes and the change of these are, in plain words.

    Attributes:
        image: The image, as its difference to a mean.
        classes: Effective class weights of the classes that are looked at, by name.
        changes: What the adaptation changed in them; classes without any change are left out.
        apart: Whether the mean is that of the training images, and not of the words: then the words say what
            sets the image apart from these, not what it shows.
    """

    image: InWords
    classes: dict[str, InWords]
    changes: dict[str, InWords]
    apart: bool = False

    @property
    def title(self) -> str:
        """What the words of the image are of."""
        return "the image against the mean training image" if self.apart else "the image"


@dataclass(frozen=True)
class Nearest:
    """The most similar training images.

    Attributes:
        all: Whatever their class.
        other: Of the second class alone.
        other_class: Its name.
    """

    all: tuple[Neighbour, ...]
    other: tuple[Neighbour, ...]
    other_class: str


@dataclass(frozen=True, eq=False)
class ImageExplanation:
    """Why a model gave an image its class.

    Attributes:
        name: Path of the image, or its number.
        method: Title of the method.
        classes: The classes that are looked at, the most probable first.
        evidence: The best class against each of the others.
        words: All of it in plain words; None without a text encoder.
        maps: Heat maps; empty of features.
        nearest: The most similar training images; None where they are not known.
        notes: What is missing and why.
        image: The image, small; None of features.
        before: What the logits before adaptation are called.
        temperature: By which all logits are divided, those before adaptation too. Probabilities before it
            are of undivided ones, as they are without the model.
    """

    name: str
    method: str
    classes: tuple[ClassScore, ...]
    evidence: tuple[Evidence, ...]
    words: Words | None = None
    maps: tuple[HeatMap, ...] = ()
    nearest: Nearest | None = None
    notes: tuple[str, ...] = ()
    image: Image | None = field(default=None, repr=False)
    before: str = "zero-shot"
    temperature: float = 1.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, without the images."""
        found = {
            "name": self.name,
            "method": self.method,
            "before": self.before,
            "temperature": self.temperature,
            "classes": [dataclasses.asdict(entry) for entry in self.classes],
            "evidence": [dataclasses.asdict(entry) for entry in self.evidence],
            "words": None if self.words is None else dataclasses.asdict(self.words),
            "maps": [entry.to_dict() for entry in self.maps],
            "nearest": None,
            "notes": list(self.notes),
        }
        if self.nearest is not None:
            sides = {side: getattr(self.nearest, side) for side in ("all", "other")}
            found["nearest"] = {"other_class": self.nearest.other_class} | {
                side: [
                    {"id": one.id, "label": one.label, "similarity": one.similarity} for one in rows
                ]
                for side, rows in sides.items()
            }
        return found

    def lines(self, classes: int = 3) -> list[str]:
        """Return the explanation in a few lines, of at most so many classes."""
        best = self.classes[0]
        unit = "" if self.temperature == 1 else f" at temperature {self.temperature:.2f}"
        text = [
            f"{entry.name}: {entry.zero_shot_probability:.4f} -> {entry.probability:.4f}, logit "
            f"{entry.zero_shot:.2f} -> {entry.adapted:.2f}{unit} ({self.before} -> {self.method})"
            for entry in self.classes[:classes]
        ]
        for one in self.evidence[:1]:
            parts = [part for part in one.parts if part.dimension is not None][:3]
            named = ", ".join(f"{part.name} {part.total:+.2f}" for part in parts)
            text.append(
                f"{one.target} against {one.against}: {one.adapted:+.2f}, of it "
                f"{one.adapted - one.zero_shot:+.2f} by the adaptation; largest: {named}"
            )
        if self.words is not None:
            text.append(f"{self.words.title} in words: {self.words.image.text()}")
            change = self.words.changes.get(best.name)
            if change is not None:
                text.append(f"what the adaptation changed in {best.name}: {change.text()}")
        if self.nearest is not None:
            rows = ", ".join(f"{one.label} ({one.similarity:.3f})" for one in self.nearest.all)
            text.append(f"most similar training images: {rows}")
        return [*text, *self.notes]

    def figure(self, kind: Literal["dimensions", "words"] = "dimensions") -> Figure:
        """Draw the sum behind the best class's lead over the next one, with matplotlib.

        Args:
            kind: What it is a sum of.

        Raises:
            ConfigError: If there are no words.
            MissingExtraError: If matplotlib is not installed.
        """
        from rada.explain.figures import evidence_bars
        from rada.report import drawn

        one = self.evidence[0]
        parts = one.parts if kind == "dimensions" else one.words
        if parts is None:
            raise ConfigError("there are no words in this explanation")
        return drawn(evidence_bars(one, parts, self.before, self.method))

    def _repr_html_(self) -> str:
        adapted = self.before != self.method.lower()
        columns = ("class", *([self.before] * adapted), self.method)
        rows = [
            (
                notebook.text(one.name),
                *([notebook.text(f"{100 * one.zero_shot_probability:.1f} %")] * adapted),
                notebook.bar(one.probability, 1.0, f"{100 * one.probability:.1f} %"),
            )
            for one in self.classes
        ]
        best, words = self.classes[0].name, []
        if self.words is not None:
            words = [f"In words: {self.words.image.text()}"]
            if best in self.words.changes:
                words.append(f"What changed in {best}: {self.words.changes[best].text()}")
        one = self.evidence[0]
        largest = max((abs(part.total) for part in one.parts), default=0.0)
        parts = [
            (notebook.text(part.name), notebook.bar(part.total, largest, f"{part.total:+.2f}"))
            for part in one.parts
        ]
        shown = [] if self.image is None else [(self.image, shown_name(self.name))]
        if self.image is not None:
            for found in self.maps:
                beside = "" if found.against is None else f" against {found.against}"
                said = f"by {found.method}: blue for {found.target}{beside}"
                shown.append((found.over(self.image), said))
        return notebook.fragment(
            f"{self.method}: {best}",
            notebook.pictures(shown),
            notebook.table(columns, rows),
            *self._similar_html(),
            notebook.paragraph(
                f"{one.target} against {one.against}: {one.adapted:+.2f}, the sum of"
            ),
            notebook.table(("", ""), parts),
            *(notebook.paragraph(line, note=True) for line in (*words, *self.notes)),
        )

    def _similar_html(self) -> list[str]:
        if self.nearest is None:
            return []
        found = []
        for said, near in (
            ("The most similar training images", self.nearest.all),
            (f"The most similar ones of {self.nearest.other_class}", self.nearest.other),
        ):
            shown = [
                (row.image, f"{row.label}, {row.similarity:.2f}")
                for row in near
                if row.image is not None
            ]
            if shown:
                found += [notebook.paragraph(said), notebook.pictures(shown, side=96)]
        return found
