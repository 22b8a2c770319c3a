"""The effective robustness plot: accuracy out of distribution against accuracy in distribution."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rada.core.extras import needed_for
from rada.core.storage import atomic_path

__all__ = ["accuracies", "draw_robustness"]

Point = tuple[float, float]


def accuracies(evaluated: Mapping[str, Any]) -> Point | None:
    """Return accuracy in distribution and mean accuracy out of it; None without either.

    Example:
        >>> accuracies({"in_distribution": {"accuracy": 0.5}, "out_of_distribution": {"mean": 0.25}})
        (0.5, 0.25)
    """
    inside, outside = evaluated["in_distribution"], evaluated["out_of_distribution"].get("mean")
    return None if inside is None or outside is None else (inside["accuracy"], outside)


def draw_robustness(
    path: str | Path,
    zero_shot: Point,
    tuned: Mapping[str, Point],
    curves: Mapping[str, Sequence[Point]],
) -> None:
    """Draw methods as points and their lines to the pretrained model (WiSE-FT) as curves.

    Args:
        path: The SVG file.
        zero_shot: The pretrained model.
        tuned: The tuned models by the name of the method.
        curves: Points of the WiSE-FT curve by the same names, from pretrained to tuned.

    Raises:
        StorageError: If the place cannot be written.
    """
    with needed_for("the report"):
        from matplotlib import rc_context
        from matplotlib.figure import Figure

    # A figure of its own: the user's pyplot state stays as it is.
    with rc_context({"svg.hashsalt": "rada", "svg.fonttype": "none"}):
        figure = Figure(figsize=(7, 4.6))
        axes = figure.subplots()
        for index, (name, point) in enumerate(tuned.items()):
            colour = f"C{index}"
            curve = [(100 * x, 100 * y) for x, y in curves.get(name, ())]
            if curve:
                axes.plot(*zip(*curve, strict=True), "-", color=colour, linewidth=1.3, alpha=0.8)
                axes.plot(*zip(*curve, strict=True), ".", color=colour, markersize=5)
            axes.plot(100 * point[0], 100 * point[1], "o", color=colour, markersize=8, label=name)
        axes.plot(
            100 * zero_shot[0],
            100 * zero_shot[1],
            "*",
            color="black",
            markersize=14,
            label="zero-shot",
        )
        axes.set_xlabel("accuracy in distribution, %")
        axes.set_ylabel("mean accuracy out of distribution, %")
        axes.grid(alpha=0.3)
        axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False, fontsize=9)
        axes.set_title(
            "large points: tuned; lines: averaged with the pretrained weights", fontsize=9
        )
        figure.tight_layout()
        with atomic_path(path) as temporary:
            figure.savefig(temporary, format="svg", metadata={"Date": None})
