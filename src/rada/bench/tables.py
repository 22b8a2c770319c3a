"""From cells to tables: means over seeds, differences against a reference, costs."""

from __future__ import annotations

import difflib
import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rada.bench.cells import MEAN, SOURCE, TRANSFER, Folder, data_name, subject, told_apart
from rada.core.errors import CheckpointError, ConfigError
from rada.evaluation import Spread, harmonic_mean, mean_std
from rada.methods import get_method, list_methods
from rada.report.text import DASH, count, points, spread
from rada.test_time import get_test_time_method

__all__ = [
    "HM",
    "MEAN",
    "Difference",
    "ResultTable",
    "Runs",
    "Values",
    "base_and_new_values",
    "check_reference",
    "load_runs",
    "long_rows",
    "paired_difference",
    "result_tables",
    "value_cell",
]

HM, BALANCED = "HM", "test, balanced"
Values = Mapping[int, float]
"""A value for each seed; the seed 0 stands for every seed where a method learns nothing."""


@dataclass(frozen=True)
class Difference:
    """How a method differs from a reference with the same seeds.

    Attributes:
        mean: Mean difference.
        low: Lower end of its 95 % confidence interval; None for fewer than two seeds.
        high: Upper end.
        runs: Seeds.
    """

    mean: float
    low: float | None
    high: float | None
    runs: int

    def __str__(self) -> str:
        if self.low is None or self.high is None:
            return points(self.mean)
        return f"{points(self.mean)} ({points(self.low)} to {points(self.high)})"


def paired_difference(values: Values, reference: Values) -> Difference | None:
    """Compare seed by seed.

    The interval is Student's, on the differences of the n common seeds: mean plus or minus
    t(0.975, n - 1) times their standard deviation over the square root of n.

    Returns:
        The difference, or None without common seeds.

    Example:
        >>> found = paired_difference({1: 0.6, 2: 0.7}, {1: 0.5, 2: 0.5})
        >>> round(found.mean, 3), round(found.low, 3), round(found.high, 3)
        (0.15, -0.485, 0.785)
    """
    seeds = set(values) | set(reference) if 0 in {*values, *reference} else set(values)
    seeds = {seed for seed in seeds if seed or len(seeds) == 1}
    pairs = [
        (values.get(seed, values.get(0)), reference.get(seed, reference.get(0))) for seed in seeds
    ]
    gaps = [a - b for a, b in pairs if a is not None and b is not None]
    if not gaps:
        return None
    mean = statistics.fmean(gaps)
    if len(gaps) < 2:
        return Difference(mean, None, None, len(gaps))
    from scipy.stats import t  # type: ignore[import-untyped,unused-ignore]

    half = float(t.ppf(0.975, len(gaps) - 1)) * statistics.stdev(gaps) / math.sqrt(len(gaps))
    return Difference(mean, mean - half, mean + half, len(gaps))


@dataclass(frozen=True)
class ResultTable:
    """A table of text, for every format.

    Attributes:
        title: What it shows.
        columns: Headings.
        rows: Cells; the first of a row is its heading.
        labels: The method of each row, or "" for others.
        note: A remark.
    """

    title: str
    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: Sequence[str] = ()
    note: str = ""


