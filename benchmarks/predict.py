"""Pictures a second from files to answers, cold and warm, against the encoder's forward alone.

    python benchmarks/predict.py [--pictures 256] [--out result.json]

Predicts pictures of the built-in textiles set with a head trained on 4 shots. "Forward alone" runs the same encoder on
the same pixels, decoded before the clock starts. Cold: empty feature cache; warm: the same again. The overhead of cold
over forward alone is everything else: reading, decoding, hashing, the head, the cache. Medians of the clock and of processor
time, workers included; on a shared machine the clock says little.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from pathlib import Path

import torch

from rada import EFTConfig, FeatureCache, RAdaClassifier, load_encoder, open_dataset
from rada.evaluation import environment
from rada.storage import write_json


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--pictures", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=3)
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
            classifier = RAdaClassifier(
                encoder, config=config, cache=FeatureCache(Path(folder)), progress=False
            )
            classifier.fit(dataset, shots=4, seed=1)
            for name in times:
                clock, processor = time.perf_counter(), sum(os.times()[:4])
                if name == "forward alone":
                    for batch in pixels.split(32):
                        encoder.infer_images(batch)
                else:
                    answers = sum(1 for _ in classifier.predict_stream(iter(paths)))
                    assert answers == len(paths)
                taken = time.perf_counter() - clock, sum(os.times()[:4]) - processor
                times[name].append(taken)
    result = {}
    for place, unit in enumerate(("seconds", "processor_seconds")):
        found = {
            name: statistics.median(run[place] for run in runs) for name, runs in times.items()
        }
        forward = found["forward alone"]
        result[unit] = found | {"overhead": found["cold"] / forward - 1}
        for name, seconds in found.items():
            print(
                f"{unit}, {name}: {len(paths) / seconds:.1f} pictures/s "
                f"({100 * (seconds / forward - 1):+.0f} % over the forward alone)"
            )
    if options.out:
        facts = {"pictures": len(paths), "rounds": options.rounds, "times": times}
        write_json(options.out, facts | result | {"environment": environment()})


if __name__ == "__main__":
    main()
