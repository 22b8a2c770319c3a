"""The ten sets that CoOp and all that followed are evaluated on beside ImageNet, in CoOp's folders.

Where CoOp's `split_zhou_*.json` is there, it is read as it is. Without it, torchvision's reader of the
set is tried in the same root, with its own split (or none), under CoOp's class names and templates.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from rada.core.errors import DataError
from rada.core.storage import read_json
from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.kinds.imagenet import data_root
from rada.data.kinds.torchvision_sets import load_torchvision
from rada.data.prompts import check_class_names, display_name
from rada.data.registry import register_dataset

__all__ = ["load_coop"]


@dataclass(frozen=True)
class _Layout:
    """Where a set lives.

    Attributes:
        folder: Its folder below the root.
        images: What the paths of the split file are relative to, below the folder.
        split: The split file, or "" for FGVC Aircraft's own lists.
        template: CoOp's template.
        reader: Name of torchvision's class, or "".
        source: Where it comes from.
    """

    folder: str
    images: str
    split: str
    template: str
    reader: str
    source: str


_LAYOUTS = {
    "caltech101": _Layout(
        "caltech-101",
        "101_ObjectCategories",
        "split_zhou_Caltech101.json",
        "a photo of a {}.",
        "Caltech101",
        "101_ObjectCategories.tar.gz from data.caltech.edu/records/mzrjq-6wc02",
    ),
    "oxford_pets": _Layout(
        "oxford_pets",
        "images",
        "split_zhou_OxfordPets.json",
        "a photo of a {}, a type of pet.",
        "OxfordIIITPet",
        "images.tar.gz from robots.ox.ac.uk/~vgg/data/pets",
    ),
    "stanford_cars": _Layout(
        "stanford_cars",
        ".",
        "split_zhou_StanfordCars.json",
        "a photo of a {}.",
        "StanfordCars",
        "cars_train and cars_test of Stanford Cars",
    ),
    "oxford_flowers": _Layout(
        "oxford_flowers",
        "jpg",
        "split_zhou_OxfordFlowers.json",
        "a photo of a {}, a type of flower.",
        "Flowers102",
        "102flowers.tgz from robots.ox.ac.uk/~vgg/data/flowers/102",
    ),
    "food101": _Layout(
        "food-101",
        "images",
        "split_zhou_Food101.json",
        "a photo of {}, a type of food.",
        "Food101",
        "food-101.tar.gz from data.vision.ee.ethz.ch/cvl/datasets_extra/food-101",
    ),
    "fgvc_aircraft": _Layout(
        "fgvc_aircraft",
        "images",
        "",
        "a photo of a {}, a type of aircraft.",
        "FGVCAircraft",
        "the folder data of fgvc-aircraft-2013b from robots.ox.ac.uk/~vgg/data/fgvc-aircraft",
    ),
    "sun397": _Layout(
        "sun397",
        "SUN397",
        "split_zhou_SUN397.json",
        "a photo of a {}.",
        "SUN397",
        "SUN397.tar.gz from vision.princeton.edu/projects/2010/SUN",
    ),
    "dtd": _Layout(
        "dtd",
        "images",
        "split_zhou_DescribableTextures.json",
        "{} texture.",
        "DTD",
        "dtd-r1.0.1.tar.gz from robots.ox.ac.uk/~vgg/data/dtd",
    ),
    "eurosat": _Layout(
        "eurosat",
        "2750",
        "split_zhou_EuroSAT.json",
        "a centered satellite photo of {}.",
        "EuroSAT",
        "EuroSAT.zip from github.com/phelber/EuroSAT",
    ),
    "ucf101": _Layout(
        "ucf101",
        "UCF-101-midframes",
        "split_zhou_UCF101.json",
        "a photo of a person doing {}.",
        "",
        "UCF-101-midframes.zip, the middle frames that CoOp's instructions link to",
    ),
}

_NAMES: Mapping[str, Mapping[str, str]] = {
    "eurosat": {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Buildings",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Buildings",
        "SeaLake": "Sea or Lake",
    },
    "caltech101": {
        "airplanes": "airplane",
        "Faces": "face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
    },
}
_DROPPED = {"caltech101": ("BACKGROUND_Google", "Faces_easy")}


def load_coop(spec: str) -> ImageDataset:
    """Open one of the ten sets.

    Raises:
        DataError: If its folder is not there (the message says what belongs where), or its split file
            cannot be used.
    """
    name, root = data_root(spec)
    layout = _LAYOUTS[name]
    folder = root / layout.folder
    lists = folder / "images_variant_train.txt"
    if layout.split and (folder / layout.split).is_file():
        found = _split_file(name, folder, layout)
    elif not layout.split and lists.is_file():
        found = _aircraft(name, folder, layout)
    else:
        found = _through_torchvision(name, root, layout)
    return dataclasses.replace(found, name=name, templates=(layout.template,))


def _split_file(name: str, folder: Path, layout: _Layout) -> ImageDataset:
    path = folder / layout.split
    content = read_json(path, error=DataError, what="the split file", limit=1 << 30)
    if not isinstance(content, dict) or not {"train", "test"} <= set(content):
        raise DataError(f"the split file {str(path)!r} should have train, val and test")
    rows = {
        split: [_row(path, split, entry) for entry in content[split]]
        for split in ("train", "val", "test")
        if split in content
    }
    keys: dict[int, str] = {}
    for split, entries in rows.items():
        for _, label, key in entries:
            if keys.setdefault(label, key) != key:
                raise DataError(
                    f"the split file {str(path)!r} names class {label} {keys[label]!r} and, in "
                    f"{split}, {key!r}"
                )
    return _dataset(name, folder / layout.images, rows, keys)


def _row(path: Path, split: str, entry: Any) -> tuple[str, int, str]:
    """Return image, label and class name of one entry, which anybody may have written."""
    good = (
        isinstance(entry, list)
        and len(entry) == 3
        and isinstance(entry[0], str)
        and isinstance(entry[1], int)
        and isinstance(entry[2], str)
        and entry[1] >= 0
    )
    if not good:
        raise DataError(f"the split file {str(path)!r} has the {split} entry {str(entry)[:80]}")
    image = PurePosixPath(entry[0])
    if image.is_absolute() or ".." in image.parts:
        raise DataError(f"the split file {str(path)!r} leads out of its folder: {entry[0]!r}")
    return str(image), entry[1], entry[2]


def _dataset(
    name: str, images: Path, rows: dict[str, list[tuple[str, int, str]]], keys: dict[int, str]
) -> ImageDataset:
    """Build the set; labels count the class numbers that occur, in order."""
    order = [label for label in sorted(keys) if keys[label] not in _DROPPED.get(name, ())]
    place = {label: index for index, label in enumerate(order)}
    classes = check_class_names(_display(name, keys[label]) for label in order)
    splits = {}
    for split, entries in rows.items():
        kept = [(image, place[label]) for image, label, _ in entries if label in place]
        splits[split] = ImageSplit.from_files(
            images,
            [image for image, _ in kept],
            labels=np.array([label for _, label in kept], dtype=np.int64),
            classes=classes,
        )
    return ImageDataset(name, classes, splits, keys=tuple(keys[label] for label in order))


def _display(name: str, key: str) -> str:
    return display_name(_NAMES.get(name, {}).get(key, key))


def _aircraft(name: str, folder: Path, layout: _Layout) -> ImageDataset:
    """Read FGVC Aircraft's own lists: `0034309 A300B4` and the variants in their order."""
    try:
        variants = (folder / "variants.txt").read_text(encoding="utf-8").splitlines()
        place = {variant.strip(): label for label, variant in enumerate(variants)}
        rows: dict[str, list[tuple[str, int, str]]] = {}
        for split in ("train", "val", "test"):
            lines = (folder / f"images_variant_{split}.txt").read_text(encoding="utf-8")
            pairs = [line.split(" ", 1) for line in lines.splitlines() if line.strip()]
            rows[split] = [(f"{key}.jpg", place[v.strip()], v.strip()) for key, v in pairs]
    except (OSError, KeyError, ValueError) as error:
        raise DataError(
            f"the lists of {name} in {str(folder)!r} cannot be read ({error!r}): {layout.source}"
        ) from error
    keys = {label: variant for variant, label in place.items()}
    return _dataset(name, folder / layout.images, rows, keys)