@dataclass
class Runs:
    """All results of a folder, by what was run.

    Attributes:
        facts: The folder's own description.
        failures: Cells that failed.
        results: The results as they stand in the files.
    """

    facts: dict[str, Any]
    results: list[dict[str, Any]]
    failures: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        for result in self.results:
            if result["cell"]["protocol"] == "shift":  # its table is named by what was tested on
                result["parts"] = {"test": next(iter(result["parts"].values()))}
        specs = {subject(result["cell"]) for result in self.results}
        specs |= {spec for result in self.results for spec in result["cell"].get("targets", ())}
        self._names = told_apart({spec: data_name(spec) for spec in specs})
        self._values: dict[tuple[str, str, str, int, str], dict[int, float]] = {}
        for result in self.results:
            cell = result["cell"]
            key = (cell["protocol"], self.data(cell), cell["label"], cell["shots"])
            parts = {name: part["accuracy"] for name, part in result["parts"].items()}
            if cell["protocol"] in TRANSFER:
                targets = [parts[name] for name in parts if name != SOURCE]
                if None not in targets and targets:
                    parts[MEAN] = statistics.fmean(targets)
            else:  # a target may be called "test", too
                parts[BALANCED] = result["parts"].get("test", {}).get("balanced_accuracy")
                parts[HM] = result.get("harmonic_mean")
            for name, value in parts.items():
                if value is not None:
                    self._values.setdefault((*key, name), {})[cell["seed"]] = value

    def data(self, cell: Mapping[str, Any]) -> str:
        """Return the name of a cell's data set."""
        spec = subject(cell)
        return self._names.get(spec, data_name(spec))

    def values(self, protocol: str, data: str, label: str, shots: int, part: str) -> Values:
        """Return the accuracies by seed; those of a method that learns nothing serve all shots."""
        found = self._values.get((protocol, data, label, shots, part))
        return found or self._values.get((protocol, data, label, 0, part), {})

    def mean_over_data(
        self, protocol: str, datas: Sequence[str], label: str, shots: int, part: str
    ) -> Values:
        """Average over data sets, seed by seed; empty unless every one has the seed."""
        columns = [self.values(protocol, data, label, shots, part) for data in datas]
        if not all(columns):
            return {}
        seeds = set.union(*(set(column) for column in columns))
        seeds = {seed for seed in seeds if seed} or {0}
        found = {}
        for seed in sorted(seeds):
            row = [column.get(seed, column.get(0)) for column in columns]
            numbers = [value for value in row if value is not None]
            if len(numbers) == len(columns):
                found[seed] = statistics.fmean(numbers)
        return found

    def cells(self, **wanted: Any) -> list[dict[str, Any]]:
        """Return results whose cell has these values."""
        return [r for r in self.results if all(r["cell"][k] == v for k, v in wanted.items())]

    def protocols(self) -> list[str]:
        """Return the protocols in the order of their first result."""
        return _unique(result["cell"]["protocol"] for result in self.results)

    def datas(self, protocol: str) -> list[str]:
        """Return the data sets of a protocol."""
        return _unique(self.data(r["cell"]) for r in self.cells(protocol=protocol))

    def shots(self, protocol: str) -> list[int]:
        """Return the numbers of shots of a protocol; [0] if nothing learned."""
        found = {r["cell"]["shots"] for r in self.cells(protocol=protocol)}
        return sorted(found - {0}) or [0]

    def labels(self, protocol: str | None = None) -> list[str]:
        """Return the rows of tables, in the order of the methods."""
        order = [method.name for method in list_methods()]
        chosen = self.results if protocol is None else self.cells(protocol=protocol)
        found = {r["cell"]["label"]: r["cell"]["method"] for r in chosen}
        return sorted(
            found, key=lambda label: (order.index(found[label]), label != found[label], label)
        )

    def title(self, label: str) -> str:
        """Return how tables name a label."""
        cells = [r["cell"] for r in self.results if r["cell"]["label"] == label]
        methods = {(cell["method"], cell.get("test_time", "")) for cell in cells}
        name, plus, test_time = label.partition("+")
        if methods != {(name, test_time)}:
            return label.replace("_", " ")  # a variant
        title = get_method(name).title
        return f"{title} + {get_test_time_method(test_time).title}" if plus else title

    def unbalanced(self, protocol: str, datas: Sequence[str]) -> bool:
        """Whether test classes are of such different sizes that balanced accuracy differs."""
        return any(
            abs(part["accuracy"] - part.get("balanced_accuracy", part["accuracy"])) > 5e-4
            for r in self.cells(protocol=protocol)
            for part in r["parts"].values()
            if self.data(r["cell"]) in datas and part["accuracy"] is not None
        )

    def parts(self, protocol: str, data: str) -> list[str]:
        """Return the parts of a protocol on a data set."""
        found = _unique(
            name
            for r in self.cells(protocol=protocol)
            if self.data(r["cell"]) == data
            for name in r["parts"]
        )
        return found


