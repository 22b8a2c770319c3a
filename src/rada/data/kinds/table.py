"""A table of images: CSV, TSV, JSON or JSON lines with the columns path, label and split."""

from __future__ import annotations

import csv
import functools
import os
import posixpath
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from rada.core.errors import DataError
from rada.core.storage import not_utf8, parse_json, read_json
from rada.data.align import no_label, without_invisible
from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.hugging_face import refuse_several_labels
from rada.data.prompts import display_name
from rada.data.registry import register_dataset
from rada.data.scan import natural_key
from rada.data.splits import SPLITS, split_name

__all__ = ["load_table", "table_images"]

_SEPARATORS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")
_SUFFIXES = (*_SEPARATORS, *_LINES, ".json")
_OTHER_NAMES = {"file_name": "path"}  # Hugging Face's metadata.csv


class _Row(NamedTuple):
    line: int
    image: str
    label: str
    split: str  # "" if it names none


def load_table(spec: str) -> ImageDataset:
    """Open a table; paths are relative to its folder, labels are names or numbers.

    A column `class`, where there is one, names the class in place of `label`: so a written
    manifest can be opened again. `file_name` does for `path`.

    Raises:
        DataError: If the table cannot be read, a column or value is missing, a split is unknown, or an
            image stands in it twice; the message names the line.
    """
    path = Path(spec).expanduser()
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"the table {spec!r} has no rows")
    keys = sorted({row.label for row in rows}, key=natural_key)
    position = {key: label for label, key in enumerate(keys)}
    classes = tuple(display_name(key) for key in keys)
    splits = {}
    for split in _splits(path, rows):
        chosen = [row for row in rows if row.split in ("", split)]
        splits[split] = ImageSplit.from_files(
            path.absolute().parent,
            [row.image for row in chosen],
            labels=np.array([position[row.label] for row in chosen], dtype=np.int64),
            classes=classes,
        )
    return ImageDataset(path.stem, classes, splits, keys=tuple(keys))


def table_images(spec: str) -> ImageSplit:
    """Return the images of a table in its order, without labels: no other column is looked at.

    Raises:
        DataError: If the table cannot be read, has no rows, or a path is missing; the message names the line.
    """
    path = Path(spec).expanduser()
    found = [_image(_where(path, line), row) for line, row in _records(path, ("path",))]
    if not found:
        raise DataError(f"the table {spec!r} has no rows")
    return ImageSplit.from_files(path.absolute().parent, found)


def _splits(path: Path, rows: list[_Row]) -> list[str]:
    named = {row.split for row in rows}
    if named == {""}:
        return ["all"]
    if "" in named:
        line = next(row.line for row in rows if not row.split)
        raise DataError(f"{str(path)!r}, line {line} has no split, but other rows have one")
    return [split for split in SPLITS if split in named]


def _rows(path: Path) -> Iterator[_Row]:
    seen: dict[tuple[str, str], tuple[int, str]] = {}
    root = path.absolute().parent
    real = functools.cache(os.path.realpath)  # of folders, which are few
    for line, record in _records(path, ("path", "label")):
        where = _where(path, line)
        image, label = _image(where, record), _label(where, record)
        written = str(record.get("split") or "").strip()
        split = split_name(written) if written else ""
        if split is None:
            raise DataError(f"{where}: the split {written!r} is none of {', '.join(SPLITS)}")
        folder, name = posixpath.split(image)
        first = seen.setdefault(
            (real(root / folder), name), (line, label)
        )  # also by its absolute path
        if first[0] != line:
            told = f"{where}: the image {image!r} stands in line {first[0]} already"
            if first[1] != label:
                refuse_several_labels(f"{told}, as {first[1]!r}: this")
            raise DataError(told)
        yield _Row(line, image, label, split)


def _where(path: Path, line: int) -> str:
    return f"{str(path)!r}, line {line}"


def _image(where: str, record: dict[str, Any]) -> str:
    written = _cell(where, record, "path").replace("\\", "/")  # written on Windows
    return posixpath.normpath(written)


def _label(where: str, record: dict[str, Any]) -> str:
    """Return the label of a row; what a program wrote for "missing" or as a decimal is none."""
    column = "class" if record.get("class") is not None else "label"
    value = record.get(column)
    if isinstance(value, list) and len(value) > 1:
        refuse_several_labels(f"{where}, with the {column} {value!r},")
    label = str(value) if isinstance(value, float) else _cell(where, record, column)
    reason = no_label(label)
    if reason:
        raise DataError(f"{where}: the {column} {label!r} {reason}")
    return label


def _cell(where: str, record: dict[str, Any], column: str) -> str:
    value = record.get(column)
    if isinstance(value, bool) or not isinstance(value, str | int) or not str(value).strip():
        raise DataError(
            f"{where}: the {column} is {value!r}, but each row needs one, a text or an integer"
        )
    text = str(value).strip()
    if len(text.splitlines()) > 1:
        raise DataError(
            f"{where}: the {column} goes over several lines ({text[:60]!r}): a quotation mark without its "
            "partner swallows the rows behind it; write it twice, or leave it out"
        )
    return text


