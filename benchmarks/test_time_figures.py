"""Test-time training on shifted and corrupted pictures: accuracy of every row, as JSON and a figure.

    python benchmarks/test_time_figures.py             # the figures, on test pictures
    python benchmarks/test_time_figures.py --tune      # the defaults of TTTConfig, on training pictures

Pictures: PACS (art, cartoon, sketch) and CIFAR-10, clean and with five corruptions. `--per-class`,
`--views` and `--seeds` set the size; views are cached, so that a run that was stopped goes on.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import zlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as pixels

from rada.core.storage import write_json
from rada.data import ImageSplit, few_shot, open_dataset
from rada.encoders import DualEncoder, load_encoder
from rada.evaluation import environment
from rada.features import ClassSet, Features, extract_features
from rada.methods import Facts, get_method
from rada.methods.base import NoConfig
from rada.test_time import TTTConfig, adapt_views, get_test_time_method
from rada.test_time.views import view_transform

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
    clean = few_shot(open_dataset(DATA / "cifar10").split(part), max(1, per_class // 3), 0)
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
        words = (name, len(pictures), config.views, config.augmentation, config.smallest_crop)
        words = (*words, config.seed)
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
    parser.add_argument("--per-class", type=int, default=3, help="pictures per class and condition")
    parser.add_argument("--views", type=int, default=32)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of the views")
    parser.add_argument("--model", default="embedded")
    parser.add_argument("--tune", action="store_true", help="choose defaults on training pictures")
    parser.add_argument("--features", type=Path, help="folder that keeps the views' features")
    parser.add_argument("--conditions", nargs="+", help="only these, such as 'pacs sketch'")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder for the JSON")
    parser.add_argument("--figures", type=Path, default=ROOT / "docs" / "figures")
    parser.add_argument("--encode-only", action="store_true", help="fill the cache and stop")
    return parser.parse_args()


def baselines(
    encoder: DualEncoder, features: Features, config: TTTConfig, *names: str
) -> dict[str, Tensor]:
    """Return the logits of zero-shot and of test-time methods that start from it."""
    classes = ClassSet(features.classes, encoder.encode_classes(features.classes))
    facts = Facts(features.dim, encoder.scale, classes.names)
    model = get_method("zero_shot").build(facts, NoConfig(), {}, encoder)
    found = {"zero_shot": model.logits(features.plain(), classes)}
    for name in names:
        method = get_test_time_method(name)
        own = method.config(views=config.views, selection=config.selection, seed=config.seed)
        found[name] = method.predictor(model, classes, own)(features.image_features)
    return found


def rows(encoder: DualEncoder, features: Features, config: TTTConfig) -> dict[str, Tensor]:
    """Return the logits of every row on the same views."""
    text = encoder.encode_classes(features.classes)
    views, scale = features.image_features, encoder.scale
    found = baselines(encoder, features, config, "mean_of_views", "confident_views", "tpt")
    found["rada"] = adapt_views(views, text, scale, None, config)
    found["rada_kept"] = adapt_views(views, text, scale, None, replace(config, predict_with="kept"))
    return found


def variants() -> dict[str, TTTConfig]:
    """Return what `--tune` compares."""
    base = TTTConfig()
    found = {
        f"rate {rate:g}, selection {selection:g}": replace(
            base, learning_rate=rate, selection=selection
        )
        for rate in (1e-3, 2e-3, 5e-3, 1e-2, 2e-2)
        for selection in (0.1, 0.3, 1.0)
    }
    found["3 steps of 0.001"] = replace(base, steps=3, learning_rate=1e-3)
    found["3 steps, alpha 1"] = replace(base, steps=3, alpha=1.0)
    found["kept views"] = replace(base, predict_with="kept")
    found["strength 0.5"] = replace(base, strength=0.5)
    found["max entropy 0.5"] = replace(base, max_entropy=0.5)
    return found


def bootstrap(right: np.ndarray, draws: int = 2000) -> list[float]:
    """95 % interval of the mean over pictures; `right` is `(seeds, pictures)`."""
    mean = right.mean(0)
    generator = np.random.default_rng(0)
    chosen = generator.integers(len(mean), size=(draws, len(mean)))
    return [float(q) for q in np.quantile(mean[chosen].mean(1), [0.025, 0.975])]


def summary(right: dict[str, np.ndarray]) -> dict[str, Any]:
    """Return accuracy over seeds with its interval, and the paired difference from zero-shot."""
    table = {}
    for name, hits in right.items():
        gain = hits - right["zero_shot"]
        table[name] = {
            "accuracy": float(hits.mean()),
            "by_seed": [float(value) for value in hits.mean(1)],
            "interval": bootstrap(hits),
            "gain": float(gain.mean()),
            "gain_interval": bootstrap(gain),
        }
    return table


def draw(result: dict[str, Any], path: Path) -> None:
    """Draw the gain over zero-shot of every row, by condition."""
    import matplotlib

    matplotlib.use("svg")
    from matplotlib import pyplot as plt

    names = [name for name in result["groups"]["all"] if name != "zero_shot"]
    groups = list(result["groups"])
    figure, axes = plt.subplots(figsize=(9, 4.5), layout="constrained")
    for place, name in enumerate(names):
        entries = [result["groups"][group][name] for group in groups]
        gains = [100 * entry["gain"] for entry in entries]
        bounds = [[100 * bound for bound in entry["gain_interval"]] for entry in entries]
        errors = [
            [gain - low for gain, (low, _) in zip(gains, bounds, strict=True)],
            [high - gain for gain, (_, high) in zip(gains, bounds, strict=True)],
        ]
        shift = (place - (len(names) - 1) / 2) * 0.14
        axes.errorbar(
            [number + shift for number in range(len(groups))],
            gains,
            errors,
            fmt="o",
            label=name.replace("_", " "),
        )
    axes.axhline(0, color="grey", linewidth=1)
    axes.set_xticks(
        range(len(groups)),
        [
            f"{group}\nzero-shot {100 * result['groups'][group]['zero_shot']['accuracy']:.0f} %"
            for group in groups
        ],
    )
    axes.set_ylabel("accuracy minus zero-shot, points")
    axes.legend(ncols=3, fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path)


def grouped(right: dict[str, dict[str, np.ndarray]]) -> dict[str, Any]:
    """Return the summary of PACS, of clean and corrupted CIFAR-10, and of everything."""
    parts = {
        "PACS": [name for name in right if name.startswith("pacs")],
        "CIFAR-10": ["cifar10 clean"],
        "CIFAR-10 corrupted": [f"cifar10 {name}" for name in CORRUPTIONS],
        "all": list(right),
    }
    methods = next(iter(right.values())).keys()
    parts = {group: [name for name in names if name in right] for group, names in parts.items()}
    return {
        group: summary(
            {m: np.concatenate([right[name][m] for name in names], axis=1) for m in methods}
        )
        for group, names in parts.items()
        if names
    }


def evaluate(
    options: argparse.Namespace, encoder: DualEncoder, found: dict[str, ImageSplit], part: str
) -> dict[str, dict[str, np.ndarray]]:
    """Return for every condition and row whether each picture is right, `(seeds, pictures)`."""
    seeds = options.seeds[:1] if options.tune else options.seeds
    right: dict[str, dict[str, np.ndarray]] = {}
    for name, pictures in found.items():
        by_seed: dict[str, list[np.ndarray]] = {}
        for seed in seeds:
            config = TTTConfig(views=options.views, seed=seed)
            features = encode(encoder, pictures, config, options.features, f"{part} {name}")
            print(f"{part} {name} seed {seed}: {len(pictures)} pictures", flush=True)
            if options.encode_only:
                continue
            if options.tune:
                text = encoder.encode_classes(features.classes)
                views = features.image_features
                logits = baselines(encoder, features, config, "mean_of_views", "confident_views")
                for key, variant in variants().items():
                    logits[key] = adapt_views(views, text, encoder.scale, None, variant)
            else:
                logits = rows(encoder, features, config)
            for key, values in logits.items():
                hits = (values.argmax(-1) == features.labels).double().numpy()
                by_seed.setdefault(key, []).append(hits)
        right[name] = {key: np.stack(hits) for key, hits in by_seed.items()}
    return right


def main() -> None:
    options = arguments()
    encoder = load_encoder(options.model)
    part = "train" if options.tune else "test"
    with tempfile.TemporaryDirectory() as folder:
        found = conditions(part, options.per_class, Path(folder))
        if options.conditions:
            found = {name: found[name] for name in options.conditions}
        right = evaluate(options, encoder, found, part)
    if options.encode_only:
        return
    result = {
        "pictures": {name: len(pictures) for name, pictures in found.items()},
        "views": options.views,
        "seeds": options.seeds[:1] if options.tune else options.seeds,
        "part": part,
        "encoder": encoder.name,
        "config": TTTConfig(views=options.views).to_dict(),
        "groups": grouped(right),
        "conditions": {name: summary(table) for name, table in right.items()},
        "environment": environment(),
    }
    name = "test_time_tuning" if options.tune else "test_time"
    write_json(options.out / f"{name}.json", result)
    if not options.tune:
        draw(result, options.figures / "test_time.svg")
    for group, table in result["groups"].items():
        for row, entry in table.items():
            low, high = entry["gain_interval"]
            print(
                f"{group:20} {row:32} {100 * entry['accuracy']:5.1f}  gain {100 * entry['gain']:+5.1f} "
                f"[{100 * low:+.1f}, {100 * high:+.1f}]"
            )


if __name__ == "__main__":
    main()
