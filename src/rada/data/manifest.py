"""Writing down which images, labels and splits a run used."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping
from pathlib import Path

from rada.core.errors import DataError
from rada.core.storage import write_bytes
from rada.data.dataset import ImageSplit

__all__ = ["write_manifest"]

_COLUMNS = ("id", "path", "label", "class", "split")
_SUFFIXES = (".csv", ".json", ".jsonl")


def write_manifest(path: str | Path, splits: Mapping[str, ImageSplit]) -> None:
    """Write one row for each image: id, path, label, class and split.

    The file can be opened as a table again where the images are files and all have a label.

    Args:
        path: A file that ends in `.csv`, `.jsonl` or `.json`.
        splits: Splits by name.

    Raises:
        DataError: If the file name has another ending.
        StorageError: If the file cannot be written.

    Example:
        >>> import tempfile
        >>> split = ImageSplit.from_files("/photos", ["a/1.jpg"], labels=[0], classes=["ant"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_manifest(Path(folder) / "used.csv", {"train": split})
        ...     print((Path(folder) / "used.csv").read_text().splitlines()[1])
        a/1.jpg,/photos/a/1.jpg,0,ant,train
    """
    suffix = Path(path).suffix.lower()
    if suffix not in _SUFFIXES:
        raise DataError(f"a manifest ends in {', '.join(_SUFFIXES)}, not {str(path)!r}")
    rows = [
        {**record, "split": name} for name, split in splits.items() for record in split.manifest()
    ]
    if suffix == ".csv":
        text = io.StringIO()
        writer = csv.DictWriter(text, _COLUMNS, lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
        content = text.getvalue()
    elif suffix == ".jsonl":
        content = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    else:
        content = json.dumps(rows, indent=1, ensure_ascii=False) + "\n"
    write_bytes(path, content.encode())
