"""Splits: what they keep, how they are cut and relabelled, and that workers may have them."""

from __future__ import annotations

import json
import pickle
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from data.images import draw, draw_folder
from rada.core.errors import DataError
from rada.data import ImageDataset, ImageSplit, open_dataset, open_images


@pytest.fixture
def split(tmp_path: Path) -> ImageSplit:
    return open_dataset(draw_folder(tmp_path / "d", {"ant": 2, "bee": 1, "cat": 3})).split("all")


def test_subset_keeps_the_classes(split: ImageSplit) -> None:
    part = split.subset([5, 0, 0])
    assert part.ids == ("cat/2.png", "ant/0.png", "ant/0.png")
    assert part.labels.tolist() == [2, 0, 0] and part.classes == split.classes
    assert part.digest(0) == split.digest(5) and part.path(1) == split.path(0)
    assert len(split.subset([])) == 0


def test_a_mask_says_what_to_keep(split: ImageSplit) -> None:
    kept = split.subset(split.labels == 1)
    assert len(kept) == (split.labels == 1).sum() and set(kept.labels.tolist()) == {1}
    assert len(split.subset(np.zeros(len(split), dtype=bool))) == len(split.subset([])) == 0
    with pytest.raises(DataError, match="a mask of 1 does not fit"):
        split.subset([True])


def test_select_classes(split: ImageSplit) -> None:
    part = split.select_classes([2, 0])
    assert part.classes == ("cat", "ant") and part.labels.tolist() == [1, 1, 0, 0, 0]
    kept = split.select_classes([2, 0], relabel=False)
    assert kept.classes == split.classes and kept.labels.tolist() == [0, 0, 2, 2, 2]
    for wrong in ([3], [-1], [0, 0]):
        with pytest.raises(DataError, match="distinct numbers from 0 to 2"):
            split.select_classes(wrong)


def test_align_and_rename(split: ImageSplit) -> None:
    wider = split.align(["dog", "cat", "bee", "ant"])
    assert wider.labels.tolist() == [3, 3, 2, 1, 1, 1]
    assert split.select_classes([0]).align(["ant"]).labels.tolist() == [0, 0]
    assert split.select_classes([0], relabel=False).align(["ant"]).labels.tolist() == [0, 0]
    with pytest.raises(DataError, match="not among the 2 given: 'cat'"):
        split.align(["ant", "bee"])
    assert split.rename(["x", "y", "z"]).classes == ("x", "y", "z")
    with pytest.raises(DataError, match="1 names were given for 3"):
        split.rename(["x"])


def test_unlabelled_images_stay_unlabelled() -> None:
    split = ImageSplit.from_files(".", "abc", labels=[-1, 1, 0], classes=["x", "y"])
    assert split.align(["y", "x"]).labels.tolist() == [-1, 0, 1]
    assert split.select_classes([1, 0]).labels.tolist() == [0, 1]
    assert split.counts().tolist() == [1, 1]
    assert split.manifest()[0]["class"] is None


@pytest.mark.parametrize("labels", [[0, 2], [0, -2], [0], [0.5, 0], [np.nan, 0], ["0", "1"]])
def test_bad_labels(labels: list[object]) -> None:
    with pytest.raises(DataError, match="label"):
        ImageSplit.from_files(".", ["a", "b"], labels=labels, classes=["x", "y"])


def test_labels_cannot_be_changed_behind_its_back(split: ImageSplit) -> None:
    with pytest.raises(ValueError, match="read-only"):
        split.labels[0] = 1
    mine = np.array([0, 1])
    other = ImageSplit.from_files(".", "ab", labels=mine, classes=["x", "y"])
    mine[0] = 1
    assert other.labels.tolist() == [0, 1]


def test_fingerprint_sees_content_order_labels_and_names(split: ImageSplit) -> None:
    first = split.fingerprint()
    assert first == split.subset(range(len(split))).fingerprint()
    others = [
        split.subset([1, 0, 2, 3, 4, 5]),
        split.subset([0, 1, 2, 3, 4]),
        split.rename(["ant", "bee", "cow"]),
        split.align(["bee", "ant", "cat"]),
    ]
    prints = {other.fingerprint() for other in others}
    path = split.path(0)
    assert path is not None
    draw(path, seed=99)
    prints.add(split.fingerprint())
    assert len(prints) == 5 and first not in prints


def test_digest_is_of_the_content(split: ImageSplit, tmp_path: Path) -> None:
    copy = tmp_path / "copy.png"
    source = split.path(0)
    assert source is not None
    copy.write_bytes(source.read_bytes())
    assert open_images([copy]).digest(0) == split.digest(0) != split.digest(1)
    source.unlink()
    with pytest.raises(DataError, match=r"0\.png' cannot be read: No such file"):
        split.digest(0)
    with pytest.raises(DataError, match=r"0\.png' does not exist"):
        split.load(0)


def test_a_split_knows_its_place(
    split: ImageSplit, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    relative = open_dataset("d").split("all")
    monkeypatch.chdir("/")  # where a worker may stand
    again = pickle.loads(pickle.dumps(relative))
    assert again.load(0).size == (12, 8) and again.fingerprint() == split.fingerprint()


def test_a_million_images_are_cheap() -> None:
    count = 200_000
    ids = [f"n{number % 1000:08d}/{number}.JPEG" for number in range(count)]
    classes = [str(number) for number in range(1000)]
    split = ImageSplit.from_files("/data", ids, labels=np.arange(count) % 1000, classes=classes)
    assert len(pickle.dumps(split)) < 40 * count
    assert len(split.select_classes(range(500)).subset(range(0, count // 2, 2))) == count // 4


def test_manifest_is_plain_json(split: ImageSplit) -> None:
    record = json.loads(json.dumps(split.manifest()))[2]
    assert record == {
        "id": "bee/0.png",
        "path": str(split.path(2)),
        "label": 1,
        "class": "bee",
    }


def test_file_names_that_are_no_text(tmp_path: Path) -> None:
    """Linux allows any bytes in a file name; they must not break hashing or writing."""
    draw_folder(tmp_path, {"a": 1, "b": 1})
    target = bytes(tmp_path) + b"/a/\xff\xfe.png"
    try:
        Path(tmp_path / "a" / "0.png").rename(target.decode("utf-8", "surrogateescape"))
    except OSError:
        pytest.skip("this file system allows only text as file names")
    split = open_dataset(tmp_path).split("all")
    assert split.load(0).size == (12, 8) and split.fingerprint()
    json.dumps(split.manifest(), ensure_ascii=False).encode()


def test_the_split_that_is_wanted(split: ImageSplit) -> None:
    dataset = ImageDataset("d", split.classes, {"train": split, "test": split.subset([0])})
    assert len(dataset.split("val", "test", "train")) == 1
    with pytest.raises(DataError, match="no split 'val' or 'all'; it has 'train', 'test'"):
        dataset.split("val", "all")


def test_images_without_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_folder(tmp_path, {"b": 11, "a/deep": 1, "empty": 0})
    monkeypatch.chdir(tmp_path)
    unusual = draw(tmp_path / "one.png").rename(tmp_path / "scan0001")
    split = open_images(["b", unusual, Path("a")])
    assert split.ids[:3] == ("b/0.png", "b/1.png", "b/2.png") and split.ids[-1] == "a/deep/0.png"
    assert split.labels.tolist() == [-1] * 13 and split.classes == ()
    assert isinstance(split.load(11), Image.Image)
    for paths, message in (
        (["x.png"], "no file or folder 'x"),
        (["empty"], "no image"),
        ([], "no images to open"),
    ):
        with pytest.raises(DataError, match=message):
            open_images(paths)
