"""Tables in every format that is accepted, and rows that cannot be used."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from data.images import draw, draw_folder
from rada.core.errors import DataError
from rada.data import load_class_names, open_dataset, write_manifest


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return draw_folder(tmp_path, {"img": 6})


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_text(text, encoding=encoding, newline="")
    return path


ROWS = [("img/0.png", "cat"), ("img/1.png", "hot_dog"), ("img/2.png", "cat")]
OBJECTS = [{"path": path, "label": label} for path, label in ROWS]


@pytest.mark.parametrize(
    ("name", "text", "encoding"),
    [
        ("t.csv", "path,label\n" + "".join(f"{p},{c}\n" for p, c in ROWS), "utf-8"),
        ("t.csv", "path,label\r\n" + "".join(f"{p},{c}\r\n" for p, c in ROWS), "utf-8-sig"),
        ("t.CSV", "Label; Path\n" + "".join(f'"{c}";{p}\n' for p, c in ROWS), "utf-8"),
        ("t.csv", "x,path,label\n\n" + "".join(f'"a,b",{p}, {c} \n' for p, c in ROWS), "utf-8"),
        ("t.tsv", "path\tlabel\n" + "".join(f"{p}\t{c}\n" for p, c in ROWS), "utf-8"),
        ("t.csv", "path,label\n" + "".join(f".\\{p},{c}\n" for p, c in ROWS), "utf-8"),
        ("t.jsonl", "\n\n".join(map(json.dumps, OBJECTS)), "utf-8"),
        ("t.ndjson", "\n".join(map(json.dumps, OBJECTS)), "utf-8-sig"),
        ("t.json", json.dumps(OBJECTS), "utf-8"),
    ],
)
def test_formats(place: Path, name: str, text: str, encoding: str) -> None:
    dataset = open_dataset(write(place / name, text, encoding))
    split = dataset.split("all")
    assert dataset.name == "t" and dataset.classes == ("cat", "hot dog")
    assert split.ids == ("img/0.png", "img/1.png", "img/2.png")
    assert split.labels.tolist() == [0, 1, 0]
    assert split.path(0) == place / "img" / "0.png"


def test_splits_and_absolute_paths(place: Path, tmp_path: Path) -> None:
    table = write(
        place / "t.csv",
        f"path,label,split\n{place}/img/0.png,a,training\nimg/1.png,b,train\nimg/2.png,b,Test\n",
    )
    dataset = open_dataset(table)
    assert list(dataset.splits) == ["train", "test"]
    assert dataset.split("test").labels.tolist() == [1]
    assert dataset.split("train").load(0).size == (12, 8)


def test_numbers_as_labels(place: Path) -> None:
    lines = [
        json.dumps({"path": f"img/{i}.png", "label": label}) for i, label in enumerate([10, 2])
    ]
    table = write(place / "t.jsonl", "\n".join(lines))
    with pytest.warns(UserWarning, match="called by numbers"):
        dataset = open_dataset(table)
    assert dataset.classes == ("2", "10") and dataset.split("all").labels.tolist() == [1, 0]
    names = [f"class {number}" for number in range(12)]
    dataset = open_dataset(table, class_names=names)
    assert dataset.classes == tuple(names) and dataset.split("all").labels.tolist() == [10, 2]
    with pytest.raises(DataError, match="label 10, but 4 class names were given"):
        open_dataset(table, class_names=["a", "b", "c", "d"])
    from_one = open_dataset(table, class_names={"2": "two", "10": "ten"})
    assert from_one.classes == ("two", "ten")


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("t.csv", "", "lacks the column 'path'"),
        ("t.csv", "path,label\n", "no rows"),
        ("t.csv", "img/0.png,cat\n", "lacks the column 'path'"),
        ("t.csv", "path,class_id\nimg/0.png,cat\n", "lacks the column 'label'"),
        ("t.csv", "path,label\nimg/0.png,cat\nimg/1.png,\n", "line 3: the label is None"),
        ("t.csv", "path,label\nimg/0.png,cat\n ,dog\n", "line 3: the path is ' '"),
        ("t.csv", "path,label\nimg/0.png,cat\nimg/1.png,hot, dog\n", "line 3 has 3 values for 2"),
        ("t.csv", "path,label\nimg/0.png\n", "line 2 has 1 values"),
        ("t.csv", "path,label\nimg/0.png,cat\n./img/0.png,dog\n", "line 3: .* in line 2 already"),
        ("t.csv", "path,label\nimg/0.png,cat\nimg/1.png,cat\n", r"1 class \('cat'\)"),
        ("t.csv", "path,label\nimg/0.png,Cat\nimg/1.png,cat\n", "differ in spelling only"),
        ("t.csv", "path,label,split\nimg/0.png,a,train\nimg/1.png,b,\n", "line 3 has no split"),
        ("t.csv", "path,label,split\nimg/0.png,a,treno\n", "the split 'treno' is none of train"),
        (
            "t.csv",
            "path,label,split\nimg/0.png,a,train\nimg/1.png,b,train\nimg/2.png,c,test\n",
            "'c' of 't' has images in test but none in train",
        ),
        ("t.csv", "path,label\nimg/0.png,a\nimg/8.png,b\nimg/9.png,a\n", "2 of the images"),
        ("t.jsonl", '{"path": "img/0.png"}', "line 1: the label is None"),
        ("t.jsonl", '{"path": "img/0.png", "label": 1.5}', "the label '1.5' is a decimal"),
        ("t.jsonl", '{"path": "img/0.png", "label": true}', "the label is True"),
        ("t.jsonl", '{"path": ["img/0.png"], "label": 1}', "the path is"),
        ("t.csv", "path,label\nimg/0.png,1.0\nimg/1.png,0.0\n", "line 2: .* '1.0' is a decimal"),
        ("t.csv", "path,label\nimg/0.png,1e0\nimg/1.png,2\n", "'1e0' is a decimal number"),
        (
            "t.csv",
            "path,label\nimg/0.png,cat\nimg/1.png,nan\n",
            "line 3: .* 'nan' is what programs",
        ),
        ("t.csv", "path,label\nimg/0.png,NA\nimg/1.png,dog\n", "'NA' is what programs write"),
        ("t.tsv", "path\tlabel\nimg/0.png\tnull\nimg/1.png\tdog\n", "'null' is what programs"),
        ("t.jsonl", '{"path": "img/0.png", "label": NaN}', "'nan' is what programs write"),
        ("t.jsonl", '{"path": "img/0.png", "label": 1.0}', "'1.0' is a decimal number"),
        ("t.jsonl", '{"path": "img/0.png", "label": "a", "label": "b"}', "'label' stands twice"),
        ("t.json", '[{"path": "img/0.png", "label": "a", "label": "b"}]', "'label' stands twice"),
        ("t.csv", "path,label,Label\nimg/0.png,a,b\nimg/1.png,b,a\n", "column 'label' twice"),
        ("t.csv", "path,label\nimg/0.png,cat\nimg/1.png,cat\u200b\n", r"'cat\\u200b' and 'cat'"),
        ("t.jsonl", '["img/0.png", 1]', "line 1 is not a JSON object"),
        ("t.jsonl", '\n{"path": }', "line 2 cannot be read as JSON"),
        ("t.json", '{"path": "img/0.png"}', "list of objects"),
        ("t.json", "[", "cannot be read as JSON"),
    ],
)
def test_bad_tables(place: Path, name: str, text: str, message: str) -> None:
    table = write(place / name, text)
    with pytest.raises(DataError, match=message):
        open_dataset(table)


def test_a_table_that_cannot_be_read(place: Path) -> None:
    (place / "binary.csv").write_bytes(b"path,label\n\xff\xfe\x00")
    with pytest.raises(DataError, match="is not in UTF-8"):
        open_dataset(place / "binary.csv")
    with pytest.raises(DataError, match="does not exist"):
        open_dataset(place / "absent.csv")


def test_missing_files_can_be_skipped(place: Path) -> None:
    text = "path,label\nimg/0.png,a\nimg/1.png,b\nimg/8.png,b\n"
    dataset = open_dataset(write(place / "t.csv", text), skip_bad=True)
    assert [(entry.split, entry.id) for entry in dataset.skipped] == [("all", "img/8.png")]
    assert dataset.split("all").labels.tolist() == [0, 1]
    write(place / "t.csv", "path,label\nimg/0.png,a\nimg/1.png,a\nimg/8.png,b\n")
    with pytest.raises(DataError, match=r"class 'b' .* has no image left"):
        open_dataset(place / "t.csv", skip_bad=True)


@pytest.mark.parametrize("suffix", ["csv", "json", "jsonl"])
def test_a_manifest_is_a_table(tmp_path: Path, suffix: str) -> None:
    root = draw_folder(tmp_path / "d", {"train/a_b": 2, "train/ü, x": 1, "test/a_b": 1})
    dataset = open_dataset(root)
    write_manifest(tmp_path / f"used.{suffix}", dataset.splits)
    again = open_dataset(tmp_path / f"used.{suffix}")
    assert again.classes == dataset.classes and list(again.splits) == ["train", "test"]
    for name, split in dataset.splits.items():
        assert again.splits[name].fingerprint() == split.fingerprint()
    with pytest.raises(DataError, match=r"ends in \.csv"):
        write_manifest(tmp_path / "used.txt", dataset.splits)


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ('img/0.png,"cat', "line 3"),  # no partner anywhere
        ('img/0.png,"cat\nimg/9.png,dog"', "line 3: the label goes over several lines"),
        ('"img/0.png,cat\nimg/9.png",dog', "line 3: the path goes over several lines"),
        ('img/0.png,"cat\nimg/9.png,"dog', "line 3 .* a quotation mark has no partner"),
    ],
)
def test_a_lone_quote_swallows_no_rows(place: Path, row: str, message: str) -> None:
    rows = "".join(f"img/{i}.png,{'cat' if i % 2 else 'dog'}\n" for i in (1, 2))
    table = write(place / "t.csv", f"path,label\nimg/1.png,cat\n{row}\n{rows}")
    with pytest.raises(DataError, match=message):
        open_dataset(table)


def test_quotes_that_are_closed_and_captions_of_several_lines(place: Path) -> None:
    text = 'path,label,caption\nimg/0.png,"a ""big"" cat, grey","two\nlines"\nimg/1.png,5" disc,x\n'
    dataset = open_dataset(write(place / "t.csv", text))
    assert dataset.classes == ('5" disc', 'a "big" cat, grey') and len(dataset.split("all")) == 2


def test_one_image_by_two_paths_counts_once(place: Path) -> None:
    for other in (place / "img/0.png", "img/../img/0.png", place / "link/0.png"):
        (place / "link").exists() or (place / "link").symlink_to(place / "img")
        table = write(place / "t.csv", f"path,label\nimg/0.png,cat\nimg/1.png,dog\n{other},cat\n")
        with pytest.raises(DataError, match=r"line 4: the image .* stands in line 2 already"):
            open_dataset(table)


def test_tables_in_other_encodings(place: Path) -> None:
    text = "path\tlabel\nimg/0.png\tcaf\u00e9\nimg/1.png\ttea\n"
    for encoding in ("utf-8", "utf-8-sig", "utf-16"):  # the last with a mark of the byte order
        (place / "t.tsv").write_bytes(text.encode(encoding))
        assert open_dataset(place / "t.tsv").classes == ("caf\u00e9", "tea")
    for encoding in ("latin-1", "utf-16-le"):
        (place / "t.tsv").write_bytes(text.encode(encoding))
        with pytest.raises(DataError, match=r"is not in UTF-8.*: save it as UTF-8"):
            open_dataset(place / "t.tsv")
    (place / "names.json").write_bytes('{"a": "caf\u00e9"}'.encode("latin-1"))
    with pytest.raises(DataError, match=r"is not in UTF-8.*: save it as UTF-8"):
        load_class_names(place / "names.json")


def test_metadata_of_hugging_face(place: Path) -> None:
    table = write(place / "metadata.csv", "file_name,label\nimg/0.png,cat\nimg/1.png,dog\n")
    assert open_dataset(table).split("all").ids == ("img/0.png", "img/1.png")
    lines = '{"file_name": "img/0.png", "label": 1}\n{"file_name": "img/1.png", "label": 0}\n'
    dataset = open_dataset(write(place / "m.jsonl", lines), class_names=["cat", "dog"])
    assert dataset.split("all").labels.tolist() == [1, 0]
    with pytest.raises(DataError, match=r"has no class folders but a table: open .*metadata.csv'"):
        draw(place / "loose" / "0.png")
        write(place / "loose" / "metadata.csv", "file_name,label\n0.png,cat\n")
        open_dataset(place / "loose")
