"""Folders of class folders, with and without splits above them."""

from __future__ import annotations

import os
import warnings
from pathlib import Path

import pytest

from data.images import draw, draw_folder
from rada.core.errors import DataError
from rada.data import expand_images, open_dataset
from rada.data.scan import list_images, natural_key


def test_classes_are_the_folders(tmp_path: Path) -> None:
    root = draw_folder(tmp_path / "pets", {"golden_retriever": 2, "cat": 1})
    dataset = open_dataset(root)
    assert dataset.name == "pets" and dataset.classes == ("cat", "golden retriever")
    assert dataset.keys == ("cat", "golden_retriever")
    split = dataset.split("train", "all")
    assert split.ids == ("cat/0.png", "golden_retriever/0.png", "golden_retriever/1.png")
    assert split.labels.tolist() == [0, 1, 1]
    assert split.path(1) == root / "golden_retriever" / "0.png"


def test_splits_above_the_classes(tmp_path: Path) -> None:
    counts = {"Train/a": 2, "Train/b": 1, "Train/c": 1, "validation/a": 1, "test/c": 1}
    dataset = open_dataset(draw_folder(tmp_path, counts))
    assert list(dataset.splits) == ["train", "val", "test"]
    assert dataset.classes == ("a", "b", "c")
    assert dataset.split("test").labels.tolist() == [2]  # b is missing there, which is fine
    assert dataset.split("val").ids == ("a/0.png",)


def test_the_order_does_not_depend_on_the_file_system(tmp_path: Path) -> None:
    names = ["10", "9", "a10", "a9", "B", "é"]
    for root, order in ((tmp_path / "one", names), (tmp_path / "two", reversed(names))):
        draw_folder(root, dict.fromkeys(order, 12))
    one, two = open_dataset(tmp_path / "one"), open_dataset(tmp_path / "two")
    assert one.classes == two.classes == ("9", "10", "B", "a9", "a10", "é")
    assert one.split("all").ids == two.split("all").ids
    assert one.split("all").ids[:12] == tuple(f"9/{number}.png" for number in range(12))


def test_natural_order_is_total() -> None:
    names = ["", "1", "01", "1a", "a1", "a01", "a", "²", "٣", "10", "2"]
    backwards = names[::-1]
    assert sorted(backwards, key=natural_key) == sorted(names, key=natural_key)


def test_hidden_and_other_files_are_left_out(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"a": 1, "b": 1, ".hidden": 1, "__MACOSX": 1, "a/.thumbs": 1})
    for name in ("a/notes.txt", "a/._0.png", "b/.DS_Store", "a/labels.csv", "README.md"):
        (tmp_path / name).write_text("no image")
    dataset = open_dataset(tmp_path)
    assert dataset.classes == ("a", "b") and len(dataset.split("all")) == 2


def test_images_deeper_down_and_links(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"a/2024/may": 1, "a/2024": 1, "b": 1, "elsewhere/b": 2})
    (tmp_path / "b" / "more").symlink_to(tmp_path / "elsewhere" / "b")
    (tmp_path / "b" / "loop").symlink_to(tmp_path / "b")
    assert list_images(tmp_path / "a") == ["2024/0.png", "2024/may/0.png"]
    assert list_images(tmp_path / "b") == ["0.png", "more/0.png", "more/1.png"]


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    dataset = open_dataset(draw_folder(tmp_path, {"train": 2, "bus": 1}))
    assert dataset.classes == ("bus", "train") and list(dataset.splits) == ["all"]
    (tmp_path / "two").mkdir()
    dataset = open_dataset(draw_folder(tmp_path / "two", {"train/train": 2, "train/bus": 1}))
    assert dataset.classes == ("bus", "train") and list(dataset.splits) == ["train"]


def test_folders_without_images_beside_the_splits(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"train/a": 1, "train/b": 1, "docs": 0})
    assert list(open_dataset(tmp_path).splits) == ["train"]
    draw(tmp_path / "docs" / "logo.png")
    with pytest.raises(DataError, match="'train' of a split beside 'docs'"):
        open_dataset(tmp_path)


@pytest.mark.parametrize(
    ("counts", "message"),
    [
        ({}, "has no sub-folders and no images"),
        ({"": 3}, "3 images but no sub-folders"),
        ({"a": 1, "b": 0}, "class folder '.*b' holds no image"),
        ({"train/a": 1, "train/b": 0, "test/a": 0}, "class folder '.*train/b' holds no image"),
        ({"train": 2, "test": 2}, "no sub-folders"),
        ({"train/a": 1, "training/a": 1}, "mean the same split"),
        ({"a": 3}, r"has 1 class \('a'\)"),
        ({"a_b": 1, "A b": 1}, "differ in spelling only"),
        ({"a": 1, "_": 1}, "give every class a name"),
        ({"train/a": 1, "train/b": 1, "test/bird": 1}, "'bird' .* has images in test but none"),
    ],
)
def test_bad_folders(tmp_path: Path, counts: dict[str, int], message: str) -> None:
    draw_folder(tmp_path / "root", counts).mkdir(exist_ok=True)
    with pytest.raises(DataError, match=message):
        open_dataset(tmp_path / "root")


