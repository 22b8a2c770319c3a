"""Data sets of torchvision in the layout that they really have on a disk, in miniature."""

from __future__ import annotations

import json
import pickle
import struct
import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets

from data.images import draw, draw_folder
from rada.core.errors import DataError
from rada.data import few_shot, open_dataset
from rada.data.images import open_image


def lines(path: Path, *rows: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(row + "\n" for row in rows))


def aircraft(root: Path) -> None:
    data = root / "fgvc-aircraft-2013b" / "data"
    lines(data / "variants.txt", "707-320", "A300B4")
    lines(data / "families.txt", "Boeing 707", "A300")
    for number, split in enumerate(("train", "val", "trainval", "test")):
        draw(data / "images" / f"{number}a.jpg", number)
        draw(data / "images" / f"{number}b.jpg", number + 50)
        lines(data / f"images_variant_{split}.txt", f"{number}a 707-320", f"{number}b A300B4")
        lines(data / f"images_family_{split}.txt", f"{number}a A300", f"{number}b Boeing 707")


def pets(root: Path) -> None:
    base = root / "oxford-iiit-pet"
    names = [("Abyssinian_1", 1, 1), ("great_pyrenees_2", 2, 2), ("Bombay_3", 3, 1)]
    for split in ("trainval", "test"):
        rows = [f"{name} {label} {kind} 1" for name, label, kind in names]
        lines(base / "annotations" / f"{split}.txt", *rows)
    for seed, (name, _, _) in enumerate(names):
        draw(base / "images" / f"{name}.jpg", seed)


def signs(root: Path) -> None:
    base = root / "gtsrb"
    for number in range(3):
        draw(base / "GTSRB" / "Training" / f"{number:05d}" / "0.ppm", number)
    for number in range(2):
        draw(base / "GTSRB" / "Final_Test" / "Images" / f"{number}.ppm", number + 9)
    lines(base / "GT-final_test.csv", "Filename;ClassId", "0.ppm;2", "1.ppm;0")


def food(root: Path) -> None:
    base = root / "food-101"
    for split in ("train", "test"):
        table = {name: [f"{name}/{split}"] for name in ("pizza", "apple_pie")}
        lines(base / "meta" / f"{split}.json", json.dumps(table))
        for seed, name in enumerate(table):
            draw(base / "images" / name / f"{split}.jpg", seed)


def countries(root: Path) -> None:
    for split in ("train", "valid", "test"):
        draw_folder(root / "country211" / split, {"AD": 1, "ZW": 2})


def imagenet(root: Path) -> None:
    wnids = {"n01": ("crane",), "n02": ("maillot", "tank suit"), "n03": ("crane",)}
    torch.save((wnids, []), root / "meta.bin")
    for split in ("train", "val"):
        draw_folder(root / split, {"n01": 1, "n02": 1, "n03": 2})


def caltech(root: Path) -> None:
    base = root / "caltech101" / "101_ObjectCategories"
    for name in ("BACKGROUND_Google", "accordion", "wild_cat"):
        for number in range(1, 3):
            draw(base / name / f"image_{number:04d}.jpg", number)
    (root / "caltech101" / "Annotations").mkdir()


def naturalist(root: Path) -> None:
    for seed, name in enumerate(("00000_A_B_C_D_E_F_rex", "00001_A_B_C_D_E_F_cat")):
        for number in range(2):
            draw(root / "2021_train" / name / f"{number}.jpg", seed + number)


def clevr(root: Path) -> None:
    base = root / "clevr" / "CLEVR_v1.0"
    for split in ("train", "val", "test"):
        scenes = []
        for number in range(2):
            draw(base / "images" / split / f"{number}.png", number)
            scenes.append({"image_filename": f"{number}.png", "objects": [{}] * (number + 1)})
        if split != "test":
            lines(base / "scenes" / f"CLEVR_{split}_scenes.json", json.dumps({"scenes": scenes}))


def letters(root: Path) -> None:
    folder = root / "EMNIST" / "raw"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        name = f"emnist-letters-{split}"
        head = struct.pack(">IIII", 2051, 26, 28, 28)
        (folder / f"{name}-images-idx3-ubyte").write_bytes(head + bytes(26 * 28 * 28))
        head = struct.pack(">II", 2049, 26)
        (folder / f"{name}-labels-idx1-ubyte").write_bytes(head + bytes(range(1, 27)))


