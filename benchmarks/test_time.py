"""Speed of test-time training: the batched form beside the loop and beside encoding the views.

    python benchmarks/test_time.py --rounds 5

The forms take turns round by round, and processor time is counted, so that other programs on the
machine disturb them alike. Three ratios:

- the loop (`batch_size=1`): ordinary autograd, all views through the head, AdamW, image by image;
- a lean loop that knows that the untrained head is the zero-shot model, so that it chooses the views
  without running the head on them;
- encoding the 64 views with the embedded model.
"""

from __future__ import annotations

import argparse
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
from rada.test_time.loop import adapt_by_loop
from rada.test_time.start import make_start

RESULT = Path(__file__).parent / "results" / "test_time_speed.json"
SCALE = 100.0


def problem(images: int, views: int, classes: int, dim: int) -> tuple[Tensor, Tensor]:
    """Views of images that are near their class, as confident as CLIP features are."""
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(classes, dim, generator=generator), dim=-1)
    own = text[torch.randint(classes, (images,), generator=generator), None]
    noise = torch.randn(images, views, dim, generator=generator)
    return normalize(0.3 * own + 0.04 * noise, dim=-1), text


def lean_loop(views: Tensor, text: Tensor, config: TTTConfig) -> Tensor:
    start = make_start(text, SCALE, None, config, views.dtype)
    parts = [adapt_by_loop(start, v[None, 0], start.choose(v[None]))[0] for v in views]
    return torch.cat(parts)


def milliseconds(work: Callable[[], object], pictures: int) -> float:
    """Processor time a picture."""
    begin = time.process_time()
    work()
    return (time.process_time() - begin) / pictures * 1e3


def encoding(views: int, rounds: int) -> float | None:
    """Processor time of encoding one picture's views, without decoding and cropping."""
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
    parser.add_argument("--pictures", type=int, default=16, help="of the batch")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULT)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    views, text = problem(options.pictures, options.views, options.classes, options.dim)
    config = TTTConfig()
    few = views[:2]
    forms: dict[str, tuple[Callable[[], Tensor], int]] = {
        "loop": (lambda: adapt_views(few, text, SCALE, None, config, 1), len(few)),
        "lean_loop": (lambda: lean_loop(few, text, config), len(few)),
        "batched": (lambda: adapt_views(views, text, SCALE, None, config), len(views)),
    }
    answers = {name: form() for name, (form, _) in forms.items()}  # and warm up
    times: dict[str, list[float]] = {name: [] for name in forms}
    for _ in range(options.rounds):
        for name, (form, count) in forms.items():
            times[name].append(milliseconds(form, count))
    median = {name: statistics.median(values) for name, values in times.items()}
    encode = encoding(options.views, min(3, options.rounds))
    largest = float(answers["loop"].abs().max())
    result = {
        "views": options.views,
        "classes": options.classes,
        "dim": options.dim,
        "pictures": options.pictures,
        "milliseconds_a_picture": median,
        "all_rounds": times,
        "loop_over_batched": median["loop"] / median["batched"],
        "lean_loop_over_batched": median["lean_loop"] / median["batched"],
        "encoding_milliseconds": encode,
        "batched_over_encoding": None if encode is None else median["batched"] / encode,
        "largest_difference": float(
            (answers["batched"][: len(few)] - answers["loop"]).abs().max() / largest
        ),
        "environment": environment(),
    }
    write_json(options.out, result)
    for key, value in result.items():
        if key not in ("environment", "all_rounds"):
            print(f"{key}: {value}")


if __name__ == "__main__":
    main()
