"""Tables and text on the terminal."""

from __future__ import annotations

from collections.abc import Collection, Iterator
from functools import cache
from typing import TYPE_CHECKING, Any

from rada.core.printable import clean
from rada.core.terminal import bold

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["class_table", "comparison_table", "plain_table", "shots_table"]

_NAME = 8
"""A name may be broken to lines of so many letters."""


def plain_table(title: str | None, first: str, *numbers: str, whole: Collection[str] = ()) -> Table:
    """Return an empty table: one column of text and, right-aligned, columns of numbers.

    On a terminal that is too narrow for it, its rows stand below each other, each value in a line.

    Args:
        title: What stands above it.
        first: Heading of the text.
        numbers: Headings of the numbers.
        whole: Those whose values are never broken into lines.
    """
    table = _table_class()(title=title, title_justify="left")
    table.add_column(first, overflow="fold")  # a name that is cut cannot be copied
    for name in numbers:
        table.add_column(name, justify="right", overflow="fold", no_wrap=name in whole)
    return table


@cache
def _table_class() -> type[Table]:
    # rich is imported only by what prints: `rada --help` should answer at once.
    from rich.measure import Measurement
    from rich.table import Table
    from rich.text import Text

    class Plain(Table):
        """A table that loses nothing on a narrow terminal."""

        def __rich_console__(self, console: Any, options: Any) -> Iterator[Any]:
            if self._least_width(console, options) <= options.max_width:
                yield from super().__rich_console__(console, options)
                return
            if self.title:
                yield self.title
            _, *headings = (column.header for column in self.columns)
            for name, *cells in zip(*(column.cells for column in self.columns), strict=True):
                yield bold(name)
                for heading, cell in zip(headings, cells, strict=True):
                    if str(cell):
                        shown = cell if isinstance(cell, Text) else clean(str(cell))
                        yield Text.assemble(f"  {clean(str(heading))}: ", shown)

        def _least_width(self, console: Any, options: Any) -> int:
            """Return the width below which numbers would be broken in the middle."""
            widths = []
            for column in self.columns:
                parts = [
                    Measurement.get(console, options, part)
                    for part in (column.header, *column.cells)
                ]
                widths.append(max(part[column.no_wrap] for part in parts))
            names, *numbers = widths
            return min(names, _NAME) + sum(numbers) + 3 * len(widths) + 1

    return Plain


def comparison_table(result: dict[str, Any]) -> Table:
    """Return the table of all rows of `rada.compare`, the best value of each column in bold."""
    from rada.report.rows import best_rows, name_of, rows_of
    from rada.report.text import count, interval, percent

    title = (
        f"{count(result['images'], 'image')}, {count(len(result['classes']), 'class', 'classes')}"
    )
    columns = ("accuracy", "95 % interval", "balanced accuracy", "calibration error")
    table = plain_table(title, "", *columns, whole=columns[1:2])
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
