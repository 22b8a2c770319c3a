"""100,000 small images through `rada encode` into a feature store: memory and time of each 10,000, with a kill between.

    OMP_NUM_THREADS=1 python benchmarks/encode_many.py [--images 100000] [--shard 10000] [--workers 1]
        [--folder DIR] [--no-cache] [--out results/encode_many.json]

The images are JPEGs of 300 contents, 96 x 72; each of the files holds its number as a comment, so that no two are alike in
their bytes, and no image is found in the cache, which knows them by content. The encoder is the tiny CLIP with random weights
that the tests build: what is measured is everything else. In the middle of a shard past half of the images the
command and its workers are killed (SIGKILL), and the same command is run again, which must keep the shards that are there.
Memory is the largest that is resident (VmRSS, shared pages included) while a shard is made, of the main process and of its
largest worker. Seconds are from one shard to the next; those of the first shard of a run hold the start of the program.
"""

from __future__ import annotations

import argparse
import io
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from rada.core.storage import write_json
from rada.evaluation import environment
from rada.features import FeatureStore

CONTENTS, CLASSES = 300, 10


def write_images(folder: Path, count: int) -> None:
    """Write JPEGs whose bytes differ, in folders of classes."""
    random = np.random.default_rng(0)
    contents = []
    for _ in range(CONTENTS):
        small = Image.fromarray(random.integers(0, 256, (9, 12, 3), dtype=np.uint8))
        file = io.BytesIO()
        small.resize((96, 72), Image.Resampling.BICUBIC).save(file, "JPEG", quality=85)
        contents.append(file.getvalue())
    for index in range(count):
        number, content = b"%08d" % index, contents[index % CONTENTS]
        comment = b"\xff\xfe" + (len(number) + 2).to_bytes(2, "big") + number
        place = folder / f"class-{index * CLASSES // count}"
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{index:08d}.jpg").write_bytes(content[:2] + comment + content[2:])


def resident(pid: int) -> int:
    """Return the resident memory of a process in KiB; 0 if it is gone."""
    try:
        found = re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())
    except OSError:
        return 0
    return int(found[1]) if found else 0


def workers_of(pid: int) -> list[int]:
    """Return the processes that a process has started."""
    try:
        return [int(n) for n in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
    except OSError:
        return []


def watched(
    words: list[str], variables: dict[str, str], shards: list[Path], kill_in: int | None
) -> list[dict[str, Any]]:
    """Run a command; return seconds and memory until each shard that it makes is there.

    It is killed with all its workers half a shard's time into shard `kill_in`.
    """
    found: list[dict[str, Any]] = []
    process = subprocess.Popen(
        words, env=variables, start_new_session=True, stdout=subprocess.DEVNULL
    )
    last, main, worker, waiting = time.perf_counter(), 0, 0, [s for s in shards if not s.exists()]
    while process.poll() is None:
        main = max(main, resident(process.pid))
        worker = max([worker, *map(resident, workers_of(process.pid))])
        now = time.perf_counter()
        if waiting and waiting[0].exists():
            number = shards.index(waiting.pop(0))
            line = {"shard": number, "seconds": round(now - last, 2)}
            found.append(line | {"main_MiB": main >> 10, "worker_MiB": worker >> 10})
            print(found[-1], flush=True)
            last, main, worker = now, 0, 0
        begun = kill_in is not None and len(shards) - len(waiting) == kill_in
        if begun and now - last > found[-1]["seconds"] / 2:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            return found
        time.sleep(0.02)
    assert process.returncode == 0 and kill_in is None, process.returncode
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--shard", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--no-cache", action="store_true")
    parser.add_argument("--folder", type=Path, help="where images and store are made")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "encoders"))
    from tiny_models import clip

    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        place = Path(name)
        images, store = place / "images", place / "store"
        write_images(images, options.images)
        clip(place / "encoder")
        words = [sys.executable, "-m", "rada", "encode", str(images), "--out", str(store)]
        words += ["--model", str(place / "encoder"), "--workers", str(options.workers)]
        words += ["--shard-rows", str(options.shard), *["--no-cache"] * options.no_cache]
        variables = os.environ | {"RADA_CACHE": str(place / "cache")}
        rows = -(-options.shard // 32) * 32  # whole batches
        shards = [store / f"shard-{n:05d}.safetensors" for n in range(-(-options.images // rows))]
        half = len(shards) // 2
        first = watched(words, variables, shards, half)
        kept = [shard.stat().st_mtime_ns for shard in shards[:half]]
        second = watched(words, variables, shards, None)
        assert kept == [shard.stat().st_mtime_ns for shard in shards[:half]], "written again"
        assert len(FeatureStore.open(store)) == options.images
    if options.out:
        names = ("images", "shard", "workers", "no_cache")
        facts = {key: getattr(options, key) for key in names}
        runs = {"killed": first, "resumed": second, "environment": environment()}
        write_json(options.out, facts | runs)


if __name__ == "__main__":
    main()
