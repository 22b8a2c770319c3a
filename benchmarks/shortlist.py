"""A shortlist of classes: what it does to the time of an image, and to accuracy.

    python benchmarks/imagenet_features.py clip_vitb32_imagenet.npz imagenet-b32
    OMP_NUM_THREADS=1 python benchmarks/shortlist.py imagenet-b32 [--seeds 3] [--jobs 2] [--out result.json]

Time: an image in batches of 32 and alone at K = 1000 (the class features of ImageNet) and 21,000 (random unit
vectors), all classes against a shortlist of 64, in turns within one process; and a step of training of 32 images
at K = 1000. At 21,000 all classes take half a minute an image and are left out unless `--whole` asks for them.

Accuracy, base-to-new: the two shots of the classes 0-499 train; the images of the test file are asked among the
500 classes of their half. Strengths are chosen on the shots, with the shortlist in place. Each candidate is
named CLASSES A STEP:SHORTLIST:DRAW, 0 for all classes; what draws its classes by "chance" or from the "hard"
ones. The first is what the others are compared with, seed by seed.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rada import EFTConfig, Features, RAdaHead, get_method
from rada.core.storage import write_json
from rada.evaluation import environment
from rada.methods import Run

CANDIDATES = ["64:0:chance", "64:64:chance", "64:64:hard", "0:64:chance"]
LENGTH = 64
BATCH = 32


def config(name: str, epochs: int | None) -> EFTConfig:
    step, listed, draw = name.split(":")
    own = {} if epochs is None else {"epochs": epochs, "min_steps": 0}
    return EFTConfig(
        classes_per_step=int(step),
        shortlist=int(listed) or None,
        hard_classes=draw == "hard",
        **own,
    )


def evaluate(
    folder: str, candidates: list[str], classes: int, epochs: int | None, seed: int
) -> dict[str, dict[str, float]]:
    """Train every candidate; percent right on both halves, their harmonic mean, strengths and seconds."""
    torch.set_num_threads(1)
    train, test = (
        Features.load(Path(folder) / f"{part}.safetensors") for part in ("train", "test")
    )
    half = classes // 2
    base, new = list(range(half)), list(range(half, classes))
    data, found = train.select_classes(base), {}
    for name in ["zero-shot", *candidates]:
        began, model = time.process_time(), get_method("zero_shot").fit(data)
        if name != "zero-shot":
            model = get_method("rada").fit(data, config(name, epochs), Run(seed=seed))
        seconds = time.process_time() - began
        began, right = time.process_time(), []
        for part in (base, new):
            asked = test.select_classes(part)
            logits = model.logits(asked.plain(), asked.class_set(), batch_size=BATCH)
            right.append(100 * float((logits.argmax(1) == asked.labels).float().mean()))
        found[name] = {
            "base": right[0],
            "new": right[1],
            "hm": 2 * right[0] * right[1] / max(sum(right), 1e-9),
            "strength among trained": model.strength.for_classes(data.classes),
            "strength": model.strength.value,
            "training seconds": seconds,
            "evaluation seconds": time.process_time() - began,
        }
    return found


def seconds_of(head: RAdaHead, image: Tensor, text: Tensor, listed: int | None) -> float:
    with torch.no_grad():
        began = time.process_time()
        head(image, text, 100.0, shortlist=listed)
        return (time.process_time() - began) / len(image)


def step_seconds(head: RAdaHead, image: Tensor, text: Tensor, listed: int | None) -> float:
    began = time.process_time()
    output = head(image, text, 100.0, shortlist=listed)
    loss = output.logits.logsumexp(1).mean() + output.max_deviation.mean()
    torch.autograd.grad(loss, list(head.parameters()))
    return time.process_time() - began


def measure(folder: str, rounds: int, whole: bool) -> list[dict[str, object]]:
    torch.set_num_threads(1)
    test = Features.load(Path(folder) / "test.safetensors")
    assert test.text_features is not None
    generator = torch.Generator().manual_seed(0)
    many = normalize(torch.randn(21_000, test.dim, generator=generator), dim=-1)
    head = RAdaHead(test.dim)
    torch.nn.init.normal_(head.out.weight, std=0.01)
    images, text = test.plain()[:BATCH], test.text_features
    cases = [
        ("an image of a batch", seconds_of, images, text, True),
        ("an image alone", seconds_of, images[:1], text, True),
        ("a step of training", step_seconds, images, text, True),
        ("an image of a batch", seconds_of, images, many, False),
        ("an image alone", seconds_of, images[:1], many, whole),
    ]
    found = []
    for name, timed, image, classes, compared in cases:
        timed(head, image[:2], classes[:100], LENGTH)
        timed(head, image[:2], classes, LENGTH)  # what is remembered of a class set
        listed, every, ratios = [], [], []
        for _ in range(rounds):
            listed.append(timed(head, image, classes, LENGTH))
            if compared:
                every.append(timed(head, image, classes, None))
                ratios.append(every[-1] / listed[-1])
        row = {"what": name, "K": len(classes), "listed": listed, "all": every, "ratios": ratios}
        found.append(row)
        text_of = f"{name}, K = {len(classes)}: {1e3 * statistics.median(listed):.1f} ms of {LENGTH} classes"
        if compared:
            text_of += f", {1e3 * statistics.median(every):.1f} ms of all, {statistics.median(ratios):.1f}x"
        print(text_of, flush=True)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("features", help="folder of benchmarks/imagenet_features.py")
    parser.add_argument("--candidates", nargs="+", default=CANDIDATES)
    parser.add_argument(
        "--classes", type=int, default=1000, help="of which the first half is trained"
    )
    parser.add_argument("--epochs", type=int, help="passes; the recipe's when left out")
    parser.add_argument("--seeds", type=int, default=3, help="0 for times alone")
    parser.add_argument("--rounds", type=int, default=5, help="of timing; 0 for accuracy alone")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--whole", action="store_true", help="all of 21,000 classes, too")
    parser.add_argument("--out", help="JSON file for the result")
    options = parser.parse_args()
    times = measure(options.features, options.rounds, options.whole) if options.rounds else []
    runs: list[dict[str, dict[str, float]]] = []

    def keep() -> None:
        if options.out:
            facts = {"settings": vars(options), "times": times, "runs": runs}
            write_json(options.out, facts | {"environment": environment()})

    keep()
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        own = (options.features, options.candidates, options.classes, options.epochs)
        # A seed takes half an hour: each is kept as soon as it is there.
        for run in pool.map(partial(evaluate, *own), range(1, options.seeds + 1)):
            runs.append(run)
            report(runs, options.candidates[0])
            keep()


def report(runs: list[dict[str, dict[str, float]]], first: str) -> None:
    columns = ("base", "new", "HM", f"HM above {first}, by seed", "training", "evaluation")
    print(f"\n| classes a step:shortlist:draw | {' | '.join(columns)} |\n" + "|---" * 7 + "|")
    for name in runs[0]:
        mean = {key: statistics.mean(run[name][key] for run in runs) for key in runs[0][name]}
        gain = " ".join(f"{run[name]['hm'] - run[first]['hm']:+.1f}" for run in runs)
        ratio = {}
        for kind in ("training", "evaluation"):
            each = [
                run[first][f"{kind} seconds"] / max(run[name][f"{kind} seconds"], 1e-9)
                for run in runs
            ]
            ratio[kind] = f"{mean[f'{kind} seconds']:.0f} s ({statistics.median(each):.1f}x)"
        print(
            f"| {name} | {mean['base']:.1f} | {mean['new']:.1f} | {mean['hm']:.1f} | {gain} "
            f"| {ratio['training']} | {ratio['evaluation']} |"
        )


if __name__ == "__main__":
    main()