def _through_torchvision(name: str, root: Path, layout: _Layout) -> ImageDataset:
    wanted = root / layout.folder / (layout.split or "images_variant_train.txt")
    advice = (
        f"{name} is not at {str(root / layout.folder)!r}: put {layout.source} there, so that there is "
        f"{layout.images}/, and {wanted.name} of CoOp's instructions (DATASETS.md of "
        f"github.com/KaiyangZhou/CoOp); or say where it is with {name}?root=DIR or RADA_DATA"
    )
    if not layout.reader:
        raise DataError(advice)
    try:
        found = load_torchvision(f"torchvision:{layout.reader}?root={root}")
    except DataError as error:
        raise DataError(
            f"{advice}. In torchvision's layout it is not there either: {error}"
        ) from error
    keep = [k for k, key in enumerate(found.keys) if key not in _DROPPED.get(name, ())]
    keys = tuple(found.keys[k] for k in keep)
    classes = check_class_names(_display(name, key) for key in keys)
    splits = {
        split: part.select_classes(keep).rename(classes) for split, part in found.splits.items()
    }
    return dataclasses.replace(found, classes=classes, splits=splits, keys=keys)


for _name, _layout in _LAYOUTS.items():
    register_dataset(
        f"{_name}?root=DIR",
        f"CoOp's {_name}, in DIR/{_layout.folder}",
        matches=lambda spec, name=_name: spec.split("?")[0] == name,  # type: ignore[misc]
        load=load_coop,
    )
