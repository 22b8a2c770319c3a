"""Pictures a second from files to predictions, cold and warm, against the encoder's forward alone.

    python benchmarks/predict.py [--pictures 1000] [--rounds 5] [--out result.json]

Predicts pictures of the built-in textiles set with a head trained on 4 shots. "Forward alone" runs the same encoder on
the same pixels, decoded before the clock starts. Cold: empty feature cache; warm: the same again. The overhead of cold
over forward alone is everything else: starting workers (`benchmarks/workers.py`), reading,
decoding, hashing, the head, the cache. Half of the forward alone runs before the cold run and half after it; medians of the
clock and of processor time, workers included, and of the ratio within a turn, since a shared machine's speed drifts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from rada import Classifier, DualEncoder, EFTConfig, FeatureCache, load_encoder, open_dataset
from rada.core.storage import write_json
from rada.evaluation import environment


def clocked(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds by the clock and of processor time, ended child processes included."""
    clock, processor = time.perf_counter(), sum(os.times()[:4])
    work()
    return time.perf_counter() - clock, sum(os.times()[:4]) - processor


def encode(encoder: DualEncoder, pixels: Tensor) -> None:
    for batch in pixels.split(32):
        encoder.infer_images(batch)


def predict(classifier: Classifier, paths: list[Path]) -> None:
    assert sum(1 for _ in classifier.predict_stream(iter(paths))) == len(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=1000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", help="JSON file for the result")
    options = parser.parse_args()
    dataset = open_dataset("textiles")
    test = dataset.split("test")
    rows = range(0, len(test), max(1, len(test) // options.pictures))
    paths = [test.path(row) for row in rows][: options.pictures]
    encoder = load_encoder("embedded")
    config = EFTConfig(epochs=2, min_steps=0, strength=1.0)
    pixels = torch.stack([encoder.preprocess(test.load(row)) for row in rows][: options.pictures])
    times: dict[str, list[tuple[float, float]]] = {"forward alone": [], "cold": [], "warm": []}
    for _ in range(options.rounds):
        with tempfile.TemporaryDirectory() as folder:
            classifier = Classifier(
                encoder, config=config, cache=FeatureCache(Path(folder)), progress=False
            )
            classifier.fit(dataset, shots=4, seed=1)
            half = len(pixels) // 64 * 32
            before = clocked(partial(encode, encoder, pixels[:half]))
            times["cold"].append(clocked(partial(predict, classifier, paths)))
            after = clocked(partial(encode, encoder, pixels[half:]))
            times["forward alone"].append((before[0] + after[0], before[1] + after[1]))
            times["warm"].append(clocked(partial(predict, classifier, paths)))
    result = {}
    for place, unit in enumerate(("seconds", "processor_seconds")):
        found, over = {}, {}
        for name, runs in times.items():
            pairs = zip(runs, times["forward alone"], strict=True)
            found[name] = statistics.median(run[place] for run in runs)
            over[name] = statistics.median(run[place] / alone[place] for run, alone in pairs) - 1
            print(
                f"{unit}, {name}: {len(paths) / found[name]:.1f} pictures/s "
                f"({100 * over[name]:+.0f} % over the forward alone)"
            )
        result[unit] = found | {"overhead": over["cold"]}
    if options.out:
        facts = {"pictures": len(paths), "rounds": options.rounds, "times": times}
        write_json(options.out, facts | result | {"environment": environment()})


if __name__ == "__main__":
    main()
