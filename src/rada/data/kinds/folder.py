"""A folder with one sub-folder per class, and optionally train/, val/, test/ above them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rada.core.errors import DataError
from rada.core.warn import warn
from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.prompts import display_name
from rada.data.registry import register_dataset
from rada.data.scan import (
    has_images,
    is_folder,
    list_folders,
    list_images,
    natural_key,
    warn_of_skipped,
)
from rada.data.splits import SPLITS, split_name

__all__ = ["load_folder"]


def load_folder(spec: str) -> ImageDataset:
    """Open a folder of class folders; images may lie deeper inside them.

    Raises:
        DataError: If there are no class folders, one is empty, or folders of splits and others are
            mixed.
    """
    root = Path(spec).expanduser()
    folders = _layout(root)
    found = {split: _images(root / folder, split) for split, folder in folders.items()}
    keys = sorted({key for classes in found.values() for key in classes}, key=natural_key)
    classes = tuple(display_name(key) for key in keys)
    splits = {}
    for split, folder in folders.items():
        rows = [
            (f"{key}/{name}", label)
            for label, key in enumerate(keys)
            for name in found[split].get(key, ())
        ]
        # Keys are those of the split opened by itself, so that a seed draws the same shots.
        splits[split] = ImageSplit.from_files(
            root / folder,
            [name for name, _ in rows],
            labels=np.array([label for _, label in rows], dtype=np.int64),
            classes=classes,
        )
    return ImageDataset(root.resolve().name, classes, splits, keys=tuple(keys))


def _layout(root: Path) -> dict[str, str]:
    """Return the folder of each split relative to the root, "" for the root itself.

    A class may be called like a split (a train is a vehicle), so such a folder is a split only if it
    has folders and no images of its own, or if there are none but split names.
    """
    names = list_folders(root)
    above = [name for name in names if split_name(name)]
    if len(above) < len(names):
        above = [name for name in above if _holds_classes(root / name)]
    if not above:
        _check_below(root, names)
        return {"all": ""}
    others = [name for name in names if name not in above and has_images(root / name)]
    if others:
        raise DataError(
            f"{str(root)!r} has the folder {above[0]!r} of a split beside {others[0]!r}, which holds "
            f"images too: move one of them away, or open {str(root / above[0])!r} itself"
        )
    folders: dict[str, str] = {}
    for name in above:
        other = folders.setdefault(split_name(name) or name, name)
        if other != name:
            raise DataError(f"{str(root)!r} has {other!r} and {name!r}, which mean the same split")
    return {split: folders[split] for split in SPLITS if split in folders}


def _check_below(root: Path, names: list[str]) -> None:
    """Check that what lies in the class folders are not data sets, or splits, of their own.

    Raises:
        DataError: If each has folders of splits; the message says whether data sets or classes have them.
    """
    below = {name: list_folders(root / name) for name in names}
    split = {name for name, inner in below.items() if inner and all(map(split_name, inner))}
    split = {name for name in split if not list_images(root / name, recursive=False)}
    nested = [name for name in names if name in split and len(below[name]) > 1]
    if not nested and split == set(names):
        nested = names
    if nested:
        first = root / nested[0] / below[nested[0]][0]
        shown = ", ".join(map(repr, nested[:5])) + (", ..." if len(nested) > 5 else "")
        if _holds_classes(first):
            raise DataError(
                f"{str(root)!r} holds data sets of their own ({shown}), not classes: each has its own "
                f"{', '.join(below[nested[0]])} with classes inside. Open one, such as "
                f"{str(root / nested[0])!r}; `rada bench --protocol domain` takes them all"
            )
        raise DataError(
            f"the classes in {str(root)!r} ({shown}) have the splits {', '.join(below[nested[0]])} inside: "
            f"put the splits above the classes ({below[nested[0]][0]}/{nested[0]}/...)"
        )
    inner = [frozenset(found) for found in below.values()]
    if len(inner) > 1 and len(set(inner)) == 1 and len(inner[0]) > 1:
        warn(
            f"the folders {', '.join(map(repr, names[:3]))} of {str(root)!r} hold the same sub-folders "
            f"({', '.join(below[names[0]][:3])}, ...), whose images are pooled: if these are the classes, "
            f"open one folder, such as {str(root / names[0])!r}",
            UserWarning,
            stacklevel=6,
        )


def _holds_classes(folder: Path) -> bool:
    return bool(list_folders(folder)) and not list_images(folder, recursive=False)


def _images(folder: Path, split: str) -> dict[str, list[str]]:
    """Return the images of each class folder, relative to it; only training needs some of each."""
    evaluates = (split if split != "all" else split_name(folder.resolve().name)) in ("val", "test")
    classes: dict[str, list[str]] = {}
    skipped: list[str] = []
    for name in list_folders(folder):
        others: list[str] = []
        classes[name] = list_images(folder / name, skipped=others)
        skipped += (f"{name}/{entry}" for entry in others)
    warn_of_skipped(folder, skipped)
    if not classes:
        table = folder / "metadata.csv"  # of Hugging Face's image folders
        if table.is_file():
            raise DataError(
                f"{str(folder)!r} has no class folders but a table: open {str(table)!r} itself"
            )
        loose = len(list_images(folder, recursive=False))
        found = f"{loose} images but no sub-folders" if loose else "no sub-folders and no images"
        raise DataError(
            f"{str(folder)!r} has {found}: put the images of each class into a "
            "folder named like the class"
        )
    for name, images in classes.items():
        if not images and not evaluates:
            raise DataError(
                f"the class folder {str(folder / name)!r} holds no image: fill it or remove it"
            )
    return classes


register_dataset(
    "FOLDER",
    "one sub-folder per class; train/, val/, test/ above them if there are several splits",
    matches=is_folder,
    load=load_folder,
    is_path=True,
)
