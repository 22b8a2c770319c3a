"""How fast pictures are encoded: `infer_images` against eager PyTorch, in one interleaved run.

python benchmarks/encode.py [--batch 32] [--threads 2] [--rounds 8]

Eager PyTorch is measured in its default memory format and with glibc's default thresholds, in a process
of its own: raising the thresholds cannot be undone, and both processes take turns.
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
import time

WAYS = ("eager", "channels_last", "infer_images")


def worker(way: str, batch: int, threads: int) -> None:
    """Encode one batch for every line on standard input and print the seconds."""
    import torch

    from rada.encoders import load_encoder

    torch.set_num_threads(threads)
    encoder = load_encoder("embedded")
    pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    if way == "channels_last":
        encoder.model.to(memory_format=torch.channels_last)
        pixels = pixels.contiguous(memory_format=torch.channels_last)

    def encode() -> torch.Tensor:
        if way == "infer_images":
            return encoder.infer_images(pixels)
        with torch.inference_mode():
            return encoder.forward_images(pixels)

    with torch.no_grad():
        distance = (encode() - encoder.forward_images(pixels)).abs().max()
    print(float(distance), flush=True)
    for _ in sys.stdin:
        start = time.perf_counter()
        encode()
        print(time.perf_counter() - start, flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--way", choices=WAYS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.way:
        worker(options.way, options.batch, options.threads)
        return
    common = ["--batch", str(options.batch), "--threads", str(options.threads)]
    workers = {
        way: subprocess.Popen(
            [sys.executable, __file__, "--way", way, *common],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for way in WAYS
    }
    distance = {way: float(process.stdout.readline()) for way, process in workers.items()}
    seconds: dict[str, list[float]] = {way: [] for way in WAYS}
    for _ in range(options.rounds):
        for way, process in workers.items():
            process.stdin.write("go\n")
            process.stdin.flush()
            seconds[way].append(float(process.stdout.readline()))
    for process in workers.values():
        process.communicate()
    print(f"batch {options.batch}, {options.threads} threads, {options.rounds} rounds")
    for way in WAYS:
        paired = [a / b for a, b in zip(seconds["eager"], seconds[way], strict=True)]
        print(
            f"{way:14s} {statistics.median(seconds[way]) / options.batch * 1e3:6.1f} ms an image, "
            f"{statistics.median(paired):.2f}x as fast as eager (paired: {min(paired):.2f} to "
            f"{max(paired):.2f}), features within {distance[way]:.0e}"
        )


if __name__ == "__main__":
    main()
