"""A folder with one sub-folder per class, and optionally train/, val/, test/ above them."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.prompts import check_class_names, display_name
from rada.data.registry import register_dataset
from rada.data.scan import list_folders, list_pictures
from rada.errors import DataError

__all__ = ["load_folder"]

SPLITS = ("train", "val", "test")
_ALIASES = {"valid": "val", "validation": "val", "training": "train", "testing": "test"}


def load_folder(spec: str) -> ImageDataset:
    """Open a folder of class folders.

    Raises:
        DataError: If there are no class folders, one is empty, there is only one class, or a class
            stands in `test` or `val` but not in `train`.
    """
    root = Path(spec).expanduser()
    names = list_folders(root)
    parts = {_ALIASES.get(name.lower(), name.lower()): name for name in names}
    if names and set(parts) <= set(SPLITS):
        folders = {split: root / parts[split] for split in SPLITS if split in parts}
    else:
        folders = {"all": root}
    found = {split: _pictures(folder) for split, folder in folders.items()}
    keys = _classes(root, found)
    classes = check_class_names(map(display_name, keys))
    splits = {}
    for split, folder in folders.items():
        prefix = "" if folder == root else f"{folder.name}/"
        ids = [f"{prefix}{key}/{name}" for key in keys for name in found[split].get(key, ())]
        labels = [label for label, key in enumerate(keys) for _ in found[split].get(key, ())]
        splits[split] = ImageSplit.from_files(root, ids, labels=np.array(labels), classes=classes)
    return ImageDataset(root.resolve().name, classes, splits, keys=tuple(keys))


def _pictures(folder: Path) -> dict[str, list[str]]:
    classes = {name: list_pictures(folder / name) for name in list_folders(folder)}
    if not classes:
        loose = len(list_pictures(folder, recursive=False))
        found = f"{loose} pictures" if loose else "nothing"
        raise DataError(
            f"{str(folder)!r} has {found} but no sub-folders: put the pictures of each class into a "
            "folder named like the class"
        )
    for name, pictures in classes.items():
        if not pictures:
            raise DataError(
                f"the class folder {str(folder / name)!r} holds no picture: fill it or remove it"
            )
    return classes


def _classes(root: Path, found: dict[str, dict[str, list[str]]]) -> list[str]:
    """Return the class folders in order: those of the training split where there is one."""
    first = found.get("train") or next(iter(found.values()))
    keys = list(first)
    for split, classes in found.items():
        strangers = [name for name in classes if name not in first]
        if strangers and "train" in found:
            raise DataError(
                f"{str(root)!r} has the class {strangers[0]!r} in {split} but not in train: add it to "
                "train, or evaluate that folder alone"
            )
        keys += [name for name in strangers if name not in keys]
    if len(keys) < 2:
        raise DataError(
            f"{str(root)!r} has the one class {keys[0]!r}: a classifier needs at least 2 class folders"
        )
    return keys


register_dataset(
    "FOLDER",
    "one sub-folder per class; train/, val/, test/ above them if there are several splits",
    matches=lambda spec: Path(spec).expanduser().is_dir(),
    load=load_folder,
)
