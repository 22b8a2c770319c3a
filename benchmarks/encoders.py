"""Time and rounding of transformers as image encoders: eager PyTorch, rada, torch.compile and two engines, in turns.

    python benchmarks/encoders.py [--batch 16] [--threads 2] [--rounds 5] [--ways WAY ...] [--out results/encoders.json]
    python benchmarks/encoders.py --models --images textiles CIFAR10/test PACS/photo [--out results/encoders.json]
    python benchmarks/encoders.py --models --texts [--rounds 3] [--out results/encoders.json]

Random weights of the true architectures, which are enough for time and rounding: ViT-B/32, ViT-B/16 and SigLIP base of
open_clip, and CLIP ViT-B/32 of transformers. Eager is the encoder's own forward with gradients off and glibc's default
thresholds. Every way lives in a process of its own, since raising the thresholds cannot be undone. `float32` and `bfloat16`
are what rada does, `unpacked` is bfloat16 with weights that are laid out at every call; `compile-float32` and
`compile-bfloat16` are the plain models through torch.compile with frozen weights; `residual` has products in bfloat16 and the
sums of the layers in float32; `openvino` computes in bfloat16, and `onnxruntime` in float32, since its CPU kernels have no
bfloat16. The engines want `pip install openvino onnxruntime onnx onnxscript`.

`--images` asks whether bfloat16 keeps the zero-shot answers: each image goes through an encoder in float32 and in bfloat16.
`embedded` has trained weights; those of ViT-B/32 are random, so that its classes are the means of the images' features.
`--features` names the file of 3000 training images of ImageNet (clip_vitb32_imagenet.npz): rows of a real CLIP are turned
away by as much as bfloat16 turns the random models' worst row, in a random direction, and the best of 1000 classes is compared.

`--texts` embeds CLIP's 80 templates of the ten CIFAR classes with ViT-B/32's text encoder, 64 prompts at a time: open_clip's own
`encode_text` on its rows of 77 tokens, and rada, which computes no padding, in float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cosine_similarity, normalize

MODELS = ("ViT-B-32", "ViT-B-16", "ViT-B-16-SigLIP", "hf:clip-vit-base-patch32")
WAYS = ("eager", "float32", "bfloat16")
OTHERS = ("unpacked", "compile-float32", "compile-bfloat16", "residual", "openvino", "onnxruntime")
CHOSEN = "bfloat16"  # what rada does where dtype="auto" takes it: the others are compared with it


class OfTransformers(nn.Module):
    """A vision model of transformers as a module from pixels to embeddings."""

    def __init__(self) -> None:
        super().__init__()
        from transformers import CLIPVisionConfig, CLIPVisionModelWithProjection

        self.model = CLIPVisionModelWithProjection(
            CLIPVisionConfig(patch_size=32, projection_dim=512)
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.model(pixel_values=pixels).image_embeds


def images(name: str) -> nn.Module:
    """Return the image encoder with random weights."""
    torch.manual_seed(0)
    if name.startswith("hf:"):
        return OfTransformers().eval()
    import open_clip

    return open_clip.create_model(name).visual.eval()


# -- the ways -----------------------------------------------------------------------------------------


def plain(
    model: nn.Module, dtype: torch.dtype, *, pack: bool = False
) -> Callable[[Tensor], Tensor]:
    from rada.encoders.packing import packed_weights

    model.to(dtype)

    def run(pixels: Tensor) -> Tensor:
        packed = packed_weights(dtype, pixels.device) if pack else contextlib.nullcontext()
        with torch.no_grad(), packed:
            return model(pixels.to(dtype))

    return run


def compiled(model: nn.Module, dtype: torch.dtype) -> Callable[[Tensor], Tensor]:
    import torch._inductor.config

    torch._inductor.config.freezing = True  # packs the weights once, which no other setting does
    return plain(torch.compile(model.to(dtype)), dtype)


def residual(model: nn.Module) -> Callable[[Tensor], Tensor]:
    for part in model.modules():
        if isinstance(part, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)):
            part.to(torch.bfloat16)
        if isinstance(part, nn.Conv2d):  # the tokens begin here
            part.register_forward_hook(lambda *args: args[-1].float())

    def run(pixels: Tensor) -> Tensor:
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            return model(pixels)

    return run


def openvino(model: nn.Module, pixels: Tensor, threads: int) -> Callable[[Tensor], Tensor]:
    import openvino

    torch.backends.mha.set_fastpath_enabled(False)  # the converter does not know the fused operator
    graph = openvino.convert_model(torch.export.export(model, (pixels,)))
    settings = {
        "INFERENCE_PRECISION_HINT": "bf16",
        "INFERENCE_NUM_THREADS": threads,
        "PERFORMANCE_HINT": "LATENCY",
    }
    compiled = openvino.Core().compile_model(graph, "CPU", settings)
    return lambda pixels: torch.from_numpy(compiled(pixels.numpy())[0])


def onnxruntime(model: nn.Module, pixels: Tensor, threads: int) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    with tempfile.TemporaryDirectory() as place:
        path = str(Path(place) / "model.onnx")
        torch.onnx.export(model, (pixels,), path, dynamo=True, verbose=False)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return lambda pixels: torch.from_numpy(session.run(None, {name: pixels.numpy()})[0])


def runner(name: str, way: str, pixels: Tensor, threads: int) -> Callable[[Tensor], Tensor]:
    """Return one way of embedding pixels like the given ones."""
    from rada.encoders.memory import keep_freed_memory

    model = images(name)
    if way != "eager":
        keep_freed_memory()
    if way == "residual":
        return residual(model)
    if way == "openvino":
        return openvino(model, pixels, threads)
    if way == "onnxruntime":
        return onnxruntime(model, pixels, threads)
    dtype = torch.float32 if way.endswith(("eager", "float32")) else torch.bfloat16
    compiles = way.startswith("compile")
    return compiled(model, dtype) if compiles else plain(model, dtype, pack=way == CHOSEN)


def side(name: str, way: str, batch: int, threads: int, rows: Path) -> None:
    """Embed a batch for each line on standard input; print seconds by the clock and of processor time."""
    torch.set_num_threads(threads)
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    began = time.perf_counter()
    run = runner(name, way, pixels, threads)
    np.save(rows, normalize(run(pixels).float(), dim=-1).numpy())
    print("ready", time.perf_counter() - began, flush=True)
    run(pixels)
    for _ in sys.stdin:
        start, used = time.perf_counter(), time.process_time()
        run(pixels)
        print(time.perf_counter() - start, time.process_time() - used, flush=True)


# -- in turns -----------------------------------------------------------------------------------------


def begun(name: str, way: str, rows: Path, options: argparse.Namespace) -> tuple[Any, float | None]:
    """Start the process of a way, alone; return it with the seconds until its first result, None for none."""
    settings = ["--batch", str(options.batch), "--threads", str(options.threads)]
    process = subprocess.Popen(
        [sys.executable, __file__, "--side", name, way, str(rows), *settings],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=os.environ
        | {"OMP_NUM_THREADS": str(options.threads), "TORCHINDUCTOR_FORCE_DISABLE_CACHES": "1"},
    )
    limit = threading.Timer(options.patience, process.kill)
    limit.start()
    while (line := process.stdout.readline()) and not line.startswith("ready"):
        pass
    limit.cancel()
    return process, float(line.split()[1]) if line else None


def in_turns(name: str, options: argparse.Namespace) -> dict[str, dict]:
    """Measure all ways of one model in turns."""
    with tempfile.TemporaryDirectory() as place:
        files = {way: Path(place) / f"{way}.npy" for way in options.ways}
        started = {way: begun(name, way, files[way], options) for way in options.ways}
        processes = {way: found for way, found in started.items() if found[1] is not None}
        turns: dict[str, list[list[float]]] = {way: [] for way in processes}
        for _ in range(options.rounds):
            for way, (process, _) in processes.items():
                time.sleep(0.1)  # the threads of the one before stop waiting for more
                process.stdin.write("go\n")
                process.stdin.flush()
                turns[way].append([float(word) for word in process.stdout.readline().split()])
        for process, _ in processes.values():
            process.communicate()
        rows = {way: torch.from_numpy(np.load(files[way])) for way in processes}
    return {
        way: {
            "lowest_cosine": float(cosine_similarity(rows["eager"], rows[way]).min()),
            "seconds_until_first": processes[way][1],
            "clock": times(turns, way, 0, options.batch),
            "processor": times(turns, way, 1, options.batch),
        }
        for way in processes
    }


def times(
    turns: dict[str, list[list[float]]], way: str, unit: int, batch: int
) -> dict[str, float | list[float]]:
    """Return a way's milliseconds an image and how many times as fast as others it is, in one unit of time."""
    own = [turn[unit] for turn in turns[way]]
    found: dict[str, float | list[float]] = {"ms_each": statistics.median(own) / batch * 1e3}
    for other, key in (("eager", "eager"), (CHOSEN, "chosen")):
        ratios = [a[unit] / b for a, b in zip(turns[other], own, strict=True)]
        found |= {f"times_{key}": statistics.median(ratios), f"ratios_{key}": ratios}
    return found


