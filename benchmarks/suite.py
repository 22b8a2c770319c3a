"""The tuning ground that is not the test: every method on a fixed suite of problems, half to tune on, half to confirm with.

    for d in photo art_painting cartoon sketch; do for s in train test; do
      rada encode ../shared/data/pacs/$d --split $s --out features/pacs-$d-$s.safetensors; done; done
    for s in train test; do rada encode ../shared/data/cifar10 --split $s --out features/cifar10-$s.safetensors
      rada encode textiles --split $s --out features/textiles-$s.safetensors; done
    python benchmarks/suite.py --out DIR --imagenet ../shared/data/clip_vitb32_imagenet.npz --features features \
        --methods zero_shot linear_probe rada --part tune --jobs 2
    python benchmarks/suite.py --report DIR --reference rada

Base-to-new problems are groups of ImageNet classes (`suite_groups.json`; no class is in both parts): the first half of a group is
learned from one or two of its three images, a seed says which, and tested on the others; the second half, the new classes,
is tested on all three. Few-shot problems are PACS, CIFAR-10 and textiles with the embedded model; `tune` learns from shots of the
train split and tests on the rest of the train split, `confirm` tests on the test split. So nothing is tuned on test images.

One file a cell, written whole or not at all: the same command goes on where it stopped, and refuses cells of another configuration.
Cells hold what each image got, and the tables are made from them. Seconds are processor time of a fit with one thread. `--set LABEL.FIELD=VALUE` changes a field, `--set LABEL.method=NAME` makes a variant.
"""

from __future__ import annotations

import argparse
import functools
import json
import os
import re
import sys
import time
import traceback
from collections.abc import Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from rada import Features
from rada.bench.plan import Plan, parse_setting
from rada.core.errors import ConfigError, DataError, RadaError, UnknownClassError
from rada.core.storage import read_json, write_json
from rada.evaluation import Timer
from rada.methods import AdaptedModel, Run, get_method

GROUPS = Path(__file__).with_name("suite_groups.json")
PARTS = ("tune", "confirm")
BASE_TO_NEW_SHOTS = (1, 2)
PACS = ("photo", "art_painting", "cartoon", "sketch")
FEW_SHOT = {
    **{f"pacs-{domain}": (1, 4, 16) for domain in PACS},
    "cifar10": (1, 4, 16),
    "textiles": (1, 2, 4, 8, 16),
}
MOST_CLASSES = 100
SCALE = 100.0
ZERO_SHOT = "zero_shot"


@dataclass(frozen=True)
class Places:
    """Where the features are; None leaves their problems out."""

    imagenet: str | None
    features: str | None


@dataclass(frozen=True)
class Cell:
    """One method on one draw of one problem."""

    part: str
    problem: str
    shots: int
    seed: int
    label: str

    @property
    def path(self) -> str:
        problem = re.sub(r"[^A-Za-z0-9]+", "-", self.problem)
        return f"{self.part}/{problem}/{self.shots}-shots-seed-{self.seed}/{self.label}.json"


class Task(NamedTuple):
    """What a method learns from, and what it is tested on."""

    train: Features
    tests: dict[str, Features]


# -- problems ----------------------------------------------------------------------------------------


@functools.cache
def groups() -> dict[str, tuple[str, list[int]]]:
    """Part and classes of every base-to-new problem."""
    found = read_json(GROUPS, error=DataError, what="the groups of the suite")["groups"]
    return {one["name"]: (one["part"], [int(k) for k in one["classes"].split()]) for one in found}


@functools.cache
def imagenet(path: str) -> tuple[Tensor, Tensor]:
    """Class features `(1000, D)` and the three images of each class `(1000, 3, D)`."""
    with np.load(path, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name].astype(np.float32)) for name in file.files}
    text, count = arrays["text"], len(arrays["text"])
    two = arrays["two_shot"][arrays["two_shot_labels"].long().argsort(stable=True)]
    one = arrays["one_shot"][arrays["one_shot_labels"].long().argsort(stable=True)]
    images = torch.cat([two.view(count, 2, -1), one.view(count, 1, -1)], 1)
    return normalize(text, dim=-1), normalize(images, dim=-1)


