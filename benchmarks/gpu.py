"""What rada does on a GPU: the same numbers as on the CPU, how fast, and how much memory.

python benchmarks/gpu.py [--device cuda] [--quick] [--out benchmarks/results/gpu.json]

One command of some minutes for a person with a card. Every part says what it compared: the head (forward,
step, gradients), the training of a head and test-time training against the CPU; then the head against its
plain form, which holds whole maps, in turns within this process; test-time images a second; and, where
open_clip is installed, images a second of ViT-B/32 with random weights in float32 and bfloat16.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

sys.path.insert(0, str(Path(__file__).parent))
from head import plain_head
from rada.features import ClassSet
from rada.head import RAdaHead
from rada.methods.rada import EFTConfig, train_head
from rada.test_time import TTTConfig, adapt_views

SCALE = 50.0
SIZES = ((32, 100), (32, 397), (8, 1000), (1, 5000), (1, 21_000))


def rows(count: int, dim: int, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(count, dim, generator=generator), dim=-1)


def a_head(dim: int, seed: int = 0) -> RAdaHead:
    torch.manual_seed(seed)
    head = RAdaHead(dim)
    with torch.no_grad():
        for parameter in head.out.parameters():
            parameter.normal_(std=0.02)
    return head


def difference(one: Tensor, other: Tensor) -> float:
    """Largest difference as a part of the largest value."""
    one, other = one.detach().double().cpu(), other.detach().double().cpu()
    return float((one - other).abs().max() / one.abs().max().clamp(min=1e-12))


def head_step(head: RAdaHead, images: Tensor, text: Tensor) -> tuple[Tensor, list[Tensor]]:
    output = head(images, text, SCALE)
    labels = torch.arange(len(images), device=images.device) % len(text)
    loss = cross_entropy(output.logits, labels) + output.max_deviation.mean()
    return output.logits, list(torch.autograd.grad(loss, list(head.parameters())))


def parity(device: torch.device) -> dict[str, float]:
    """The same work on both, as relative differences."""
    found: dict[str, float] = {}
    for batch, classes in ((8, 24), (4, 300)):
        images, text, head = rows(batch, 512, 1), rows(classes, 512, 2), a_head(512)
        logits, gradients = head_step(head, images, text)
        head.to(device)
        there, moved = head_step(head, images.to(device), text.to(device))
        found[f"head, K = {classes}: logits"] = difference(logits, there)
        found[f"head, K = {classes}: gradients"] = max(map(difference, gradients, moved))
    images, text, labels = rows(96, 512, 3), rows(24, 512, 4), torch.arange(96) % 24
    images = normalize(images / 3 + text[labels], dim=-1)
    config = EFTConfig(epochs=2, min_steps=0, strength=1.0)
    names = ClassSet(tuple(map(str, range(24))), text)
    here = train_head(images, labels, text, SCALE, config, progress=False)
    moved_model = train_head(
        images.to(device), labels.to(device), text.to(device), SCALE, config, progress=False
    )
    on_device = ClassSet(names.names, text.to(device))
    found["trained head: logits"] = difference(
        here.logits(images, names), moved_model.logits(images.to(device), on_device)
    )
    views = normalize(rows(16 * 20, 512, 5).view(16, 20, 512) / 2 + text[:16, None], dim=-1)
    adapted = [
        adapt_views(views.to(place), text.to(place), SCALE, None, TTTConfig(selection=0.2))
        for place in (torch.device("cpu"), device)
    ]
    found["test-time training: logits"] = difference(*adapted)
    return found


def timed(work: Callable[[], Any], device: torch.device, rounds: int) -> float:
    """Median seconds of a call."""
    times = []
    for _ in range(rounds + 2):
        synchronise(device)
        began = time.perf_counter()
        work()
        synchronise(device)
        times.append(time.perf_counter() - began)
    return statistics.median(times[2:])


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def peak(work: Callable[[], Any], device: torch.device) -> int | None:
    if device.type != "cuda":
        return None
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    work()
    return int(torch.cuda.max_memory_allocated() - before)


def plain_step(head: RAdaHead, images: Tensor, text: Tensor) -> None:
    logits, peaks = plain_head(head, images, text, SCALE)
    labels = torch.arange(len(images), device=images.device) % len(text)
    loss = cross_entropy(logits, labels) + peaks.mean()
    torch.autograd.grad(loss, list(head.parameters()))


def measured(work: Callable[[], Any], device: torch.device, rounds: int) -> dict[str, Any]:
    try:
        return {"seconds": timed(work, device, rounds), "bytes": peak(work, device)}
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return {"seconds": None, "bytes": None}


def speed(device: torch.device, sizes: Any, rounds: int) -> list[dict[str, Any]]:
    """Ours against the plain form, in turns."""
    found = []
    for batch, classes in sizes:
        head = a_head(512).to(device)
        images, text = rows(batch, 512, 1).to(device), rows(classes, 512, 2).to(device)
        entry: dict[str, Any] = {"batch": batch, "classes": classes}

        def forward(head=head, images=images, text=text) -> None:
            with torch.no_grad():
                head(images, text, SCALE)

        def plain(head=head, images=images, text=text) -> None:
            with torch.no_grad():
                plain_head(head, images, text, SCALE)

        entry["forward"] = {
            "ours": measured(forward, device, rounds),
            "plain": measured(plain, device, rounds),
        }
        entry["step"] = {
            "ours": measured(lambda h=head, i=images, t=text: head_step(h, i, t), device, rounds),
            "plain": measured(lambda h=head, i=images, t=text: plain_step(h, i, t), device, rounds),
        }
        found.append(entry)
        print(json.dumps(entry), flush=True)
    return found


def test_time(device: torch.device, images: int, rounds: int) -> dict[str, Any]:
    text = rows(100, 512, 2)
    views = normalize(rows(images * 64, 512, 5).view(images, 64, 512) / 2 + text[0], dim=-1)
    views, text = views.to(device), text.to(device)
    seconds = timed(lambda: adapt_views(views, text, SCALE), device, rounds)
    loop = timed(lambda: adapt_views(views[:8], text, SCALE, batch_size=1), device, 2)
    return {"images_per_second": images / seconds, "loop_images_per_second": 8 / loop}


def encoder(device: torch.device, rounds: int) -> dict[str, Any] | None:
    try:
        import open_clip
    except ImportError:
        return None
    model = open_clip.create_model("ViT-B-32", pretrained=None).to(device).eval()
    pixels = torch.randn(256, 3, 224, 224, device=device)
    found: dict[str, Any] = {}
    for name, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        run, given = model.to(dtype), pixels.to(dtype)

        def work(run=run, given=given) -> None:
            with torch.inference_mode():
                run.encode_image(given)

        found[f"{name}_images_per_second"] = len(pixels) / timed(work, device, rounds)
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/gpu.json"))
    given = parser.parse_args()
    device, rounds = torch.device(given.device), 3 if given.quick else 9
    torch.backends.cuda.matmul.allow_tf32 = False
    name = torch.cuda.get_device_name() if device.type == "cuda" else "CPU"
    result: dict[str, Any] = {"device": name, "torch": torch.__version__}
    result["against_cpu"] = parity(device)
    print(json.dumps(result["against_cpu"], indent=2), flush=True)
    result["head"] = speed(device, SIZES[:2] if given.quick else SIZES, rounds)
    result["test_time"] = test_time(device, 16 if given.quick else 256, rounds)
    result["vit_b_32"] = None if given.quick else encoder(device, rounds)
    given.out.parent.mkdir(parents=True, exist_ok=True)
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps({key: result[key] for key in ("test_time", "vit_b_32")}, indent=2))


if __name__ == "__main__":
    main()
