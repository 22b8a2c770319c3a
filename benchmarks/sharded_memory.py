"""What each process of full fine-tuning holds at its peak: one process, and shards (FSDP2) of two.

    OMP_NUM_THREADS=1 python benchmarks/sharded_memory.py [--model ViT-B-32] [--out results/sharded_memory.json]

FLYP trains both encoders of a model of open_clip with random weights, in float32 with AdamW, two steps of 16 images on the CPU. Counted are
the tensors that are alive at once from the loading of the model to the end (torch's profiler notes every allocation): the encoder, the copy that
learns, its start for WiSE-FT, gradients and moments, activations, and what is gathered to evaluate and to write a checkpoint.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

STEPS, BATCH = 2, 16


def made(place: Path, name: str) -> int:
    """Write a model with random weights, and images of two classes; return the model's parameters."""
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
    return sum(weight.numel() for weight in model.parameters())


def train(place: Path, out: str) -> None:
    """Be one of the processes, and write what was alive at once."""
    from rada import FineTuner, load_encoder
    from rada.bench.memory import peak_allocated
    from rada.methods import get_method

    config = get_method("flyp").config(epochs=1, batch_size=BATCH)

    def work() -> None:
        tuner = FineTuner(load_encoder(place / "model"), "flyp", config, workers=0, progress=False)
        tuner.fit(place / "images", output_dir=place / out)

    peak = peak_allocated(work)
    (place / f"{out}-{os.environ.get('RANK', '0')}.peak").write_text(str(peak))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="ViT-B-32")
    parser.add_argument("--processes", type=int, nargs="+", default=[2])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--train", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.train:
        train(Path(options.train[0]), options.train[1])
        return
    from rada.core.storage import write_json
    from rada.evaluation import environment
    from rada.evaluation.provenance import command_line

    result: dict[str, Any] = {"model": options.model, "environment": environment()}
    result["command"] = command_line()
    with tempfile.TemporaryDirectory() as place:
        result["parameters"], result["rows"] = made(Path(place), options.model), []
        print(f"{options.model}: {result['parameters'] * 4 / 2**20:,.0f} MiB of weights")
        for count in (1, *options.processes):
            launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={count}"]
            sharded = {"ACCELERATE_USE_FSDP": "true", "FSDP_VERSION": "2"}
            subprocess.run(
                [
                    sys.executable,
                    *(launcher if count > 1 else []),
                    __file__,
                    "--train",
                    place,
                    f"out-{count}",
                ],
                env=os.environ | (sharded if count > 1 else {}),
                check=True,
                capture_output=True,
            )
            files = sorted(Path(place).glob(f"out-{count}-*.peak"))
            peaks = [int(file.read_text()) for file in files]
            assert len(peaks) == count
            result["rows"].append({"processes": count, "bytes": peaks})
            each = ", ".join(f"{peak / 2**20:,.0f}" for peak in peaks)
            print(f"{count} {'processes' if count > 1 else 'process'}: {each} MiB", flush=True)
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
