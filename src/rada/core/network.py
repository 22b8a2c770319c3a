"""Reading from the network: every read has timeouts, few retries and an error that names the URL."""

from __future__ import annotations

import contextlib
import io
import re
import socket
import time
from collections.abc import Iterator
from typing import BinaryIO

from rada.core.errors import DataError, RadaError
from rada.core.extras import needed_for

__all__ = [
    "CONNECT_TIMEOUT",
    "READ_TIMEOUT",
    "download",
    "fetch",
    "is_web_url",
    "refuse_other_urls",
    "socket_timeout",
]

CONNECT_TIMEOUT = 10.0
"""Seconds to wait for a connection."""

READ_TIMEOUT = 30.0
"""Seconds to wait for the next bytes; a large file may take as long as it likes."""

TRIES = 3
"""Times that a read is tried, where trying again may help."""

_PAUSE = 0.5  # seconds before the second try; doubled before each further one
_CHUNK = 1 << 20
_TRY_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.\-]+)://")


def url_scheme(text: str) -> str | None:
    """Return the scheme of a URL in lower case, None for any other text.

    Example:
        >>> url_scheme("S3://bucket/a.jpg"), url_scheme("C:/a.jpg"), url_scheme("a.jpg")
        ('s3', None, None)
    """
    match = _SCHEME.match(text)
    return match[1].lower() if match else None


def is_web_url(text: str) -> bool:
    """Return whether a text is an http or https URL.

    Example:
        >>> is_web_url("https://host/a.jpg"), is_web_url("s3://bucket/a.jpg")
        (True, False)
    """
    return url_scheme(text) in ("http", "https")


def refuse_other_urls(text: str) -> None:
    """Refuse a URL that images are not read from, by its name.

    Raises:
        DataError: If it is one; it would otherwise be called a file that does not exist.
    """
    scheme = url_scheme(text)
    if scheme not in (None, "http", "https"):
        raise DataError(
            f"{text[:200]!r} is a URL of a kind that images are not read from ({scheme}): http and https "
            "are read; copy other images to a file first"
        )


def fetch(url: str, *, limit: int) -> bytes:
    """Return what an http or https URL holds.

    Args:
        url: The URL.
        limit: Most bytes that are read.

    Raises:
        DataError: If it cannot be read, or holds more; the message names it.
    """
    content = io.BytesIO()
    download(url, content, limit=limit)
    return content.getvalue()


def download(
    url: str, target: BinaryIO, *, limit: int | None = None, failed: str = "cannot be read"
) -> None:
    """Copy what an http or https URL holds into a file.

    Args:
        url: The URL.
        target: A binary file; it is emptied before another try.
        limit: Most bytes that are read; None for any number.
        failed: What the message says where it fails.

    Raises:
        DataError: If it cannot be read, or holds more; the message names it.
        OSError: If the file cannot be written.
    """
    with needed_for("reading a URL"):
        import httpx2

    for attempt in range(TRIES):
        if attempt:
            time.sleep(_PAUSE * 2 ** (attempt - 1))
            target.seek(0)
            target.truncate()
        try:
            for content in _chunks(url, limit):
                target.write(content)
            return
        except (httpx2.HTTPError, httpx2.InvalidURL) as error:
            if not _may_recover(error) or attempt + 1 == TRIES:
                raise _unreadable(url, failed, error) from error


def _chunks(url: str, limit: int | None) -> Iterator[bytes]:
    with needed_for("reading a URL"):
        import httpx2

    count = 0
    timeout = httpx2.Timeout(READ_TIMEOUT, connect=CONNECT_TIMEOUT)
    with httpx2.stream("GET", url, timeout=timeout, follow_redirects=True) as response:
        response.raise_for_status()
        for content in response.iter_bytes(_CHUNK):
            count += len(content)
            if limit is not None and count > limit:
                raise DataError(f"{url!r} holds more than the {limit} bytes that are read of a URL")
            yield content


def _may_recover(error: Exception) -> bool:
    with needed_for("reading a URL"):
        import httpx2

    if isinstance(error, httpx2.HTTPStatusError):
        return error.response.status_code in _TRY_AGAIN
    lasting = isinstance(error, httpx2.UnsupportedProtocol)
    return isinstance(error, httpx2.TransportError) and not lasting


def _unreadable(url: str, failed: str, error: Exception) -> RadaError:
    with needed_for("reading a URL"):
        import httpx2

    if isinstance(error, httpx2.HTTPStatusError):
        response = error.response
        cause = f"the server answers {response.status_code} {response.reason_phrase}".rstrip()
    else:
        cause = " ".join(filter(None, (_KINDS.get(type(error).__name__), str(error))))
    return DataError(
        f"{url!r} {failed}: {cause or type(error).__name__}; check the address, the network and "
        "your rights"
    )


_KINDS = {
    "ConnectTimeout": "no connection in time",
    "ReadTimeout": "nothing came in time",
}


@contextlib.contextmanager
def socket_timeout() -> Iterator[None]:
    """Give every socket that is opened meanwhile a timeout: for libraries that wait for ever."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(READ_TIMEOUT)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)
