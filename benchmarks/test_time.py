"""Speed of test-time training: the batched form beside the loop and beside encoding the views.

    python benchmarks/test_time.py --rounds 5

The forms take turns round by round, and processor time is counted, so that other programs on the
machine disturb them alike. Beside the batched form, which adapts to every image here (`agreement=0`):

- the loop as TPT is written: all views through the head, ordinary autograd, a step of AdamW, image by
  image;
- a lean loop that knows that the untrained head is the zero-shot model, so that it chooses the views
  without running the head on them;
- encoding the 64 views with the embedded model.
"""

from __future__ import annotations

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rada.core.storage import write_json
from rada.evaluation import environment
from rada.test_time import TTTConfig, adapt_views
from rada.test_time.selection import (
    entropy,
    keep_confident,
    mean_log_probability,
    view_entropies,
)
from rada.test_time.start import untrained_head

RESULT = Path(__file__).parent / "results" / "test_time_speed.json"
SCALE = 100.0


def problem(images: int, views: int, classes: int, dim: int) -> tuple[Tensor, Tensor]:
    """Views of images that are near their class, as confident as CLIP features are."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(classes, dim, generator=generator), dim=-1)
    own = text[torch.randint(classes, (images,), generator=generator), None]
    noise = torch.randn(images, views, dim, generator=generator)
    return normalize(0.3 * own + 0.04 * noise, dim=-1), text


def loop(views: Tensor, text: Tensor, config: TTTConfig, lean: bool) -> Tensor:
    """Adapt to each image on its own, with autograd and AdamW."""
    initial = untrained_head(text.shape[1], config.num_heads, 1.0, 0, views.dtype)
    head = copy.deepcopy(initial).requires_grad_(True)
    answers = []
    for image in views:
        head.load_state_dict(initial.state_dict())
        optimizer = torch.optim.AdamW(head.parameters(), lr=1e-4)
        with torch.no_grad():
            logits = SCALE * image @ text.T if lean else head(image, text, SCALE).logits
            kept = image[keep_confident(view_entropies(logits)[None], config.kept(len(image)))[0]]
        optimizer.zero_grad()
        entropy(mean_log_probability(head(kept, text, SCALE).logits)).backward()
        optimizer.step()
        with torch.no_grad():
            answers.append(head(image[:1], text, SCALE).logits[0])
    return torch.stack(answers)


def milliseconds(work: Callable[[], object], images: int) -> float:
    """Processor time an image."""
    begin = time.process_time()
    work()
    return (time.process_time() - begin) / images * 1e3


def encoding(views: int, rounds: int) -> float | None:
    """Processor time of encoding one image's views, without decoding and cropping."""
    from rada.core.errors import RadaError
    from rada.encoders import load_encoder

    try:
        encoder = load_encoder("embedded")
    except RadaError:
        return None
    pixels = torch.randn(views, 3, 224, 224)
    encoder.infer_images(pixels)
    times = [milliseconds(lambda: encoder.infer_images(pixels), 1) for _ in range(rounds)]
    return statistics.median(times)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--views", type=int, default=64)
    parser.add_argument("--classes", type=int, default=100)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--images", type=int, default=16, help="of the batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    views, text = problem(options.images, options.views, options.classes, options.dim)
    config = TTTConfig(agreement=0.0)
    few = views[:2]
    forms: dict[str, tuple[Callable[[], Tensor], int]] = {
        "loop": (lambda: loop(few, text, config, lean=False), len(few)),
        "lean_loop": (lambda: loop(few, text, config, lean=True), len(few)),
        "batched": (lambda: adapt_views(views, text, SCALE, None, config), len(views)),
    }
    for form, _ in forms.values():  # warm up
        form()
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, (form, count) in forms.items():
            times[name].append(milliseconds(form, count))
    median = {name: statistics.median(values) for name, values in times.items()}
    encode = encoding(options.views, min(3, options.rounds))
    result = {
        "views": options.views,
        "classes": options.classes,
        "dim": options.dim,
        "images": options.images,
        "milliseconds_an_image": median,
        "all_rounds": times,
        "loop_over_batched": median["loop"] / median["batched"],
        "lean_loop_over_batched": median["lean_loop"] / median["batched"],
        "encoding_milliseconds": encode,
        "batched_over_encoding": None if encode is None else median["batched"] / encode,
        "environment": environment(),
    }
    write_json(options.out, result)
    for key, value in result.items():
        if key not in ("environment", "all_rounds"):
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
