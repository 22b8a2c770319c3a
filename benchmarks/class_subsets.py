"""Training on class subsets: seconds a step at K = 1000 and 10,000, and what it does to accuracy.

    python benchmarks/imagenet_features.py clip_vitb32_imagenet.npz imagenet-b32
    OMP_NUM_THREADS=1 python benchmarks/class_subsets.py imagenet-b32/train.safetensors [--jobs 2] [--out result.json]

Accuracy: a seed draws one shot of each class of the first half to train on; the other shots of the first half ("base") and
the shots of the second half ("new") evaluate, each half among its own classes. No test image is read. The mask strength is the
one with the best harmonic mean, for every candidate alike, so that training is compared and not the choice of the strength.
The step at K = 10,000 is on random unit vectors. Memory is the growth of the process's peak, so it counts from the first row on.
Seconds are processor time, since the seeds run beside each other.
"""

from __future__ import annotations

import argparse
import statistics
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rada import EFTConfig, Features, train_head
from rada.core.storage import write_json
from rada.evaluation import environment
from rada.evaluation.provenance import peak_memory
from rada.features import ClassSet

# classes a step (0: all) and passes over the shots; the last are the defaults
CANDIDATES = ["0:3", "128:3", "64:3", "64:10"]
# classes, classes a step (0: all), steps
STEPS = (
    (1000, 64, 8),
    (1000, 128, 8),
    (10_000, 64, 8),
    (10_000, 128, 8),
    (1000, 500, 2),
    (1000, 0, 2),
)
STRENGTHS = torch.linspace(0, 1, 21).tolist()


def config(classes: int, epochs: int) -> EFTConfig:
    return EFTConfig(epochs=epochs, min_steps=0, classes_per_step=classes, strength=1.0)


def accuracies(strong: Tensor, zero_shot: Tensor, labels: Tensor) -> list[float]:
    """Percent at every strength; logits are linear in it."""
    mixed = (zero_shot + strength * (strong - zero_shot) for strength in STRENGTHS)
    return [100 * float((logits.argmax(-1) == labels).float().mean()) for logits in mixed]


def evaluate(path: str, candidates: list[str], seed: int) -> dict[str, dict[str, float]]:
    """Train every candidate on one draw; `base`, `new`, `hm` and processor `seconds` of each."""
    torch.set_num_threads(1)
    features = Features.load(path)
    images, labels, text = features.plain(), features.labels, features.text_features
    assert labels is not None and text is not None and features.scale is not None
    half, generator = len(text) // 2, torch.Generator().manual_seed(seed)
    rows = torch.stack([(labels == k).nonzero().flatten()[:2] for k in range(len(text))])
    first = torch.randint(2, (len(text),), generator=generator)
    shot, other = (rows.gather(1, pick[:, None]).flatten() for pick in (first, 1 - first))
    parts = [(other[:half], text[:half], 0), (shot[half:], text[half:], half)]
    found = {}
    whole = tuple(map(str, range(len(text))))
    for name in candidates:
        classes, epochs = map(int, name.split(":"))
        start = time.process_time()
        model = train_head(
            images[shot[:half]],
            labels[shot[:half]],
            text[:half],
            features.scale,
            config(classes, epochs),
            seed,
            progress=False,
        )
        seconds = time.process_time() - start
        curves = []
        for take, names, offset in parts:
            candidates_here = ClassSet(whole[offset : offset + len(names)], names)
            strong, zero_shot = (
                model.logits(images[take], candidates_here, strength=strength, batch_size=50)
                for strength in (1.0, 0.0)
            )
            curves.append(accuracies(strong, zero_shot, labels[take] - offset))
        pairs = zip(*curves, strict=True)
        means = [2 * base * new / (base + new) for base, new in pairs]
        best = max(range(len(means)), key=means.__getitem__)
        found["zero-shot"] = {
            "base": curves[0][0],
            "new": curves[1][0],
            "hm": means[0],
            "seconds": 0,
        }
        found[name] = {
            "base": curves[0][best],
            "new": curves[1][best],
            "hm": means[best],
            "seconds": seconds,
        }
    return found


def time_steps(path: str) -> list[dict[str, float]]:
    """Processor seconds and peak MiB of a step of 32 images, optimiser included."""
    torch.set_num_threads(1)
    features, found = Features.load(path), []
    assert features.text_features is not None and features.labels is not None
    generator = torch.Generator().manual_seed(0)
    many = normalize(torch.randn(10_000, features.dim, generator=generator), dim=-1)
    before = peak_memory() or 0
    for total, classes, steps in STEPS:
        text = features.text_features if total == 1000 else many
        start = time.process_time()
        train_head(
            features.plain()[:32],
            features.labels[:32] * (total // 1000),
            text,
            100.0,
            config(classes, steps),
            progress=False,
        )
        seconds = (time.process_time() - start) / steps
        memory = ((peak_memory() or 0) - before) / 2**20
        found.append({"K": total, "classes": classes, "seconds": seconds, "mebibytes": memory})
        print(
            f"K = {total}, {classes or 'all'} classes a step: {seconds:.2f} s a step, "
            f"peak {memory:.0f} MiB over the start",
            flush=True,
        )
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("features")
    parser.add_argument(
        "--candidates", nargs="+", default=CANDIDATES, help="classes a step : passes; 0 for all"
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--out", help="JSON file for the result")
    options = parser.parse_args()
    steps = time_steps(options.features)
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        work = partial(evaluate, options.features, options.candidates)
        runs = list(pool.map(work, range(1, options.seeds + 1)))
    first = options.candidates[0]
    print(
        f"\n| classes : passes | seconds | faster | base | new | HM | HM above {first}, by seed |"
    )
    print("|---" * 7 + "|")
    for name in runs[0]:
        mean = {key: statistics.mean(run[name][key] for run in runs) for key in runs[0][name]}
        gain = [run[name]["hm"] - run[first]["hm"] for run in runs]
        whole = statistics.mean(run[first]["seconds"] for run in runs)
        faster = f"{whole / mean['seconds']:.1f}x" if mean["seconds"] else ""
        print(
            f"| {name} | {mean['seconds']:.0f} | {faster} | {mean['base']:.1f} | {mean['new']:.1f} "
            f"| {mean['hm']:.1f} | {' '.join(f'{value:+.1f}' for value in gain)} |"
        )
    if options.out:
        facts = {"settings": vars(options), "steps": steps, "runs": runs}
        write_json(options.out, facts | {"environment": environment()})


if __name__ == "__main__":
    main()
