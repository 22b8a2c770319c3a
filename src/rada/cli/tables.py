"""Tables and text on the terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["class_table", "comparison_table", "plain_table"]


def plain_table(title: str | None, first: str, *numbers: str) -> Table:
    """Return an empty table: one column of text and, right-aligned, columns of numbers."""
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    table.add_column(first)
    for name in numbers:
        table.add_column(name, justify="right")
    return table


def comparison_table(result: dict[str, Any]) -> Table:
    """Return the table of all rows of `rada.compare`."""
    from rada.report.text import count, interval, percent, row_name

    title = (
        f"{count(result['images'], 'picture')}, {count(len(result['classes']), 'class', 'classes')}"
    )
    columns = ("accuracy", "95 % interval", "balanced accuracy", "calibration error")
    table = plain_table(title, "", *columns)
    for key in result["rows"]:
        row = result[key]
        table.add_row(
            row_name(key, result.get("row_names")),
            percent(row["accuracy"]),
            interval(row["interval"]),
            percent(row["balanced_accuracy"]),
            f"{row['ece']:.3f}",
        )
    table.add_row("Chance", percent(result["chance"]), "", percent(result["chance"]), "")
    return table


def class_table(result: dict[str, Any]) -> Table:
    """Return accuracy per class, the zero-shot and the adapted model side by side."""
    from rada.report.text import percent, row_name, shorten

    both = [row_name(key, result.get("row_names")) for key in ("zero_shot", "adapted")]
    table = plain_table("Accuracy per class", "class", "pictures", *both)
    rows = zip(result["zero_shot"]["per_class"], result["adapted"]["per_class"], strict=True)
    for before, after in rows:
        table.add_row(
            shorten(before["class"]),
            str(before["images"]),
            percent(before["accuracy"]),
            percent(after["accuracy"]),
        )
    return table
