"""What `rada predict` is to name the classes of: checked before a model is loaded, read one by one."""

from __future__ import annotations

import codecs
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from rada.core.errors import DataError

if TYPE_CHECKING:
    from rada.data import ImageSplit
    from rada.data.images import ImageLike
    from rada.features import Features, FeatureStore

__all__ = ["Places", "features_of", "is_image"]

_TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")
_SIGNATURES = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"GIF87a", b"GIF89a", b"\xff\x4f\xff\x51")
_NETPBM = re.compile(rb"P[1-6]\s+[\d#]")
_WIDE = {codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def is_image(start: bytes) -> bool:
    r"""Return whether a stream is an image rather than text, by its first bytes.

    No list of paths holds a zero byte, which all formats have near their start but those that begin with a
    word of their own. Letters of any script and any code page are text.

    Example:
        >>> is_image(b"II*\0\x08\0\0\0"), is_image("été.jpg".encode()), is_image(b"caf\xe9.jpg")
        (True, False, False)
    """
    if start.startswith(tuple(_WIDE)):
        return False
    webp = start[:4] == b"RIFF" and start[8:12] == b"WEBP"
    named = start.startswith(_SIGNATURES) or _NETPBM.match(start) is not None
    return b"\0" in start or webp or named


def features_of(names: Sequence[str]) -> Features | FeatureStore | None:
    """Return the features that are to be predicted; None where images are.

    Raises:
        DataError: If a features file or store stands among others.
        FeatureError: If it cannot be used.
    """
    from rada.features import Features, FeatureStore, names_features
    from rada.features.store import is_store

    found = [name for name in names if names_features(name)]
    if found and len(names) > 1:
        raise DataError(
            f"the features {found[0]!r} stand among others: predict each in a run of its own"
        )
    if not found:
        return None
    opened = FeatureStore.open if is_store(found[0]) else Features.load
    return opened(found[0])


class Places:
    """The images that arguments name, in order.

    Args:
        names: Files, folders, URLs, tables, or - for standard input.
        skip_bad: Leave it to the reader to say which files of a table do not exist.

    Raises:
        DataError: If one does not exist, holds no image, or cannot be used.
    """

    def __init__(self, names: Iterable[str], *, skip_bad: bool = False) -> None:
        self._names, self._skip_bad = list(names), skip_bad
        self._tables: dict[str, ImageSplit] = {}
        for name in self._names:
            if name != "-":
                self._check(name)

    def _check(self, name: str) -> None:
        from rada.core.network import is_web_url
        from rada.data import ImageDataset, expand_images
        from rada.data.checks import without_missing
        from rada.data.kinds.table import table_images
        from rada.data.scan import has_images

        if Path(name).suffix.lower() in _TABLES:
            self._tables[name] = split = table_images(name)
            if not self._skip_bad:
                without_missing(ImageDataset(Path(name).stem, (), {"all": split}), skip=False)
        elif not is_web_url(name) and not (
            Path(name).expanduser().is_dir() and has_images(Path(name).expanduser())
        ):
            for _ in expand_images(name):
                break

    def __iter__(self) -> Iterator[ImageLike]:
        from rada.core.network import is_web_url
        from rada.data import expand_images

        for name in self._names:
            if name == "-":
                yield from _standard_input()
            elif name in self._tables:
                yield from _pictures_of(self._tables[name])
            elif is_web_url(name):
                yield name
            else:
                yield from expand_images(name)


def _pictures_of(split: ImageSplit) -> Iterator[ImageLike]:
    for index in range(len(split)):
        yield split.path(index) or split.load(index)


def _standard_input() -> Iterator[ImageLike]:
    """Yield the image on standard input, or the images whose paths or URLs stand there line by line."""
    from rada.core.network import is_web_url

    stream = cast(io.BufferedReader, sys.stdin.buffer)
    start = stream.peek(32)[:32]
    if is_image(start):
        yield stream.read()
        return
    for line in _lines(stream, start):
        text = line.rstrip("\r\n")
        if text.strip():
            yield text if is_web_url(text) else Path(text)


def _lines(stream: io.BufferedReader, start: bytes) -> Iterator[str]:
    """Yield lines as they come; without the mark that Windows puts at the start of a text."""
    for mark, encoding in _WIDE.items():
        if start.startswith(mark):
            yield from io.TextIOWrapper(stream, encoding=encoding)
            return
    if start.startswith(codecs.BOM_UTF8):
        stream.read(len(codecs.BOM_UTF8))
    for line in stream:
        yield os.fsdecode(line)
