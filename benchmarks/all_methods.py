"""All methods in one table: PACS photo, CIFAR-10 and textiles at 16 shots with the embedded model, with time and memory.

    OMP_NUM_THREADS=1 python benchmarks/all_methods.py run DIR --pacs PACS --cifar10 CIFAR10 [--limit SECONDS] [--longest SECONDS]
    python benchmarks/all_methods.py keep DIR
    python benchmarks/all_methods.py table [--write]

PACS is a folder DOMAIN/{train,test}/CLASS, CIFAR10 a folder {train,test}/CLASS. `run` makes cells of `rada bench`, so that DIR is a folder
for `rada bench report` too, and goes on where it stopped: the first seed of every method on every data set before the second seed of any.
`--limit` starts no cell after so many seconds, `--longest` leaves methods of which a fit took longer at their first seed.
Each cell has a process of its own, forked from one in which encoder, features and libraries are ready: so its memory is what the
method takes, whatever ran before it. Seconds are processor time of one thread. `keep` puts the cells into
benchmarks/results/all_methods.json, beside those that are there, `table` makes the table of docs/benchmark.md from that file; a test keeps them equal.
"""

from __future__ import annotations

import argparse
import importlib
import json
import multiprocessing
import os
import statistics
import sys
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

import torch

from rada.bench.cells import Cell, Folder, data_name
from rada.bench.plan import Plan
from rada.bench.run import run_cell
from rada.bench.sources import Source, open_source
from rada.bench.tables import load_runs
from rada.core.errors import ConfigError, RadaError
from rada.core.storage import write_bytes
from rada.encoders.slot import EncoderSlot
from rada.evaluation import mean_std
from rada.methods import get_method, list_methods
from rada.report.text import DASH, spread

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "all_methods.json"
PAGE = ROOT / "docs" / "benchmark.md"
BEGIN, END = (
    "<!-- generated: python benchmarks/all_methods.py table -->\n",
    "\n<!-- end of the generated table -->",
)
MODEL, SHOTS, SEEDS = "embedded", 16, (1, 2, 3)
DEFAULT = "rada_probe"
SOURCE, TARGETS = "photo", ("art_painting", "cartoon", "sketch")
# What differs from a method's defaults: what a CPU, or the embedded model, cannot do as published.
CHANGED: dict[str, dict[str, Any]] = {
    "clip_lora": {"train": "text", "steps_per_shot": 4},
    **{name: {"epochs": 5} for name in ("ft", "l2_sp", "lp_ft", "flyp")},
    "rada_ft": {"epochs": 5, "strength": 1.0},
}
# Read before the first cell, so that no method pays for a library that others need as well.
LIBRARIES = ("accelerate", "peft", "scipy.optimize", "sklearn.linear_model", "sklearn.svm")


# -- running -----------------------------------------------------------------------------------------


def missing(label: str, able: frozenset[str]) -> list[str]:
    """Return what a method needs and an encoder of these capabilities lacks."""
    method = get_method(label)
    config = method.config.from_dict(CHANGED.get(label, {}))
    return sorted(method.capabilities(config) - able)


def planned(options: argparse.Namespace, labels: list[str]) -> list[Cell]:
    """Return all cells, seed by seed."""
    pacs = Path(options.pacs)
    common: dict[str, Any] = {
        "methods": tuple(labels),
        "shots": (SHOTS,),
        "model": MODEL,
        "options": {label: CHANGED[label] for label in labels if label in CHANGED},
    }
    found: dict[Cell, None] = {}
    for seed in options.seeds:
        photo = Plan(
            datasets=(str(pacs / SOURCE),),
            targets=tuple(str(pacs / name) for name in TARGETS),
            protocols=("domain",),
            seeds=(seed,),
            **common,
        )
        others = Plan(datasets=(str(Path(options.cifar10)), "textiles"), seeds=(seed,), **common)
        cells = [*photo.cells(), *others.cells()]
        for label in labels:
            found |= dict.fromkeys(cell for cell in cells if cell.label == label)
    return list(found)


