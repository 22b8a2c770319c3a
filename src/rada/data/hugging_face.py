"""Data sets of Hugging Face `datasets`: which column has images, which labels, and their names."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rada.core.errors import DataError
from rada.data.splits import split_name

__all__ = [
    "IMAGE_COLUMNS",
    "LABEL_COLUMNS",
    "Columns",
    "hugging_face_columns",
    "hugging_face_images",
    "named_columns",
    "one_column",
    "refuse_several_labels",
]

IMAGE_COLUMNS = "image path img file filename file_name filepath file_path image_path".split()
LABEL_COLUMNS = "label labels class class_name target category".split()


class Columns(NamedTuple):
    """The images and labels of each split.

    Attributes:
        images: A sequence of images for each split.
        labels: A sequence of labels for each split; None where there are none.
        names: Class names that integer labels are places in; None where the data says none.
    """

    images: dict[str, Any]
    labels: dict[str, Any]
    names: tuple[str, ...] | None


def hugging_face_columns(
    data: Any, *, image: str | None = None, label: str | None = None
) -> Columns:
    """Return the images and labels of a `Dataset` or a `DatasetDict`.

    Args:
        data: The data set.
        image: Name of the column with images; found by its type or name when None.
        label: Name of the column with labels; likewise.

    Raises:
        DataError: If there is no such column, or several could be meant, or an image has several labels.
    """
    parts = data if isinstance(data, Mapping) else {"all": data}
    images = hugging_face_images(data, image=image)
    labels: dict[str, Any] = {}
    names: tuple[str, ...] | None = None
    for key, part in parts.items():
        split, kinds = split_name(key) or key, _kinds(part)
        classes = [column for column, kind in kinds.items() if kind == "ClassLabel"]
        found = _chosen(label, kinds) or classes or named_columns(kinds, LABEL_COLUMNS)
        chosen = one_column(found, kinds, "label") if found else None
        if chosen is not None and kinds[chosen] in ("Sequence", "List", "LargeList", "list"):
            refuse_several_labels(f"the column {chosen!r}")
        labels[split] = [None] * len(part) if chosen is None else part[chosen]
        if chosen is not None and kinds[chosen] == "ClassLabel":
            names = tuple(part.features[chosen].names)
    return Columns(images, labels, names)


def hugging_face_images(data: Any, *, image: str | None = None) -> dict[str, Any]:
    """Return the images of each split of a `Dataset` or a `DatasetDict`; labels are not looked at.

    Arguments and errors as `hugging_face_columns`.
    """
    images: dict[str, Any] = {}
    for key, part in (data if isinstance(data, Mapping) else {"all": data}).items():
        kinds = _kinds(part)
        pictures = [column for column, kind in kinds.items() if kind == "Image"]
        found = _chosen(image, kinds) or pictures or named_columns(kinds, IMAGE_COLUMNS)
        column = one_column(found, kinds, "image")
        images[split_name(key) or key] = _Column(part.select_columns([column]), column)
    return images


def _kinds(part: Any) -> dict[str, str]:
    return {column: type(kind).__name__ for column, kind in part.features.items()}


def refuse_several_labels(where: str) -> None:
    """Refuse data whose images have several labels each.

    Raises:
        DataError: Always.
    """
    raise DataError(
        f"{where} gives an image several labels, which rada cannot learn yet: it chooses one class for each "
        "image. Keep one label an image, or fit one model for each label, with two classes such as 'with a "
        "scratch' and 'without a scratch'"
    )


def _chosen(name: str | None, kinds: Mapping[str, str]) -> list[str]:
    if name is None:
        return []
    if name not in kinds:
        raise DataError(f"the data has no column {name!r}; it has {', '.join(map(repr, kinds))}")
    return [name]


@dataclass(frozen=True)
class _Column:
    """One column of a Hugging Face data set as a sequence."""

    rows: Any
    column: str

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Any:
        return self.rows[index][self.column]


def named_columns(columns: Iterable[Any], names: Sequence[str]) -> list[Any]:
    """Return the columns with one of some names."""
    return [column for column in columns if str(column).strip().lower() in names]


def one_column(found: Sequence[Any], columns: Iterable[Any], what: str) -> Any:
    """Return the one column that was found.

    Raises:
        DataError: If there is none, or there are several.
    """
    if len(found) != 1:
        count = (
            f"{len(found)} columns of the {what} ({', '.join(map(repr, found))})"
            if found
            else (f"no column of the {what}")
        )
        raise DataError(
            f"the data has {count} among {', '.join(map(repr, columns))}: name exactly one of them "
            f"{what!r}{', or path' if what == 'image' else ''}"
        )
    return found[0]
