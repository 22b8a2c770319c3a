"""Millions of rows in a feature store: rows a second and memory of fit, evaluate and predict.

    OMP_NUM_THREADS=2 python benchmarks/feature_store.py [--rows 1000000 5000000] [--classes 1000] [--dim 512]
        [--commands fit evaluate predict] [--before SRC] [--rounds 1] [--folder DIR] [--out results/feature_store.json]

Writes stores of random features in float16 (2 D bytes a row), fits `prior_probe` on two images of every class, and
runs `rada evaluate` and `rada predict` on each. Memory is the largest that belongs to the process alone (RssAnon),
less that of the same command on a store of 1,000 rows; the rows are mapped, and the system takes those pages
back when it wants them. If it is flat, it does not grow from the first number of rows to the last. `--before` runs
another source tree, such as an earlier commit's, in turns; with `--rounds` seconds are medians. Processor time is that of
all the command's processes and threads.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import torch
from many_rows import RADA, measured
from torch.nn.functional import normalize

from rada import Features
from rada.core.storage import write_json
from rada.evaluation import environment
from rada.features.store_writing import SHARD_ROWS, save_store


def parts(rows: int, classes: int, dim: int, seed: int) -> Iterator[Features]:
    """Yield rows around the class features, shard by shard."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(classes, dim, generator=generator), dim=-1)
    names = tuple(f"class {index}" for index in range(classes))
    generator.manual_seed(seed)
    for start in range(0, rows, SHARD_ROWS):
        count = min(SHARD_ROWS, rows - start)
        labels = torch.arange(start, start + count) % classes
        noise = 2.5 * torch.randn(count, dim, generator=generator) / dim**0.5
        table = normalize(text[labels] + noise, dim=-1)
        ids = tuple(f"{seed}/{index}" for index in range(start, start + count))
        yield Features(table, labels, names, ids, text_features=text, scale=50.0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[1_000_000, 5_000_000])
    parser.add_argument("--classes", type=int, default=1000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--method", default="prior_probe")
    parser.add_argument(
        "--folder", type=Path, help="where the stores are made; needs 2 D bytes a row"
    )
    parser.add_argument("--commands", nargs="+", default=["fit", "evaluate", "predict"])
    parser.add_argument("--before", type=Path, help="src folder of another version")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    trees = {"now": dict(os.environ)}
    if options.before:
        trees["before"] = os.environ | {"PYTHONPATH": str(options.before.resolve())}
    found = []
    with tempfile.TemporaryDirectory(dir=options.folder) as place:
        small = max(1000, 3 * options.classes)
        sizes = {"small": small} | {str(rows): rows for rows in options.rows}
        for number, (name, rows) in enumerate(sizes.items()):
            made = parts(rows, options.classes, options.dim, number + 1)
            save_store(made, Path(place) / name, half=True)
        head = str(Path(place) / "head")
        fit = ["fit", str(Path(place) / "small"), "--shots", "2", "--method", options.method]
        subprocess.run([*RADA, *fit, "--out", head], check=True, capture_output=True)
        for command in options.commands:
            start: dict[str, int] = {}
            for name, rows in sizes.items():
                store = str(Path(place) / name)
                words = [command, head, store, "--json"]
                if command == "fit":
                    fit[1] = store
                    words = [*fit, "--out", str(Path(place) / f"head-{name}")]
                runs: dict[str, list[tuple[float, int, float]]] = {tree: [] for tree in trees}
                for _ in range(options.rounds):
                    for tree, variables in trees.items():
                        before = sum(os.times()[2:4])  # of child processes that have ended
                        run = measured([*RADA, *words], variables)
                        runs[tree].append((*run, sum(os.times()[2:4]) - before))
                for tree, several in runs.items():
                    seconds, _, processor = map(statistics.median, zip(*several, strict=True))
                    memory = max(run[1] for run in several)
                    above = memory - start.setdefault(tree, memory)
                    line = {"command": command, "rows": rows, "tree": tree}
                    line |= {"seconds": round(seconds, 1), "processor": round(processor, 1)}
                    found.append(line | {"MiB": above})
                    print(
                        f"{command:9s} {rows:8d} rows {tree:6s} {seconds:7.1f} s, {processor:7.1f} s "
                        f"of processor time, {rows / seconds:8.0f} rows/s, {above} MiB above the small one",
                        flush=True,
                    )
    if options.out:
        left_out = ("out", "folder", "before")
        facts = {key: value for key, value in vars(options).items() if key not in left_out}
        write_json(options.out, facts | {"runs": found, "environment": environment()})


if __name__ == "__main__":
    main()