def opened(cells: list[Cell]) -> dict[str, Source]:
    """Open all data with one encoder, and encode what every cell needs."""
    slot = EncoderSlot(MODEL, check=lambda encoder: encoder.freeze())
    specs = dict.fromkeys(spec for cell in cells for spec in (cell.dataset, *cell.targets))
    sources = {spec: open_source(spec, slot, progress=False) for spec in specs}
    for source in sources.values():
        source.class_set()
        source.test()
    return sources


def work(cell: Cell, sources: dict[str, Source], folder: Folder) -> None:
    """Run a cell in a process of its own; its result or its failure is a file."""
    try:
        own = {spec: sources[spec] for spec in (cell.dataset, *cell.targets)}
        folder.write(cell, run_cell(cell, own))
    except Exception as error:  # one method must not end the others
        folder.write_failure(cell, error, traceback.format_exc())


def took(folder: Folder) -> dict[str, float]:
    """Return the longest fit of each method so far, in seconds of processor time."""
    found: dict[str, float] = {}
    for result in folder.results():
        label = result["cell"]["label"]
        found[label] = max(found.get(label, 0.0), result["fit_cpu_seconds"])
    return found


def run(options: argparse.Namespace) -> int:
    """Run what is missing, as long as there is time."""
    began = time.monotonic()
    torch.set_num_threads(1)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"  # its threads do not survive a fork
    warnings.filterwarnings("ignore", message=".*multi-threaded, use of fork.*")
    able = EncoderSlot(MODEL).get().capabilities
    every = [method.name for method in list_methods()]
    unknown = set(options.methods or ()) - set(every)
    if unknown:
        raise ConfigError(f"there is no method {sorted(unknown)[0]!r}: `rada methods` lists them")
    labels = [name for name in options.methods or every if not missing(name, able)]
    cells = planned(options, labels)
    folder = Folder(options.folder)
    folder.open({"model": MODEL, "templates": [], "class_names": {}})
    todo = [cell for cell in cells if not folder.finished(cell)]
    print(f"{len(cells)} cells, {len(todo)} to run", flush=True)
    if not todo:
        return 0
    context, failed, done = multiprocessing.get_context("fork"), 0, 0
    # Encoding leaves freed memory behind, which cells would take without a rise: so another process fills the cache.
    first = context.Process(target=opened, args=(cells,))
    first.start()
    first.join()
    sources = opened(cells)
    for name in LIBRARIES:
        importlib.import_module(name)
    longest = took(folder)
    for cell in todo:
        if time.monotonic() - began > options.limit:
            break
        if cell.seed > SEEDS[0] and longest.get(cell.label, 0.0) > options.longest:
            continue
        started = time.monotonic()
        process = context.Process(target=work, args=(cell, sources, folder))
        process.start()
        process.join()
        done += 1
        if folder.finished(cell):
            longest = took(folder)
            note = ""
        else:
            failed, note = failed + 1, f": failed, see {folder.failure_path(cell)}"
        print(f"{time.monotonic() - started:6.1f} s  {cell}{note}", flush=True)
    print(f"{done} cells run, {failed} failed, {len(todo) - done} left", flush=True)
    return 1 if failed else 0


# -- keeping -----------------------------------------------------------------------------------------


def condensed(result: dict[str, Any]) -> dict[str, Any]:
    """Return a cell without folders and training curves; versions and machine stand beside it once."""
    cell = result["cell"]
    kept: dict[str, Any] = {key: cell[key] for key in ("protocol", "label", "shots", "seed")}
    kept["data"] = data_name(cell["dataset"])
    kept["identities"] = {data_name(s): value for s, value in result["identities"].items()}
    names = ("parts", "config", "trainable_parameters", "strength", "memory")
    seconds = ("fit_seconds", "fit_cpu_seconds", "predict_seconds", "predict_cpu_seconds")
    kept |= {key: result[key] for key in (*names, *seconds)}
    return kept


