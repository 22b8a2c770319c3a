"""The tables of `suite.py`, from the files of its cells."""

from __future__ import annotations

import argparse
import functools
import statistics
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from suite import FEW_SHOT, PACS, PARTS, ZERO_SHOT, groups

from rada.bench.page import markdown
from rada.bench.tables import Difference, ResultTable, paired_difference
from rada.core.errors import ConfigError, DataError
from rada.core.storage import read_json, write_bytes, write_json
from rada.evaluation import environment, evaluate_logits, harmonic_mean
from rada.evaluation.provenance import command_line
from rada.report.text import DASH, count

CHANCE = 2.0
"""Standard errors that count as chance."""
SMALL = 1e-12


@dataclass(frozen=True)
class Scores:
    """What the images of one part of one cell got."""

    classes: int
    nll: float
    ids: tuple[str, ...]
    labels: np.ndarray
    predicted: np.ndarray
    confidence: np.ndarray

    @classmethod
    def of(cls, part: str, values: dict[str, Any]) -> Scores:
        return cls(
            values["classes"],
            values["nll"],
            tuple(f"{part}/{key}" for key in values["ids"].split()),
            np.array(values["labels"].split(), dtype=np.int64),
            np.array(values["predicted"].split(), dtype=np.int64),
            np.array(values["confidence"].split(), dtype=np.float64),
        )

    def rows(self, columns: int) -> np.ndarray:
        """Log-probabilities of the same prediction and confidence; the other classes share the rest."""
        rest = (1 - self.confidence) / (columns - 1)
        rows = np.repeat(np.log(np.maximum(rest, SMALL))[:, None], columns, 1)
        rows[np.arange(len(rows)), self.predicted] = np.log(self.confidence + SMALL)
        return rows


Draw = tuple[str, str, int, int]  # part, problem, shots, seed


@dataclass
class Cells:
    """Scores and seconds by method and draw; of every draw that all methods have."""

    labels: list[str]
    scores: dict[str, dict[Draw, dict[str, Scores | None]]]
    seconds: dict[str, dict[Draw, float]]
    incomplete: int

    def draws(self, part: str, wanted: Callable[[str], bool]) -> list[Draw]:
        return sorted(d for d in self.scores[ZERO_SHOT] if d[0] == part and wanted(d[1]))


def load(folder: Path, only: Sequence[str]) -> Cells:
    scores: dict[str, dict[Draw, dict[str, Scores | None]]] = defaultdict(dict)
    seconds: dict[str, dict[Draw, float]] = defaultdict(dict)
    for path in sorted((folder / "cells").rglob("*.json")):
        label = path.stem
        if only and label not in (*only, ZERO_SHOT):
            continue
        found = read_json(path, error=DataError, what="the cell")
        cell = found["cell"]
        draw = (cell["part"], cell["problem"], cell["shots"], cell["seed"])
        parts = found["parts"].items()
        scores[label][draw] = {k: None if v is None else Scores.of(k, v) for k, v in parts}
        seconds[label][draw] = found["seconds"]
    absent = [label for label in (*only, ZERO_SHOT) if label not in scores]
    if absent:
        raise ConfigError(f"{str(folder)!r} holds no cells of {absent[0]!r}: run it first")
    common = set.intersection(*(set(found) for found in scores.values()))
    everything = set.union(*(set(found) for found in scores.values()))
    order = [*only] if only else sorted(scores)
    labels = [ZERO_SHOT, *(label for label in dict.fromkeys(order) if label != ZERO_SHOT)]
    return Cells(
        labels,
        {label: {draw: scores[label][draw] for draw in common} for label in labels},
        {label: {draw: seconds[label][draw] for draw in common} for label in labels},
        len(everything - common),
    )


def metrics(parts: Iterable[Scores]) -> dict[str, float]:
    """Metrics of the images of some parts together, whatever their numbers of classes."""
    found = list(parts)
    columns = max(2, *(one.classes for one in found))
    logits = np.concatenate([one.rows(columns) for one in found])
    labels = np.concatenate([one.labels for one in found])
    result = evaluate_logits(logits, labels, [str(k) for k in range(columns)])
    weights = [len(one.labels) for one in found]
    return {
        "accuracy": result.accuracy,
        "balanced": result.balanced_accuracy,
        "ece": result.ece,
        "nll": float(np.average([one.nll for one in found], weights=weights)),
    }


