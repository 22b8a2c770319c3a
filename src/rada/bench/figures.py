"""The figures of a benchmark's page."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import Any

from rada.bench.tables import HM, MEAN, Runs, Values
from rada.core.extras import needed_for
from rada.report.blocks import FigureBlock
from rada.report.svg import COLOURS, MARKERS, SERIES, responsive_figure, tidy
from rada.report.text import MAIN_ROWS, percent

with needed_for("the page of a benchmark"):
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

__all__ = ["base_new_figure", "cost_figure", "shots_figure"]

_KEPT = {"zero_shot": "zero"} | dict.fromkeys(MAIN_ROWS, "accent")


def _styles(runs: Runs) -> dict[str, tuple[str, str]]:
    """Return colour and marker of each label, the same in all figures of a page."""
    free = [colour for colour in SERIES if colour != "accent"]
    styles, taken = {}, 0
    for label in runs.labels():
        if label in _KEPT:
            styles[label] = (COLOURS[_KEPT[label]], "o")
            continue
        # Colours and markers run through different cycles, so that no two series share both.
        styles[label] = (COLOURS[free[taken % len(free)]], MARKERS[1 + taken % (len(MARKERS) - 1)])
        if taken >= len(free):
            styles[label] = (styles[label][0], MARKERS[1 + (taken + 2) % (len(MARKERS) - 1)])
        taken += 1
    return styles


def _mean_std(values: Values) -> tuple[float, float]:
    numbers = [100 * value for value in values.values()]
    return statistics.fmean(numbers), statistics.stdev(numbers) if len(numbers) > 1 else 0.0


def shots_figure(runs: Runs, data: Sequence[str], name: str) -> FigureBlock | None:
    """Draw accuracy against shots with a band of one standard deviation.

    Args:
        runs: The results.
        data: Data sets to average over.
        name: What to call them.

    Returns:
        The figure, or None with fewer than two numbers of shots.
    """
    shots = runs.shots("few-shot")
    if len(shots) < 2:
        return None
    styles = _styles(runs)
    labels = runs.labels("few-shot")

    def series(label: str) -> list[Values]:
        return [runs.mean_over_data("few-shot", data, label, n, "test") for n in shots]

    def paint(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for label in labels:
            known = [(i, *_mean_std(v)) for i, v in enumerate(series(label)) if v]
            if not known:
                continue
            place, mean, std = zip(*known, strict=True)
            colour, marker = styles[label]
            low = [m - s for m, s in zip(mean, std, strict=True)]
            high = [m + s for m, s in zip(mean, std, strict=True)]
            learns = any(r["cell"]["shots"] for r in runs.results if r["cell"]["label"] == label)
            line: dict[str, Any] = (
                {"linestyle": "-", "marker": marker} if learns else {"linestyle": "--"}
            )
            # Ten bands over one another are a haze, so with many methods the others' are faint.
            alpha = 0.13 if label in MAIN_ROWS or len(labels) <= 5 else 0.045
            above = 3.0 if label in MAIN_ROWS else 2.0
            axes.fill_between(place, low, high, color=colour, alpha=alpha, linewidth=0)
            axes.plot(place, mean, color=colour, label=runs.title(label), zorder=above, **line)
        axes.set_xlabel("Images a class")
        axes.set_ylabel("Accuracy, %")
        axes.set_xticks(range(len(shots)), [str(n) for n in shots])
        tidy(axes)
        _legend(figure, axes, 2 if narrow else 5)

    ends = [(label, series(label)[-1]) for label in labels]
    alt = f"Accuracy against the number of shots, {name}. With {shots[-1]} shots: " + "; ".join(
        f"{runs.title(label)} {percent(_mean_std(v)[0] / 100)}" for label, v in ends if v
    )
    caption = f"{name}: mean over the seeds; the band is one standard deviation to either side."
    return responsive_figure(paint, wide=400, narrow=460, alt=alt, caption=caption)


def base_new_figure(runs: Runs, shots: int) -> FigureBlock:
    """Draw each method as a point, base against new accuracy, averaged over the data sets."""
    datas, styles = runs.datas("base-to-new"), _styles(runs)
    points = {}
    for label in runs.labels("base-to-new"):
        parts = [
            runs.mean_over_data("base-to-new", datas, label, shots, part)
            for part in ("base", "new")
        ]
        if all(parts):
            points[label] = tuple(_mean_std(part) for part in parts)

    def paint(figure: Figure, narrow: bool) -> None:
        axes = figure.subplots()
        for label, ((base, base_std), (new, new_std)) in points.items():
            colour, marker = styles[label]
            axes.errorbar(
                [base], [new], xerr=[base_std], yerr=[new_std], color=colour, marker=marker,
                linestyle="none", elinewidth=0.9, markersize=7, label=runs.title(label),
            )  # fmt: skip
        if "zero_shot" in points:
            (base, _), (new, _) = points["zero_shot"]
            axes.axhline(new, color=COLOURS["grid"], linewidth=1, zorder=0)
            axes.axvline(base, color=COLOURS["grid"], linewidth=1, zorder=0)
        axes.set_xlabel("Base classes, %")
        axes.set_ylabel("New classes, %")
        tidy(axes, grid="both")
        _legend(figure, axes, 2 if narrow else 5)

    alt = "Accuracy on base and on new classes: " + "; ".join(
        f"{runs.title(label)} {base[0]:.1f} and {new[0]:.1f}"
        for label, (base, new) in points.items()
    )
    caption = f"{shots} shots; bars are one standard deviation over the seeds."
    return responsive_figure(paint, wide=430, narrow=460, alt=alt, caption=caption)


def cost_figure(runs: Runs, protocol: str) -> FigureBlock | None:
    """Draw accuracy against trainable parameters and against the seconds of a fit."""
    part = {"few-shot": "test", "shift": "test", "base-to-new": HM}.get(protocol, MEAN)
    name = {"test": "Accuracy, %", HM: "Harmonic mean, %"}.get(part, "Mean of the targets, %")
    shots, datas, styles = runs.shots(protocol)[-1], runs.datas(protocol), _styles(runs)
    points = {}
    for label in runs.labels(protocol):
        values = runs.mean_over_data(protocol, datas, label, shots, part)
        cells = [
            r
            for r in runs.cells(protocol=protocol, label=label)
            if r["cell"]["shots"] in (0, shots)
        ]
        if values and cells:
            parameters = max(r["trainable_parameters"] for r in cells)
            seconds = statistics.fmean(r["fit_seconds"] for r in cells)
            points[label] = (parameters, seconds, *_mean_std(values))
    if not points:
        return None

    def paint(figure: Figure, narrow: bool) -> None:
        grid = figure.subplots(*((2, 1) if narrow else (1, 2)), squeeze=False).flatten()
        titles = ("Trainable parameters", "Seconds to fit")
        for number, (axes, title) in enumerate(zip(grid, titles, strict=True)):
            for label, point in points.items():
                colour, marker = styles[label]
                axes.errorbar(
                    [point[number]], [point[2]], yerr=[point[3]], color=colour, marker=marker,
                    linestyle="none", elinewidth=0.9, markersize=7, label=runs.title(label),
                )  # fmt: skip
            # Both begin at nothing at all, which a logarithm cannot show.
            threshold = (1000.0, 0.1)[number]
            axes.set_xscale("symlog", linthresh=threshold)
            # Ticks at zero and from the threshold on: those between would stand on one another.
            axes.xaxis.set_major_locator(
                FixedLocator([0.0, *(threshold * 10.0**n for n in range(9))])
            )
            axes.xaxis.set_minor_locator(NullLocator())
            axes.xaxis.set_major_formatter(FuncFormatter(_plain_tick))
            farthest = max(point[number] for point in points.values())
            axes.set_xlim((-200.0, -0.02)[number], max(2 * farthest, 10 * threshold))
            axes.set_xlabel(title)
            axes.set_ylabel(name)
            tidy(axes, grid="both")
        _legend(figure, grid[0], 2 if narrow else 5)

    alt = f"{name} against cost: " + "; ".join(
        f"{runs.title(label)} {p[2]:.1f} with {p[0]:,} parameters in {p[1]:.1f} s"
        for label, p in points.items()
    )
    caption = f"{shots} shots. The axes are linear near zero and logarithmic beyond."
    return responsive_figure(paint, wide=400, narrow=760, alt=alt, caption=caption)


def _plain_tick(value: float, _: object) -> str:
    """Spell a number of a logarithmic axis, 10k for 10000."""
    for size, sign in ((1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:g}{sign}"
    return f"{value:g}"


def _legend(figure: Figure, axes: Axes, columns: int) -> None:
    handles, labels = axes.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside upper left", ncols=columns)