def _unique(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def load_runs(directory: str | Path) -> Runs:
    """Read a benchmark's folder.

    Raises:
        CheckpointError: If it is none, a result is damaged or of another version, or results that
            belong side by side were made on different test images.
    """
    folder = Folder(directory)
    runs = Runs(folder.facts(), list(folder.results()), folder.failures())
    sizes: dict[tuple[str, str, str], tuple[int, int]] = {}
    identities: dict[tuple[str, bool], str] = {}
    for result in runs.results:
        for spec, identity in result.get("identities", {}).items():
            place = (spec, spec == result["cell"]["dataset"])
            if identities.setdefault(place, identity["test"]) != identity["test"]:
                raise CheckpointError(
                    f"results on {spec!r} were made with different images, labels, templates or "
                    "encoder weights: the data has changed in between; run them again in another folder"
                )
        for name, part in result["parts"].items():
            key = (result["cell"]["protocol"], subject(result["cell"]), name)
            size = (part["images"], part["classes"])
            if sizes.setdefault(key, size) != size:
                raise CheckpointError(
                    f"results on {key[1]!r} have {sizes[key][0]} and {size[0]} test images of "
                    f"{sizes[key][1]} and {size[1]} classes: the data has changed in between; "
                    "run them again in another folder"
                )
    return runs


def check_reference(reference: str, labels: Sequence[str]) -> None:
    """Raise a `ConfigError` unless the reference is among the methods."""
    if reference not in labels:
        near = difflib.get_close_matches(reference, labels, n=1)
        hint = f"did you mean {near[0]!r}?" if near else f"there are {', '.join(labels)}"
        raise ConfigError(f"the reference {reference!r} is none of the methods run: {hint}")


def result_tables(runs: Runs, reference: str) -> list[ResultTable]:
    """Return all tables of accuracies and, last, the costs.

    Args:
        runs: The results.
        reference: Label of the method that differences are taken against.

    Raises:
        ConfigError: If no result has that label.
    """
    if not runs.results:
        return []
    check_reference(reference, runs.labels())
    tables: list[ResultTable] = []
    for protocol in runs.protocols():
        tables += _MAKERS[protocol](runs, protocol, reference)
    return [*tables, cost_table(runs)]


def value_cell(values: Values) -> str:
    """Return mean and standard deviation over the seeds, in per cent; a dash for nothing."""
    return DASH if not values else spread(_spread(values).to_dict())


def _spread(values: Values) -> Spread:
    return mean_std(values.values())


def _gap(values: Values, reference: Values) -> str:
    found = paired_difference(values, reference)
    return DASH if found is None else str(found)


def _few_shot(runs: Runs, protocol: str, reference: str) -> list[ResultTable]:
    tables = []
    for name, group in _groups(runs.datas(protocol)):
        title = f"Few-shot accuracy, {name}, %"
        tables.append(_shots_table(runs, protocol, group, reference, "test", title))
        if runs.unbalanced(protocol, group):
            title = f"Few-shot balanced accuracy, {name}, %"
            tables.append(_shots_table(runs, protocol, group, reference, BALANCED, title))
    return tables


def _shift(runs: Runs, protocol: str, reference: str) -> list[ResultTable]:
    return [
        _shots_table(runs, protocol, group, reference, "test", f"Shift, {name}, %")
        for name, group in _groups(runs.datas(protocol))
    ]


def _shots_table(
    runs: Runs, protocol: str, group: Sequence[str], reference: str, part: str, title: str
) -> ResultTable:
    shots, labels, rows = runs.shots(protocol), runs.labels(protocol), []
    for label in labels:
        series = [runs.mean_over_data(protocol, group, label, n, part) for n in shots]
        last = runs.mean_over_data(protocol, group, reference, shots[-1], part)
        gap = DASH if label == reference else _gap(series[-1], last)
        rows.append([runs.title(label), *map(value_cell, series), gap])
    heads = [count(n, "shot") for n in shots]
    against = f"{heads[-1]} against {runs.title(reference)}"
    return ResultTable(title, ["Method", *heads, against], rows, labels)


def _base_to_new(runs: Runs, protocol: str, reference: str) -> list[ResultTable]:
    tables, labels = [], runs.labels(protocol)
    for shots in runs.shots(protocol):
        for name, group in _groups(runs.datas(protocol)):
            rows = []
            for label in labels:
                base, new, means, of_average = base_and_new_values(
                    runs, protocol, group, label, shots
                )
                other = base_and_new_values(runs, protocol, group, reference, shots)
                gap = DASH if label == reference else _gap(of_average, other[3])
                cells = [base, new, of_average, means] if len(group) > 1 else [base, new, means]
                rows.append([runs.title(label), *map(value_cell, cells), gap])
            heads = ["HM of the averages", "mean of the HMs"] if len(group) > 1 else ["HM"]
            columns = ["Method", "Base", "New", *heads, f"HM against {runs.title(reference)}"]
            title = f"Base to new, {name}, {count(shots, 'shot')}, %"
            tables.append(ResultTable(title, columns, rows, labels, _one_new_class(runs, group)))
    return tables


def _one_new_class(runs: Runs, group: Sequence[str]) -> str:
    alone = [
        runs.data(r["cell"])
        for r in runs.cells(protocol="base-to-new")
        if r["parts"]["new"]["classes"] == 1 and runs.data(r["cell"]) in group
    ]
    if not alone:
        return ""
    return f"{alone[0]} has one new class: its accuracy there is 100 % whatever the method."


def base_and_new_values(
    runs: Runs, protocol: str, group: Sequence[str], label: str, shots: int
) -> tuple[Values, Values, Values, Values]:
    """Return base, new, mean of the HMs and HM of the averages, by seed."""
    base, new, means = (
        runs.mean_over_data(protocol, group, label, shots, part) for part in ("base", "new", HM)
    )
    both = {seed: harmonic_mean(base[seed], new[seed]) for seed in base if seed in new}
    return base, new, means, both


def _transfer(runs: Runs, protocol: str, reference: str) -> list[ResultTable]:
    tables, labels = [], runs.labels(protocol)
    for shots in runs.shots(protocol):
        for data in runs.datas(protocol):
            parts = [*runs.parts(protocol, data), MEAN]

            def of(label: str, part: str, data: str = data, shots: int = shots) -> Values:
                return runs.values(protocol, data, label, shots, part)

            rows = []
            for label in labels:
                gap = DASH if label == reference else _gap(of(label, MEAN), of(reference, MEAN))
                rows.append(
                    [runs.title(label), *(value_cell(of(label, part)) for part in parts), gap]
                )
            heads = [f"{data} ({SOURCE})" if part == SOURCE else part for part in parts]
            columns = ["Method", *heads, f"mean against {runs.title(reference)}"]
            kind = "Cross-dataset" if protocol == "cross-dataset" else "Domain generalisation"
            title = f"{kind}, trained on {data}, {count(shots, 'shot')}, %"
            tables.append(ResultTable(title, columns, rows, labels))
        if len(runs.datas(protocol)) > 1:
            tables.append(_transfer_average(runs, protocol, reference, shots))
    return tables


def _transfer_average(runs: Runs, protocol: str, reference: str, shots: int) -> ResultTable:
    datas, labels = runs.datas(protocol), runs.labels(protocol)
    rows = []
    for label in labels:
        source, mean = (
            runs.mean_over_data(protocol, datas, label, shots, part) for part in (SOURCE, MEAN)
        )
        other = runs.mean_over_data(protocol, datas, reference, shots, MEAN)
        gap = DASH if label == reference else _gap(mean, other)
        rows.append([runs.title(label), value_cell(source), value_cell(mean), gap])
    columns = ["Method", SOURCE, MEAN, f"mean against {runs.title(reference)}"]
    title = f"Average over {len(datas)} sources, {count(shots, 'shot')}, %"
    return ResultTable(title, columns, rows, labels)


_MAKERS: dict[str, Callable[[Runs, str, str], list[ResultTable]]] = {
    "few-shot": _few_shot,
    "base-to-new": _base_to_new,
    "cross-dataset": _transfer,
    "domain": _transfer,
    "shift": _shift,
}


def _groups(datas: Sequence[str]) -> list[tuple[str, list[str]]]:
    """Return the average over all data sets, if there are several, and each alone."""
    alone = [(data, [data]) for data in datas]
    return alone if len(datas) < 2 else [(f"average of {len(datas)} sets", list(datas)), *alone]


def cost_table(runs: Runs) -> ResultTable:
    """Return trainable parameters, seconds and memory of each method."""
    rows, labels = [], runs.labels()
    for label in labels:
        found = [r for r in runs.results if r["cell"]["label"] == label]
        memory = [r["memory"] for r in found if r["memory"] is not None]
        rows.append(
            [
                runs.title(label),
                f"{max(r['trainable_parameters'] for r in found):,}",
                f"{statistics.fmean(r['fit_seconds'] for r in found):.2f}",
                f"{statistics.fmean(r['predict_seconds'] for r in found):.2f}",
                f"{max(memory) / 2**20:,.0f}" if memory else DASH,
                f"{len(found)}",
            ]
        )
    columns = ["Method", "Trainable parameters", "Fit, s", "Predict, s", "Memory, MiB", "Cells"]
    note = (
        "Parameters and memory are the largest over the cells, seconds the mean; memory is how far a "
        "cell rose above where it began. Encoding images, which all share, is not in them."
    )
    return ResultTable("Cost", columns, rows, labels, note)


def long_rows(runs: Runs, reference: str) -> list[dict[str, Any]]:
    """Return one row for each protocol, data set, method, number of shots and part."""
    rows = []
    for protocol in runs.protocols():
        for data in runs.datas(protocol):
            parts = [*runs.parts(protocol, data), *([HM] if protocol == "base-to-new" else [])]
            parts += [BALANCED] if protocol == "few-shot" else []
            parts += [MEAN] if protocol in TRANSFER else []
            for shots in runs.shots(protocol):
                for label in runs.labels(protocol):
                    for part in parts:
                        values = runs.values(protocol, data, label, shots, part)
                        if values:
                            other = runs.values(protocol, data, reference, shots, part)
                            row = {"protocol": protocol, "data": data, "method": label}
                            rows.append(
                                row | {"shots": shots, "part": part} | _numbers(values, other)
                            )
    return rows


def _numbers(values: Values, reference: Values) -> dict[str, Any]:
    found, gap = _spread(values), paired_difference(values, reference)
    return {
        "mean": found.mean,
        "std": found.std,
        "seeds": found.runs,
        "difference": gap and gap.mean,
        "low": gap and gap.low,
        "high": gap and gap.high,
    }
