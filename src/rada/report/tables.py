"""The tables of the report, and the choice between table and figure by the number of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rada.evaluation.spread import aggregate_runs
from rada.report.blocks import Block, Cell, Details, Row, SideBySide, Table, Text
from rada.report.figures import class_bars, class_scatter, confusion_heat_map, shots_figure
from rada.report.text import DASH, count, interval, percent, points, row_name, shorten, spread

__all__ = ["class_blocks", "confusion_blocks", "result_table", "rows_of", "shots_blocks"]

MOST_BARS = 25
"""Up to so many classes have a bar each; more are points."""
MOST_NUMBERS = 12
"""Up to so many classes have a confusion matrix with numbers."""
MOST_HEAT = 200
"""Up to so many classes have a heat map; beyond it a class is less than two pixels."""
LONGEST_NAME = 48
"""Longer class names are cut in matrices; the numbers per class have them in full."""
MOST_CONFUSIONS = 15
"""Length of the list of the most frequent errors."""


def rows_of(result: Mapping[str, Any]) -> list[str]:
    """Return the keys of the rows of a result, zero-shot first."""
    return list(result.get("rows") or ("zero_shot", "adapted"))


def result_table(result: Mapping[str, Any]) -> Table:
    """Put all rows beside chance: accuracy, balance, calibration, difference to zero-shot."""
    rows = []
    for key in rows_of(result):
        metrics = result[key]
        against = metrics.get("against_zero_shot")
        cells: list[Cell | str] = [
            percent(metrics["accuracy"], sign=False),
            interval(metrics["interval"]),
            percent(metrics["balanced_accuracy"], sign=False),
            percent(metrics["ece"], sign=False),
            _difference(against),
        ]
        rows.append(
            Row(row_name(key, result.get("row_names")), cells, "accent" if key == "adapted" else "")
        )
    chance = percent(result["chance"], sign=False)
    majority = percent(result["majority"], sign=False)
    rows.append(Row("Chance", [chance, "", chance, "", ""], "muted"))
    rows.append(Row("Always the largest class", [majority, "", chance, "", ""], "muted"))
    columns = ("", "Accuracy, %", "95 % interval", "Balanced, %", "ECE, %", "Difference, points")
    return Table("All rows on the same test pictures", columns, rows, show_caption=False)


def class_blocks(result: Mapping[str, Any]) -> list[Block]:
    """Show accuracy per class: bars, or for many classes points and the classes that moved most."""
    rows, classes = rows_of(result), result["classes"]
    table = _class_table(result, rows, range(len(classes)), "Accuracy per class, %")
    if len(classes) <= MOST_BARS:
        return [class_bars(result, rows), Details("The numbers", [table])]
    moved = _moved(result)
    gained = [k for k, change in moved if change > 0][:10]
    lost = [k for k, change in reversed(moved) if change < 0][:10]
    both = ["zero_shot", "adapted"]
    parts: list[Block] = [class_scatter(result)]
    parts.append(
        SideBySide(
            [
                _class_table(result, both, gained, "Classes that gained most, %"),
                _class_table(result, both, lost, "Classes that lost most, %"),
            ]
        )
    )
    return [*parts, Details(f"All {len(classes)} classes", [table])]


def confusion_blocks(result: Mapping[str, Any]) -> list[Block]:
    """Show the confusion matrices: with numbers, as heat maps, or only their largest errors."""
    classes = result["classes"]
    keys = ("zero_shot", "adapted")
    if len(classes) <= MOST_NUMBERS:
        names = result.get("row_names")
        matrices = [
            _matrix(row_name(key, names), result[key]["confusion"], classes) for key in keys
        ]
        note = "Rows are true classes, columns predicted ones; errors are shaded red."
        return [SideBySide(matrices), Text(note, note=True)]
    blocks: list[Block] = []
    if len(classes) <= MOST_HEAT:
        tables = {key: result[key]["confusion"] for key in keys}
        blocks.append(confusion_heat_map(tables, classes, result.get("row_names")))
    else:
        many = count(len(classes), "class", "classes")
        blocks.append(Text(f"With {many} only the most frequent errors are listed."))
    return [*blocks, _confusions(result)]


def shots_blocks(runs: Sequence[Mapping[str, Any]], result: Mapping[str, Any]) -> list[Block]:
    """Show accuracy against shots over seeds, as a figure and as a table."""
    trained = [run for run in runs if run.get("shots")]
    table = aggregate_runs(trained)
    zero_shot = result["zero_shot"]
    chance = result["chance"]
    levels = {
        "zero_shot": {
            "accuracy": zero_shot["accuracy"],
            "balanced_accuracy": zero_shot["balanced_accuracy"],
        },
        "chance": {"accuracy": chance, "balanced_accuracy": chance},
    }
    rows = [
        Row(
            row_name(str(row["method"])),
            [
                str(row["shots"]),
                spread(row.get("accuracy")),
                spread(row.get("balanced_accuracy")),
                str(row["accuracy"]["runs"]) if "accuracy" in row else DASH,
            ],
            "accent" if row["method"] in ("rada", "adapted") else "",
        )
        for row in table
    ]
    for name, level in levels.items():
        cells = [percent(level[key], sign=False) for key in ("accuracy", "balanced_accuracy")]
        rows.append(Row(row_name(name), [DASH, *cells, DASH], "muted"))
    columns = ("", "Pictures a class", "Accuracy, %", "Balanced, %", "Seeds")
    caption = "Mean and standard deviation over the seeds"
    return [shots_figure(table, levels), Details("The numbers", [Table(caption, columns, rows)])]


def _difference(against: Mapping[str, Any] | None) -> Cell:
    if against is None:
        return Cell(DASH, "muted")
    low, high = against["interval"]
    text = f"{points(against['difference'])} ({points(low)} to {points(high)})"
    return Cell(text, title=f"McNemar p = {against['p_value']:.2g}")


def _class_table(
    result: Mapping[str, Any], rows: Sequence[str], chosen: Sequence[int], caption: str
) -> Table:
    columns = ["Class", "Pictures", *(row_name(row, result.get("row_names")) for row in rows)]
    body = []
    for k in chosen:
        cells: list[Cell | str] = [f"{result['zero_shot']['per_class'][k]['images']:,}"]
        for row in rows:
            entry = result[row]["per_class"][k]
            title = (
                "" if entry["interval"] is None else f"95 % interval {interval(entry['interval'])}"
            )
            cells.append(Cell(percent(entry["accuracy"], sign=False), title=title))
        body.append(Row(result["classes"][k], cells))
    return Table(caption, columns, body)


def _moved(result: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return classes with test pictures and their change of accuracy, largest gain first."""
    pairs = zip(result["zero_shot"]["per_class"], result["adapted"]["per_class"], strict=True)
    changes = [
        (k, after["accuracy"] - before["accuracy"])
        for k, (before, after) in enumerate(pairs)
        if before["accuracy"] is not None
    ]
    return sorted(changes, key=lambda pair: -pair[1])