def base_to_new(path: str, problem: str, shots: int, seed: int) -> Task:
    """Learn the first half of a group's classes; the seed says which of three images are shots."""
    text, images = imagenet(path)
    classes = groups()[problem][1][:MOST_CLASSES]
    half = -(-len(classes) // 2)
    order = [(seed - 1 + step) % 3 for step in range(3)]

    def features(labels: list[int], slots: list[int]) -> Features:
        return Features(
            images[labels][:, slots].flatten(0, 1),
            torch.arange(len(labels)).repeat_interleave(len(slots)),
            tuple(f"class {label}" for label in labels),
            ids=tuple(f"{label}.{slot}" for label in labels for slot in slots),
            text_features=text[labels],
            scale=SCALE,
        )

    tests = {
        "base": features(classes[:half], order[shots:]),
        "new": features(classes[half:], sorted(order)),
    }
    return Task(features(classes[:half], order[:shots]), tests)


@functools.cache
def stored(folder: str, data: str, split: str) -> Features:
    return Features.load(Path(folder) / f"{data}-{split}.safetensors")


def few_shot(folder: str, part: str, problem: str, shots: int, seed: int) -> Task:
    """Draw shots from the train split; test on the rest of it, or on the test split."""
    split = "test" if part == "confirm" else "train"
    whole = stored(folder, problem, "train")
    drawn = whole.few_shot(shots, seed)
    own = stored(folder, problem, split)
    if part == "tune":
        taken = set(drawn.ids)
        own = own.subset([row for row, key in enumerate(own.ids) if key not in taken])
    tests = {"base": own}
    if problem.startswith("pacs-"):
        for domain in PACS:
            if problem != f"pacs-{domain}":
                tests[f"shifted {domain}"] = stored(folder, f"pacs-{domain}", split)
    return Task(drawn, tests)


def open_task(places: Places, cell: Cell) -> Task:
    if cell.problem in groups():
        assert places.imagenet is not None
        return base_to_new(places.imagenet, cell.problem, cell.shots, cell.seed)
    assert places.features is not None
    return few_shot(places.features, cell.part, cell.problem, cell.shots, cell.seed)


def problems(places: Places, parts: tuple[str, ...]) -> Iterator[tuple[str, str, int]]:
    """Yield part, problem and shots; problems without their features are left out."""
    for name, (part, _) in groups().items():
        if places.imagenet is not None and part in parts:
            yield from ((part, name, shots) for shots in BASE_TO_NEW_SHOTS)
    for part in parts:
        for name, counts in FEW_SHOT.items():
            if (
                places.features is not None
                and (Path(places.features) / f"{name}-train.safetensors").exists()
            ):
                yield from ((part, name, shots) for shots in counts)


# -- one cell ----------------------------------------------------------------------------------------


def scored(model: AdaptedModel, data: Features) -> dict[str, Any] | None:
    """What every image got, in few characters; None where the method refuses the classes."""
    try:
        logits = model.logits(model.features_of(data), data.class_set()).double()
    except UnknownClassError:
        return None
    confidence, predicted = logits.softmax(-1).max(-1)
    return {
        "classes": len(data.classes),
        "nll": float(cross_entropy(logits, data.labels)),
        "ids": " ".join(re.sub(r"\s", "_", key) for key in data.ids),
        "labels": " ".join(map(str, data.labels.tolist())),
        "predicted": " ".join(map(str, predicted.tolist())),
        "confidence": " ".join(f"{value:.6f}" for value in confidence.tolist()),
    }


def run_cell(places: Places, cell: Cell, method: str, options: dict[str, Any]) -> dict[str, Any]:
    """Fit and test, and return the cell's file."""
    torch.set_num_threads(1)
    chosen = get_method(method)
    config = chosen.config.from_dict(options)
    task = open_task(places, cell)
    with Timer() as timer:
        model = chosen.fit(task.train, config, Run(seed=cell.seed))
    record = {key: value for key, value in model.record.items() if key != "history"}
    return {
        "cell": asdict(cell),
        "method": method,
        "config": json.loads(json.dumps(config.to_dict())),
        "data": task.train.fingerprint,
        "seconds": timer.cpu_seconds,
        "strength": model.strength.to_dict(),
        "record": record,
        "parts": {name: scored(model, data) for name, data in task.tests.items()},
    }


def work(places: Places, cell: Cell, method: str, options: dict[str, Any], out: str) -> str | None:
    """Write the file of a cell; or that of its failure, and return what failed."""
    failure = Path(out) / "failed" / cell.path
    try:
        write_json(Path(out) / "cells" / cell.path, run_cell(places, cell, method, options))
        failure.unlink(missing_ok=True)
    except Exception as error:  # a method that fails on one problem is itself a result
        write_json(failure, {"cell": asdict(cell), "traceback": traceback.format_exc()})
        return f"{cell.path}: {type(error).__name__}: {error}"
    return None


# -- all cells ---------------------------------------------------------------------------------------


def planned(options: argparse.Namespace) -> Plan:
    """Return methods and their configuration, checked as `rada bench` checks them."""
    labels = tuple(dict.fromkeys([ZERO_SHOT, *options.methods]))
    changes: dict[str, dict[str, Any]] = {}
    for text in options.set:
        label, field, value = parse_setting(text)
        changes.setdefault(label, {})[field] = value
    plan = Plan(methods=labels, datasets=("suite",), options=changes)
    for label in labels:
        needs = get_method(plan.method(label)).needs
        if needs or plan.test_time(label):
            raise ConfigError(
                f"{label!r} needs {', '.join(sorted(needs)) or 'views'}, but the suite has features alone: "
                "leave it out"
            )
    return plan


def missing(cell: Cell, plan: Plan, out: Path) -> bool:
    """Whether a cell has to be run; refuse a result of another configuration."""
    path = out / "cells" / cell.path
    if not path.exists():
        return True
    found = read_json(path, error=DataError, what="the cell")
    wanted = json.loads(json.dumps(plan.configs(cell.label)[0].to_dict()))
    if (found["method"], found["config"]) != (plan.method(cell.label), wanted):
        raise ConfigError(f"{str(path)!r} is of another configuration: choose another --out")
    return False


def run_all(options: argparse.Namespace, began: float) -> list[str]:
    """Run what is missing, as long as there is time, and return the failures."""
    plan, out = planned(options), Path(options.out)
    places = Places(options.imagenet, options.features)
    parts = PARTS if options.part == "all" else (options.part,)
    cells = [
        Cell(part, problem, shots, seed, label)
        for seed in options.seeds  # whole draws first, so that what a limit cuts off can be compared
        for part, problem, shots in problems(places, parts)
        if not options.problems or problem in options.problems
        for label in plan.methods
    ]
    if not cells:
        raise ConfigError("there is nothing to run: give --imagenet, --features or both")
    todo = [cell for cell in cells if missing(cell, plan, out)]
    print(f"{len(cells)} cells, {len(todo)} to run", flush=True)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    failed, queue, done = [], iter(todo), 0
    running: set[Future[str | None]] = set()
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        while True:
            while len(running) < options.jobs and time.monotonic() - began < options.limit:
                cell = next(queue, None)
                if cell is None:
                    break
                values = plan.fields(cell.label, test_time=False)
                running.add(
                    pool.submit(work, places, cell, plan.method(cell.label), values, str(out))
                )
            if not running:
                break
            finished, running = wait(running, return_when=FIRST_COMPLETED)
            for future in finished:
                done += 1
                failure = future.result()
                if failure is not None:
                    failed.append(failure)
                    print(failure, flush=True)
            if done % 50 == 0:
                print(f"{done} of {len(todo)}, {time.monotonic() - began:.0f} s", flush=True)
    print(f"{done} cells run, {len(todo) - done} left, {len(failed)} failed", flush=True)
    return failed


def main() -> int:
    began = time.monotonic()
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    place = parser.add_mutually_exclusive_group(required=True)
    place.add_argument("--out", help="folder of the cells")
    place.add_argument("--report", help="folder whose tables are printed again")
    parser.add_argument("--imagenet", help="file of CLIP features of ImageNet, .npz")
    parser.add_argument("--features", help="folder of files NAME-SPLIT.safetensors")
    parser.add_argument("--methods", nargs="+", default=[], help="methods, or variants of --set")
    parser.add_argument("--set", action="append", default=[], metavar="LABEL.FIELD=VALUE")
    parser.add_argument("--part", choices=(*PARTS, "all"), default="all")
    parser.add_argument("--problems", nargs="+", help="these alone")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--reference", default=ZERO_SHOT, help="what differences are taken from")
    parser.add_argument(
        "--into", help="an earlier result, whose rows of these methods are replaced"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument(
        "--limit", type=float, default=float("inf"), help="start no cell after these seconds"
    )
    options = parser.parse_args()
    failed: list[str] = []
    try:
        if options.out:
            failed = run_all(options, began)
        from suite_tables import write_tables

        print(write_tables(options))
    except RadaError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