def _records(path: Path, needed: Sequence[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the number and the columns of each row; numbers are lines, or items of a JSON list.

    A table whose first line names columns has to name the `needed` ones.
    """
    suffix = path.suffix.lower()
    if suffix == ".json":
        yield from _items(path)
        return
    try:
        with path.open(encoding=_encoding(path), newline="") as stream:
            if suffix in _SEPARATORS:
                yield from _table_records(path, stream, _SEPARATORS[suffix], needed)
            else:
                yield from _line_records(path, stream)
    except FileNotFoundError as error:
        raise DataError(f"the table {str(path)!r} does not exist") from error
    except UnicodeError as error:
        raise DataError(f"the table {str(path)!r} {not_utf8(error)}") from error
    except OSError as error:
        raise DataError(f"the table {str(path)!r} cannot be read: {error}") from error


def _encoding(path: Path) -> str:
    """Return UTF-8, or UTF-16 where the first bytes say so, as spreadsheets write "Unicode text"."""
    with path.open("rb") as stream:
        return "utf-16" if stream.read(2) in (b"\xff\xfe", b"\xfe\xff") else "utf-8-sig"


def _table_records(
    path: Path, stream: Any, separator: str, needed: Sequence[str]
) -> Iterator[tuple[int, dict[str, Any]]]:
    header = stream.readline()
    if "\0" in header:
        raise DataError(f"the table {str(path)!r} {not_utf8(None)}")
    if ";" in header and separator not in header:  # what Excel writes in half of Europe
        separator = ";"
    columns = _columns(path, header, separator, needed)
    # Strict: else a quotation mark without its partner swallows rows up to the next one.
    reader = csv.reader(stream, delimiter=separator, strict=True)
    line = 2
    try:
        for values in reader:
            if values and len(values) != len(columns):
                raise DataError(
                    f"{str(path)!r}, line {line} has {len(values)} values for {len(columns)} columns; "
                    "put quotes around a value that holds the separator"
                )
            if values:
                yield line, {key: value or None for key, value in zip(columns, values, strict=True)}
            line = reader.line_num + 2
    except csv.Error as error:
        raise DataError(
            f"{str(path)!r}, line {line} cannot be read ({error}): most likely a quotation mark has no "
            "partner; write it twice within quotes, or leave it out"
        ) from error


def _columns(path: Path, header: str, separator: str, needed: Sequence[str]) -> list[str]:
    """Return the names of the columns, among which the `needed` ones are.

    Raises:
        DataError: If one is missing, or one that is used is there twice.
    """
    written = next(csv.reader([header], delimiter=separator), [])
    names = [without_invisible(name).strip().lower() for name in written]
    if "path" not in names:
        names = [_OTHER_NAMES.get(name, name) for name in names]
    missing = [name for name in needed if name not in names]
    if "class" in names:
        missing = [name for name in missing if name != "label"]
    if missing:
        wanted = f"column{'s' if len(needed) > 1 else ''} {' and '.join(needed)}"
        raise DataError(
            f"the table {str(path)!r} lacks the column {missing[0]!r}: its first line should name the "
            f"{wanted}, but it is {header.strip()[:80]!r}"
        )
    read = (*needed, "class", "split") if "label" in needed else needed
    doubled = [name for name in read if names.count(name) > 1]
    if doubled:
        raise DataError(
            f"the table {str(path)!r} has the column {doubled[0]!r} twice, and which one counts cannot be "
            "told: rename or remove one"
        )
    return names


def _line_records(path: Path, stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for line, text in enumerate(stream, 1):
        if not text.strip():
            continue
        try:
            record = parse_json(text)
        except (ValueError, RecursionError) as error:  # also integers of 4300 digits
            raise DataError(
                f"{str(path)!r}, line {line} cannot be read as JSON: {error}"
            ) from error
        yield line, _object(path, line, record)


def _items(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    records = read_json(path, error=DataError, what="the table", finite=False)
    if not isinstance(records, list):
        raise DataError(
            f"the table {str(path)!r} should hold a list of objects, not {type(records).__name__}"
        )
    for number, record in enumerate(records, 1):
        yield number, _object(path, number, record)


def _object(path: Path, line: int, record: object) -> dict[str, Any]:
    if not isinstance(record, dict):
        raise DataError(f"{str(path)!r}, line {line} is not a JSON object with path and label")
    if "path" not in record:
        return {_OTHER_NAMES.get(str(key), str(key)): record[key] for key in record}
    return record


register_dataset(
    "TABLE.csv",
    "a table (.csv, .tsv, .jsonl, .ndjson, .json) with the columns path, label and, if wanted, split",
    matches=lambda spec: Path(spec).suffix.lower() in _SUFFIXES,
    load=load_table,
    is_path=True,
)
