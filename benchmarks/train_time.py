"""Seconds to fit: 16 shots of 24 classes at D = 512, the choice of the strength included.

    python benchmarks/train_time.py [--classes 24] [--shots 16] [--dim 512] [--threads 2] [--out result.json]

Prints the seconds of a head's training alone, with the choice of the strength, of the default method, and of
its probe, by the clock and of the processor
(on a shared machine the clock says little); medians of the runs.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch
from torch.nn.functional import normalize

from rada import EFTConfig, Features
from rada.core.storage import write_json
from rada.evaluation import environment
from rada.methods import Run
from rada.methods.prior_probe import PriorProbeConfig
from rada.methods.rada_probe import RAdaProbeConfig
from rada.methods.registry import method_of


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--classes", type=int, default=24)
    parser.add_argument("--shots", type=int, default=16)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--out", help="JSON file for the result")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(options.classes, options.dim, generator=generator), dim=-1)
    labels = torch.arange(options.classes).repeat(options.shots)
    noise = 3 * torch.randn(len(labels), options.dim, generator=generator) / options.dim**0.5
    images = normalize(text[labels] + noise, dim=-1)
    result: dict[str, object] = {"settings": vars(options), "environment": environment()}
    names = tuple(map(str, range(options.classes)))
    data = Features(images, labels, names, text_features=text, scale=100.0)
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
