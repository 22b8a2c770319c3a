"""Miniature copies of the layouts in which people have the real data sets."""

from __future__ import annotations

import json

import numpy as np
from PIL import Image


def image(path, colour=0):
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.full((12, 12, 3), colour % 256, dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


def split_file(root, folder, images, name, classes, per_class=4):
    """Write images and a `split_zhou_*.json` of CoOp's form."""
    content = {"train": [], "val": [], "test": []}
    for label, key in enumerate(classes):
        for number in range(per_class):
            part = ("train", "train", "val", "test")[number % 4]
            relative = f"{key}/{number:03d}.jpg"
            image(root / folder / images / relative, 40 * label + number)
            content[part].append([relative, label, key])
    (root / folder / name).write_text(json.dumps(content))


def aircraft(root):
    folder = root / "fgvc_aircraft"
    variants = ["707-320", "A300B4", "DC-3"]
    (folder / "images").mkdir(parents=True)
    (folder / "variants.txt").write_text("\n".join(variants) + "\n")
    number = 0
    for part in ("train", "val", "test"):
        lines = []
        for variant in variants:
            number += 1
            image(folder / "images" / f"{number:07d}.jpg", number)
            lines.append(f"{number:07d} {variant}")
        (folder / f"images_variant_{part}.txt").write_text("\n".join(lines) + "\n")


def imagenet(root, synsets, labels, names=None):
    for label in labels:
        for part, count in (("train", 2), ("val", 1)):
            for number in range(count):
                path = root / "imagenet/images" / part / synsets[label] / f"{number}.JPEG"
                image(path, label)
    if names:
        lines = [f"{synset} {names[k]}" for k, synset in enumerate(synsets)]
        (root / "imagenet/classnames.txt").write_text("\n".join(lines))


def shifted(root, synsets, labels):
    """ImageNet-V2 in numbered folders, A, R and Sketch in WordNet folders."""
    places = ("imagenet-rendition/imagenet-r", "imagenet-adversarial/imagenet-a")
    for place in (*places, "imagenet-sketch/images"):
        for label in labels:
            image(root / place / synsets[label] / "1.jpg", label)
    for label in labels:
        folder = root / "imagenetv2/imagenetv2-matched-frequency-format-val" / str(label)
        image(folder / "1.jpeg", label)


def objectnet(root):
    """Three folders, one of which ImageNet lacks; an alarm clock is two of its classes."""
    folder = root / "objectnet-1.0"
    for key in ("alarm_clock", "banana", "weight_scale"):
        image(folder / "images" / key / "1.png", 7)
    mappings = folder / "mappings"
    mappings.mkdir()

    def write(name, value):
        (mappings / name).write_text(json.dumps(value))

    names = {"alarm_clock": "Alarm clock", "banana": "Banana", "weight_scale": "Scale"}
    write("folder_to_objectnet_label.json", names)
    clocks = "analog clock; digital clock"
    write("objectnet_to_imagenet_1k.json", {"Alarm clock": clocks, "Banana": "banana"})
    # The lines count in another order than PyTorch's labels: 409, 530 and 954.
    (mappings / "imagenet_to_label_2012_v2").write_text("banana\nanalog clock\ndigital clock\n")
    write("pytorch_to_imagenet_2012_id.json", {"954": 0, "409": 1, "530": 2})


def torchvision_dtd(root):
    """DTD as torchvision wants it: `dtd/dtd/images` and `dtd/dtd/labels`."""
    base = root / "dtd" / "dtd"
    for split, number in (("train", 1), ("val", 2), ("test", 3)):
        lines = []
        for key in ("banded", "polka-dotted"):
            image(base / "images" / key / f"{key}_{number:04d}.jpg", number)
            lines.append(f"{key}/{key}_{number:04d}.jpg")
        (base / "labels").mkdir(exist_ok=True)
        (base / "labels" / f"{split}1.txt").write_text("\n".join(lines) + "\n")


def torchvision_pets(root):
    """Oxford-IIIT Pet as torchvision wants it."""
    base = root / "oxford-iiit-pet"
    for split, first in (("trainval", 1), ("test", 4)):
        lines = []
        for label, key in enumerate(("Abyssinian", "american_bulldog")):
            for number in range(first, first + 3):
                image(base / "images" / f"{key}_{number}.jpg", number)
                lines.append(f"{key}_{number} {label + 1} 1 1")
        (base / "annotations").mkdir(exist_ok=True)
        (base / "annotations" / f"{split}.txt").write_text("\n".join(lines) + "\n")