def open_quietly(spec: str, **options: object) -> object:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return open_dataset(spec, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "write", "splits", "classes"),
    [
        ("FGVCAircraft", aircraft, {"train": 2, "val": 2, "test": 2}, ("707-320", "A300B4")),
        (
            "OxfordIIITPet",
            pets,
            {"train": 3, "test": 3},
            ("Abyssinian", "Great Pyrenees", "Bombay"),
        ),
        ("GTSRB", signs, {"train": 3, "test": 2}, ("0", "1", "2")),
        ("Food101", food, {"train": 2, "test": 2}, ("apple pie", "pizza")),
        ("Country211", countries, {"train": 3, "val": 3, "test": 3}, ("AD", "ZW")),
        ("Caltech101", caltech, {"all": 4}, ("accordion", "wild cat")),
        ("INaturalist", naturalist, {"all": 4}, ("00000 A B C D E F rex", "00001 A B C D E F cat")),
        ("CLEVRClassification", clevr, {"train": 2, "val": 2, "test": 2}, ("0", "1", "2")),
    ],
)
def test_sets(
    tmp_path: Path,
    name: str,
    write: Callable[[Path], None],
    splits: dict[str, int],
    classes: tuple[str, ...],
) -> None:
    """The labels and pixels are those of torchvision's own items."""
    write(tmp_path)
    dataset = open_quietly(f"torchvision:{name}?root={tmp_path}")
    assert {key: len(split) for key, split in dataset.splits.items()} == splits
    assert dataset.classes == classes
    for key, split in dataset.splits.items():
        options = {} if key == "all" else {"split": {"val": "valid"}.get(key, key)}
        if name != "Country211" and key == "val":
            options = {"split": "val"}
        if name == "OxfordIIITPet" and key == "train":
            options = {"split": "trainval"}
        items = getattr(datasets, name)(str(tmp_path), **options)
        assert split.labels.tolist() == [-1 if item[1] is None else item[1] for item in items]
        for index in range(len(split)):
            own, theirs = split.load(index), items[index][0].convert("RGB")
            np.testing.assert_array_equal(np.asarray(own), np.asarray(theirs))
        again = pickle.loads(pickle.dumps(split))
        assert again.fingerprint() == split.fingerprint()
        if name != "Caltech101":  # which keeps numbers, not files
            assert open_image(split.path(0)).size == (12, 8)


def test_labels_that_an_option_chooses(tmp_path: Path) -> None:
    pets(tmp_path)
    spec = f"torchvision:OxfordIIITPet?root={tmp_path}&target_types=binary-category"
    assert open_quietly(spec).split("train").labels.tolist() == [0, 1, 0]
    aircraft(tmp_path)
    spec = f"torchvision:FGVCAircraft?root={tmp_path}&annotation_level=family"
    dataset = open_dataset(spec)
    assert dataset.classes == ("Boeing 707", "A300")
    assert dataset.split("train").labels.tolist() == [1, 0]
    naturalist(tmp_path)
    spec = f"torchvision:INaturalist?root={tmp_path}&target_type=genus"
    assert open_quietly(spec, min_classes=1).split("all").labels.tolist() == [0] * 4


def test_imagenet_has_two_cranes(tmp_path: Path) -> None:
    imagenet(tmp_path)
    spec = f"torchvision:ImageNet?root={tmp_path}"
    with pytest.raises(DataError, match="'crane' twice"):
        open_dataset(spec)
    dataset = open_dataset(spec, class_names={"n01": "crane bird", "n03": "construction crane"})
    assert list(dataset.splits) == ["train", "val"]
    assert dataset.classes == ("crane bird", "maillot", "construction crane")
    assert few_shot(dataset.split("train"), 1, 0).ids[0] == "train/n01/0.png"


def test_emnist_needs_its_own_split(tmp_path: Path) -> None:
    letters(tmp_path)
    dataset = open_dataset(f"torchvision:EMNIST?root={tmp_path}&split=letters")
    assert list(dataset.splits) == ["train", "test"] and dataset.classes[:2] == ("N/A", "a")
    assert dataset.split("test").labels.tolist() == list(range(1, 27))


@pytest.mark.parametrize("damage", ["", "0a\n", "0a no-such-class\n"])
def test_damaged_lists_are_not_taken_for_absent_splits(tmp_path: Path, damage: str) -> None:
    aircraft(tmp_path)
    path = tmp_path / "fgvc-aircraft-2013b" / "data" / "images_variant_train.txt"
    path.write_text(damage)
    spec = f"torchvision:FGVCAircraft?root={tmp_path}"
    if not damage:
        with pytest.raises(DataError, match="in val but none in train"):
            open_dataset(spec)
        return
    with pytest.raises(DataError, match="FGVCAircraft cannot be opened"):
        open_dataset(spec + "&split=train")


