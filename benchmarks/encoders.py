"""Images a second of transformers as image encoders: eager float32, rada in float32 and in bfloat16, in turns.

    python benchmarks/encoders.py [--batch 16] [--threads 2] [--rounds 5] [--compile] [--out results/encoders.json]

Random weights of the true architectures, which are enough for time and rounding: ViT-B/32, ViT-B/16 and SigLIP base of
open_clip, and CLIP ViT-B/32 of transformers. Eager is the encoder's own forward with gradients off and glibc's default
thresholds; it lives in a process of its own, since raising the thresholds cannot be undone. `--compile` adds torch.compile.

Whether bfloat16 keeps the answers is asked of real CLIP features, if `--features` names the file of 3000 training images
of ImageNet (clip_vitb32_imagenet.npz): rows are turned away by as much as bfloat16 turns the random ones, in a random
direction, and the best of the 1000 classes is compared.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity, normalize

MODELS = ("ViT-B-32", "ViT-B-16", "ViT-B-16-SigLIP", "hf:clip-vit-base-patch32")
WAYS = ("eager", "float32", "bfloat16")


def images(name: str):
    """Return the image encoder with random weights, as a function of pixels, and its module."""
    torch.manual_seed(0)
    if name.startswith("hf:"):
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        model = CLIPVisionModelWithProjection(CLIPVisionConfig(patch_size=32, projection_dim=512))
        return model.eval(), lambda pixels: model(pixel_values=pixels).image_embeds
    import open_clip

    model = open_clip.create_model(name).visual.eval()
    return model, lambda pixels: model(pixels)


def side(name: str, way: str, batch: int, threads: int, rows: Path) -> None:
    """Embed a batch for each line on standard input; print seconds by the clock and of processor time."""
    from rada.encoders.memory import keep_freed_memory

    torch.set_num_threads(threads)
    model, embed = images(name)
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    half = way == "bfloat16"
    if way != "eager":
        keep_freed_memory()
    if half:
        model.to(torch.bfloat16)
    if way == "compile":
        embed = torch.compile(embed)

    def run() -> Tensor:
        with torch.no_grad():
            return embed(pixels.to(next(model.parameters()).dtype)).float()

    np.save(rows, normalize(run(), dim=-1).numpy())
    run()
    print("ready", flush=True)
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        run()
        print(time.perf_counter() - start, time.process_time() - used, flush=True)


def in_turns(name: str, ways: list[str], options: argparse.Namespace) -> dict:
    with tempfile.TemporaryDirectory() as place:
        files = {way: Path(place) / f"{way}.npy" for way in ways}
        common = ["--batch", str(options.batch), "--threads", str(options.threads)]
        processes = {
            way: subprocess.Popen(
                [sys.executable, __file__, "--side", name, way, str(files[way]), *common],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.DEVNULL,
                text=True,
                env=os.environ | {"OMP_NUM_THREADS": str(options.threads)},
            )
            for way in ways
        }
        for process in processes.values():
            assert process.stdout.readline() == "ready\n"
        turns: dict[str, list[list[float]]] = {way: [] for way in ways}
        for _ in range(options.rounds):
            for way, process in processes.items():
                process.stdin.write("go\n")
                process.stdin.flush()
                turns[way].append([float(word) for word in process.stdout.readline().split()])
        for process in processes.values():
            process.communicate()
        rows = {way: torch.from_numpy(np.load(file)) for way, file in files.items()}
    found: dict = {}
    for way in ways:
        cosine = cosine_similarity(rows["eager"], rows[way]).min()
        found[way] = {"lowest_cosine": float(cosine)}
        for place, unit in enumerate(("clock", "processor")):
            pairs = zip(turns["eager"], turns[way], strict=True)
            ratios = [a[place] / b[place] for a, b in pairs]
            found[way][unit] = {
                "ms_an_image": statistics.median(turn[place] for turn in turns[way])
                / options.batch
                * 1e3,
                "times_eager": statistics.median(ratios),
                "ratios": ratios,
            }
    return found


def kept_answers(path: Path, cosine: float) -> dict[str, float]:
    """Return how many of real images keep their best class when their features turn by a cosine."""
    table = np.load(path)
    rows = np.concatenate([table["one_shot"], table["two_shot"]])
    features, classes = (
        normalize(torch.from_numpy(x).float(), dim=-1) for x in (rows, table["text"])
    )
    noise = torch.randn(features.shape, generator=torch.Generator().manual_seed(0))
    noise = normalize(noise - (noise * features).sum(1, keepdim=True) * features, dim=-1)
    turned = cosine * features + (1 - cosine**2) ** 0.5 * noise
    same = (features @ classes.T).argmax(1) == (turned @ classes.T).argmax(1)
    return {"cosine": cosine, "images": len(features), "kept": float(same.float().mean())}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="+", default=list(MODELS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--features", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        name, way, rows = options.side
        side(name, way, options.batch, options.threads, Path(rows))
        return
    from rada.core.storage import write_json
    from rada.evaluation import environment

    ways = [*WAYS] + (["compile"] if options.compile else [])
    result: dict = {name: getattr(options, name) for name in ("batch", "threads", "rounds")}
    result["models"] = models = {}
    for name in options.models:
        models[name] = in_turns(name, ways, options)
        for way, row in models[name].items():
            print(
                f"{name:26s} {way:9s} {row['processor']['ms_an_image']:6.1f} ms of processor time an image, "
                f"{row['processor']['times_eager']:.2f} times eager ({row['clock']['times_eager']:.2f} by the "
                f"clock), cosine {row['lowest_cosine']:.6f}",
                flush=True,
            )
        if options.features:
            lowest = min(row["bfloat16"]["lowest_cosine"] for row in models.values())
            result["answers"] = kept_answers(options.features, lowest)
        if options.out:  # after each model: what was measured is not lost
            write_json(options.out, result | {"environment": environment()})
    print(result.get("answers"))


if __name__ == "__main__":
    main()
