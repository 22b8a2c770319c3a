"""Evaluating and predicting many rows of features: seconds and memory, in one interleaved run.

    OMP_NUM_THREADS=1 python benchmarks/many_rows.py [--rows 50000 200000] [--classes 10] [--before SRC]
        [--strength 0.5] [--rounds 3] [--out results/many_rows.json]

Writes features of width 512, fits a head on two of each class, and runs `rada evaluate HEAD FILE --json` and `rada
predict HEAD FILE`, one after the other. Memory is the largest that belongs to the process alone (RssAnon): the rows
are mapped from the file, and the system takes those pages back when it wants them. `--strength 0` leaves the head
out, which shows what everything else costs. `--before` adds another source tree, such as an earlier commit's.
"""

from __future__ import annotations

import argparse
import os
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch
from torch.nn.functional import normalize

from rada import Features
from rada.core.storage import write_json
from rada.evaluation import environment

RADA = [sys.executable, "-m", "rada"]


def write(path: Path, rows: int, classes: int) -> None:
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(classes, 512, generator=generator), dim=-1)
    labels = torch.randint(0, classes, (rows,), generator=generator)
    table = torch.empty(rows, 512)
    for part, chosen in zip(table.split(8192), labels.split(8192), strict=True):
        noise = 0.12 * torch.randn(len(part), 512, generator=generator)
        part.copy_(normalize(text[chosen] + noise, dim=-1))
    names = tuple(f"class {index}" for index in range(classes))
    ids = tuple(f"{path.stem}/{index}" for index in range(rows))
    Features(table, labels, names, ids, text_features=text, scale=20.0).save(path)


def measured(command: list[str], environment: dict[str, str]) -> tuple[float, int]:
    """Return the seconds that a command takes and its largest private memory in MiB."""
    start, largest = time.perf_counter(), 0
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    while process.poll() is None:
        try:
            status = Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        found = re.search(r"RssAnon:\s+(\d+)", status)
        largest = max(largest, int(found[1]) if found else 0)
        time.sleep(0.02)
    assert process.wait() == 0, command
    return time.perf_counter() - start, largest >> 10


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, nargs="+", default=[50_000, 200_000])
    parser.add_argument("--classes", type=int, default=10)
    parser.add_argument("--strength", type=float, default=0.5)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--before", type=Path, help="src folder of another version")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    trees = {"now": dict(os.environ)}
    if options.before:
        trees["before"] = os.environ | {"PYTHONPATH": str(options.before.resolve())}
    runs: dict[tuple[str, int, str], list[tuple[float, int]]] = {}
    with tempfile.TemporaryDirectory() as place:
        few, head = Path(place) / "few.safetensors", str(Path(place) / "head")
        write(few, 20 * options.classes, options.classes)
        settings = ["epochs=1", "min_steps=0", f"strength={options.strength}"]
        words = [word for setting in settings for word in ("--set", setting)]
        subprocess.run(
            [*RADA, "fit", str(few), "--shots", "2", "--out", head, *words],
            check=True,
            capture_output=True,
        )
        tables = {rows: Path(place) / f"{rows}.safetensors" for rows in options.rows}
        for rows, table in tables.items():
            write(table, rows, options.classes)
        for _ in range(options.rounds):
            for rows, table in tables.items():
                for name, tree in trees.items():
                    for command in ("evaluate", "predict"):
                        if (name, command) == ("before", "predict"):
                            continue  # it took no features files
                        full = [*RADA, command, head, str(table), "--json"]
                        found = measured(full, tree)
                        runs.setdefault((command, rows, name), []).append(found)
    lines = []
    for (command, rows, name), found in runs.items():
        seconds = statistics.median(run[0] for run in found)
        memory = max(run[1] for run in found)
        lines.append(
            {"command": command, "rows": rows, "tree": name, "seconds": seconds, "MiB": memory}
        )
        print(
            f"{command:9s} {rows:8d} rows {name:7s} {seconds:7.1f} s, {rows / seconds:8.0f} rows/s, {memory} MiB"
        )
    if options.out:
        facts = {"classes": options.classes, "strength": options.strength, "rounds": options.rounds}
        write_json(options.out, facts | {"runs": lines, "environment": environment()})


if __name__ == "__main__":
    main()