def gap(
    mine: Sequence[Scores], theirs: Sequence[Scores], *, balanced: bool = False
) -> tuple[float, float]:
    """Accuracy above that of another method, and its standard error over images.

    An image that several draws tested counts once, with its mean. Balanced accuracy is a mean over classes.
    """
    images: dict[tuple[int, str], list[float]] = defaultdict(list)
    for a, b in zip(mine, theirs, strict=True):
        if a.ids != b.ids:
            raise DataError("cells of the same draw hold different images: choose another folder")
        differences = (a.predicted == a.labels) * 1.0 - (b.predicted == b.labels)
        for key, label, value in zip(a.ids, a.labels.tolist(), differences.tolist(), strict=True):
            images[label if balanced else 0, key].append(value)
    strata: dict[int, list[float]] = defaultdict(list)
    for (stratum, _), values in images.items():
        strata[stratum].append(statistics.fmean(values))
    mean = statistics.fmean(statistics.fmean(values) for values in strata.values())
    variance = sum(statistics.pvariance(values) / len(values) for values in strata.values())
    return mean, float(np.sqrt(variance)) / len(strata)


def below(pairs: Iterable[tuple[float, float]]) -> list[float]:
    """The gaps that are below zero by more than chance."""
    return [mean for mean, error in pairs if mean < -CHANCE * error]


# -- base to new -------------------------------------------------------------------------------------


def base_to_new(
    cells: Cells, part: str, reference: str
) -> tuple[ResultTable, dict[str, Any]] | None:
    draws = cells.draws(part, lambda name: name in groups())
    if not draws:
        return None
    settings = sorted({(problem, shots) for _, problem, shots, _ in draws})
    values = {label: _by_problem(cells, label, draws) for label in cells.labels}
    facts, rows = {}, []
    for label in cells.labels:
        facts[label] = fact = {
            "base": _summary(cells, label, draws, "base"),
            "new": _summary(cells, label, draws, "new"),
            "hm": _mean(one["hm"] for one in values[label].values()),
            "seconds": statistics.fmean(cells.seconds[label][draw] for draw in draws),
            "problems": values[label],
            "differences": {
                name: _difference(values[label], values[reference], name)
                for name in ("base", "new", "hm")
            },
            "below_zero_shot": {
                name: _below(cells, label, draws, name) for name in ("base", "new")
            },
        }
        rows.append(_row(label, fact, len(settings)))
    columns = ["method", "base", "new", "HM", "NLL base", "NLL new", "ECE base", "ECE new", "s"]
    columns += [f"{name} - {reference}" for name in ("base", "new", "HM")]
    columns += ["base below", "new below", "worst new"]
    note = (
        f"{count(len(values[ZERO_SHOT]), 'problem')}, {len(settings)} with their shots, {len(draws)} draws. Means over problems in percent, intervals "
        f"of 95 % over problems (Student). Below: problems and shots more than {CHANCE:g} standard errors below zero-shot, "
        "paired over images. ECE and NLL over all images of all problems together."
    )
    return ResultTable(f"Base to new, {part}", columns, rows, note=note), facts


def _by_problem(cells: Cells, label: str, draws: list[Draw]) -> dict[str, dict[str, float | None]]:
    """Accuracy and harmonic mean of every problem, over its shots and seeds."""
    found: dict[str, dict[str, float | None]] = {}
    for problem in sorted({draw[1] for draw in draws}):
        mine = [draw for draw in draws if draw[1] == problem]
        base, new = (_accuracy(cells, label, mine, name) for name in ("base", "new"))
        hm = None if base is None or new is None else harmonic_mean(base, new)
        found[problem] = {"base": base, "new": new, "hm": hm}
        for shots in sorted({draw[2] for draw in mine}):
            few = [draw for draw in mine if draw[2] == shots]
            for name in ("base", "new"):
                found[problem][f"{name}, {count(shots, 'shot')}"] = _accuracy(
                    cells, label, few, name
                )
    return found


def _accuracy(cells: Cells, label: str, draws: list[Draw], name: str) -> float | None:
    """Mean over draws, not over images: draws of two shots have fewer."""
    return _mean(
        None if one is None else float((one.predicted == one.labels).mean())
        for one in (cells.scores[label][draw][name] for draw in draws)
    )


def _mean(values: Iterable[float | None]) -> float | None:
    found = list(values)
    known = [value for value in found if value is not None]
    return statistics.fmean(known) if len(known) == len(found) else None


def _summary(cells: Cells, label: str, draws: list[Draw], name: str) -> dict[str, float] | None:
    parts = [cells.scores[label][draw][name] for draw in draws]
    known = [one for one in parts if one is not None]
    if len(known) < len(parts):
        return None
    problems = {draw[1] for draw in draws}
    accuracy = _mean(
        _accuracy(cells, label, [d for d in draws if d[1] == p], name) for p in problems
    )
    assert accuracy is not None
    return metrics(known) | {"accuracy": accuracy}


