"""How long a person waits for the first prediction, in one interleaved run, as a ratio to `import torch`.

python benchmarks/startup.py [--rounds 7] [--before FOLDER/src] [--out results/startup.json]

A small head is fitted first; then every round starts, one after the other, `python -c "import torch"`,
`rada predict HEAD one.jpg`, and `rada fit` up to its first line. `--before` adds the same for another
source tree, such as a worktree of an earlier commit. The cache of features is off, so that the image is
encoded; what the built-in model keeps of itself in the cache is there from the first round on.
"""

from __future__ import annotations

import argparse
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

from rada.core.storage import write_json
from rada.evaluation import environment

RADA = [sys.executable, "-m", "rada"]
TORCH = [sys.executable, "-c", "import torch"]


def draw(folder: Path) -> Path:
    """Write two classes of noisy images, and return one of them."""
    rng = np.random.default_rng(0)
    for label, shade in (("dark", 60), ("light", 190)):
        (folder / label).mkdir(parents=True)
        for number in range(4):
            noise = rng.integers(-50, 50, (240, 320, 3)) + shade
            path = folder / label / f"{number}.jpg"
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(path)
    return path


def spent() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def timed(command: list[str], environment: dict[str, str]) -> tuple[float, float]:
    """Return seconds by the clock and of processor time."""
    used, start = spent(), time.perf_counter()
    subprocess.run(
        command, env=environment, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    return time.perf_counter() - start, spent() - used


def first_line(command: list[str], environment: dict[str, str]) -> float:
    """Return the seconds until a command has written a line, and stop it."""
    start = time.perf_counter()
    process = subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert process.stdout is not None
    line = process.stdout.readline()
    seconds = time.perf_counter() - start
    process.terminate()
    process.communicate()
    assert line, command
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--before", type=Path, help="src folder of another version")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    trees = {"now": dict(os.environ)}
    if options.before:
        trees["before"] = os.environ | {"PYTHONPATH": str(options.before.resolve())}
    clock: dict[str, list[float]] = {}
    processor: dict[str, list[float]] = {}
    with tempfile.TemporaryDirectory() as place:
        image = draw(Path(place) / "images")
        data = str(image.parents[1])
        head = str(Path(place) / "head")
        few = ["--set", "epochs=1", "--set", "min_steps=0", "--no-cache"]
        subprocess.run([*RADA, "fit", data, "--out", head, *few], check=True, capture_output=True)
        predict = [*RADA, "predict", head, str(image), "--no-cache"]
        for tree in trees.values():
            timed(predict, tree)  # the cache of the built-in model
        for number in range(options.rounds):
            runs = [("import torch", TORCH, trees["now"])]
            runs += [(f"predict, {name}", predict, tree) for name, tree in trees.items()]
            for name, command, tree in runs:
                seconds, used = timed(command, tree)
                clock.setdefault(name, []).append(seconds)
                processor.setdefault(name, []).append(used)
            for name, tree in trees.items():
                out = str(Path(place) / f"fit-{name}-{number}")
                seconds = first_line([*RADA, "fit", data, "--out", out, *few], tree)
                clock.setdefault(f"fit, first line, {name}", []).append(seconds)
    result: dict[str, object] = {"rounds": options.rounds}
    for unit, times in (("clock", clock), ("processor", processor)):
        rows = {}
        for name, found in times.items():
            pairs = zip(found, times["import torch"], strict=True)
            rows[name] = {
                "seconds": statistics.median(found),
                "over_import_torch": statistics.median(a / b for a, b in pairs),
                "runs": found,
            }
            print(
                f"{unit:9s} {name:26s} {rows[name]['seconds']:6.2f} s, {rows[name]['over_import_torch']:.2f} x"
            )
        result[unit] = rows
    if options.out:
        write_json(options.out, result | {"environment": environment()})


if __name__ == "__main__":
    main()
