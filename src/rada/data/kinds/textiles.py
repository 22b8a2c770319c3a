"""The built-in data set: photos of textiles, from the package conformal-clip-data (MIT).

2,000 simulated inspection photos in three classes, nominal (1,000), local defect (500) and
global defect (500), published as a few-shot task for CLIP (Megahed et al., arXiv 2501.12596).
"""

from __future__ import annotations

import hashlib

import numpy as np

from rada.core.extras import package_folder
from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.registry import register_dataset
from rada.data.scan import list_images

__all__ = ["load_textiles"]

_PACKAGE = "conformal_clip_data"
_CLASSES = {
    "nominal": "nominal fabric",
    "local": "local defect",
    "global": "global defect",
}
_TEMPLATE = "a photo of a {}."


def load_textiles(spec: str = "textiles") -> ImageDataset:
    """Open the set; half of each class, chosen by a hash of the file names, is the test split.

    Raises:
        MissingExtraError: If the package with the images is not installed.
    """
    package = package_folder(_PACKAGE, f"the data set {spec!r}")
    root = package / "data" / "textile_images" / "simulated"
    parts: dict[str, list[tuple[str, int]]] = {"train": [], "test": []}
    for label, key in enumerate(_CLASSES):
        ids = sorted((f"{key}/{name}" for name in list_images(root / key)), key=_rank)
        parts["train"] += [(name, label) for name in sorted(ids[: len(ids) // 2])]
        parts["test"] += [(name, label) for name in sorted(ids[len(ids) // 2 :])]
    classes = tuple(_CLASSES.values())
    splits = {
        split: ImageSplit.from_files(
            root,
            [name for name, _ in rows],
            labels=np.array([label for _, label in rows]),
            classes=classes,
        )
        for split, rows in parts.items()
    }
    return ImageDataset("textiles", classes, splits, (_TEMPLATE,), tuple(_CLASSES))


def _rank(name: str) -> bytes:
    return hashlib.blake2b(name.encode(), digest_size=8).digest()


register_dataset(
    "textiles",
    "built in: 2,000 photos of fabric, nominal, local defect, global defect (extra: embedded)",
    matches=lambda spec: spec == "textiles",
    load=load_textiles,
    requires=(_PACKAGE, "embedded"),
)
