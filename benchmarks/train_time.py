"""Seconds to fit: 16 shots of 24 classes at D = 512, the choice of the strength included.

    python benchmarks/train_time.py [--classes 24] [--shots 16] [--dim 512] [--threads 2] [--out result.json]
    python benchmarks/train_time.py --side-by-side     # 7 x 16 at 384, 12, 24 and 50 x 16 at 512

Prints the seconds of a head's training alone, with the choice of the strength, of the default method, and of
its probe, by the clock and of the processor (on a shared machine the clock says little); medians of the runs.
With `--side-by-side` it compares, in turns, the three heads of the default method trained one after
another with all threads and side by side with a share of them, whether or not `fit` would do so.
"""

from __future__ import annotations

import argparse
import contextlib
import statistics
import time
from collections.abc import Iterator

import torch
from torch.nn.functional import normalize

from rada import EFTConfig, Features
from rada.core.storage import write_json
from rada.evaluation import environment
from rada.methods import Run
from rada.methods import rada as head_method
from rada.methods.prior_probe import PriorProbeConfig
from rada.methods.rada_probe import RAdaProbeConfig
from rada.methods.registry import method_of

# classes, shots, width
SIZES = ((7, 16, 384), (12, 16, 512), (24, 16, 512), (50, 16, 512))


def made(classes: int, shots: int, dim: int) -> Features:
    """Return images around their classes."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(classes, dim, generator=generator), dim=-1)
    labels = torch.arange(classes).repeat(shots)
    noise = 3 * torch.randn(len(labels), dim, generator=generator) / dim**0.5
    images = normalize(text[labels] + noise, dim=-1)
    names = tuple(map(str, range(classes)))
    return Features(images, labels, names, text_features=text, scale=100.0)


@contextlib.contextmanager
def way(beside: bool) -> Iterator[None]:
    """While the block runs, the heads of a fit train side by side, or one after another."""
    most = head_method._MOST_PAIRS
    head_method._MOST_PAIRS = 1 << 40 if beside else 0
    try:
        yield
    finally:
        head_method._MOST_PAIRS = most


def compare(rounds: int, threads: int) -> dict[str, object]:
    """Fit in turns, the two ways."""
    found: list[dict[str, object]] = []
    config = RAdaProbeConfig()
    for classes, shots, dim in SIZES:
        data, method = made(classes, shots, dim), method_of(config)
        seconds: dict[str, list[float]] = {"one after another": [], "side by side": []}
        for seed in range(-1, rounds):  # the first is to get warm
            for name, taken in seconds.items():
                with way(name == "side by side"):
                    began = time.perf_counter()
                    method.fit(data, config, Run(seed=max(0, seed)))
                    if seed >= 0:
                        taken.append(time.perf_counter() - began)
        ratio = statistics.median(a / b for a, b in zip(*seconds.values(), strict=True))
        pairs = 32 * config.subset(classes)
        found.append({"classes": classes, "shots": shots, "dim": dim})
        found[-1] |= {"pairs": pairs, "seconds": seconds, "times as fast side by side": ratio}
        each = ", ".join(
            f"{name} {statistics.median(taken):.2f} s" for name, taken in seconds.items()
        )
        print(
            f"{classes} x {shots}, D = {dim} ({pairs} pairs a step), "
            f"{threads} threads: {each} ({ratio:.2f} times as fast)",
            flush=True,
        )
    return {"sizes": found, "threads": threads, "environment": environment()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, default=24)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument(
        "--side-by-side", action="store_true", help="heads one after another against side by side"
    )
    parser.add_argument("--out", help="JSON file for the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    if options.side_by_side:
        result = compare(options.runs, options.threads)
        if options.out:
            write_json(options.out, result)
        return
    result: dict[str, object] = {"settings": vars(options), "environment": environment()}
    data = made(options.classes, options.shots, options.dim)
    fits = {
        "training alone": EFTConfig(strength=1.0),
        "with the choice of the strength": EFTConfig(),
        "the default, head and probe": RAdaProbeConfig(),
        "the probe alone": PriorProbeConfig(),
    }
    for name, config in fits.items():
        clock, processor = [], []
        for seed in range(options.runs):
            began = time.perf_counter(), time.process_time()
            method_of(config).fit(data, config, Run(seed=seed))
            clock.append(time.perf_counter() - began[0])
            processor.append(time.process_time() - began[1])
        result[name] = {"seconds": clock, "processor_seconds": processor}
        print(
            f"{options.classes} classes x {options.shots} shots, D = {options.dim}, "
            f"{options.threads} threads, {name}: median {statistics.median(clock):.1f} s by the clock, "
            f"{statistics.median(processor):.1f} s of the processor",
            flush=True,
        )
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
