"""What starting worker processes costs: until the first batch is there, and over all, in turns.

    OMP_NUM_THREADS=1 python benchmarks/workers.py [--images 64] [--rounds 7] [--out results/workers.json]

For the embedded encoder and a ViT-B/32 with random weights, in a process that has encoded before: `start` starts workers
that do nothing and ends them, so that it is the price of the processes alone; the others encode images of 320 x 240 (PNG, batches of 32, no
cache) in this process and by one and two workers. Medians of milliseconds by the clock. What one worker takes longer than
this process is all that a start costs: the processes, and the memory that a new process touches for the first time.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from rada import CustomEncoder, DualEncoder, load_encoder
from rada.core.storage import write_json
from rada.data import ImageSplit
from rada.evaluation import environment
from rada.features import ViewTransform, iter_features
from rada.features.images import SplitReader
from rada.features.work import BatchWork, Job, JobResult
from rada.features.workers import do_jobs


class Nothing(BatchWork):
    """Work that is none."""

    def do(self, job: Job, *, anew: bool = False) -> JobResult:
        """Return at once."""
        return JobResult(job, None)


def vit() -> DualEncoder:
    import open_clip

    torch.manual_seed(0)
    model = open_clip.create_model("ViT-B-32").eval()
    return CustomEncoder(
        model.encode_image,
        lambda texts: torch.ones(len(texts), 512),
        100.0,
        512,
        image_module=model,
        name="ViT-B-32, random weights",
        fingerprint="random",
    )


def noise(folder: Path, count: int) -> ImageSplit:
    random, ids = np.random.default_rng(0), [f"{index:04d}.png" for index in range(count)]
    for name in ids:
        Image.fromarray(random.integers(0, 256, (240, 320, 3), dtype=np.uint8)).save(folder / name)
    return ImageSplit.from_files(folder, ids, labels=[0] * count, classes=("noise", "else"))


def ways(encoder: DualEncoder, split: ImageSplit) -> dict[str, Callable[[], Iterable[Any]]]:
    """Return what is compared."""

    def started(workers: int) -> Iterable[Any]:
        views = ViewTransform(encoder.train_transform, "")
        work = Nothing(encoder, SplitReader(split), views=views, seed=0, cache=None, keep=False)
        return do_jobs(work, [Job(index, (index,), 0) for index in range(8)], workers)

    def encoded(workers: int) -> Iterable[Any]:
        return iter_features(encoder, split, workers=workers, cache=False)

    found: dict[str, Callable[[], Iterable[Any]]] = {
        f"start {count}": lambda count=count: started(count) for count in (1, 2)
    }
    return found | {f"workers {n}": lambda n=n: encoded(n) for n in (0, 1, 2)}


def clocked(way: Callable[[], Iterable[Any]]) -> tuple[float, float]:
    """Return milliseconds until the first batch, and until all processes have ended."""
    begun, first = time.perf_counter(), 0.0
    for _ in way():
        first = first or time.perf_counter() - begun
    return 1e3 * first, 1e3 * (time.perf_counter() - begun)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=64)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    found: dict[str, dict[str, dict[str, float]]] = {}
    with tempfile.TemporaryDirectory() as folder:
        split = noise(Path(folder), options.images)
        for encoder in (load_encoder("embedded"), vit()):
            compared = ways(encoder, split)
            clocked(compared["workers 0"])
            runs: dict[str, list[tuple[float, float]]] = {name: [] for name in compared}
            for _ in range(options.rounds):
                for name, way in compared.items():
                    runs[name].append(clocked(way))
            found[encoder.name] = {}
            for name, several in runs.items():
                first, last = (
                    round(statistics.median(part), 1) for part in zip(*several, strict=True)
                )
                found[encoder.name][name] = {"first": first, "all": last}
                print(f"{encoder.name:26s} {name:10s} first {first:7.1f} ms, all {last:7.1f} ms")
    if options.out:
        facts = {"images": options.images, "rounds": options.rounds}
        write_json(options.out, facts | {"milliseconds": found, "environment": environment()})


if __name__ == "__main__":
    main()
