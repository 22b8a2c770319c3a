"""Pictures a second from files to features: rada against the plain loop, measured in turns.

    python benchmarks/extraction.py [FOLDER] [--images 320] [--rounds 5] [--json OUT.json]

The plain loop is what most code does: decode, transform and encode a batch of 32 in one process, in
eager PyTorch's default memory format. Both sides get the same number of threads or cores. Each
side lives in its own process, since rada's settings of the C library would help the other, too; they
take turns, so that a busy machine slows both down. No cache is used.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

BATCH = 32


def load_split(folder: str, images: int):
    from rada.data import open_dataset

    dataset = open_dataset(folder)
    split = dataset.split(*dataset.splits)
    step = max(1, len(split) // images)
    return split.subset(range(0, len(split), step)[:images])


def naive(encoder, split):
    """Return the features as the plain loop computes them."""
    import torch

    rows = []
    with torch.no_grad():
        for start in range(0, len(split), BATCH):
            stop = min(start + BATCH, len(split))
            pixels = torch.stack([encoder.preprocess(split.load(i)) for i in range(start, stop)])
            rows.append(encoder.forward_images(pixels))
    return torch.cat(rows)


def ours(encoder, split, **options):
    from rada.features import extract_features

    return extract_features(encoder, split, cache=False, progress=False, **options).plain()


def cpu_seconds() -> float:
    """Seconds of processor time of this process and its workers, which a busy machine hardly changes."""
    both = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in both)


def side(arguments) -> None:
    """Be one side: run whenever a line comes in, answer with the seconds."""
    import torch

    from rada.encoders import load_encoder

    torch.set_num_threads(arguments.threads)
    encoder = load_encoder(arguments.model)
    encoder.model.eval()
    split = load_split(arguments.data, arguments.images)
    options = {"batch_size": arguments.batch_size, "workers": arguments.workers}
    run = naive if arguments.side == "naive" else lambda e, s: ours(e, s, **options)
    rows = run(encoder, split.subset(range(min(BATCH, len(split)))))  # warm up
    print(json.dumps(rows[:8].tolist()), flush=True)
    for _ in sys.stdin:
        start, used = time.perf_counter(), cpu_seconds()
        run(encoder, split)
        print(time.perf_counter() - start, cpu_seconds() - used, flush=True)


def start_side(name: str, argv: list[str]) -> subprocess.Popen:
    command = [sys.executable, __file__, "--side", name, *argv]
    return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)


def compare(arguments, argv: list[str]) -> dict:
    """Run both sides in turns."""
    import torch

    processes = {name: start_side(name, argv) for name in ("naive", "rada")}
    first = {name: torch.tensor(json.loads(p.stdout.readline())) for name, p in processes.items()}
    seconds: dict[str, list[float]] = {name: [] for name in processes}
    used: dict[str, list[float]] = {name: [] for name in processes}
    for number in range(arguments.rounds):
        order = list(processes) if number % 2 == 0 else list(reversed(processes))
        for name in order:
            processes[name].stdin.write("go\n")
            processes[name].stdin.flush()
            elapsed, cpu = map(float, processes[name].stdout.readline().split())
            seconds[name].append(elapsed)
            used[name].append(cpu)
    for process in processes.values():
        process.stdin.close()
        process.wait()
    count = len(load_split(arguments.data, arguments.images))
    ratios = [a / b for a, b in zip(seconds["naive"], seconds["rada"], strict=True)]
    return {
        "model": arguments.model,
        "images": count,
        "threads": arguments.threads,
        "ms_per_image": {k: 1000 * statistics.median(v) / count for k, v in seconds.items()},
        "cpu_ms_per_image": {k: 1000 * statistics.median(v) / count for k, v in used.items()},
        "ratio": statistics.median(ratios),
        "ratio_of_each_round": ratios,
        "largest_difference": float((first["naive"] - first["rada"]).abs().max()),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("data", nargs="?", default="textiles", help="folder of pictures")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--images", type=int, default=320)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=None)
    parser.add_argument("--batch-size", type=int, default=BATCH)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--side", choices=("naive", "rada"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.side:
        side(arguments)
        return
    result = compare(arguments, sys.argv[1:])
    print(json.dumps(result, indent=2))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