def test_what_may_be_allowed(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, {"train/a": 1, "train/c": 1, "test/b": 1})
    dataset = open_dataset(root, allow_unseen=True)
    assert dataset.classes == ("a", "b", "c") and dataset.split("test").labels.tolist() == [1]
    assert open_dataset(root / "test", min_classes=1).classes == ("b",)


def test_places_that_are_no_data(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file, folder or data set '.*absent'"):
        open_dataset(tmp_path / "absent")
    with pytest.raises(DataError, match="did you mean 'textiles'"):
        open_dataset("textile")
    with pytest.raises(DataError, match="not a folder or a table"):
        open_dataset(draw(tmp_path / "one.png"))


@pytest.mark.skipif(os.geteuid() == 0, reason="the super-user may read everything")
def test_a_folder_that_may_not_be_read(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, {"a": 1, "b": 1})
    (root / "b").chmod(0)
    with pytest.raises(DataError, match="cannot be read"):
        open_dataset(root)
    (root / "b").chmod(0o700)


def test_a_dangling_link_is_missing(tmp_path: Path) -> None:
    root = draw_folder(tmp_path, {"a": 1, "b": 1})
    (root / "a" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(DataError, match=r"1 of the images .*gone\.png' does not exist"):
        open_dataset(root)
    dataset = open_dataset(root, skip_bad=True)
    assert [entry.id for entry in dataset.skipped] == ["a/gone.png"]
    assert len(dataset.split("all")) == 2


def test_real_images(shared_data: Path) -> None:
    dataset = open_dataset(shared_data / "pacs" / "photo")
    assert dataset.classes[:2] == ("dog", "elephant") and len(dataset.classes) == 7
    assert [len(split) for split in dataset.splits.values()] == [140, 210]
    assert dataset.split("test").load(0).mode == "RGB"


def test_what_systems_leave_behind_is_no_class(tmp_path: Path) -> None:
    root = draw_folder(
        tmp_path, {"cat": 1, "dog": 1, "__pycache__": 0, "@eaDir": 1, "cat/@eaDir": 1}
    )
    dataset = open_dataset(root)
    assert dataset.classes == ("cat", "dog") and len(dataset.split("all")) == 2


def test_an_empty_class_folder_beside_training(tmp_path: Path) -> None:
    counts = {"train/cat": 1, "train/dog": 1, "test/cat": 1, "test/dog": 0}
    root = draw_folder(tmp_path, counts)
    assert open_dataset(root).split("test").counts().tolist() == [1, 0]
    assert open_dataset(root / "test").split("all").counts().tolist() == [1, 0]
    (root / "train/dog/0.png").unlink()
    for place in (root, root / "train"):
        with pytest.raises(DataError, match=r"'.*train/dog' holds no image"):
            open_dataset(place)


def test_a_folder_of_domains_is_no_data_set(tmp_path: Path) -> None:
    domains = ("photo", "sketch")
    counts = {f"{d}/{part}/{c}": 1 for d in domains for part in ("train", "test") for c in "ab"}
    root = draw_folder(tmp_path / "pacs", counts)
    with pytest.raises(
        DataError, match=r"data sets of their own \('photo', 'sketch'\), .*pacs/photo'"
    ):
        open_dataset(root)
    assert list(open_dataset(root / "photo").splits) == ["train", "test"]
    alone = draw_folder(tmp_path / "alone", {f"{d}/train/{c}": 1 for d in domains for c in "ab"})
    with pytest.raises(DataError, match="data sets of their own"):
        open_dataset(alone)


def test_splits_below_the_classes_are_not_pooled(tmp_path: Path) -> None:
    root = draw_folder(
        tmp_path, {f"{c}/{part}": 1 for c in ("cat", "dog") for part in ("train", "val")}
    )
    with pytest.raises(DataError, match=r"put the splits above the classes \(train/cat/...\)"):
        open_dataset(root)


def test_the_same_folders_below_each_class_are_worth_a_warning(tmp_path: Path) -> None:
    root = draw_folder(
        tmp_path, {f"{d}/{c}": 1 for d in ("photo", "sketch") for c in ("cat", "dog")}
    )
    with pytest.warns(UserWarning, match=r"hold the same sub-folders \(cat, dog, ...\)"):
        open_dataset(root)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert open_dataset(root / "photo").classes == ("cat", "dog")
        open_dataset(draw_folder(tmp_path / "v", {"bus/train": 2, "bus/car": 1, "cat": 1}))


def test_images_that_are_left_out_are_counted_and_named(tmp_path: Path) -> None:
    """HEIC is read; what is not read is said once, not met as a shortage later."""
    draw_folder(tmp_path, {"cat": 2, "dog": 2})
    (tmp_path / "cat" / "2.heic").write_bytes(b"x")
    for name in ("cat/raw.CR2", "cat/other.cr2", "dog/drawing.svg", "dog/notes.txt"):
        (tmp_path / name).write_bytes(b"x")
    with pytest.warns(
        UserWarning, match=r"3 images .* \(2 \.cr2, 1 \.svg; the first is 'cat/"
    ) as said:
        split = open_dataset(tmp_path).split("all")
    assert len(said) == 1 and "cat/2.heic" in split.ids and len(split) == 5
    with pytest.warns(UserWarning, match=r"1 images .*\(1 \.svg"):
        assert len(list(expand_images(tmp_path / "dog"))) == 2