def _difference(
    mine: dict[str, dict[str, float | None]], theirs: dict[str, dict[str, float | None]], name: str
) -> Difference | None:
    pairs = [(mine[problem][name], theirs[problem][name]) for problem in mine]
    known = [(a, b) for a, b in pairs if a is not None and b is not None]
    # The seeds of `rada bench` are problems here; 0 would stand for all of them.
    first = {index: a for index, (a, _) in enumerate(known, 1)}
    second = {index: b for index, (_, b) in enumerate(known, 1)}
    return paired_difference(first, second)


def _below(cells: Cells, label: str, draws: list[Draw], name: str) -> dict[str, Any] | None:
    found: dict[str, tuple[float, float]] = {}
    for problem, shots in sorted({(draw[1], draw[2]) for draw in draws}):
        mine = [draw for draw in draws if draw[1:3] == (problem, shots)]
        pairs = [
            (cells.scores[label][draw][name], cells.scores[ZERO_SHOT][draw][name]) for draw in mine
        ]
        if any(a is None for a, _ in pairs):
            return None
        found[f"{problem}, {count(shots, 'shot')}"] = gap(
            *([p[side] for p in pairs] for side in (0, 1))
        )  # type: ignore[misc]
    worst = min(found, key=lambda key: found[key][0])
    return {
        "count": len(below(found.values())),
        "which": [key for key, pair in found.items() if below([pair])],
        "worst": {
            "problem": worst,
            "difference": found[worst][0],
            "standard_error": found[worst][1],
        },
    }


def _row(label: str, fact: dict[str, Any], settings: int) -> list[str]:
    base, new, worst = fact["base"], fact["new"], fact["below_zero_shot"]["new"]
    row = [label, *(DASH if one is None else f"{100 * one['accuracy']:.1f}" for one in (base, new))]
    row.append(DASH if fact["hm"] is None else f"{100 * fact['hm']:.1f}")
    for name, form in (("nll", "{:.3f}"), ("ece", "{:.3f}")):
        row += [DASH if one is None else form.format(one[name]) for one in (base, new)]
    row.append(f"{fact['seconds']:.1f}")
    for name in ("base", "new", "hm"):
        found = fact["differences"][name]
        row.append(DASH if found is None else str(found))
        fact["differences"][name] = None if found is None else vars(found)
    for one in fact["below_zero_shot"].values():
        row.append(DASH if one is None else f"{one['count']} of {settings}")
    shown = None if worst is None else worst["worst"]
    row.append(DASH if shown is None else f"{100 * shown['difference']:+.1f} ({shown['problem']})")
    return row


# -- few shots ---------------------------------------------------------------------------------------


@dataclass(frozen=True)
class View:
    """A table of few-shot results: which problems, which parts of them, which accuracy."""

    title: str
    problems: tuple[str, ...]
    shifted: bool = False
    balanced: bool = False


VIEWS = (
    View("PACS, own domain (mean of four)", tuple(f"pacs-{domain}" for domain in PACS)),
    *(View(f"PACS, own domain: {domain}", (f"pacs-{domain}",)) for domain in PACS),
    View("PACS, other domains", tuple(f"pacs-{domain}" for domain in PACS), shifted=True),
    View("CIFAR-10", ("cifar10",)),
    View("textiles", ("textiles",)),
    View("textiles, balanced accuracy", ("textiles",), balanced=True),
)


def few_shot(cells: Cells, part: str, view: View) -> tuple[ResultTable, dict[str, Any]] | None:
    draws = cells.draws(part, lambda name: name in FEW_SHOT and name in view.problems)
    if not draws:
        return None
    shots = sorted({draw[2] for draw in draws})
    columns = [
        "method",
        *(count(number, "shot") for number in shots),
        "mean",
        "NLL",
        "ECE",
        "s",
        "below",
    ]
    rows, facts = [], {}
    for label in cells.labels:
        means = [_few(cells, label, [d for d in draws if d[2] == number], view) for number in shots]
        whole = metrics(one for draw in draws for one in _parts(cells, label, draw, view))
        lost = below(
            gap(
                _parts(cells, label, d, view),
                _parts(cells, ZERO_SHOT, d, view),
                balanced=view.balanced,
            )
            for d in draws
        )
        seconds = statistics.fmean(cells.seconds[label][draw] for draw in draws)
        facts[label] = {
            "accuracy": dict(zip(map(str, shots), means, strict=True)),
            "nll": whole["nll"],
            "ece": whole["ece"],
            "seconds": seconds,
            "below_zero_shot": {"count": len(lost), "worst": min(lost, default=None)},
        }
        shown = [f"{100 * value:.1f}" for value in (*means, statistics.fmean(means))]
        row = [label, *shown, f"{whole['nll']:.3f}", f"{whole['ece']:.3f}", f"{seconds:.1f}"]
        rows.append([*row, f"{len(lost)} of {len(draws)}"])
    note = f"Below: draws more than {CHANCE:g} standard errors below zero-shot, paired over images."
    return ResultTable(f"{view.title}, {part}", columns, rows, note=note), facts


