"""JPEGs decoded at a fraction of their size against whole: what changes, and how much time it saves.

    apt-get download lomiri-wallpapers-16.04 lomiri-wallpapers-20.04 mate-backgrounds ukui-wallpapers
    for each in *.deb; do dpkg-deb -x $each photos; done
    OMP_NUM_THREADS=1 python benchmarks/decoding.py photos [--rounds 7] [--out results/decoding.json]

Every JPEG of 8 megapixels and more in the folder is embedded from the whole image and from the fraction: the cosine
of the two, whether the best of ImageNet's 1000 classes is the same, and, to compare with, the cosine after the
original was moved by one pixel. Of the files in those packages, PHOTOGRAPHS are photographs, the others drawings.

Timed are files as phones write them, 4032 x 3024, baseline, quality 90: the photographs are resized to that, which
counts for the time and not as evidence for the features. From files to features in one process, without cache; exact
and fast decoding take turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch
from open_clip.zero_shot_metadata import IMAGENET_CLASSNAMES
from PIL import Image

from rada import DualEncoder, load_encoder
from rada.core.storage import write_json
from rada.data import open_image
from rada.evaluation import environment
from rada.features import iter_features

PHOTOGRAPHS = ("Bridge", "Dragonfly", "Kleiber", "Wine", "seeding", "sunset")
PHONE = (4032, 3024)


def large(folder: Path) -> list[Path]:
    """Return the JPEGs of 8 megapixels and more."""
    found = []
    for path in sorted(folder.rglob("*")):
        if path.suffix.lower() in (".jpg", ".jpeg") and path.is_file() and not path.is_symlink():
            with Image.open(path) as image:
                if image.width * image.height >= 3264 * 2448:
                    found.append(path)
    return found


def compare(encoder: DualEncoder, path: Path, classes: torch.Tensor) -> dict[str, object]:
    whole = open_image(path)
    part = open_image(path, shorter_side=encoder.preprocess.shorter_side)
    moved = Image.fromarray(np.roll(np.asarray(whole), 1, axis=1))
    pixels = torch.stack([encoder.preprocess(image) for image in (whole, part, moved)])
    rows = torch.cat([encoder.infer_images(one[None]) for one in pixels])
    best = (rows @ classes.T).argmax(1)
    return {
        "file": path.name,
        "photograph": path.name.startswith(PHOTOGRAPHS),
        "size": list(whole.size),
        "decoded": list(part.size),
        "cosine": float(rows[0] @ rows[1]),
        "cosine_moved_by_a_pixel": float(rows[0] @ rows[2]),
        "same_class": bool(best[0] == best[1]),
    }


def as_phones_do(paths: list[Path], folder: Path) -> list[Path]:
    """Write photographs with the size and the kind of file of a phone."""
    written = []
    for path in paths:
        image = open_image(path).resize(PHONE, Image.Resampling.BICUBIC)
        written.append(folder / path.name)
        image.save(written[-1], quality=90)
    return written


def timed(encoder: DualEncoder, paths: list[Path], exact: bool) -> tuple[float, float]:
    """Return seconds an image, by the clock and of processor time."""
    start, used = time.perf_counter(), time.process_time()
    for _ in iter_features(encoder, paths, workers=0, cache=False, exact_decoding=exact):
        pass
    spent = time.perf_counter() - start, time.process_time() - used
    return spent[0] / len(paths), spent[1] / len(paths)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    encoder = load_encoder("embedded")
    classes = encoder.encode_classes(list(dict.fromkeys(IMAGENET_CLASSNAMES)))
    paths = large(options.folder)
    rows = [compare(encoder, path, classes) for path in paths]
    for row in rows:
        print(
            f"{row['file']:44s} {row['cosine']:.5f} {row['cosine_moved_by_a_pixel']:.5f} {row['same_class']}"
        )
    photographs = [row for row in rows if row["photograph"]]
    result: dict[str, object] = {
        "encoder": "embedded",
        "images": rows,
        "photographs": len(photographs),
        "lowest_cosine_of_a_photograph": min(row["cosine"] for row in photographs),
        "lowest_cosine": min(row["cosine"] for row in rows),
        "lowest_cosine_moved_by_a_pixel": min(
            row["cosine_moved_by_a_pixel"] for row in photographs
        ),
    }
    turns: dict[str, list[tuple[float, float]]] = {"exact": [], "fast": []}
    with tempfile.TemporaryDirectory() as place:
        chosen = [path for path, row in zip(paths, rows, strict=True) if row["photograph"]]
        files = as_phones_do(chosen, Path(place))
        for number in range(options.rounds + 1):
            for name in turns:
                found = timed(encoder, files, exact=name == "exact")
                if number:  # the first turn warms up
                    turns[name].append(found)
    for place, unit in enumerate(("clock", "processor")):
        ratios = [a[place] / b[place] for a, b in zip(turns["exact"], turns["fast"], strict=True)]
        seconds = {
            name: statistics.median(run[place] for run in runs) for name, runs in turns.items()
        }
        result[unit] = {
            "seconds_an_image": seconds,
            "ratio": statistics.median(ratios),
            "ratios": ratios,
        }
        print(f"{unit}: {seconds}, {statistics.median(ratios):.2f} times as fast")
    print({key: value for key, value in result.items() if key.startswith("lowest")})
    if options.out:
        write_json(options.out, result | {"environment": environment()})


if __name__ == "__main__":
    main()