def test_bad_images_are_named(tmp_path: Path) -> None:
    food(tmp_path)
    path = tmp_path / "food-101" / "images" / "pizza" / "train.jpg"
    path.write_bytes(b"")
    split = open_dataset(f"torchvision:Food101?root={tmp_path}").split("train")
    with pytest.raises(DataError, match=r"pizza/train\.jpg' is empty"):
        split.load(0)
    path.unlink()
    with pytest.raises(DataError, match=r"pizza/train\.jpg' does not exist"):
        open_dataset(f"torchvision:Food101?root={tmp_path}")


def test_other_classes_in_another_split(tmp_path: Path) -> None:
    countries(tmp_path)
    draw_folder(tmp_path / "country211" / "test", {"FR": 1})
    with pytest.raises(DataError, match="other classes in test than in train"):
        open_dataset(f"torchvision:Country211?root={tmp_path}")


def boxes(root: Path) -> None:
    base = root / "VOCdevkit" / "VOC2012"
    lines(base / "ImageSets" / "Main" / "train.txt", "1")
    lines(base / "ImageSets" / "Segmentation" / "train.txt", "1")
    lines(base / "Annotations" / "1.xml", "<annotation><object/></annotation>")
    draw(base / "JPEGImages" / "1.jpg")
    (base / "SegmentationClass").mkdir()
    Image.new("L", (12, 8)).save(base / "SegmentationClass" / "1.png")


def traffic(root: Path) -> None:
    for part in ("training/image_2", "training/label_2", "testing/image_2"):
        (root / "Kitti" / "raw" / part).mkdir(parents=True)
    draw(root / "Kitti" / "raw" / "training" / "image_2" / "0.png")
    (root / "Kitti" / "raw" / "training" / "label_2" / "0.txt").write_text("")


def moving(root: Path) -> None:
    (root / "MovingMNIST").mkdir()
    np.save(root / "MovingMNIST" / "mnist_test_seq.npy", np.zeros((20, 4, 8, 8), np.uint8))


@pytest.mark.parametrize(
    ("spec", "write"),
    [
        ("VOCDetection?root={root}", boxes),
        ("VOCSegmentation?root={root}", boxes),
        ("Kitti?root={root}&train=true", traffic),
        ("MovingMNIST?root={root}", moving),
    ],
)
def test_sets_of_something_else(tmp_path: Path, spec: str, write: Callable[[Path], None]) -> None:
    write(tmp_path)
    with pytest.raises(DataError, match="one class for each image"):
        open_dataset("torchvision:" + spec.format(root=tmp_path))


@pytest.mark.parametrize("name", ["SEMEION", "SBU", "Caltech101", "INaturalist", "STL10"])
def test_nothing_is_written_or_fetched(
    tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some of torchvision's classes would download, or make the folder, by themselves."""
    monkeypatch.setattr("urllib.request.urlopen", pytest.fail)
    with pytest.raises(DataError, match="download=true"):
        open_dataset(f"torchvision:{name}?root={tmp_path / 'absent'}")
    assert not (tmp_path / "absent").exists()
    with pytest.raises(DataError, match="download=true"):
        open_dataset(f"torchvision:{name}?root={tmp_path}")


@pytest.mark.parametrize("option", ["loader=print", "transform=x", "is_valid_file=x"])
def test_options_that_are_functions(tmp_path: Path, option: str) -> None:
    with pytest.raises(DataError, match="has no option"):
        open_dataset(f"torchvision:ImageFolder?root={tmp_path}&{option}")


def test_options_without_a_default_number(tmp_path: Path) -> None:
    (tmp_path / "stl10_binary").mkdir()
    with pytest.raises(DataError, match="not found or corrupted"):
        open_dataset(f"torchvision:STL10?root={tmp_path}&folds=1")


def test_every_set_of_torchvision_answers_clearly(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever its signature: a data set, or a DataError."""
    monkeypatch.setattr("urllib.request.urlopen", pytest.fail)
    for name in sorted(set(datasets.__all__) - {"FakeData"}):
        with pytest.raises(DataError, match="torchvision"):
            open_quietly(f"torchvision:{name}?root={tmp_path}")
