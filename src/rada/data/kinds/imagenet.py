"""ImageNet and its shifted test sets, in the folders that people have.

Labels are ImageNet's 1000 classes in the usual order; class names are those that OpenAI published
for CLIP, or those of a `classnames.txt` (`n01440764 tench`) beside the images.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl

import numpy as np
from PIL import Image

from rada.core.errors import DataError
from rada.core.storage import read_lines
from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.registry import register_dataset
from rada.data.scan import list_folders, list_images
from rada.data.sources import FileSource
from rada.data.wordnet import SECOND_NAMES, imagenet_classes, imagenet_synsets

__all__ = [
    "GroupedDataset",
    "data_root",
    "load_imagenet",
]


@dataclass(frozen=True, eq=False)
class GroupedDataset(ImageDataset):
    """A data set some of whose classes stand for several candidates.

    The logit of a class is the largest of its candidates' (Taori et al. 2020, for ObjectNet).

    Attributes:
        candidates: Names of the candidates.
        groups: For each candidate the label of its class.
    """

    candidates: tuple[str, ...] = ()
    groups: tuple[int, ...] = ()


def data_root(spec: str) -> tuple[str, Path]:
    """Take `NAME?root=DIR` apart; without a root it is $RADA_DATA, or else `data`.

    Raises:
        DataError: If it has another option.
    """
    name, _, query = spec.partition("?")
    options = dict(parse_qsl(query))
    root = options.pop("root", os.environ.get("RADA_DATA", "data"))
    if options:
        raise DataError(f"the data set {name!r} has no option {next(iter(options))!r}, only root")
    return name, Path(root).expanduser()


def load_imagenet(spec: str) -> ImageDataset:
    """Open ImageNet or one of its shifted test sets.

    Raises:
        DataError: If its folders are not there; the message says what belongs where.
    """
    name, root = data_root(spec)
    return {
        "imagenet": _imagenet,
        "imagenet_v2": _v2,
        "imagenet_r": _by_synset,
        "imagenet_a": _by_synset,
        "imagenet_sketch": _by_synset,
        "objectnet": _objectnet,
    }[name](name, root)


_PLACES = {
    "imagenet": (
        "imagenet/images",
        "ILSVRC2012 from image-net.org, as train/n01440764/*.JPEG and val/n01440764/*.JPEG",
    ),
    "imagenet_v2": (
        "imagenetv2/imagenetv2-matched-frequency-format-val",
        "imagenetv2-matched-frequency from huggingface.co/datasets/vaishaal/ImageNetV2",
    ),
    "imagenet_r": (
        "imagenet-rendition/imagenet-r",
        "imagenet-r.tar from github.com/hendrycks/imagenet-r",
    ),
    "imagenet_a": (
        "imagenet-adversarial/imagenet-a",
        "imagenet-a.tar from github.com/hendrycks/natural-adv-examples",
    ),
    "imagenet_sketch": (
        "imagenet-sketch/images",
        "ImageNet-Sketch from github.com/HaohanWang/ImageNet-Sketch",
    ),
    "objectnet": (
        "objectnet-1.0",
        "objectnet-1.0.zip from objectnet.dev, with its folders images and mappings",
    ),
}


def _folder(name: str, root: Path) -> Path:
    place, what = _PLACES[name]
    folder = root / place
    if not folder.is_dir():
        raise DataError(
            f"{name} is not at {str(folder)!r}: put {what} there, or say where it is with "
            f"{name}?root=DIR or the variable RADA_DATA"
        )
    return folder


def _names(root: Path) -> tuple[str, ...]:
    """Return class names, those of CoOp's `classnames.txt` if it is there."""
    path = root / "imagenet" / "classnames.txt"
    if not path.is_file():
        return imagenet_classes()
    lines = read_lines(path, error=DataError, what="the file of class names")
    named = {synset: name for synset, _, name in (line.partition(" ") for line in lines) if name}
    missing = [synset for synset in imagenet_synsets() if synset not in named]
    if missing:
        raise DataError(f"{str(path)!r} has no line for {missing[0]}")
    names = [named[synset] for synset in imagenet_synsets()]
    for label, name in SECOND_NAMES.items():
        if names.count(names[label]) > 1:
            names[label] = name
    return tuple(names)


def _imagenet(name: str, root: Path) -> ImageDataset:
    folder, names = _folder(name, root), _names(root)
    splits = {}
    for split, part in (("train", "train"), ("test", "val")):
        if (folder / part).is_dir():
            splits[split] = _split(folder / part, dict(enumerate(imagenet_synsets())), names)
    if not splits:
        raise DataError(f"{str(folder)!r} has neither train nor val: {_PLACES[name][1]}")
    return ImageDataset(name, names, splits, keys=imagenet_synsets())


