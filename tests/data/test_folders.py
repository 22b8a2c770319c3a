"""Folders of class folders, as people have them, with and without splits."""

from __future__ import annotations

import json
import os
import pickle
from pathlib import Path

import numpy as np
import pytest
from torch.utils.data import DataLoader, Dataset

from data.pictures import draw, draw_folder
from rada.data import ImageSplit, few_shot, open_dataset, write_manifest
from rada.errors import DataError


def test_one_folder_a_class(tmp_path: Path) -> None:
    draw_folder(tmp_path / "pets", {"hot_dog": 2, "cat": 3})
    dataset = open_dataset(tmp_path / "pets")
    assert (dataset.name, dataset.classes) == ("pets", ("cat", "hot dog"))
    assert (dataset.keys, list(dataset.splits)) == (("cat", "hot_dog"), ["all"])
    split = dataset.split("test", "all")
    assert split.ids[0] == "cat/0.png" and split.labels.tolist() == [0, 0, 0, 1, 1]
    assert split.path(4) == tmp_path / "pets" / "hot_dog" / "1.png"
    assert split.load(0).size == (12, 8)
    with pytest.raises(DataError, match="no split 'train'; it has 'all'"):
        dataset.split("train")


@pytest.mark.parametrize("names", [("train", "val", "test"), ("Training", "valid", "TEST")])
def test_folders_of_splits(tmp_path: Path, names: tuple[str, ...]) -> None:
    for number, name in enumerate(names, 1):
        draw_folder(tmp_path / name, {"cat": number, "dog": 1})
    dataset = open_dataset(str(tmp_path))
    assert list(dataset.splits) == ["train", "val", "test"]
    assert [len(split) for split in dataset.splits.values()] == [2, 3, 4]
    assert dataset.split("test").ids[0] == f"{names[2]}/cat/0.png"
    assert all(split.classes == ("cat", "dog") for split in dataset.splits.values())


def test_a_class_may_be_called_like_a_split(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"train": 2, "bus": 2})
    assert open_dataset(tmp_path).classes == ("bus", "train")


@pytest.mark.parametrize("names", [("train", "training"), ("val", "validation", "train")])
def test_two_folders_for_one_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        draw_folder(tmp_path / name, {"cat": 1, "dog": 1})
    with pytest.raises(DataError, match="same split"):
        open_dataset(tmp_path)


def test_classes_beside_splits(tmp_path: Path) -> None:
    draw_folder(tmp_path / "train", {"cat": 1, "dog": 1})
    draw_folder(tmp_path, {"bird": 1})
    with pytest.raises(DataError, match="'train' of a split beside 'bird'"):
        open_dataset(tmp_path)


def test_hidden_and_foreign_files_do_not_count(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"cat": 1, "dog": 1, ".git": 1, "__MACOSX": 1, "cat/.thumbs": 1})
    draw(tmp_path / "cat" / "._0.png")
    (tmp_path / "cat" / "notes.txt").write_text("no picture")
    (tmp_path / "cat" / "Thumbs.db").write_bytes(b"no picture")
    draw(tmp_path / "cat" / "deeper" / "UPPER.PNG")
    (tmp_path / "README.md").write_text("about")
    assert open_dataset(tmp_path).split("all").ids == (
        "cat/0.png",
        "cat/deeper/UPPER.PNG",
        "dog/0.png",
    )


def test_bad_folders_are_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"no file, folder or data set '/nowhere/at all'"):
        open_dataset("/nowhere/at all")
    (tmp_path / "nothing").mkdir()
    with pytest.raises(DataError, match="nothing"):
        open_dataset(tmp_path / "nothing")
    draw(tmp_path / "flat" / "1.png")
    with pytest.raises(DataError, match="1 pictures but no sub-folders"):
        open_dataset(tmp_path / "flat")
    draw_folder(tmp_path / "empty", {"cat": 2, "dog": 0})
    with pytest.raises(DataError, match=r"empty/dog' holds no picture"):
        open_dataset(tmp_path / "empty")
    draw_folder(tmp_path / "one", {"cat": 2})
    with pytest.raises(DataError, match=r"'one' has 1 class \('cat'\)"):
        open_dataset(tmp_path / "one")
    assert open_dataset(tmp_path / "one", min_classes=1).classes == ("cat",)


def test_a_class_in_test_only(tmp_path: Path) -> None:
    draw_folder(tmp_path / "train", {"cat": 1, "dog": 1})
    draw_folder(tmp_path / "test", {"cat": 1, "emu": 1})
    with pytest.raises(DataError, match="'emu'.* in test but none in train"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, allow_unseen=True)
    assert dataset.classes == ("cat", "dog", "emu")
    assert dataset.split("test").labels.tolist() == [0, 2]


