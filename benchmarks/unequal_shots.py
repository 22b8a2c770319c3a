"""Whether classes with more shots are favoured: unequal shots beside equal ones of the same total.

    python benchmarks/unequal_shots.py --features features [--seeds 10] [--out benchmarks/results/unequal_shots.json]

On PACS' domains and CIFAR-10 (embedded model; features as `suite.py` says; the train split alone, so no test image is seen) each
class gets 8 to 15 shots, drawn by the seed; for comparison every class gets as many as there are on average. Tested on what is
left of the train split, each class counted alike. Recall of each class under unequal shots, less that under equal ones, is
regressed on the shots that the class gained: the slope is what one more shot gives a class. Some of it is knowledge, which is
wanted; what is favour shows as predictions: the share of the images that are given the class, less its share of the truth,
by the same regression. Intervals are Student's over problems and seeds.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path

import numpy as np
import torch
from scipy.stats import t as student

from rada import Features
from rada.core.storage import write_json
from rada.evaluation import environment
from rada.methods import Run, get_method

PROBLEMS = ("pacs-photo", "pacs-art_painting", "pacs-cartoon", "pacs-sketch", "cifar10")
LEAST, MOST = 8, 15


def drawn(whole: Features, counts: np.ndarray, seed: int) -> tuple[Features, Features]:
    """Return `counts` shots of each class, and as many images of every class that nobody learns from."""
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(seed))
    learned, tested = [], []
    members = [order[whole.labels[order] == label].tolist() for label in range(len(whole.classes))]
    rest = min(len(rows) for rows in members) - MOST
    for rows, count in zip(members, counts, strict=True):
        learned += rows[:count]
        tested += rows[MOST : MOST + rest]
    return whole.subset(learned), whole.subset(tested)


def rates(method: str, train: Features, test: Features, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return for each class its recall and the share of the images that are given it, in per cent."""
    model = get_method(method).fit(train, run=Run(seed=seed))
    named = model.logits(test.plain(), test.class_set()).argmax(1)
    classes = len(test.classes)
    right = torch.bincount(test.labels[named == test.labels], minlength=classes)
    recall = 100 * right / torch.bincount(test.labels, minlength=classes)
    return recall.numpy(), (100 * torch.bincount(named, minlength=classes) / len(named)).numpy()


def slope(gained: np.ndarray, change: np.ndarray) -> float:
    """Return the slope of a line through the changes of the classes."""
    return float(np.polyfit(gained, change, 1)[0])


def interval(values: list[float]) -> tuple[float, float]:
    """Return the mean, and the half width of Student's 95 % interval around it."""
    error = statistics.stdev(values) / len(values) ** 0.5
    return statistics.fmean(values), float(student.ppf(0.975, len(values) - 1)) * error


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--features", type=Path, required=True, help="folder of NAME-SPLIT files")
    parser.add_argument(
        "--methods", nargs="+", default=["rada_probe", "prior_probe", "linear_probe"]
    )
    parser.add_argument("--seeds", type=int, default=10)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    rows = []
    for method in options.methods:
        draws = []
        for problem in PROBLEMS:
            whole = Features.load(options.features / f"{problem}-train.safetensors")
            for seed in range(1, options.seeds + 1):
                random = np.random.default_rng(seed)
                counts = random.integers(LEAST, MOST + 1, len(whole.classes))
                mean = np.full(len(counts), round(counts.mean()))
                (recall, share), (even_recall, even_share) = (
                    rates(method, *drawn(whole, number, seed), seed) for number in (counts, mean)
                )
                gained = counts - mean
                draws.append(
                    {
                        "problem": problem,
                        "seed": seed,
                        "shots": counts.tolist(),
                        "recall by shot": slope(gained, recall - even_recall),
                        "share by shot": slope(gained, share - even_share),
                        "balanced": float(recall.mean()),
                        "balanced, equal shots": float(even_recall.mean()),
                    }
                )
        found = {
            key: interval([draw[key] for draw in draws])
            for key in ("recall by shot", "share by shot", "balanced", "balanced, equal shots")
        }
        found["balanced, change"] = interval(
            [draw["balanced"] - draw["balanced, equal shots"] for draw in draws]
        )
        rows.append({"method": method, "summary": found, "draws": draws})
        told = ", ".join(f"{key} {mean:+.2f} ± {half:.2f}" for key, (mean, half) in found.items())
        print(f"{method}: {told}", flush=True)
    if options.out:
        settings = {key: str(value) for key, value in vars(options).items()}
        write_json(options.out, {"settings": settings, "rows": rows, "environment": environment()})


if __name__ == "__main__":
    main()
