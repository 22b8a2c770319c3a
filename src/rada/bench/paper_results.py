"""What was measured beside what the paper prints, in the form of its tables."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rada.bench.cells import SOURCE
from rada.bench.paper import ALL_IMAGES, PAPER
from rada.bench.recipes import COOP_SETS
from rada.bench.tables import HM, MEAN, ResultTable, Runs, Values, base_and_new_values, value_cell
from rada.report.text import DASH, count

__all__ = ["paper_table"]

_SOURCE = "One Last Attention for Your Vision-Language Model, ICCV 2025"
Measured = tuple[list[str], Callable[[str], list[Values]], str]
"""Headings, the values of a label under them, and what they are of."""


def paper_table(runs: Runs) -> ResultTable | None:
    """Return what was measured beside what the paper prints; None for a benchmark of another kind."""
    table = PAPER.get(str(runs.facts.get("recipe")).removeprefix("paper-"))
    if table is None or not runs.results:
        return None
    measured = {"eft": _base_to_new, "fft": _transfer, "ttt": _shifts}[table.name]
    heads, of, note = measured(runs)
    rows, labels = [], []
    done = set(runs.labels())
    for row, printed in table.rows.items():
        numbers = [f"{printed[column]:.2f}".removesuffix("0") for column in table.columns]
        own = [label for label in table.labels_of(row) if label in done]
        for place, label in enumerate(own or [""]):
            title = row if not label or len(own) == 1 else f"{row} ({runs.title(label)})"
            cells = [value_cell(values) for values in of(label)] if label else [DASH] * len(heads)
            rows.append([title, *cells, *(numbers if place == 0 else [DASH] * len(numbers))])
            labels.append(label)
            done.discard(label)
    for label in (label for label in runs.labels() if label in done):
        values = [value_cell(found) for found in of(label)]
        rows.append([runs.title(label), *values, *[DASH] * len(table.columns)])
        labels.append(label)
    columns = ["Method", *heads, *(f"{column}, printed" for column in table.columns)]
    title = f"{table.title}, beside the paper, %"
    return ResultTable(title, columns, rows, labels, f"{note} {table.note} Printed: {_SOURCE}.")


def _base_to_new(runs: Runs) -> Measured:
    protocol = "base-to-new"
    datas, shots = runs.datas(protocol), runs.shots(protocol)[-1]

    def of(label: str) -> list[Values]:
        base, new, _, both = base_and_new_values(runs, protocol, datas, label, shots)
        return [base, new, both]

    named = "" if len(datas) == len(COOP_SETS) else f" ({', '.join(datas)})"
    note = f"Measured: averages of {len(datas)} of {len(COOP_SETS)} sets{named}, {count(shots, 'shot')}."
    return ["Base", "New", HM], of, note


def _transfer(runs: Runs) -> Measured:
    protocol = "domain"
    (data, *_), shots = runs.datas(protocol), runs.shots(protocol)[-1]
    targets = _in_order("fft", [part for part in runs.parts(protocol, data) if part != SOURCE])

    def of(label: str) -> list[Values]:
        parts = [SOURCE, *targets, MEAN]
        return [runs.values(protocol, data, label, shots, part) for part in parts]

    wanted = len(PAPER["fft"].plan.targets)
    learned = "all training images" if shots >= ALL_IMAGES else count(shots, "shot")
    note = f"Measured: {learned}, {len(targets)} of {wanted} shifted sets."
    return ["ImageNet", *targets, "Mean of the shifts"], of, note


def _shifts(runs: Runs) -> Measured:
    protocol = "shift"
    datas, shots = _in_order("ttt", runs.datas(protocol)), runs.shots(protocol)[-1]

    def of(label: str) -> list[Values]:
        groups = [*([data] for data in datas), datas]
        return [runs.mean_over_data(protocol, group, label, shots, "test") for group in groups]

    wanted = len(PAPER["ttt"].plan.targets)
    note = f"Measured: {count(shots, 'shot')}, {len(datas)} of {wanted} shifted sets."
    return [*datas, "Mean"], of, note


def _in_order(name: str, datas: Sequence[str]) -> list[str]:
    order = PAPER[name].plan.targets
    return sorted(datas, key=lambda data: order.index(data) if data in order else len(order))
