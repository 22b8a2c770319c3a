"""The figure of an explanation: the sum behind a difference of two logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from rada.explain.evidence import Contribution, Evidence
from rada.report.blocks import FigureBlock
from rada.report.text import shorten, signed

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["evidence_bars"]


def evidence_bars(
    one: Evidence, parts: Sequence[Contribution], before: str, after: str
) -> FigureBlock:
    """Draw the sum behind a difference, one pair of bars for each part.

    Args:
        one: The two classes.
        parts: The parts, dimensions or words.
        before: What the logits before adaptation are called.
        after: What those after it are called.
    """
    from rada.report.svg import COLOURS, responsive_figure, tidy

    names = [part.name for part in parts]
    place = np.arange(len(names))

    def paint(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        bars = (
            ([part.zero_shot for part in parts], -0.2, "zero", before),
            ([part.total for part in parts], 0.2, "accent", after),
        )
        for values, shift, colour, label in bars:
            axes.barh(place + shift, values, 0.36, color=COLOURS[colour], label=label)
        axes.axvline(0, color=COLOURS["muted"], linewidth=0.8)
        axes.set_yticks(place, [shorten(name, 20 if narrow else 28) for name in names])
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.set_ylim(len(names) - 0.45, -0.55)
        axes.set_xlabel("Part of the difference of the logits")
        tidy(axes, grid="x")
        handles, labels = axes.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside upper left", ncols=2)

    height = 80 + 30 * len(names)
    spoken = "; ".join(f"{part.name} {signed(part.total)}" for part in parts)
    alt = f"What speaks for {one.target} against {one.against}: {spoken}."
    caption = f"“{one.target}” against “{one.against}”: to the right, what speaks for the first."
    return responsive_figure(paint, wide=height, narrow=height, alt=alt, caption=caption)
