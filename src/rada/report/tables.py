"""The tables of the report, and the choice between table and figure by the number of classes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from rada.evaluation.spread import aggregate_runs
from rada.report.blocks import Block, Details, Row, SideBySide, Table, TableCell, Text, Tone
from rada.report.figures import class_bars, class_scatter, confusion_heat_map, shots_figure
from rada.report.rows import best_rows, compared_rows, failures, main_row, name_of, rows_of
from rada.report.text import (
    DASH,
    MAIN_ROWS,
    count,
    interval,
    percent,
    points,
    row_name,
    shorten,
    spread,
)

__all__ = ["class_blocks", "confusion_blocks", "result_table", "shots_blocks"]

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


def result_table(result: Mapping[str, Any]) -> Table:
    """Put all rows beside chance: accuracy, balance, calibration, difference to zero-shot.

    The best value of a column is bold, whichever row it is in.
    """
    rows = []
    best = best_rows(result)
    for key in rows_of(result):
        metrics = result[key]
        accuracy, balanced, ece = (
            TableCell(percent(metrics[name], sign=False), best=key in best[name]) for name in best
        )
        difference = _difference(metrics.get("against_zero_shot"), key in best["accuracy"])
        cells: list[TableCell | str] = [
            accuracy,
            interval(metrics["interval"]),
            balanced,
            ece,
            difference,
        ]
        tone: Tone = "accent" if key == "adapted" else ""
        rows.append(Row(name_of(result, key), cells, tone))
    chance = percent(result["chance"], sign=False)
    majority = percent(result["majority"], sign=False)
    rows.append(Row("Chance", [chance, "", chance, "", ""], "muted"))
    rows.append(Row("Always the largest class", [majority, "", chance, "", ""], "muted"))
    columns = ("", "Accuracy, %", "95 % interval", "Balanced, %", "ECE, %", "Difference, points")
    return Table("All rows on the same test images", columns, rows, show_caption=False)


def class_blocks(result: Mapping[str, Any]) -> list[Block]:
    """Show accuracy per class: bars, or for many classes points and the classes that moved most."""
    rows, classes = rows_of(result), result["classes"]
    table = _class_table(result, rows, range(len(classes)), "Accuracy per class, %")
    words: list[Block] = [Text(sentence) for sentence in failures(result)]
    if len(classes) <= MOST_BARS:
        return [*words, class_bars(result, rows), Details("The numbers", [table])]
    every = Details(f"All {len(classes)} classes", [table])
    if main_row(result) == "zero_shot":
        return [*words, every]
    moved = _moved(result)
    gained = [k for k, change in moved if change > 0][:10]
    lost = [k for k, change in reversed(moved) if change < 0][:10]
    both = compared_rows(result)
    parts: list[Block] = [*words, class_scatter(result)]
    parts.append(
        SideBySide(
            [
                _class_table(result, both, gained, "Classes that gained most, %"),
                _class_table(result, both, lost, "Classes that lost most, %"),
            ]
        )
    )
    return [*parts, every]


def confusion_blocks(result: Mapping[str, Any]) -> list[Block]:
    """Show the confusion matrices: with numbers, as heat maps, or only their largest errors."""
    classes = result["classes"]
    keys = compared_rows(result)
    if len(classes) <= MOST_NUMBERS:
        matrices = [
            _matrix(name_of(result, key), result[key]["confusion"], classes) for key in keys
        ]
        note = "Rows are true classes, columns predicted ones; errors are shaded red."
        return [SideBySide(matrices, natural=True), Text(note, note=True)]
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
                *(
                    TableCell(spread(row.get(key)), best=_is_best(row, key, table))
                    for key in ("accuracy", "balanced_accuracy")
                ),
                str(row["accuracy"]["runs"]) if "accuracy" in row else DASH,
            ],
            "accent" if row["method"] in MAIN_ROWS else "",
        )
        for row in table
    ]
    for name, level in levels.items():
        cells = [percent(level[key], sign=False) for key in ("accuracy", "balanced_accuracy")]
        rows.append(Row(row_name(name), [DASH, *cells, DASH], "muted"))
    columns = ("", "Images a class", "Accuracy, %", "Balanced, %", "Seeds")
    caption = "Mean and standard deviation over the seeds; the best mean for each number is bold"
    return [shots_figure(table, levels), Details("The numbers", [Table(caption, columns, rows)])]


def _is_best(row: Mapping[str, Any], metric: str, table: Sequence[Mapping[str, Any]]) -> bool:
    """Whether no other method has a better mean with the same number of shots, as it is shown."""
    rivals = [other for other in table if other["shots"] == row["shots"] and metric in other]
    if metric not in row or len(rivals) < 2:
        return False
    shown = [round(100 * other[metric]["mean"], 1) for other in rivals]
    return bool(round(100 * row[metric]["mean"], 1) == max(shown))


def _difference(against: Mapping[str, Any] | None, best: bool) -> TableCell:
    if against is None:
        return TableCell(DASH, "muted")
    low, high = against["interval"]
    text = f"{points(against['difference'])} ({points(low)} to {points(high)})"
    return TableCell(text, title=f"McNemar p = {against['p_value']:.2g}", best=best)


def _class_table(
    result: Mapping[str, Any], rows: Sequence[str], chosen: Sequence[int], caption: str
) -> Table:
    columns = ["Class", "Images", *(name_of(result, row) for row in rows)]
    body = []
    for k in chosen:
        cells: list[TableCell | str] = [f"{result['zero_shot']['per_class'][k]['images']:,}"]
        for row in rows:
            entry = result[row]["per_class"][k]
            title = (
                "" if entry["interval"] is None else f"95 % interval {interval(entry['interval'])}"
            )
            cells.append(TableCell(percent(entry["accuracy"], sign=False), title=title))
        body.append(Row(result["classes"][k], cells))
    return Table(caption, columns, body)


def _moved(result: Mapping[str, Any]) -> list[tuple[int, float]]:
    """Return classes with test images and their change of accuracy, largest gain first."""
    after = result[main_row(result)]["per_class"]
    pairs = zip(result["zero_shot"]["per_class"], after, strict=True)
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
            TableCell(f"{n:,}", "", n / total, j != k, f"{names[k]} taken for {names[j]}")
            for j, n in enumerate(counts)
        ]
        rows.append(Row(f"{k + 1} {names[k]}" if numbered else names[k], cells))
    heads = [str(k + 1) for k in range(len(names))] if numbered else names
    return Table(title, ["true \\ predicted", *heads], rows, matrix=True)


def _confusions(result: Mapping[str, Any]) -> Block:
    """List the largest entries off the diagonal of the main row, beside zero-shot's."""
    name = name_of(result, main_row(result))
    before = np.array(result["zero_shot"]["confusion"])
    after = np.array(result[main_row(result)]["confusion"])
    errors = after.copy()
    np.fill_diagonal(errors, 0)
    if not errors.any():
        return Text(f"{name} makes no error on these images.")
    parts = errors / np.maximum(after.sum(axis=1, keepdims=True), 1)
    # The most images first; of equals the larger part of its class.
    order = np.lexsort((-parts.flatten(), -errors.flatten()))[:MOST_CONFUSIONS]
    names = [shorten(name, LONGEST_NAME) for name in result["classes"]]
    rows = []
    for true, predicted in (divmod(int(place), len(names)) for place in order):
        number = int(errors[true, predicted])
        if number:
            part = percent(parts[true, predicted], sign=False)
            cells = [names[predicted], f"{number:,}", part, f"{before[true, predicted]:,}"]
            rows.append(Row(names[true], cells))
    columns = ("True class", "Taken for", "Images", "Of the class, %", "Zero-shot, images")
    return Table(f"The most frequent errors of {name}", columns, rows, words=(1,))
