"""Names of every kind: of folders, files and classes, in any script or none, and misspelt ones."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from data.images import draw, draw_folder
from rada.core.errors import DataError
from rada.data import few_shot, open_dataset, write_manifest


@pytest.mark.parametrize("names", [("train", "training"), ("val", "validation", "train")])
def test_two_folders_for_one_split(tmp_path: Path, names: tuple[str, ...]) -> None:
    for name in names:
        draw_folder(tmp_path / name, {"cat": 1, "dog": 1})
    with pytest.raises(DataError, match="same split"):
        open_dataset(tmp_path)


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
    ("wrong", "right"),
    [
        ("textile", "textiles"),
        ("Textiles", "textiles"),
        ("torchvison:CIFAR10", "torchvision:CIFAR10"),
    ],
)
def test_did_you_mean(wrong: str, right: str) -> None:
    with pytest.raises(DataError, match=f"did you mean '{right}"):
        open_dataset(wrong)


def test_accents_that_a_file_system_takes_apart(tmp_path: Path) -> None:
    """A Mac stores "ä" as "a" and two dots; the prompt must not change with the disk."""
    together, apart = "K\u00e4se", "Ka\u0308se"
    draw_folder(tmp_path, {apart: 1, "tea": 1})
    assert open_dataset(tmp_path).classes == (together, "tea")
    assert open_dataset(tmp_path, class_names={together: "cheese"}).classes == ("cheese", "tea")


def test_a_mapping_tells_folders_of_nearly_the_same_name_apart(tmp_path: Path) -> None:
    draw_folder(tmp_path, {"hot_dog": 1, "hot dog": 1, "Tea": 1})
    with pytest.raises(DataError, match="'hot_dog' and 'hot dog', which differ"):
        open_dataset(tmp_path)
    names = {"hot_dog": "sausage", "hot dog": "warm dog", "tea": "tea"}
    dataset = open_dataset(tmp_path, class_names=names)
    assert dict(zip(dataset.keys, dataset.classes, strict=True)) == {
        "hot_dog": "sausage",
        "hot dog": "warm dog",
        "Tea": "tea",
    }
    with pytest.raises(DataError, match="two class names are given for 'TEA'"):
        open_dataset(tmp_path, class_names={**names, "TEA": "coffee"})


# -- in tables -----------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, name in enumerate(("one.png", "sub/two.png", "three.png")):
        draw(tmp_path / name, seed)
    return tmp_path


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def test_line_ends_of_windows(folder: Path) -> None:
    (folder / "t.csv").write_bytes(b"path,label\r\none.png,a\r\nsub\\two.png,b\r\n")
    split = open_dataset(folder / "t.csv").split("all")
    assert split.ids == ("one.png", "sub/two.png")


def test_missing_images(folder: Path) -> None:
    lines = ["path,label", "one.png,a", "lost.png,a", "three.png,b", f"{'x' * 400}.png,b"]
    table = write(folder / "t.csv", *lines)
    with pytest.raises(DataError, match=r"2 of the images.*lost\.png' does not exist"):
        open_dataset(table)
    dataset = open_dataset(table, skip_bad=True)
    assert dataset.split("all").ids == ("one.png", "three.png")
    assert [entry.id for entry in dataset.skipped] == ["lost.png", f"{'x' * 400}.png"]
    write(table, "path,label", "one.png,a", "lost.png,b")
    with pytest.raises(DataError, match="'b'"):
        open_dataset(table, skip_bad=True)


def test_lone_surrogates_of_json(folder: Path) -> None:
    """They stand for no character, so nothing is called by them, in every kind of JSON."""
    for line in (
        r'{"path": "one.png", "label": "a\ud800"}',
        r'{"path": "\ud800.png", "label": "b"}',
    ):
        for name, text in (("t.jsonl", line), ("t.json", f"[{line}]")):
            with pytest.raises(DataError, match="half a Unicode character"):
                open_dataset(write(folder / name, text))


def test_labels_of_very_many_digits(folder: Path) -> None:
    """Python refuses to read integers of more than 4300 digits."""
    lines = ["path,label", f"one.png,{'9' * 5000}", "three.png,b"]
    assert len(open_dataset(write(folder / "t.csv", *lines)).classes) == 2