def _parts(cells: Cells, label: str, draw: Draw, view: View) -> list[Scores]:
    parts = cells.scores[label][draw].items()
    return [
        one for name, one in parts if one is not None and name.startswith("shifted") == view.shifted
    ]


def _few(cells: Cells, label: str, draws: list[Draw], view: View) -> float:
    """Mean over draws and, where there are several, over the other domains."""
    name = "balanced" if view.balanced else "accuracy"
    return statistics.fmean(
        metrics([one])[name] for draw in draws for one in _parts(cells, label, draw, view)
    )


# -- all ---------------------------------------------------------------------------------------------


_GLANCE = (
    ("PACS own domain, 16", VIEWS[0].title, "16"),
    ("other domains, 16", VIEWS[5].title, "16"),
    ("CIFAR-10: 1", "CIFAR-10", "1"),
    ("4", "CIFAR-10", "4"),
    ("16", "CIFAR-10", "16"),
    ("textiles, balanced: 1", VIEWS[8].title, "1"),
    ("16", VIEWS[8].title, "16"),
)


def glance(part: str, found: dict[str, Any]) -> ResultTable | None:
    """One row a method, of everything that there is: accuracy in percent and two calibration errors."""
    if not {"base to new", *(title for _, title, _ in _GLANCE)} <= found.keys():
        return None
    base, own = found["base to new"], found[VIEWS[0].title]
    columns = ["method", "ImageNet groups: trained", "new", "HM", *(name for name, *_ in _GLANCE)]
    rows = []
    for label, fact in base.items():
        new = None if fact["new"] is None else fact["new"]["accuracy"]
        few = [found[title][label]["accuracy"][shots] for _, title, shots in _GLANCE]
        shares = [fact["base"]["accuracy"], new, fact["hm"], *few]
        errors = (fact["base"]["ece"], own[label]["ece"])
        rows.append(
            [
                label,
                *(DASH if share is None else f"{100 * share:.1f}" for share in shares),
                *(f"{error:.3f}" for error in errors),
            ]
        )
    return ResultTable(f"At a glance, {part}", [*columns, "ECE ImageNet", "ECE PACS"], rows)


def merged(old: dict[str, Any], new: dict[str, Any], reference: str) -> dict[str, Any]:
    """Return an earlier result with the rows of this one in place of its own, differences taken again."""
    found: dict[str, Any] = {}
    for part in old | new:
        titles = old.get(part, {}) | new.get(part, {})
        found[part] = {
            title: old.get(part, {}).get(title, {}) | new.get(part, {}).get(title, {})
            for title in titles
        }
        rows = found[part].get("base to new", {})
        for fact in rows.values():
            for name in ("base", "new", "hm"):
                change = _difference(fact["problems"], rows[reference]["problems"], name)
                fact["differences"][name] = None if change is None else vars(change)
    return found


def write_tables(options: argparse.Namespace) -> str:
    """Write `result.json` and `tables.md` beside the cells, and return the tables."""
    folder = Path(options.out or options.report)
    cells = load(folder, options.methods)
    if options.reference not in cells.labels:
        raise ConfigError(
            f"the reference {options.reference!r} is none of {', '.join(cells.labels)}"
        )
    tables: list[ResultTable] = []
    result: dict[str, Any] = {}
    for part in PARTS if options.part == "all" else (options.part,):
        makers: dict[str, Callable[[], tuple[ResultTable, dict[str, Any]] | None]] = {
            "base to new": functools.partial(base_to_new, cells, part, options.reference),
            **{view.title: functools.partial(few_shot, cells, part, view) for view in VIEWS},
        }
        for title, make in makers.items():
            found = make()
            if found is not None:
                tables.append(found[0])
                result.setdefault(part, {})[title] = found[1]
        first = glance(part, result.get(part, {}))
        if first is not None:
            tables.insert(0, first)
    if options.into:
        before = read_json(options.into, error=DataError, what="the earlier result")
        result = merged(before["parts"], result, options.reference)
        tables = [first for part in result if (first := glance(part, result[part])) is not None]
    text = "\n".join(map(markdown, tables))
    if cells.incomplete:
        text += f"\n{cells.incomplete} draws are left out: not every method has them yet.\n"
    facts = {
        "command": command_line(),
        "environment": environment(),
        "reference": options.reference,
    }
    write_json(
        options.into or folder / "result.json",
        facts | {"draws_left_out": cells.incomplete, "parts": result},
    )
    write_bytes(folder / "tables.md", text.encode())
    return text