def told(name: str, way: str, row: dict) -> str:
    clock = row["clock"]
    return (
        f"{name:26s} {way:17s} {clock['ms_each']:6.1f} ms an image, {clock['times_eager']:.2f} times eager, "
        f"{clock['times_chosen']:.2f} times {CHOSEN} ({row['processor']['times_chosen']:.2f} in processor time), "
        f"cosine {row['lowest_cosine']:.6f}, first result after {row['seconds_until_first']:.1f} s"
    )


# -- answers ------------------------------------------------------------------------------------------


def both_precisions(name: str) -> list[Any]:
    """Return an encoder in float32 and in bfloat16."""
    from rada import load_encoder

    if name == "embedded":
        return [load_encoder(name, dtype=dtype) for dtype in ("float32", "bfloat16")]
    import open_clip

    found = []
    for dtype in ("float32", "bfloat16"):
        torch.manual_seed(0)
        model, tokenizer = open_clip.create_model(name), open_clip.get_tokenizer(name)
        found.append(load_encoder(model, tokenizer=tokenizer, dtype=dtype))
    return found


def answers_of_images(name: str, spec: str, limit: int) -> dict[str, float]:
    """Compare the zero-shot answers of an encoder in two precisions on real images."""
    from rada.data import open_dataset

    data = open_dataset(spec)
    split = data.splits["test" if "test" in data.splits else next(iter(data.splits))]
    order = np.random.default_rng(0).permutation(len(split))[:limit]
    pictures = [split.load(int(index)) for index in order]
    labels = torch.from_numpy(split.labels[order])
    best, features, margins = [], [], Tensor()
    for encoder in both_precisions(name):
        rows = encoder.encode_images(pictures)
        if name == "embedded":
            texts = encoder.encode_classes(data.classes, data.templates)
        else:
            texts = torch.stack(
                [normalize(rows[labels == k].mean(0), dim=0) for k in range(len(data.classes))]
            )
        scores = rows @ texts.T
        top = scores.topk(2).values
        margins = margins if len(margins) else top[:, 0] - top[:, 1]
        best.append(scores.argmax(1))
        features.append(rows)
    same = best[0] == best[1]
    return {
        "images": len(order),
        "classes": len(data.classes),
        "kept": float(same.float().mean()),
        "lowest_cosine": float(cosine_similarity(*features).min()),
        "median_cosine": float(cosine_similarity(*features).median()),
        "accuracy_float32": float((best[0] == labels).float().mean()),
        "accuracy_bfloat16": float((best[1] == labels).float().mean()),
        "median_margin": float(margins.median()),
        "largest_margin_of_changed": float(margins[~same].max()) if not same.all() else 0.0,
    }


