"""Features of the views of shifted and corrupted images, encoded once and kept on disk.

    python benchmarks/test_time_views.py out/views --minutes 60           # test images
    python benchmarks/test_time_views.py out/views --part train           # to choose defaults on

Images: PACS (art, cartoon, sketch) and CIFAR-10, clean and with five corruptions that torchvision and
Pillow make from the clean images. They are encoded in pieces of 35 images, of all conditions in turns and of
each seed a piece behind the one before it, so that a run may be stopped at any time: it goes on with the
first piece that is not there, and what is there is about as many images of each condition.
"""

from __future__ import annotations

import argparse
import io
import time
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as pixels

from rada.data import ImageSplit, open_dataset
from rada.encoders import DualEncoder, load_encoder
from rada.features import extract_features
from rada.test_time import ViewConfig
from rada.test_time.views import view_transform

DATA = Path(__file__).resolve().parents[2] / "shared" / "data"
DOMAINS = ("art_painting", "cartoon", "sketch")
PIECE = 35
Corruption = Callable[[Image.Image], Image.Image]


def _noise(image: Image.Image) -> Image.Image:
    noisy = v2.GaussianNoise(sigma=0.1)(pixels.to_dtype(pixels.to_image(image), scale=True))
    return pixels.to_pil_image(noisy)


def _blur(image: Image.Image) -> Image.Image:
    return pixels.gaussian_blur(image, kernel_size=5, sigma=1.0)


def _contrast(image: Image.Image) -> Image.Image:
    return pixels.adjust_contrast(image, 0.3)


def _jpeg(image: Image.Image) -> Image.Image:
    stream = io.BytesIO()
    image.save(stream, "JPEG", quality=15)
    return Image.open(stream).convert("RGB")


def _pixelate(image: Image.Image) -> Image.Image:
    small = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    return small.resize(image.size, Image.Resampling.NEAREST)


CORRUPTIONS: dict[str, Corruption] = {
    "noise": _noise,
    "blur": _blur,
    "contrast": _contrast,
    "jpeg": _jpeg,
    "pixelation": _pixelate,
}


def corrupted(split: ImageSplit, corruption: Corruption, folder: Path) -> ImageSplit:
    """Write the images, corrupted, below a folder and return them as a split of the same order."""
    folder.mkdir(parents=True, exist_ok=True)
    names = []
    for index, key in enumerate(split.ids):
        torch.manual_seed(zlib.crc32(key.encode()))
        name = f"{index:05d}.png"
        corruption(split.load(index)).save(folder / name)
        names.append(name)
    return ImageSplit.from_files(folder, names, labels=split.labels, classes=split.classes)


def conditions(data: Path, part: str, folder: Path) -> dict[str, ImageSplit]:
    """Return the images of every condition, of the split `part`, in an order drawn once."""

    def shuffled(split: ImageSplit) -> ImageSplit:
        return split.subset(np.random.default_rng(0).permutation(len(split)))

    found = {}
    for domain in DOMAINS:
        found[f"pacs {domain}"] = shuffled(open_dataset(data / "pacs" / domain).split(part))
    # The same images in each condition.
    clean = shuffled(open_dataset(data / "cifar10").split(part))
    found["cifar10 clean"] = clean
    for name, corruption in CORRUPTIONS.items():
        found[f"cifar10 {name}"] = corrupted(clean, corruption, folder / "images" / part / name)
    return found


class Piece(NamedTuple):
    """Some images of one condition with the views of one seed."""

    condition: str
    seed: int
    number: int

    def path(self, folder: Path, part: str, views: int) -> Path:
        """Return where its features are kept."""
        condition = self.condition.replace(" ", "_")
        return folder / part / f"{condition}-{views}-seed{self.seed}-{self.number:02}.safetensors"


def pieces(found: dict[str, ImageSplit], seeds: list[int]) -> Iterator[Piece]:
    """Yield every piece, in the order of encoding."""
    most = max(-(-len(images) // PIECE) for images in found.values())
    rounds = [
        (number + place, seed, number) for place, seed in enumerate(seeds) for number in range(most)
    ]
    for _, seed, number in sorted(rounds):
        for name, images in found.items():
            if number * PIECE < len(images):
                yield Piece(name, seed, number)


def encode(encoder: DualEncoder, images: ImageSplit, piece: Piece, views: int, path: Path) -> None:
    """Encode one piece and save it."""
    config = ViewConfig(views=views, seed=piece.seed)
    stop = min((piece.number + 1) * PIECE, len(images))
    features = extract_features(
        encoder,
        images.subset(np.arange(piece.number * PIECE, stop)),
        views=views,
        seed=piece.seed,
        view_transform=view_transform(encoder, config),
        workers=0,
        cache=False,
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    features.save(path)


def encoded(
    folder: Path, part: str, views: int, seeds: list[int]
) -> dict[str, dict[int, list[Path]]]:
    """Return the files that are there by condition and seed, up to the first that is missing."""
    found: dict[str, dict[int, list[Path]]] = {}
    names = [f"pacs {domain}" for domain in DOMAINS]
    for name in [*names, "cifar10 clean", *(f"cifar10 {corruption}" for corruption in CORRUPTIONS)]:
        for seed in seeds:
            paths: list[Path] = []
            while (path := Piece(name, seed, len(paths)).path(folder, part, views)).exists():
                paths.append(path)
            if paths:
                found.setdefault(name, {})[seed] = paths
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path, help="where the features are kept")
    parser.add_argument("--part", choices=("test", "train"), default="test")
    parser.add_argument("--views", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the views")
    parser.add_argument("--minutes", type=float, default=float("inf"), help="stop after so many")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--data", type=Path, default=DATA, help="folder with pacs and cifar10")
    options = parser.parse_args()
    encoder = load_encoder(options.model)
    found = conditions(options.data, options.part, options.folder)
    begin = time.monotonic()
    for piece in pieces(found, options.seeds):
        path = piece.path(options.folder, options.part, options.views)
        if path.exists():
            continue
        minutes = (time.monotonic() - begin) / 60
        if minutes > options.minutes:
            break
        encode(encoder, found[piece.condition], piece, options.views, path)
        print(f"{minutes:6.1f} min  {path.name}", flush=True)


if __name__ == "__main__":
    main()