def _matrix(title: str, table: Sequence[Sequence[int]], classes: Sequence[str]) -> Table:
    names = [shorten(name, LONGEST_NAME) for name in classes]
    numbered = len(names) > 4  # columns as wide as names would not fit
    rows = []
    for k, counts in enumerate(table):
        total = max(1, sum(counts))
        cells = [
            Cell(f"{n:,}", "", n / total, j != k, f"{names[k]} taken for {names[j]}")
            for j, n in enumerate(counts)
        ]
        rows.append(Row(f"{k + 1} {names[k]}" if numbered else names[k], cells))
    heads = [str(k + 1) for k in range(len(names))] if numbered else names
    return Table(title, ["true \\ predicted", *heads], rows, matrix=True)


def _confusions(result: Mapping[str, Any]) -> Block:
    """List the largest entries off the diagonal of the adapted model, beside zero-shot's."""
    before = np.array(result["zero_shot"]["confusion"])
    after = np.array(result["adapted"]["confusion"])
    errors = after.copy()
    np.fill_diagonal(errors, 0)
    if not errors.any():
        return Text("RAda makes no error on these pictures.")
    parts = errors / np.maximum(after.sum(axis=1, keepdims=True), 1)
    # The most pictures first; of equals the larger part of its class.
    order = np.lexsort((-parts.flatten(), -errors.flatten()))[:MOST_CONFUSIONS]
    names = [shorten(name, LONGEST_NAME) for name in result["classes"]]
    rows = []
    for true, predicted in (divmod(int(place), len(names)) for place in order):
        number = int(errors[true, predicted])
        if number:
            part = percent(parts[true, predicted], sign=False)
            cells = [names[predicted], f"{number:,}", part, f"{before[true, predicted]:,}"]
            rows.append(Row(names[true], cells))
    columns = ("True class", "Taken for", "Pictures", "Of the class, %", "Zero-shot, pictures")
    return Table("The most frequent errors of RAda", columns, rows, words=(1,))