def answers_of_features(path: Path, cosine: float) -> dict[str, float]:
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


# -- texts --------------------------------------------------------------------------------------------

CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def text_times(rounds: int) -> dict[str, Any]:
    """Measure what a prompt costs, in turns."""
    from rada.data.prompts import build_prompts
    from rada.data.templates import IMAGENET_TEMPLATES

    prompts = [text for row in build_prompts(CIFAR, IMAGENET_TEMPLATES) for text in row]
    encoders = dict(zip(("float32", "bfloat16"), both_precisions("ViT-B-32"), strict=True))
    plain_one = encoders["float32"]

    def padded() -> Tensor:
        rows = []
        with torch.no_grad():
            for start in range(0, len(prompts), 64):
                tokens = plain_one.tokenizer(prompts[start : start + 64])
                rows.append(plain_one.model.encode_text(tokens, normalize=True))
        return torch.cat(rows)

    ways: dict[str, Callable[[], Tensor]] = {"eager": padded}
    for name, encoder in encoders.items():
        ways[name] = lambda encoder=encoder: encoder.encode_texts(prompts)
    turns: dict[str, list[list[float]]] = {way: [] for way in ways}
    rows = {}
    for _ in range(rounds):
        for way, run in ways.items():
            start, used = time.perf_counter(), time.process_time()
            rows[way] = run()
            turns[way].append([time.perf_counter() - start, time.process_time() - used])
    found: dict[str, Any] = {"prompts": len(prompts), "rounds": rounds}
    for way in ways:
        found[way] = {
            "lowest_cosine": float(cosine_similarity(rows["eager"], rows[way]).min()),
            "clock": times(turns, way, 0, len(prompts)),
            "processor": times(turns, way, 1, len(prompts)),
        }
    return found


