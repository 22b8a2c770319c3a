"""What the head costs in full fine-tuning: a step of RAda-FT against one of FT, and memory.

python benchmarks/finetune_step.py [--model embedded] [--batch 32] [--rounds 5]

K = 10, 100, 1000 classes. Both train the image encoder alone (`train="image"`), so that the difference is the
head; the row "both encoders" adds the text encoder, whose prompts are encoded in chunks with checkpointing.
The steps take turns in one process; medians of processor time, and of the peak of allocated memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from functools import partial
from pathlib import Path

import torch

from rada import load_encoder
from rada.bench.memory import peak_allocated
from rada.encoders.memory import keep_freed_memory
from rada.evaluation import environment
from rada.methods import Facts, get_method
from rada.methods.finetune.model import TunedModel
from rada.training.batches import Batch
from rada.training.feature_loop import seeded

ROOT = Path(__file__).resolve().parents[1]


def build(encoder, name: str, classes: int, **changes) -> TunedModel:
    method = get_method(name)
    config = method.config(**changes)
    names = tuple(f"thing number {index}" for index in range(classes))
    generator = torch.Generator().manual_seed(0)
    text = torch.nn.functional.normalize(
        torch.randn(classes, encoder.dim, generator=generator), dim=-1
    )
    facts = Facts(encoder.dim, encoder.scale, names, ("a photo of a {}.",))
    with seeded(0):
        model = TunedModel(method, facts, config, encoder, text)
    if model.head is not None:
        torch.nn.init.normal_(model.head.out.weight, std=0.02)
    model.training_mode()
    return model


def step(model: TunedModel, batch: Batch) -> float:
    began = time.process_time()
    model.zero_grad(set_to_none=True)
    model(batch)["loss"].backward()
    return time.process_time() - began


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--classes", type=int, nargs="+", default=[10, 100, 1000])
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=ROOT / "benchmarks" / "results")
    options = parser.parse_args()
    torch.set_num_threads(1)
    keep_freed_memory()
    encoder = load_encoder(options.model)
    encoder.model.to(memory_format=torch.channels_last)
    side = encoder.preprocess.size[0]
    pixels = torch.randn(options.batch, 3, side, side).contiguous(memory_format=torch.channels_last)
    rows = []
    for classes in options.classes:
        batch = Batch(
            pixels,
            torch.arange(options.batch) % classes,
            torch.ones(options.batch),
            options.batch,
        )
        drawn = min(64, classes)
        subset = Batch(
            pixels,
            torch.arange(options.batch) % drawn,
            torch.ones(options.batch),
            options.batch,
            classes=torch.arange(drawn),
        )
        works = {
            "ft": (build, "ft", batch, {}),
            "rada_ft, all classes": (build, "rada_ft", batch, {"train": "image"}),
            "rada_ft, 64 classes": (build, "rada_ft", subset, {"train": "image"}),
            "rada_ft, default (both encoders)": (build, "rada_ft", subset, {}),
        }
        seconds: dict[str, list[float]] = {name: [] for name in works}
        memory = {}
        for turn in range(options.rounds + 1):
            for name, (make, method, data, changes) in works.items():
                model = make(encoder, method, classes, **changes)
                if turn == 0:
                    step(model, data)
                    memory[name] = peak_allocated(partial(step, model, data))
                else:
                    seconds[name].append(step(model, data))
        base = statistics.median(seconds["ft"])
        for name, taken in seconds.items():
            ratio = statistics.median(t / f for t, f in zip(taken, seconds["ft"], strict=True))
            rows.append(
                {
                    "classes": classes,
                    "method": name,
                    "seconds": statistics.median(taken),
                    "over_ft": ratio - 1,
                    "memory": memory[name],
                    "memory_over_ft": memory[name] / memory["ft"] - 1,
                }
            )
        print(f"K = {classes}: a step of FT takes {base:.2f} s", flush=True)
    lines = ["| K | step | seconds | over FT | memory | over FT |", "|--:|:--|--:|--:|--:|--:|"]
    lines += [
        f"| {r['classes']} | {r['method']} | {r['seconds']:.2f} | {100 * r['over_ft']:+.1f} % "
        f"| {r['memory'] / 2**20:.0f} MiB | {100 * r['memory_over_ft']:+.1f} % |"
        for r in rows
    ]
    print("\n".join(lines))
    result = {"command": f"benchmarks/finetune_step.py --batch {options.batch}", "rows": rows}
    result["environment"] = environment()
    (options.out / "finetune_step.json").write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
