"""The figures of the report: classes, confusion, training, accuracy against shots."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from rada.core.errors import ConfigError
from rada.core.extras import needed_for
from rada.report.blocks import FigureBlock
from rada.report.rows import compared_rows, main_row, name_of, rows_of
from rada.report.svg import (
    COLOURS,
    MARKERS,
    SERIES,
    ShownFigure,
    drawn,
    responsive_figure,
    tidy,
)
from rada.report.text import percent, row_name, shorten

with needed_for("the report"):
    from matplotlib.axes import Axes
    from matplotlib.colors import to_rgb
    from matplotlib.figure import Figure

__all__ = [
    "class_bars",
    "class_scatter",
    "confusion_heat_map",
    "result_figure",
    "row_colours",
    "shots_figure",
    "training_curve",
]

_CURVES = (
    ("loss", "Loss"),
    ("max_deviation", "Largest deviation of the mask"),
    ("accuracy", "Training accuracy, %"),
)
_METRICS = (("accuracy", "Accuracy, %"), ("balanced_accuracy", "Balanced accuracy, %"))


def row_colours(names: Sequence[str]) -> dict[str, str]:
    """Give each row or method its colour: zero-shot grey, RAda the accent, the rest in order."""
    fixed = {
        "zero_shot": "zero",
        "adapted": "accent",
        "rada_probe": "accent",
        "linear_probe": "probe",
    }
    free = [colour for colour in SERIES if colour not in {fixed.get(name) for name in names}]
    others = [name for name in names if name not in fixed]
    chosen = fixed | {name: free[i % len(free)] for i, name in enumerate(others)}
    return {name: COLOURS[chosen[name]] for name in names}


def result_figure(
    result: Mapping[str, Any],
    kind: Literal["classes", "scatter", "confusion"] = "classes",
    *,
    width: float = 9.375,
) -> ShownFigure:
    """Draw a result with matplotlib, to change, show and save; in a notebook it shows itself.

    Args:
        result: The dictionary of `rada.evaluation.compare`, such as `Evaluation.result`.
        kind: "classes" for a bar a class, "scatter" for a point a class, "confusion" for heat maps.
        width: In inches; below 5 as on narrow screens.

    Raises:
        ConfigError: If there is no such figure.

    Example:
        >>> from rada.evaluation import compare
        >>> before, after = [[2.0, 1.0], [2.0, 1.0]], [[2.0, 1.0], [1.0, 2.0]]
        >>> figure = result_figure(compare(before, after, [0, 1], ["cat", "dog"]))
        >>> figure.axes[0].get_xlabel()
        'Accuracy, %'
    """
    if kind == "classes":
        block = class_bars(result, rows_of(result))
    elif kind == "scatter":
        block = class_scatter(result)
    elif kind == "confusion":
        tables = {key: result[key]["confusion"] for key in compared_rows(result)}
        block = confusion_heat_map(tables, result["classes"], result.get("row_names"))
    else:
        raise ConfigError(f"there is no figure {kind!r}: say classes, scatter or confusion")
    return drawn(block, width)


def class_bars(result: Mapping[str, Any], rows: Sequence[str]) -> FigureBlock:
    """Draw one bar a class and row with its 95 % interval; for up to some 30 classes.

    Args:
        result: The dictionary of `rada.evaluation.compare`.
        rows: Keys of the rows to draw.
    """
    classes, colours = result["classes"], row_colours(rows)
    thickness = 0.78 / len(rows)

    def paint(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for index, name in enumerate(rows):
            table = result[name]["per_class"]
            place = np.arange(len(classes)) + (index - (len(rows) - 1) / 2) * thickness
            values = np.array([_percentage(entry["accuracy"]) for entry in table])
            ends = np.array([_ends(entry) for entry in table]).T
            axes.barh(
                place,
                values,
                thickness * 0.9,
                color=colours[name],
                label=name_of(result, name),
            )
            whisker: dict[str, Any] = {
                "fmt": "none",
                "ecolor": COLOURS["ink"],
                "elinewidth": 0.8,
                "capsize": 0,
            }
            axes.errorbar(values, place, xerr=np.abs(ends - values), **whisker)
        labels = [shorten(name, 18 if narrow else 32) for name in classes]
        axes.set_yticks(np.arange(len(classes)), labels)
        axes.tick_params(axis="y", labelcolor=COLOURS["ink"])
        axes.set(xlim=(0, 100), ylim=(len(classes) - 0.45, -0.55), xlabel="Accuracy, %")
        axes.spines["left"].set_visible(False)
        tidy(axes, grid="x")
        _legend(figure, axes)

    height = 70 + round(len(classes) * (12 + 13 * len(rows)))
    alt = "Accuracy per class. " + "; ".join(
        f"{shorten(name)}: {_spoken(result, rows, k)}" for k, name in enumerate(classes)
    )
    caption = "Thin lines are 95 % Wilson intervals."
    return responsive_figure(paint, wide=height, narrow=height, alt=alt, caption=caption)


def class_scatter(result: Mapping[str, Any]) -> FigureBlock:
    """Draw each class as a point, zero-shot against adapted accuracy; for many classes."""
    after_row = main_row(result)
    name = name_of(result, after_row)
    pairs = np.array(
        [
            (_percentage(before["accuracy"]), _percentage(after["accuracy"]))
            for before, after in zip(
                result["zero_shot"]["per_class"], result[after_row]["per_class"], strict=True
            )
        ]
    )
    better, worse = pairs[:, 1] > pairs[:, 0], pairs[:, 1] < pairs[:, 0]

    def paint(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        axes.plot([0, 100], [0, 100], color=COLOURS["grid"], linewidth=1.2, zorder=1)
        parts = (
            (better, "accent", f"better with {name}"),
            (worse, "rust", f"worse with {name}"),
            (~(better | worse) & ~np.isnan(pairs[:, 0]), "zero", "unchanged"),
        )
        style: dict[str, Any] = {"s": 22, "alpha": 0.6, "linewidths": 0, "zorder": 2}
        for chosen, colour, label in parts:
            if chosen.any():
                axes.scatter(*pairs[chosen].T, color=COLOURS[colour], label=label, **style)
        axes.set(xlim=(-3, 103), ylim=(-3, 103), aspect="equal")
        axes.set(xlabel="Zero-shot accuracy, %", ylabel=f"{name} accuracy, %", anchor="W")
        tidy(axes, grid="both")
        _legend(figure, axes, columns=1 if narrow else 3)

    alt = (
        f"Accuracy of each of {len(pairs)} classes, zero-shot against {name}: {int(better.sum())} "
        f"are better, {int(worse.sum())} worse with {name}."
    )
    caption = f"Each point is a class; above the diagonal {name} is better."
    return responsive_figure(paint, wide=480, narrow=420, alt=alt, caption=caption)


def confusion_heat_map(
    tables: Mapping[str, Sequence[Sequence[int]]],
    classes: Sequence[str],
    row_names: Mapping[str, str] | None = None,
) -> FigureBlock:
    """Draw confusion matrices as heat maps without numbers, side by side.

    Args:
        tables: `(K, K)` counts by name of the row, rows true.
        classes: K class names; written beside the map where there is room.
        row_names: Other names of the rows than the usual ones.
    """
    count, labelled = len(classes), len(classes) <= 30

    def paint(figure: Figure, narrow: bool) -> None:
        shape = (len(tables), 1) if narrow else (1, len(tables))
        grid = figure.subplots(*shape, squeeze=False).flatten()
        for number, (axes, (name, table)) in enumerate(zip(grid, tables.items(), strict=True)):
            axes.imshow(_heat(np.asarray(table)), interpolation="none", aspect="equal")
            axes.set_title(row_name(name, row_names))
            axes.set_xlabel("Predicted class")
            axes.set_xticks([])
            axes.set_yticks([])
            if labelled and (narrow or number == 0):
                axes.set_yticks(np.arange(count), [shorten(name, 18) for name in classes])
                axes.tick_params(length=0, labelsize=7, labelcolor=COLOURS["ink"])
            elif number == 0:
                axes.set_ylabel("True class")
            for spine in axes.spines.values():
                spine.set_visible(True)

    names = " and ".join(row_name(key, row_names) for key in tables)
    alt = f"Confusion of {count} classes as a heat map, {names}; the table below lists the errors."
    caption = (
        "Each row is a true class, each column a predicted one, in the same order; the darker, the "
        "larger the part of the class. A perfect model has the diagonal alone."
    )
    narrow_height = (290 if labelled else 365) * len(tables)
    return responsive_figure(paint, wide=480, narrow=narrow_height, alt=alt, caption=caption)


def training_curve(history: Sequence[Mapping[str, Any]]) -> FigureBlock | None:
    """Draw loss, mask deviation and accuracy on the shots over the epochs.

    Args:
        history: One mapping an epoch with any of "loss", "max_deviation", "accuracy".

    Returns:
        The figure, or None if there is nothing to draw.
    """
    known = [
        (key, title)
        for key, title in _CURVES
        if any(epoch.get(key) is not None for epoch in history)
    ]
    if not known:
        return None
    epochs = [epoch.get("epoch", number + 1) for number, epoch in enumerate(history)]

    def paint(figure: Figure, narrow: bool) -> None:
        shape = (len(known), 1) if narrow else (1, len(known))
        for axes, (key, title) in zip(
            figure.subplots(*shape, squeeze=False).flatten(), known, strict=True
        ):
            factor = 100 if key == "accuracy" else 1
            values = [factor * value for value in _values(history, key)]
            marker = "o" if len(epochs) == 1 else None
            axes.plot(epochs, values, color=COLOURS["accent"], marker=marker)
            axes.set_title(title)
            axes.set_xlabel("Epoch")
            axes.set_ylim(bottom=0, top=105 if key == "accuracy" else None)
            axes.xaxis.get_major_locator().set_params(integer=True)
            tidy(axes)

    parts = (f"{title.lower()} from {_first_last(history, key)}" for key, title in known)
    alt = f"Training over {len(epochs)} epochs: " + "; ".join(parts) + "."
    return responsive_figure(paint, wide=240, narrow=190 * len(known), alt=alt)


def shots_figure(
    table: Sequence[Mapping[str, Any]], levels: Mapping[str, Mapping[str, float | None]]
) -> FigureBlock:
    """Draw accuracy and balanced accuracy against the number of shots.

    Args:
        table: Rows of `rada.evaluation.aggregate_runs` by method and shots.
        levels: Horizontal lines: by name (such as "zero_shot" or "chance") a value for each metric.
    """
    methods = list(dict.fromkeys(row["method"] for row in table))
    shots = sorted({row["shots"] for row in table})
    colours = row_colours(methods)
    metrics = [(key, title) for key, title in _METRICS if any(key in row for row in table)]

    def paint(figure: Figure, narrow: bool) -> None:
        shape = (len(metrics), 1) if narrow else (1, len(metrics))
        grid = figure.subplots(*shape, squeeze=False).flatten()
        for axes, (metric, title) in zip(grid, metrics, strict=True):
            for name, style in zip(levels, ("--", ":", "-."), strict=False):
                value = levels[name].get(metric)
                if value is not None:
                    label = row_name(name)
                    axes.axhline(100 * value, color=COLOURS["zero"], linestyle=style, label=label)
            for number, method in enumerate(methods):
                points = [row for row in table if row["method"] == method and metric in row]
                _band(axes, points, metric, shots, colours[method], MARKERS[number % len(MARKERS)])
            axes.set_title(title)
            axes.set_xlabel("Images a class")
            axes.set_xticks(range(len(shots)), [str(number) for number in shots])
            axes.set_ylim(0, 100)
            tidy(axes)
        _legend(figure, grid[0], columns=2 if narrow else 6)

    best = [
        f"{row_name(row['method'])} with {row['shots']}: {percent(row['accuracy']['mean'])}"
        for row in table
        if row["shots"] == shots[-1] and "accuracy" in row
    ]
    alt = "Accuracy against the number of labelled images a class. " + "; ".join(best) + "."
    caption = "Mean over the seeds; the band is one standard deviation to either side."
    return responsive_figure(
        paint, wide=330, narrow=60 + 250 * len(metrics), alt=alt, caption=caption
    )


def _band(
    axes: Axes,
    points: Sequence[Mapping[str, Any]],
    metric: str,
    shots: Sequence[int],
    colour: str,
    marker: str,
) -> None:
    if not points:
        return
    points = sorted(points, key=lambda row: row["shots"])
    place = [shots.index(row["shots"]) for row in points]
    mean = np.array([100 * row[metric]["mean"] for row in points])
    std = np.array([100 * (row[metric].get("std") or 0.0) for row in points])
    label = row_name(points[0]["method"])
    axes.fill_between(place, mean - std, mean + std, color=colour, alpha=0.18, linewidth=0)
    axes.plot(place, mean, color=colour, marker=marker, label=label)


def _legend(figure: Figure, axes: Axes, columns: int = 4) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(
        handles, labels, loc="outside upper left", ncols=min(columns, max(1, len(labels)))
    )


def _heat(table: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return RGBA: the accent colour, the more opaque the larger the part of the true class."""
    parts = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    image = np.zeros((*table.shape, 4))
    # Between the accents of the light and the dark page: legible on both.
    image[..., :3] = to_rgb("#2f86bd")
    image[..., 3] = parts**0.6  # small parts stay visible
    return image


def _percentage(value: float | None) -> float:
    return float("nan") if value is None else 100 * value


def _ends(entry: Mapping[str, Any]) -> tuple[float, float]:
    low, high = entry["interval"] or (float("nan"), float("nan"))
    return 100 * low, 100 * high


def _spoken(result: Mapping[str, Any], rows: Sequence[str], index: int) -> str:
    accuracies = ((row, result[row]["per_class"][index]["accuracy"]) for row in rows)
    return ", ".join(f"{name_of(result, row)} {percent(accuracy)}" for row, accuracy in accuracies)


def _first_last(history: Sequence[Mapping[str, Any]], key: str) -> str:
    values = _values(history, key)
    return f"{values[0]:.3g} to {values[-1]:.3g}"


def _values(history: Sequence[Mapping[str, Any]], key: str) -> list[float]:
    return [float("nan") if epoch.get(key) is None else float(epoch[key]) for epoch in history]
