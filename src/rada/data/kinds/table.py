"""A table of pictures: CSV, TSV or JSON lines with the columns path, label and, if wanted, split."""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rada.data.dataset import ImageDataset, ImageSplit
from rada.data.prompts import check_class_names, display_name
from rada.data.registry import register_dataset
from rada.data.scan import natural_key
from rada.errors import DataError

__all__ = ["load_table"]

_DELIMITERS = {".csv": ",", ".tsv": "\t"}
_LINES = (".jsonl", ".ndjson")
_SPLITS = {"valid": "val", "validation": "val", "training": "train", "": "all"}


def load_table(spec: str) -> ImageDataset:
    """Open a table; paths are relative to its folder, labels are names or numbers.

    Raises:
        DataError: If the table cannot be read, a column or value is missing, a picture stands in it
            twice, or it has one class only; the message names the line.
    """
    path = Path(spec).expanduser()
    rows = list(_rows(path))
    if not rows:
        raise DataError(f"the table {spec!r} has no rows")
    keys = sorted({label for _, label, _ in rows}, key=natural_key)
    if len(keys) < 2:
        raise DataError(f"the table {spec!r} has the one class {keys[0]!r}; at least 2 are needed")
    classes = check_class_names(map(display_name, keys))
    position = {key: label for label, key in enumerate(keys)}
    splits = {}
    for split in dict.fromkeys(split for _, _, split in rows):
        chosen = [(picture, position[label]) for picture, label, name in rows if name == split]
        splits[split] = ImageSplit.from_files(
            path.absolute().parent,
            [picture for picture, _ in chosen],
            labels=np.array([label for _, label in chosen]),
            classes=classes,
        )
    return ImageDataset(path.stem, classes, splits, keys=tuple(keys))


def _rows(path: Path) -> Iterator[tuple[str, str, str]]:
    """Yield path, label and split of each row."""
    seen: dict[str, int] = {}
    for line, row in _records(path):
        picture, label = (_cell(path, line, row, column) for column in ("path", "label"))
        split = str(row.get("split") or "").strip().lower()
        if picture in seen:
            raise DataError(
                f"{str(path)!r}, line {line}: the picture {picture!r} stands in line "
                f"{seen[picture]} already"
            )
        seen[picture] = line
        yield picture, label, _SPLITS.get(split, split)


def _cell(path: Path, line: int, row: dict[str, Any], column: str) -> str:
    value = row.get(column)
    if isinstance(value, bool | float | list | dict) or value is None or not str(value).strip():
        raise DataError(
            f"{str(path)!r}, line {line}: {column!r} is {value!r}, but each row needs a {column}"
        )
    return str(value).strip()


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            if path.suffix.lower() in _DELIMITERS:
                yield from _table_records(path, stream)
            else:
                yield from _line_records(path, stream)
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the table {str(path)!r} cannot be read: {error}") from error


def _table_records(path: Path, stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.DictReader(stream, delimiter=_DELIMITERS[path.suffix.lower()])
    missing = {"path", "label"} - set(reader.fieldnames or ())
    if missing:
        raise DataError(
            f"the table {str(path)!r} has the columns {', '.join(reader.fieldnames or ())!r}; "
            f"{' and '.join(sorted(missing))} must be among them"
        )
    for row in reader:
        yield reader.line_num, row


def _line_records(path: Path, stream: Any) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, text in enumerate(stream, 1):
        if not text.strip():
            continue
        try:
            row = json.loads(text)
        except (json.JSONDecodeError, RecursionError) as error:
            raise DataError(f"{str(path)!r}, line {number} is not JSON: {error}") from error
        if not isinstance(row, dict):
            raise DataError(
                f"{str(path)!r}, line {number} is not a JSON object with path and label"
            )
        yield number, row


register_dataset(
    "TABLE.csv",
    "a table (.csv, .tsv, .jsonl, .ndjson) with the columns path, label and, if wanted, split",
    matches=lambda spec: Path(spec).suffix.lower() in (*_DELIMITERS, *_LINES),
    load=load_table,
)
