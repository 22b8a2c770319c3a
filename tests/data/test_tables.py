"""Tables of pictures: CSV, TSV, JSON lines and JSON."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.pictures import draw
from rada.data import open_dataset
from rada.errors import DataError

ROWS = [("one.png", "wet dog"), ("sub/two.png", "cat"), ("three.png", "cat")]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for seed, (name, _) in enumerate(ROWS):
        draw(tmp_path / name, seed)
    return tmp_path


def write(path: Path, *lines: str, encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("t.csv", ["path,label", *(f"{path},{label}" for path, label in ROWS)]),
        ("t.CSV", ["label,note,path", *(f'{label},"a, b",{path}' for path, label in ROWS)]),
        ("t.csv", ["path;label", *(f"{path};{label}" for path, label in ROWS)]),
        ("t.csv", ["Path, Label", *(f"{path}, {label}" for path, label in ROWS), "", ""]),
        ("t.tsv", ["path\tlabel", *(f"{path}\t{label}" for path, label in ROWS)]),
        ("t.jsonl", [json.dumps({"path": path, "label": label}) for path, label in ROWS]),
        ("t.ndjson", [json.dumps({"path": path, "label": label}) + "\n" for path, label in ROWS]),
        ("t.json", [json.dumps([{"path": path, "label": label} for path, label in ROWS])]),
    ],
)
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_formats(folder: Path, name: str, lines: list[str], encoding: str) -> None:
    dataset = open_dataset(write(folder / name, *lines, encoding=encoding))
    split = dataset.split("all")
    assert (dataset.name, dataset.classes) == ("t", ("cat", "wet dog"))
    assert (split.ids, split.labels.tolist()) == (tuple(path for path, _ in ROWS), [1, 0, 0])
    assert split.load(1).size == (12, 8)


def test_line_ends_of_windows(folder: Path) -> None:
    (folder / "t.csv").write_bytes(b"path,label\r\none.png,a\r\nsub\\two.png,b\r\n")
    split = open_dataset(folder / "t.csv").split("all")
    assert split.ids == ("one.png", "sub/two.png")


def test_splits(folder: Path) -> None:
    lines = ["path,label,split", "one.png,a,Training", "sub/two.png,b,train", "three.png,a,test"]
    dataset = open_dataset(write(folder / "t.csv", *lines))
    assert {name: split.ids for name, split in dataset.splits.items()} == {
        "train": ("one.png", "sub/two.png"),
        "test": ("three.png",),
    }


def test_numbers_as_labels(folder: Path) -> None:
    lines = ["path,label", "one.png,0", "sub/two.png,10", "three.png,2"]
    table = write(folder / "t.csv", *lines)
    with pytest.warns(UserWarning, match="called by numbers"):
        assert open_dataset(table).classes == ("0", "2", "10")
    names = [f"class {number}" for number in range(11)]
    dataset = open_dataset(table, class_names=names)
    assert dataset.classes == tuple(names)
    assert dataset.split("all").labels.tolist() == [0, 10, 2]
    assert open_dataset(table, class_names=["x", "y", "z"]).split("all").labels.tolist() == [0, 2, 1]


def test_paths_from_the_root(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    elsewhere = tmp_path_factory.mktemp("elsewhere") / "t.csv"
    lines = ["path,label", f"{folder / 'one.png'},a", f"{folder / 'three.png'},b"]
    split = open_dataset(write(elsewhere, *lines)).split("all")
    assert split.path(0) == folder / "one.png" and split.load(1).mode == "RGB"


def test_missing_pictures(folder: Path) -> None:
    lines = ["path,label", "one.png,a", "lost.png,a", "three.png,b", f"{'x' * 400}.png,b"]
    table = write(folder / "t.csv", *lines)
    with pytest.raises(DataError, match=r"2 of the pictures.*lost\.png' does not exist"):
        open_dataset(table)
    dataset = open_dataset(table, skip_bad=True)
    assert dataset.split("all").ids == ("one.png", "three.png")
    assert [entry.id for entry in dataset.skipped] == ["lost.png", f"{'x' * 400}.png"]
    write(table, "path,label", "one.png,a", "lost.png,b")
    with pytest.raises(DataError, match="'b'"):
        open_dataset(table, skip_bad=True)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "lacks the column 'path'"),
        ("t.csv", "path,label\n", "no rows"),
        ("t.csv", "path,name\none.png,a\n", "lacks the column 'label'.*'path,name'"),
        ("t.csv", "path,label\none.png\n", "line 2.*label"),
        ("t.csv", "path,label\none.png, \n", "line 2.*label"),
        ("t.csv", "path,label\n,a\n", "line 2.*path"),
        ("t.csv", "path,label\none.png,a\nthree.png,b\none.png,a\n", "line 4.*line 2 already"),
        ("t.csv", "path,label\none.png,a\nthree.png,b\n./one.png,a\n", "line 4.*line 2 already"),
        ("t.csv", "path,label,split\none.png,a,train\none.png,a,test\n", "line 2 already"),
        ("t.csv", "path,label,split\none.png,a,fold3\nthree.png,b,train\n", "line 2.*'fold3'"),
        ("t.csv", "path,label,split\none.png,a,train\nthree.png,b,\n", "line 3 has no split"),
        ("t.csv", "path,label\none.png,a\nthree.png,a\n", r"1 class \('a'\)"),
        ("t.csv", "path,label\none.png,Cat\nthree.png,cat\n", "'cat'.*'Cat'"),
        ("t.csv", 'path,label\n"one.png,a\n' + "x" * 200_000, "t.csv"),
        ("t.jsonl", '{"path": "one.png", "label": "a"}\n{"path"\n', "line 2 is not JSON"),
        ("t.jsonl", "[" * 100_000, "line 1"),
        ("t.jsonl", '["one.png", "a"]', "line 1 is not a JSON object"),
        ("t.jsonl", '{"path": "one.png"}', "line 1.*label is None"),
        ("t.jsonl", '{"path": "one.png", "label": 1.5}', "line 1.*label is 1.5"),
        ("t.jsonl", '{"path": "one.png", "label": true}', "line 1.*label is True"),
        ("t.jsonl", '{"path": ["one.png"], "label": 1}', "line 1.*path is"),
        ("t.json", '{"path": "one.png", "label": 1}', "t.json"),
        ("t.json", '[{"path": "one.png", "label": 1}, 7]', "t.json"),
        ("t.json", "nothing", "t.json"),
    ],
)
def test_bad_tables_are_named(folder: Path, name: str, text: str, message: str) -> None:
    (folder / name).write_text(text)
    with pytest.raises(DataError, match=message):
        open_dataset(folder / name)


def test_a_table_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"lost\.csv' does not exist"):
        open_dataset(tmp_path / "lost.csv")
    (tmp_path / "bytes.csv").write_bytes(b"path,label\n\xff\xfe.png,a\n")
    with pytest.raises(DataError, match=r"bytes\.csv' cannot be read"):
        open_dataset(tmp_path / "bytes.csv")


def test_lone_surrogates_of_json(folder: Path) -> None:
    lines = [r'{"path": "one.png", "label": "a\ud800"}', r'{"path": "three.png", "label": "b"}']
    dataset = open_dataset(write(folder / "t.jsonl", *lines))
    " ".join(dataset.classes).encode()
    assert len(dataset.split("all").fingerprint()) == 40
    write(folder / "t.jsonl", *lines, r'{"path": "\ud800.png", "label": "b"}')
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(folder / "t.jsonl")


def test_labels_of_very_many_digits(folder: Path) -> None:
    """Python refuses to read integers of more than 4300 digits."""
    lines = ["path,label", f"one.png,{'9' * 5000}", "three.png,b"]
    assert len(open_dataset(write(folder / "t.csv", *lines)).classes) == 2