def _v2(name: str, root: Path) -> ImageDataset:
    folder, names = _folder(name, root), _names(root)
    # Folders are numbers; as text, 10 would come before 2.
    split = _split(folder, {label: str(label) for label in range(1000)}, names)
    return ImageDataset(name, names, {"test": split}, keys=imagenet_synsets())


def _by_synset(name: str, root: Path) -> ImageDataset:
    """Open a set of some or all classes; its candidates are those that it has folders of."""
    folder = _folder(name, root)
    there = set(list_folders(folder))
    labels = [label for label, synset in enumerate(imagenet_synsets()) if synset in there]
    if len(labels) < 2:
        raise DataError(
            f"{str(folder)!r} has no folders such as {imagenet_synsets()[0]}: {_PLACES[name][1]}"
        )
    names = tuple(_names(root)[label] for label in labels)
    folders = {k: imagenet_synsets()[label] for k, label in enumerate(labels)}
    keys = tuple(folders.values())
    return ImageDataset(name, names, {"test": _split(folder, folders, names)}, keys=keys)


def _split(root: Path, folders: dict[int, str], classes: Sequence[str]) -> ImageSplit:
    """Return the images of class folders; a class without a folder has none."""
    ids: list[str] = []
    labels: list[int] = []
    for label, folder in folders.items():
        if (root / folder).is_dir():
            found = list_images(root / folder)
            ids += [f"{folder}/{image}" for image in found]
            labels += [label] * len(found)
    if not ids:
        raise DataError(f"{str(root)!r} has no images in folders such as {folders[0]!r}")
    return ImageSplit.from_files(root, ids, labels=np.array(labels), classes=tuple(classes))


@dataclass(frozen=True)
class CroppedSource(FileSource):
    """Images without their outermost pixels, which in ObjectNet are a red frame."""

    border: int = 2

    def load(self, index: int) -> Image.Image:
        """Return one image without its frame."""
        image = super().load(index)
        width, height = image.size
        return image.crop((self.border, self.border, width - self.border, height - self.border))

    def digest(self, index: int) -> str:
        """Return a hash that differs from that of the whole image."""
        return f"{super().digest(index)}-{self.border}"


def _objectnet(name: str, root: Path) -> ImageDataset:
    folder = _folder(name, root)
    groups = _objectnet_groups(folder / "mappings")
    keys = [key for key in sorted(groups) if (folder / "images" / key).is_dir()]
    if len(keys) < 2:
        raise DataError(f"{str(folder / 'images')!r} lacks the class folders: {_PLACES[name][1]}")
    names = _names(root)
    members = [(label, k) for k, key in enumerate(keys) for label in groups[key][1]]
    split = _split(folder / "images", dict(enumerate(keys)), [groups[key][0] for key in keys])
    assert isinstance(split.source, FileSource)
    source = CroppedSource(split.source.root, split.source.ids)
    classes = split.classes
    return GroupedDataset(
        name,
        classes,
        {"test": ImageSplit(classes, split.labels, source)},
        keys=tuple(keys),
        candidates=tuple(names[label] for label, _ in members),
        groups=tuple(k for _, k in members),
    )


def _objectnet_groups(folder: Path) -> dict[str, tuple[str, list[int]]]:
    """Return display name and ImageNet labels of each folder that has any, as ObjectNet maps them."""
    try:
        label_of = json.loads((folder / "folder_to_objectnet_label.json").read_text())
        imagenet_of = json.loads((folder / "objectnet_to_imagenet_1k.json").read_text())
        ids = json.loads((folder / "pytorch_to_imagenet_2012_id.json").read_text())
        lines = (folder / "imagenet_to_label_2012_v2").read_text().splitlines()
        pytorch = {int(value): int(key) for key, value in ids.items()}
        label = {line.strip(): pytorch[index] for index, line in enumerate(lines)}
        return {
            key: (name.lower(), [label[text] for text in imagenet_of[name].split("; ")])
            for key, name in label_of.items()
            if name in imagenet_of
        }
    except (OSError, ValueError, KeyError, AttributeError) as error:
        raise DataError(
            f"the mappings of objectnet in {str(folder)!r} cannot be read: {error!r}; they come "
            "with objectnet-1.0.zip"
        ) from error


for _name, (_place, _what) in _PLACES.items():
    register_dataset(
        f"{_name}?root=DIR",
        f"{_what.split(' from ')[0]}, in DIR/{_place}",
        matches=lambda spec, name=_name: spec.split("?")[0] == name,  # type: ignore[misc]
        load=load_imagenet,
    )
