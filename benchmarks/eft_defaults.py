"""How the defaults of `EFTConfig` were chosen: few-shot validation, on training images alone.

    python benchmarks/eft_defaults.py FEATURES... [--shots 2 16] [--seeds 2]

FEATURES are files of `rada encode ... --split train`. Shots are drawn from each, and every candidate configuration is
evaluated by its balanced accuracy on the images that were not drawn. Prints a Markdown table: one row a candidate,
one column a number of shots (the mean over files and seeds).
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rada import EFTConfig, Features, evaluate_logits
from rada.methods import Run, get_method

CANDIDATES: dict[str, EFTConfig | None] = {
    "linear probe": None,
    "20 epochs": EFTConfig(strength=1.0, min_steps=0),
    "default": EFTConfig(strength=1.0),
    "all classes every step": EFTConfig(strength=1.0, classes_per_step=0),
    "alpha 0.1": EFTConfig(strength=1.0, alpha=0.1),
    "alpha 0": EFTConfig(strength=1.0, alpha=0.0),
    "learning rate 1e-3": EFTConfig(strength=1.0, learning_rate=1e-3),
    "learning rate 1e-2": EFTConfig(strength=1.0, learning_rate=1e-2),
    "default, strength chosen": EFTConfig(),
}


def evaluate(features: Features, config: EFTConfig | None, shots: int, seed: int) -> float:
    """Train on drawn shots and return the balanced accuracy on the others."""
    drawn = features.few_shot(shots, seed)
    taken = set(drawn.ids)
    rest = features.subset([row for row, key in enumerate(features.ids) if key not in taken])
    method = get_method("linear_probe" if config is None else "rada")
    logits = method.fit(drawn, config, Run(seed)).logits(rest.plain(), rest.class_set())
    return evaluate_logits(logits, rest.labels, rest.classes).balanced_accuracy


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("features", nargs="+", type=Path)
    parser.add_argument("--shots", nargs="+", type=int, default=[2, 16])
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--only", nargs="*", help="names of candidates")
    options = parser.parse_args()
    sets = [Features.load(path) for path in options.features]
    print("| candidate | " + " | ".join(f"{shots} shots" for shots in options.shots) + " | s |")
    print("|---" * (len(options.shots) + 2) + "|")
    for name, config in CANDIDATES.items():
        if options.only and name not in options.only:
            continue
        start, cells = time.perf_counter(), []
        for shots in options.shots:
            scores = [
                evaluate(features, config, shots, seed)
                for features in sets
                for seed in range(1, options.seeds + 1)
            ]
            cells.append(f"{100 * sum(scores) / len(scores):.1f}")
        print(f"| {name} | {' | '.join(cells)} | {time.perf_counter() - start:.0f} |", flush=True)


if __name__ == "__main__":
    main()
