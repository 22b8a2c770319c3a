"""The part of the report that says what the model learned as a whole."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from rada.core.extras import needed_for
from rada.report.blocks import Block, FigureBlock, Row, Table, Text
from rada.report.svg import responsive_figure
from rada.report.text import DASH, count, percent, shorten

with needed_for("the report"):
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

__all__ = ["learned_blocks", "mask_figure", "pair_blocks"]

_READING = (
    "What the adaptation changed in the class weights that it effectively uses, in plain words that the "
    "model's own text encoder embeds. “Change” is its length, the class weights being 100 %. “Explained” "
    "is the part of it that the words make up, “by chance” what as many words make up of the same numbers "
    "in random order: where both are alike, the words say nothing."
)
# Between the colours of the light and the dark page: legible on both.
_MORE, _LESS = "#2f86bd", "#c4563a"


def learned_blocks(learned: Mapping[str, Any]) -> list[Block]:
    """Return the blocks of what `rada.explain.learned.Learned.to_dict` tells.

    Args:
        learned: Its values, and "mask", `(classes, D)`, where there is a head.
    """
    entries = learned["classes"]
    blocks: list[Block] = []
    if any("share" in entry for entry in entries):
        columns = ["Class", "Gained", "Lost", "Change", "Explained", "By chance"]
        rows = [Row(entry["name"], _cells(entry)) for entry in entries]
        blocks.append(
            Table("Concepts that each class gained and lost", columns, rows, words=(1, 2))
        )
    else:
        rows = [Row(entry["name"], [percent(entry["size"])]) for entry in entries]
        blocks.append(Table("How much each class changed", ["Class", "Change"], rows))
    shown = ""
    if len(entries) < learned["total"]:
        shown = f" Shown are the {len(entries)} classes of {learned['total']} that changed most."
    blocks.append(Text(_READING + shown, note=True))
    if learned.get("mask") is not None:
        names = [entry["name"] for entry in entries]
        blocks.append(mask_figure(np.asarray(learned["mask"]), names, learned["images"]))
    return [
        *blocks,
        *(Text(f"{note[:1].upper()}{note[1:]}.", note=True) for note in learned["notes"]),
    ]


def pair_blocks(learned: Mapping[str, Any]) -> list[Block]:
    """Return the table of the confused pairs of classes, and what tells them apart; arguments as above."""
    pairs = learned.get("pairs") or []
    if not pairs:
        return []
    told = any("share" in pair for pair in pairs)
    rows = []
    for pair in pairs:
        cells = [pair["taken_for"], f"{pair['images']:,} of {pair['total']:,}"]
        if told:
            more, less, _, share, chance = _cells(pair | {"size": None})
            cells += [more, less, share, chance]
        rows.append(Row(pair["name"], cells))
    columns = ["Class", "Taken for", "Images"]
    words = (1, 3, 4) if told else (1,)
    columns += ["It has more of", "It has less of", "Explained", "By chance"] if told else []
    caption = "Classes that are taken for another one, and the concepts that tell them apart"
    return [Table(caption, columns, rows, words=words)]


def _cells(entry: Mapping[str, Any]) -> list[str]:
    if "share" not in entry:
        return [DASH, DASH, percent(entry["size"]), DASH, DASH]
    more, less = (", ".join(entry[side]) for side in ("more", "less"))
    numbers = (percent(entry[name]) for name in ("size", "share", "by_chance"))
    return [more if more or less else "no words fit", less, *numbers]


def mask_figure(mask: npt.NDArray[np.float64], classes: Sequence[str], images: int) -> FigureBlock:
    """Draw the mean mask: a row for each class, a column for each dimension.

    Args:
        mask: `(K, D)`; 1 leaves a dimension as it is.
        classes: K names.
        images: Number of images of which it is the mean.
    """
    shift = mask - 1
    shift = shift[:, np.argsort(-shift.mean(0), kind="stable")]
    largest = max(float(np.quantile(np.abs(shift), 0.99)), 1e-9)

    def paint(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        axes.imshow(_diverging(shift / largest), interpolation="none", aspect="auto")
        axes.set_yticks(
            np.arange(len(classes)), [shorten(name, 14 if narrow else 24) for name in classes]
        )
        axes.tick_params(length=0, labelsize=8)
        axes.set_xticks([])
        axes.set_xlabel("Dimensions of the features, from those that gain to those that lose")
        if narrow:
            axes.set_xlabel("Dimensions, from gain to loss")

    height = 70 + 22 * len(classes)
    means = ", ".join(
        f"{shorten(name)} {low:.2f} to {high:.2f}"
        for name, low, high in zip(classes, mask.min(1), mask.max(1), strict=True)
    )
    alt = f"The mean mask of {len(classes)} classes over {mask.shape[1]} dimensions: {means}."
    caption = (
        f"The mask that the head puts on the rational matrix at full strength, the mean of "
        f"{count(images, 'image')}: blue gives a dimension more weight, red less; the darkest shade is "
        f"{100 * largest:.1f} % or more."
    )
    return responsive_figure(paint, wide=height, narrow=height, alt=alt, caption=caption)


def _diverging(values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Return RGBA of values in about [-1, 1]: nothing at 0, red below, blue above."""
    image = np.zeros((*values.shape, 4))
    image[..., :3] = np.where(values[..., None] > 0, to_rgb(_MORE), to_rgb(_LESS))
    image[..., 3] = np.abs(values).clip(0, 1) ** 0.8
    return image
