"""What each process of full fine-tuning holds: one process, and shards (FSDP2) of two and four.

    OMP_NUM_THREADS=1 python benchmarks/sharded_memory.py [--model ViT-B-32] [--out results/sharded_memory.json]

FLYP trains both encoders of a model of open_clip with random weights, float32 and AdamW, two steps of 16 images, on the CPU. A process's
memory is its largest private one (RssAnon), read fifty times a second from its start to its end: the libraries, the model,
what learns, its gradients and moments, and what is gathered to write a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

STEPS, BATCH = 2, 16


def made(place: Path, name: str) -> tuple[Path, Path, int]:
    """Write a model with random weights and images of two classes; return both and the model's parameters."""
    import open_clip
    import torch
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = open_clip.create_model(name)
    folder = place / "model"
    folder.mkdir()
    save_file(model.state_dict(), folder / "open_clip_model.safetensors")
    config = {"model_cfg": open_clip.get_model_config(name), "preprocess_cfg": {}}
    (folder / "open_clip_config.json").write_text(json.dumps(config))
    random = np.random.default_rng(0)
    for number in range(STEPS * BATCH):
        named = place / "images" / ("cat", "dog")[number % 2]
        named.mkdir(parents=True, exist_ok=True)
        pixels = random.integers(0, 256, (64, 64, 3), np.uint8)
        Image.fromarray(pixels).save(named / f"{number}.png")
    return folder, place / "images", sum(weight.numel() for weight in model.parameters())


def private(process: psutil.Process) -> int:
    """Return the bytes that a process alone holds, 0 where it has ended."""
    try:
        status = Path(f"/proc/{process.pid}/status").read_text()
    except OSError:
        return 0
    found = re.search(r"RssAnon:\s+(\d+)", status)
    return int(found[1]) << 10 if found else 0


def measured(command: list[str], variables: dict[str, str], count: int) -> list[int]:
    """Run a command; return the largest private memory of its `count` largest processes, in bytes."""
    largest: dict[int, int] = {}
    with tempfile.TemporaryFile() as told:
        process = subprocess.Popen(command, env=os.environ | variables, stdout=told, stderr=told)
        while process.poll() is None:
            try:
                running = [psutil.Process(process.pid)]
                running += running[0].children(recursive=True)
            except psutil.Error:
                break
            for one in running:
                largest[one.pid] = max(largest.get(one.pid, 0), private(one))
            time.sleep(0.02)
        if process.wait():
            told.seek(0)
            raise SystemExit(told.read().decode())
    return sorted(largest.values(), reverse=True)[:count]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--processes", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    from rada.core.storage import write_json
    from rada.evaluation import environment
    from rada.evaluation.provenance import command_line

    result: dict[str, Any] = {"model": options.model, "environment": environment()}
    result["command"] = command_line()
    with tempfile.TemporaryDirectory() as place:
        model, images, parameters = made(Path(place), options.model)
        result["parameters"], result["rows"] = parameters, []
        print(f"{options.model}: {parameters / 1e6:.0f} million parameters")
        for count, sharded in [(1, False), *((count, True) for count in options.processes)]:
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
            words = ["finetune", str(images), "--model", str(model), "--method", "flyp"]
            words += ["--set", "epochs=1", "--set", f"batch_size={BATCH}"]
            words += ["--out", f"{place}/out-{count}-{sharded}"]
            variables = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"} if sharded else {}
            command = [sys.executable, *(launcher if count > 1 else []), "-m", "rada", *words]
            found = measured(command, variables, count)
            result["rows"].append({"processes": count, "sharded": sharded, "bytes": found})
            print(
                f"{count} process{'es, in shards' if sharded else ''}: "
                + ", ".join(f"{size / 2**20:,.0f}" for size in found)
                + " MiB",
                flush=True,
            )
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
