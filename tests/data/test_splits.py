"""Splits: subsets, labels, fingerprints, manifests, and workers that have them."""

from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from data.pictures import draw, draw_folder
from rada.data import ImageSplit, open_dataset, write_manifest
from rada.errors import DataError


class _Sizes(Dataset):  # type: ignore[type-arg]
    def __init__(self, split: ImageSplit) -> None:
        self.split = split

    def __len__(self) -> int:
        return len(self.split)

    def __getitem__(self, index: int) -> tuple[int, int]:
        return self.split.load(index).width, int(self.split.labels[index])


def test_workers_of_a_data_loader_may_have_a_split(tmp_path: Path) -> None:
    split = open_dataset(draw_folder(tmp_path, {"cat": 3, "dog": 2})).split("all")
    loader = DataLoader(_Sizes(split), batch_size=2, num_workers=1, multiprocessing_context="fork")
    assert [label for _, labels in loader for label in labels.tolist()] == [0, 0, 0, 1, 1]
    again = pickle.loads(pickle.dumps(split))
    assert again.ids == split.ids and again.fingerprint() == split.fingerprint()


def test_a_pickled_split_is_small(tmp_path: Path) -> None:
    split = ImageSplit.from_files(tmp_path, ["a.jpg"] * 1000, labels=[0] * 1000, classes=["cat"])
    assert len(pickle.dumps(split)) < 20_000


def test_subsets(tmp_path: Path) -> None:
    split = open_dataset(draw_folder(tmp_path, {"ant": 2, "bee": 2, "cow": 2})).split("all")
    some = split.subset([5, 0])
    assert some.ids == ("cow/1.png", "ant/0.png") and some.classes == split.classes
    assert split.subset(split.labels == 1).ids == ("bee/0.png", "bee/1.png")
    assert len(split.subset([])) == 0
    chosen = split.select_classes([2, 0])
    assert chosen.classes == ("cow", "ant") and chosen.labels.tolist() == [1, 1, 0, 0]
    kept = split.select_classes([2], relabel=False)
    assert kept.classes == split.classes and kept.labels.tolist() == [2, 2]
    for wrong in ([3], [-1], [0, 0]):
        with pytest.raises(DataError, match="distinct numbers from 0 to 2"):
            split.select_classes(wrong)
    assert split.align(["cow", "bee", "ant", "dog"]).labels.tolist() == [2, 2, 1, 1, 0, 0]
    with pytest.raises(DataError, match="'cow'"):
        split.align(["ant", "bee"])
    with pytest.raises(DataError, match="2 names"):
        split.rename(["x", "y"])


@pytest.mark.parametrize("labels", [[0, 2], [-2, 0], [0], [0.0, 1.0], ["0", "1"], [np.nan, 1]])
def test_labels_that_cannot_be(tmp_path: Path, labels: list[object]) -> None:
    with pytest.raises(DataError, match="label"):
        ImageSplit.from_files(tmp_path, ["a", "b"], labels=labels, classes=["x", "y"])


def test_fingerprints_notice_every_change(tmp_path: Path) -> None:
    split = open_dataset(draw_folder(tmp_path, {"cat": 2, "dog": 2})).split("all")
    first = split.fingerprint()
    assert split.fingerprint() == first
    assert split.subset([1, 0, 2, 3]).fingerprint() != first
    assert split.rename(["cat", "wolf"]).fingerprint() != first
    assert split.align(["dog", "cat"]).fingerprint() != first
    draw(tmp_path / "dog" / "1.png", seed=99)
    assert split.fingerprint() != first
    (tmp_path / "dog" / "1.png").unlink()
    with pytest.raises(DataError, match=r"dog/1\.png"):
        split.fingerprint()


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_a_manifest_says_what_was_used_and_opens_again(tmp_path: Path, suffix: str) -> None:
    for name in ("train", "test"):
        draw_folder(tmp_path / "pets" / name, {"big_cat": 2, "dog, wet": 1})
    dataset = open_dataset(tmp_path / "pets")
    record = dataset.split("train").manifest()[0]
    assert record == {
        "id": "train/big_cat/0.png",
        "path": str(tmp_path / "pets/train/big_cat/0.png"),
        "label": 0,
        "class": "big cat",
    }
    write_manifest(tmp_path / f"used.{suffix}", dataset.splits)
    again = open_dataset(tmp_path / f"used.{suffix}")
    assert again.classes == dataset.classes and list(again.splits) == ["train", "test"]
    assert again.split("test").fingerprint() == dataset.split("test").fingerprint()


def test_a_manifest_without_labels(tmp_path: Path) -> None:
    split = ImageSplit.from_files(tmp_path, ["a.jpg"])
    assert split.manifest()[0]["class"] is None and split.manifest()[0]["label"] == -1
    with pytest.raises(DataError, match=r"used\.txt"):
        write_manifest(tmp_path / "used.txt", {"all": split})