def report(path: Path) -> None:
    """Print the tables of docs/performance.md."""
    result = json.loads(path.read_text())
    for name, found in result["models"].items():
        for way, row in found["ways"].items():
            clock, used, kept = row["clock"], row["processor"], row.get("imagenet")
            cells = [
                name,
                way,
                f"{clock['ms_each']:.0f} ms",
                *(f"{value:.2f}" for value in (clock["times_eager"], used["times_eager"])),
                f"{clock['times_chosen']:.2f}",
                f"{row['lowest_cosine']:.5f}",
                f"{100 * kept['kept']:.1f} %" if kept else "",
                f"{row['seconds_until_first']:.0f} s",
            ]
            print("| " + " | ".join(cells) + " |")
    for encoder, sets in result["answers"].items():
        for title, row in sets.items():
            cells = [encoder, title, str(row["images"]), f"{100 * row['kept']:.2f} %"]
            cells += [f"{row[key]:.5f}" for key in ("lowest_cosine", "median_cosine")]
            cells += [f"{100 * row[f'accuracy_{dtype}']:.1f}" for dtype in ("float32", "bfloat16")]
            cells += [f"{row['largest_margin_of_changed']:.1e}", f"{row['median_margin']:.1e}"]
            print("| " + " | ".join(cells) + " |")
    for way in WAYS if "texts" in result else []:
        row = result["texts"][way]
        clock = row["clock"]
        cells = [
            way,
            f"{clock['ms_each']:.1f} ms",
            f"{clock['times_eager']:.1f}",
            f"{row['lowest_cosine']:.5f}",
        ]
        print("| " + " | ".join(cells) + " |")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--models", nargs="*", default=list(MODELS))
    parser.add_argument("--ways", nargs="+", choices=WAYS + OTHERS, default=list(WAYS))
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--patience", type=float, default=90, help="seconds until a way's first result"
    )
    parser.add_argument("--features", type=Path)
    parser.add_argument("--images", nargs="+", default=[])
    parser.add_argument("--texts", action="store_true")
    parser.add_argument("--limit", type=int, default=1000, help="images of a data set")
    parser.add_argument("--encoders", nargs="+", default=["embedded", "ViT-B-32"])
    parser.add_argument("--out", type=Path, help="results are added to what the file holds")
    parser.add_argument("--report", action="store_true", help="print the tables of --out")
    parser.add_argument("--side", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.side:
        name, way, rows = options.side
        side(name, way, options.batch, options.threads, Path(rows))
        return
    if options.report:
        report(options.out)
        return
    from rada.core.storage import write_json
    from rada.evaluation import environment
    from rada.evaluation.provenance import command_line

    known = options.out and options.out.exists()
    result: dict = json.loads(options.out.read_text()) if known else {"models": {}, "answers": {}}
    origin = {"command": command_line(), "environment": environment()}
    for name in options.models:
        ways = in_turns(name, options)
        for way, row in ways.items():
            print(told(name, way, row), flush=True)
            if options.features and way in ("bfloat16", "residual", "openvino"):
                row["imagenet"] = answers_of_features(options.features, row["lowest_cosine"])
                print(row["imagenet"])
        settings = {key: getattr(options, key) for key in ("batch", "threads", "rounds")}
        failed = [way for way in options.ways if way not in ways]
        if failed:
            print(f"{name}: no result within {options.patience:.0f} s from {', '.join(failed)}")
        result["models"][name] = settings | {"ways": ways, "failed": failed} | origin
        if options.out:  # after each: what was measured is not lost
            write_json(options.out, result)
    if options.texts:
        torch.set_num_threads(options.threads)
        texts = text_times(options.rounds)
        for way in WAYS:
            clock = texts[way]["clock"]
            print(
                f"{way}: {clock['ms_each']:.1f} ms a prompt, {clock['times_eager']:.1f} times eager"
            )
        result["texts"] = texts | {"threads": options.threads} | origin
        if options.out:
            write_json(options.out, result)
    for name in options.encoders if options.images else []:
        for spec in options.images:
            found = answers_of_images(name, spec, options.limit)
            print(name, spec, found, flush=True)
            title = spec if spec == "textiles" else "/".join(Path(spec).parts[-2:])
            result["answers"].setdefault(name, {})[title] = found | origin
            if options.out:
                write_json(options.out, result)


if __name__ == "__main__":
    main()