def keep(options: argparse.Namespace) -> int:
    """Write what the table is made from: one line a cell, so that a change of one is a change of a line.

    Cells that the folder lacks stay as they were kept before, with the environments that they came from.
    """
    runs, before = load_runs(options.folder), json.loads(RESULT.read_text(encoding="utf-8"))
    able = EncoderSlot(MODEL).get().capabilities
    order = [method.name for method in list_methods()]
    found = {
        (cell["label"], cell["data"], cell["seed"]): cell
        for cell in [*before["cells"], *map(condensed, runs.results)]
    }
    cells = sorted(
        found.values(), key=lambda cell: (order.index(cell["label"]), cell["data"], cell["seed"])
    )
    environments = [dict(result["environment"]) for result in runs.results]
    dates = sorted([*before["dates"], *(one.pop("date") for one in environments)])
    environments = [*before["environments"], *environments]
    different = list({json.dumps(one, sort_keys=True): one for one in environments}.values())
    facts = {
        "command": "python benchmarks/all_methods.py run DIR --pacs pacs --cifar10 cifar10",
        "dates": [dates[0], dates[-1]],
        "environments": different,
        "changed": CHANGED,
        "methods": order,
        "refused": {name: lacks for name in order if (lacks := missing(name, able))},
        "failed": sorted(
            {f"{one['cell']['label']}: {one['type']}: {one['error']}" for one in runs.failures}
        ),
    }
    head = json.dumps(facts, indent=2, ensure_ascii=False)
    rows = ",\n".join("    " + json.dumps(cell, ensure_ascii=False) for cell in cells)
    write_bytes(RESULT, f'{head[:-2]},\n  "cells": [\n{rows}\n  ]\n}}\n'.encode())
    print(f"{RESULT}: {len(cells)} cells")
    return 0


# -- the table ---------------------------------------------------------------------------------------

Found = dict[str, dict[str, list[dict[str, Any]]]]
"""Cells of each method on each data set, seed by seed."""


def own(cell: dict[str, Any]) -> float | None:
    """Accuracy on the data that was learned from."""
    return cell["parts"]["source" if cell["protocol"] == "domain" else "test"]["accuracy"]


def others(cell: dict[str, Any]) -> float | None:
    """Mean accuracy on the other domains."""
    return statistics.fmean(cell["parts"][name]["accuracy"] for name in TARGETS)


def balanced(cell: dict[str, Any]) -> float | None:
    """Accuracy with each class counted alike."""
    return cell["parts"]["test"]["balanced_accuracy"]


COLUMNS = (
    ("PACS photo", SOURCE, own),
    ("other domains", SOURCE, others),
    ("CIFAR-10", "cifar10", own),
    ("textiles, balanced", "textiles", balanced),
)


def by_method(cells: list[dict[str, Any]]) -> Found:
    """Sort cells by method and data set."""
    found: Found = {}
    for cell in cells:
        found.setdefault(cell["label"], {}).setdefault(cell["data"], []).append(cell)
    return found


def best(found: Found) -> list[str]:
    """Return the mean of the best method of each column, as it is written."""
    tops = []
    for _, data, value in COLUMNS:
        means = [
            statistics.fmean(map(value, sets[data])) for sets in found.values() if data in sets
        ]
        tops.append(f"{100 * max(means):.1f}")
    return tops


def row(label: str, sets: dict[str, list[dict[str, Any]]], tops: list[str]) -> str:
    """Return the row of a method."""
    shown = []
    for (_, data, value), top in zip(COLUMNS, tops, strict=True):
        text = spread(mean_std(map(value, sets[data])).to_dict()) if data in sets else DASH
        shown.append(f"**{text}**" if text.split(" ")[0] == top else text)
    cells = [cell for some in sets.values() for cell in some]
    learned = cells[0]["seed"] > 0
    seeds = [len(some) for some in sets.values()]
    counts = str(seeds[0]) if len(set(seeds)) == 1 else f"{min(seeds)} to {max(seeds)}"
    fits = [
        statistics.fmean(c["fit_cpu_seconds"] for c in sets[d]) if d in sets else None
        for d in (SOURCE, "cifar10", "textiles")
    ]
    shown += [DASH if fit is None else f"{fit:.2g}" if fit < 10 else f"{fit:.0f}" for fit in fits]
    images = sum(part["images"] for cell in cells for part in cell["parts"].values())
    predict = sum(cell["predict_cpu_seconds"] for cell in cells) / images
    shown.append(f"{1000 * predict:.2g}" if predict < 0.01 else f"{1000 * predict:.0f}")
    shown.append(f"{max(cell['memory'] for cell in cells) / 2**20:.0f}")
    name = f"**{label}**" if label == DEFAULT else label
    return f"| {name} | {' | '.join(shown)} | {counts if learned else DASH} |"


