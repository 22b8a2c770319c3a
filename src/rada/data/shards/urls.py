"""Naming many shards at once, and copying those of URLs into the cache."""

from __future__ import annotations

import hashlib
import itertools
import os
import re
import select
import shlex
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote, urlsplit
from urllib.request import url2pathname

from rada.core.errors import DataError
from rada.core.extras import needed_for
from rada.core.network import download, is_web_url
from rada.core.progress import progress_bar
from rada.core.storage import atomic_path
from rada.data.shards.index import shard_folder

__all__ = ["copy_shards", "expand_braces", "is_url", "local_path"]

_MOST_SHARDS = 100_000
_SCHEMES = "https? s3 gs htgs hf ais ftps sftp scp".split()
_URL = re.compile(rf"pipe:|file:|(?:{'|'.join(_SCHEMES)})://", re.IGNORECASE)
_RANGE = re.compile(r"\{(-?\d+)\.\.(-?\d+)")
_CHUNK = 1 << 20

SILENCE = 300.0
"""Seconds to wait for the next bytes of a program that reads a URL; it may have to log in first."""


def is_url(spec: str) -> bool:
    """Return whether shards are named by a URL, or by a command after `pipe:`.

    Example:
        >>> is_url("https://host/a.tar"), is_url("pipe:cat a.tar"), is_url("a.tar")
        (True, True, False)
    """
    return _URL.match(spec) is not None


def local_path(url: str) -> str | None:
    """Return the path of a `file:` URL, None for any other.

    Example:
        >>> local_path("file:///data/a-{0..3}.tar")
        '/data/a-{0..3}.tar'
    """
    if not url.lower().startswith("file:"):
        return None
    parts = urlsplit(url)
    return url2pathname(parts.path) if parts.scheme == "file" else None


def expand_braces(pattern: str) -> list[str]:
    """Write out `{00..10}` and `{a,b}` as a shell does.

    Raises:
        DataError: If braces are left open, or there are more shards than anybody has.

    Example:
        >>> expand_braces("train-{09..11}.tar")
        ['train-09.tar', 'train-10.tar', 'train-11.tar']
    """
    with needed_for("a pattern with braces"):
        from braceexpand import braceexpand

    many = f"{pattern!r} stands for more than {_MOST_SHARDS} shards: check its braces"
    for first, last in _RANGE.findall(pattern):  # braceexpand holds a whole range in memory
        if abs(float(last) - float(first)) >= _MOST_SHARDS:
            raise DataError(many)
    try:
        found = list(itertools.islice(braceexpand(pattern, escape=False), _MOST_SHARDS + 1))
    except ValueError as error:  # UnbalancedBracesError, or a range of other characters
        raise DataError(
            f"the braces of {pattern!r} cannot be read ({error}): write them as train-{{0000..0146}}.tar"
        ) from error
    if len(found) > _MOST_SHARDS:
        raise DataError(many)
    return found


def copy_shards(urls: Iterable[str], *, progress: bool | None = None) -> list[Path]:
    """Copy shards into the cache, each in one step; those that are there already stay.

    An interrupted copy goes on with the shard that it was at.

    Args:
        urls: http and https URLs, and what `webdataset.gopen` can open; `s3://` is read by the program
            `aws`.
        progress: Whether to show a bar; None shows it on a terminal.

    Returns:
        The copy of each.

    Raises:
        DataError: If one cannot be read; the message names it.
        MissingExtraError: If the library `webdataset` is needed and not installed.
        StorageError: If the cache cannot be written.
    """
    wanted = list(urls)
    with progress_bar("Copying shards", len(wanted), enabled=progress, unit="shards") as advance:
        copies = []
        for url in wanted:
            copies.append(_copy(url))
            advance(1)
    return copies


def _copy(url: str) -> Path:
    name = hashlib.blake2b(url.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
    path = shard_folder("copies") / name / shard_name(url)
    if path.is_file():
        return path
    stream = None if is_web_url(url) else _open(url)
    with atomic_path(path) as temporary, temporary.open("wb") as target:
        if stream is None:
            download(url, target, failed="cannot be copied")
        else:
            for content in _contents(stream, url):
                target.write(content)
    return path


def shard_name(url: str) -> str:
    """Return a file name for a shard: the URL's own, "shard.tar" where it has none.

    Example:
        >>> shard_name("https://host/set/train-03.tar?token=1"), shard_name("pipe:gsutil cat x")
        ('train-03.tar', 'shard.tar')
    """
    if url.startswith("pipe:"):
        return "shard.tar"
    name = PurePosixPath(unquote(urlsplit(url).path)).name
    return name if name.lower().endswith(".tar") else "shard.tar"


def _open(url: str) -> Any:
    with needed_for(f"the shard {url!r}"):
        from webdataset.gopen import gopen, gopen_schemes
    if url.startswith("s3://") and "s3" not in gopen_schemes:
        url = f"pipe:aws s3 cp {shlex.quote(url)} -"
    try:
        return gopen(url)
    except (OSError, ValueError) as error:
        raise _unreadable(url, error) from error


def _unreadable(url: str, error: Exception) -> DataError:
    return DataError(
        f"the shard {url!r} cannot be copied: {error}; check the address, the network and your rights"
    )


def _contents(stream: Any, url: str) -> Iterator[bytes]:
    """Yield what a URL holds; errors are told from those of the disk that is written to.

    The end is the end only if the program that reads the URL has ended well.
    """
    try:
        while content := _next(stream):
            yield content
        stream.close()
    except (OSError, subprocess.SubprocessError) as error:
        raise _unreadable(url, error) from error


def _next(stream: Any) -> bytes:
    """Return the next bytes of a stream, nothing at its end.

    Raises:
        TimeoutError: If the program that the stream comes from says nothing for too long.
    """
    program = getattr(stream, "proc", None)
    if program is None or os.name != "posix":  # files cannot be waited for on other systems
        return bytes(stream.read(_CHUNK))
    stream.timeout = SILENCE  # the program may close its output and go on for ever
    if not select.select([stream.stream], [], [], SILENCE)[0]:
        program.kill()
        raise TimeoutError(f"nothing came for {SILENCE:g} seconds")
    content: bytes = stream.stream.read1(_CHUNK)
    return content
