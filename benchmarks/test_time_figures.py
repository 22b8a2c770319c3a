"""Test-time training on shifted and corrupted pictures: accuracy of every row, as JSON and a figure.

    python benchmarks/test_time_figures.py             # the figures, on test pictures
    python benchmarks/test_time_figures.py --tune      # the defaults of TTTConfig, on training pictures

Pictures: PACS (art, cartoon, sketch) and CIFAR-10, clean and with five corruptions. `--per-class`,
`--views` and `--seeds` set the size; views are cached, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import io
import zlib
from collections.abc import Callable
from pathlib import Path

import torch
from PIL import Image
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as pixels

from rada.data import ImageSplit, few_shot, open_dataset
from rada.encoders import DualEncoder, load_encoder
from rada.features import Features, extract_features
from rada.settings.ttt import TTTConfig
from rada.settings.ttt.views import view_transform

ROOT = Path(__file__).resolve().parents[1]
DATA = ROOT.parent / "shared" / "data"
RESULTS = ROOT / "benchmarks" / "results"
DOMAINS = ("art_painting", "cartoon", "sketch")
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
    """Write the pictures, corrupted, below a folder and return them as a split of the same order."""
    names = []
    for index, key in enumerate(split.ids):
        torch.manual_seed(zlib.crc32(key.encode()))
        name = f"{index:05d}.png"
        folder.mkdir(parents=True, exist_ok=True)
        corruption(split.load(index)).save(folder / name)
        names.append(name)
    return ImageSplit.from_files(folder, names, labels=split.labels, classes=split.classes)


def conditions(part: str, per_class: int, folder: Path) -> dict[str, ImageSplit]:
    """Return the pictures of every condition, of the split `part`."""
    found = {}
    for domain in DOMAINS:
        pictures = open_dataset(DATA / "pacs" / domain).split(part)
        found[f"pacs {domain}"] = few_shot(pictures, per_class, 0)
    # Fewer of each: there are ten classes and six conditions. The same pictures in each condition.
    clean = few_shot(open_dataset(DATA / "cifar10").split(part), max(1, per_class * 2 // 5), 0)
    found["cifar10 clean"] = clean
    for name, corruption in CORRUPTIONS.items():
        found[f"cifar10 {name}"] = corrupted(clean, corruption, folder / part / name)
    return found


def encode(
    encoder: DualEncoder, pictures: ImageSplit, config: TTTConfig, kept_in: Path | None, name: str
) -> Features:
    """Return the features of the views, from the file or the cache where they have them."""
    path = None
    if kept_in is not None:
        words = (name, config.views, config.augmentation, config.smallest_crop, config.seed)
        path = kept_in / f"{'-'.join(str(word).replace(' ', '_') for word in words)}.safetensors"
        if path.exists():
            return Features.load(path)
    features = extract_features(
        encoder,
        pictures,
        views=config.views,
        seed=config.seed,
        view_transform=view_transform(encoder, config),
        workers=0,
    )
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        features.save(path)
    return features


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--per-class", type=int, default=5, help="pictures per class and condition")
    parser.add_argument("--views", type=int, default=32)
    parser.add_argument("--seeds", type=int, default=3, help="seeds of the views")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tune", action="store_true", help="choose defaults on training pictures")
    parser.add_argument("--features", type=Path, help="folder that keeps the views' features")
    parser.add_argument("--encode-only", action="store_true", help="fill the cache and stop")
    return parser.parse_args()


def main() -> None:
    import tempfile

    options = arguments()
    encoder = load_encoder(options.model)
    part = "train" if options.tune else "test"
    seeds = range(1, 2 if options.tune else options.seeds + 1)
    with tempfile.TemporaryDirectory() as folder:
        found = conditions(part, options.per_class, Path(folder))
        for seed in seeds:
            for name, pictures in found.items():
                config = TTTConfig(views=options.views, seed=seed)
                encode(encoder, pictures, config, options.features, f"{part} {name}")
                print(f"{part} {name} seed {seed}: {len(pictures)} pictures", flush=True)


if __name__ == "__main__":
    main()