def table() -> str:
    """Return the table of the page, with what it leaves out."""
    kept = json.loads(RESULT.read_text(encoding="utf-8"))
    found = by_method(kept["cells"])
    heads = [name for name, *_ in COLUMNS]
    heads += ["fit, s: PACS", "CIFAR-10", "textiles", "ms an image", "MiB", "seeds"]
    lines = [f"| method | {' | '.join(heads)} |", f"|:--|{'--:|' * len(heads)}"]
    tops = best(found)
    lines += [row(label, found[label], tops) for label in found]
    lacking: dict[str, list[str]] = {}
    for label, lacks in kept["refused"].items():
        lacking.setdefault(" and ".join(f"`{one}`" for one in lacks), []).append(f"`{label}`")
    told = [f"{', '.join(labels)} (no {lacks})" for lacks, labels in lacking.items()]
    lines += ["", f"Refused by the embedded model: {'; '.join(told)}."]
    absent = [
        f"`{label}`"
        for label in kept["methods"]
        if label not in found and label not in kept["refused"]
    ]
    if absent:
        lines.append(f"Not run yet: {', '.join(absent)}.")
    changes: dict[str, list[str]] = {}
    for label, fields in kept["changed"].items():
        if label in found:
            values = ", ".join(f"`{key}={value}`" for key, value in fields.items())
            changes.setdefault(values, []).append(f"`{label}`")
    told = [f"{', '.join(labels)} ({values})" for values, labels in changes.items()]
    lines.append(f"Not with the defaults: {'; '.join(told)}.")
    return "\n".join(lines)


def show(options: argparse.Namespace) -> int:
    """Print the table, or put it into the page."""
    if not options.write:
        print(table())
        return 0
    text = PAGE.read_text(encoding="utf-8")
    before, mark, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not (mark and end):
        raise ConfigError(f"'{PAGE}' has no place for the table: {BEGIN.strip()} and {END.strip()}")
    PAGE.write_text(before + BEGIN + table() + END + after, encoding="utf-8")
    return 0


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    commands = parser.add_subparsers(required=True)
    runner = commands.add_parser("run", help="run the cells that are missing")
    runner.add_argument("folder", type=Path, help="folder of the cells")
    runner.add_argument("--pacs", required=True, help="folder of the domains of PACS")
    runner.add_argument("--cifar10", required=True, help="folder of CIFAR-10")
    runner.add_argument("--methods", nargs="+", help="these alone")
    runner.add_argument("--seeds", nargs="+", type=int, default=list(SEEDS))
    runner.add_argument("--limit", type=float, default=float("inf"), metavar="SECONDS")
    runner.add_argument("--longest", type=float, default=float("inf"), metavar="SECONDS")
    runner.set_defaults(do=run)
    keeper = commands.add_parser("keep", help="write benchmarks/results/all_methods.json")
    keeper.add_argument("folder", type=Path)
    keeper.set_defaults(do=keep)
    shower = commands.add_parser("table", help="make the table from that file")
    shower.add_argument("--write", action="store_true", help="put it into docs/benchmark.md")
    shower.set_defaults(do=show)
    return parser.parse_args()


def main() -> int:
    options = arguments()
    try:
        return int(options.do(options))
    except RadaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


if __name__ == "__main__":
    sys.exit(main())