def test_a_class_in_train_only_is_fine(tmp_path: Path) -> None:
    draw_folder(tmp_path / "train", {"cat": 1, "dog": 1, "emu": 1})
    draw_folder(tmp_path / "test", {"dog": 1, "cat": 1})
    assert open_dataset(tmp_path).split("test").counts().tolist() == [1, 1, 0]


def test_the_order_of_the_file_system_does_not_matter(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path, {"b": 12, "a10": 3, "a2": 3})
    plain = open_dataset(tmp_path).split("all")
    assert plain.classes == ("a2", "a10", "b") and plain.ids[-1] == "b/11.png"
    scandir = os.scandir

    class Backwards:
        def __init__(self, folder: str) -> None:
            with scandir(folder) as entries:
                self.entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> object:
            return iter(self.entries)

        def __exit__(self, *error: object) -> None:
            pass

    monkeypatch.setattr(os, "scandir", Backwards)
    other = open_dataset(tmp_path).split("all")
    assert other.ids == plain.ids and other.fingerprint() == plain.fingerprint()
    assert few_shot(other, 2, 5).ids == few_shot(plain, 2, 5).ids


def test_names_in_any_script(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"Käse_Brot": 1, "猫": 1, "🦜": 1})
    dataset = open_dataset(tmp_path)
    assert set(dataset.classes) == {"Käse Brot", "猫", "🦜"}
    assert len(dataset.split("all").fingerprint()) == 40


def test_names_that_are_no_unicode(tmp_path: Path) -> None:
    """Bytes of an old code page come as lone surrogates, which no tokenizer and no JSON file takes."""
    folder = os.fsencode(tmp_path) + b"/caf\xe9"
    try:
        os.mkdir(folder)  # noqa: PTH102
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    draw(Path(os.fsdecode(folder + b"/t\xe9.png")))
    draw_folder(tmp_path, {"tea": 1})
    dataset = open_dataset(tmp_path)
    split = dataset.split("all")
    assert split.load(0).size == (12, 8) and len(split.fingerprint()) == 40
    assert len(few_shot(split, 1, 0)) == 2
    " ".join(dataset.classes).encode()  # can be printed and tokenized
    json.dumps(split.manifest(), ensure_ascii=False).encode()
    write_manifest(tmp_path / "used.csv", {"train": split})


def test_links(tmp_path: Path) -> None:
    draw_folder(tmp_path / "real", {"cat": 1, "dog": 1})
    (tmp_path / "real" / "cat" / "again").symlink_to(tmp_path / "real" / "cat")
    (tmp_path / "linked").symlink_to(tmp_path / "real")
    (tmp_path / "real" / "dog" / "self").symlink_to("self")
    assert open_dataset(tmp_path / "linked").split("all").ids == ("cat/0.png", "dog/0.png")


def test_a_broken_link_is_a_missing_picture(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"cat": 2, "dog": 1})
    (tmp_path / "cat" / "lost.png").symlink_to(tmp_path / "nowhere.png")
    with pytest.raises(DataError, match=r"lost\.png' does not exist.*--skip-bad"):
        open_dataset(tmp_path)
    dataset = open_dataset(tmp_path, skip_bad=True)
    assert len(dataset.split("all")) == 3
    assert [(entry.split, entry.id) for entry in dataset.skipped] == [("all", "cat/lost.png")]


def test_home_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    draw_folder(tmp_path / "pets", {"cat": 1, "dog": 1})
    monkeypatch.setenv("HOME", str(tmp_path))
    split = open_dataset("~/pets").split("all")
    assert split.path(0) == tmp_path / "pets" / "cat" / "0.png"


@pytest.mark.parametrize("spec", ["", "x" * 5000, "a\0b", "~nobody-of-this-name/pets", "cat:dog"])
def test_specifications_that_mean_nothing(spec: str) -> None:
    with pytest.raises(DataError):
        open_dataset(spec)


@pytest.mark.parametrize(
    ("wrong", "right"), [("textile", "textiles"), ("Textiles", "textiles"), ("torchvison:X", "torc")]
)
def test_did_you_mean(wrong: str, right: str) -> None:
    with pytest.raises(DataError, match=f"did you mean '{right}"):
        open_dataset(wrong)


def test_a_file_that_is_no_table(tmp_path: Path) -> None:
    (tmp_path / "list.txt").write_text("a.png 0")
    with pytest.raises(DataError, match=r"a table ends in \.csv"):
        open_dataset(tmp_path / "list.txt")


# -- splits --------------------------------------------------------------------------------------


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
