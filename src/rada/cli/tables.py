"""Tables and text on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from rada.core.terminal import bold

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["class_table", "comparison_table", "plain_table", "shots_table"]


def plain_table(title: str | None, first: str, *numbers: str) -> Table:
    """Return an empty table: one column of text and, right-aligned, columns of numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first, overflow="fold")  # a name that is cut cannot be copied
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def comparison_table(result: dict[str, Any]) -> Table:
    """Return the table of all rows of `rada.compare`, the best value of each column in bold."""
    from rada.report.rows import best_rows, name_of, rows_of
    from rada.report.text import count, interval, percent

    title = (
        f"{count(result['images'], 'image')}, {count(len(result['classes']), 'class', 'classes')}"
    )
    columns = ("accuracy", "95 % interval", "balanced accuracy", "calibration error")
    table = plain_table(title, "", *columns)
    best = best_rows(result)
    for key in rows_of(result):
        row = result[key]
        cells = {metric: percent(row[metric]) for metric in best}
        accuracy, balanced, ece = (
            bold(text) if key in best[metric] else text for metric, text in cells.items()
        )
        table.add_row(name_of(result, key), accuracy, interval(row["interval"]), balanced, ece)
    table.add_row("Chance", percent(result["chance"]), "", percent(result["chance"]), "")
    return table


def class_table(result: dict[str, Any]) -> Table:
    """Return accuracy per class: zero-shot and, where there is one, the adapted model."""
    from rada.report.rows import compared_rows, name_of
    from rada.report.text import percent, shorten

    keys = compared_rows(result)
    table = plain_table(
        "Accuracy per class", "class", "images", *(name_of(result, key) for key in keys)
    )
    for index, entry in enumerate(result["zero_shot"]["per_class"]):
        accuracies = (percent(result[key]["per_class"][index]["accuracy"]) for key in keys)
        table.add_row(shorten(entry["class"]), str(entry["images"]), *accuracies)
    return table


def shots_table(result: dict[str, Any]) -> Table:
    """Return accuracy by method and number of shots, averaged over seeds, beside chance and zero-shot."""
    from rada.evaluation import aggregate_runs
    from rada.report.text import count, percent, row_name, spread

    table = plain_table(
        f"{count(result['images'], 'test image')}; mean and deviation over "
        f"{count(len(result['seeds']), 'seed')}; in per cent",
        "",
        "images a class",
        "accuracy",
        "balanced accuracy",
    )
    metrics = ("accuracy", "balanced_accuracy")
    chance = percent(result["chance"], sign=False)
    table.add_row("Chance", "", chance, chance)
    values = [percent(result["zero_shot"][key], sign=False) for key in metrics]
    table.add_row("Zero-shot", "0", *values)
    for row in aggregate_runs(result["runs"]):
        cells = [spread(row[key]) for key in metrics]
        table.add_row(row_name(row["method"]), str(row["shots"]), *cells)
    return table
