"""What `templates="auto"` brings: methods with the data's own templates and with those that the shots choose.

    python benchmarks/templates.py FEATURES [--methods zero_shot tip_adapter taskres] [--jobs 2] [--out result.json]

FEATURES is the folder of features files that `suite.py` describes; the embedded model embeds the prompts. Prints accuracy on the
test split (textiles also balanced, PACS also on the other domains), the mean over seeds, and how often others than the data's own
templates were chosen.
"""

from __future__ import annotations

import argparse
import dataclasses
import functools
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
from suite import FEW_SHOT, PACS

from rada import Features, evaluate_logits, load_encoder
from rada.core.storage import write_json
from rada.encoders import DualEncoder
from rada.evaluation import environment
from rada.evaluation.provenance import command_line
from rada.features.template_choice import choose_templates
from rada.methods import Run, get_method

SHOTS = (1, 4, 16)
embedded = functools.cache(load_encoder)


@functools.cache
def stored(folder: str, name: str) -> Features:
    return Features.load(Path(folder) / f"{name}.safetensors")


def measured(
    method: str, train: Features, tests: dict[str, Features], encoder: DualEncoder, seed: int
) -> dict[str, float]:
    """Accuracy on each test set, with the templates of the training features."""
    model = get_method(method).fit(train, None, Run(seed, encoder=encoder))
    found: dict[str, float] = {}
    for name, data in tests.items():
        classes = dataclasses.replace(
            data.class_set(), text_features=train.text_features, templates=train.templates
        )
        logits = model.logits(data.plain(), classes)
        metrics = evaluate_logits(logits, data.labels, data.classes)
        found |= {name: metrics.accuracy, f"{name}, balanced": metrics.balanced_accuracy}
    return found


def draw(folder: str, methods: list[str], task: tuple[str, int, int]) -> list[dict[str, Any]]:
    """Every method with and without the choice, on one draw."""
    data, shots, seed = task
    torch.set_num_threads(1)
    encoder = embedded("embedded")
    train = stored(folder, f"{data}-train").few_shot(shots, seed)
    tests = {"own": stored(folder, f"{data}-test")}
    if data.startswith("pacs-"):
        others = [f"pacs-{domain}" for domain in PACS if data != f"pacs-{domain}"]
        tests |= {f"other {name}": stored(folder, f"{name}-test") for name in others}
    chosen, choice = choose_templates(train, encoder, seed)
    told = {k: v for k, v in choice.to_dict().items() if k != "log_likelihoods"}  # of 87 candidates
    facts = {"data": data, "shots": shots, "seed": seed, "choice": told}
    return [
        facts
        | {
            "method": method,
            "before": measured(method, train, tests, encoder, seed),
            "after": measured(method, chosen, tests, encoder, seed),
        }
        for method in methods
    ]


def row(runs: list[dict[str, Any]], parts: tuple[str, ...]) -> list[str]:
    """Before -> after at every number of shots, and how often templates changed."""
    cells = []
    for shots in SHOTS:
        mine = [run for run in runs if run["shots"] == shots]
        before, after = (
            100
            * statistics.fmean(
                run[side][part] for run in mine for part in run["before"] if part in parts
            )
            for side in ("before", "after")
        )
        changed = sum(run["choice"]["changed"] for run in mine)
        cells.append(f"{before:.1f} -> {after:.1f} ({changed} of {len(mine)})")
    return cells


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("features")
    parser.add_argument("--methods", nargs="+", default=["zero_shot", "tip_adapter", "taskres"])
    parser.add_argument("--data", nargs="+", default=list(FEW_SHOT))
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", help="JSON file for the result")
    options = parser.parse_args()
    tasks = [
        (data, shots, seed) for data in options.data for shots in SHOTS for seed in options.seeds
    ]
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        work = functools.partial(draw, options.features, options.methods)
        runs = [run for found in pool.map(work, tasks) for run in found]
    others = tuple(f"other pacs-{domain}" for domain in PACS)
    views = [(data, (data,), ("own",)) for data in FEW_SHOT]
    views += [
        ("PACS, own domain", tuple(f"pacs-{domain}" for domain in PACS), ("own",)),
        ("PACS, other domains", tuple(f"pacs-{domain}" for domain in PACS), others),
        ("textiles, balanced", ("textiles",), ("own, balanced",)),
    ]
    print("| data | method | " + " | ".join(f"{shots} shots" for shots in SHOTS) + " |")
    print("|:--" * 2 + "|--:" * len(SHOTS) + "|")
    for title, names, parts in views:
        if not set(names) <= set(options.data):
            continue
        for method in options.methods:
            mine = [run for run in runs if run["data"] in names and run["method"] == method]
            print(f"| {title} | {method} | {' | '.join(row(mine, parts))} |")
    if options.out:
        facts = {"command": command_line(), "environment": environment()}
        write_json(options.out, facts | {"runs": runs})


if __name__ == "__main__":
    main()
