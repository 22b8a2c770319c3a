"""Seconds to train a head: 16 shots of 24 classes at D = 512, the choice of the strength included.

    python benchmarks/train_time.py [--classes 24] [--shots 16] [--dim 512] [--threads 2]

Prints the seconds of training, of choosing the strength, and of both, of three runs each.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn.functional import normalize

from rada import EFTConfig, train_head


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, default=24)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(options.classes, options.dim, generator=generator), dim=-1)
    labels = torch.arange(options.classes).repeat(options.shots)
    noise = 3 * torch.randn(len(labels), options.dim, generator=generator) / options.dim**0.5
    images = normalize(text[labels] + noise, dim=-1)
    for name, strength in (("training alone", 1.0), ("with the choice of the strength", "auto")):
        seconds = []
        for seed in range(options.runs):
            start = time.perf_counter()
            train_head(
                images, labels, text, 100.0, EFTConfig(strength=strength), seed, progress=False
            )
            seconds.append(time.perf_counter() - start)
        print(
            f"{options.classes} classes x {options.shots} shots, D = {options.dim}, "
            f"{options.threads} threads, {name}: median {statistics.median(seconds):.1f} s "
            f"of {', '.join(f'{value:.1f}' for value in seconds)}",
            flush=True,
        )


if __name__ == "__main__":
    main()
