"""Images at URLs that strangers name: public addresses alone, whatever names and redirects say.

A service stands in a network that its clients are not in. A URL is somebody's wish for a request from there
(server-side request forgery), so the address of every connection is looked at when it is made: after the
name was resolved, and again after each redirect.
"""

from __future__ import annotations

import ipaddress
import socket
import time
from collections.abc import Callable, Iterable
from typing import Any

from rada.core.extras import needed_for
from rada.serving.problems import RequestError

with needed_for("rada serve"):
    import httpcore2

__all__ = ["UrlReader", "is_public"]

_REDIRECTS = 5
_REDIRECTING = frozenset({301, 302, 303, 307, 308})
_STEP = 10.0  # most seconds for a connection, or for the next bytes
_FIX = "send the image itself, as a file or as base64"


def is_public(address: str) -> bool:
    """Return whether an address belongs to the public internet.

    Example:
        >>> [is_public(text) for text in ("93.184.216.34", "10.0.0.1", "127.0.0.1", "169.254.169.254")]
        [True, False, False, False]
        >>> [is_public(text) for text in ("::1", "::ffff:10.0.0.1", "64:ff9b::a00:1", "fd00::1")]
        [False, False, False, False]
    """
    try:
        found = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:
        return False
    if isinstance(found, ipaddress.IPv6Address):
        # Forms that carry an IPv4 address to where it means something else.
        inner = found.ipv4_mapped or found.sixtofour or (found.teredo and found.teredo[1])
        if inner is not None or found in _NAT64:
            return False
    return found.is_global and not found.is_multicast and not found.is_reserved


_NAT64 = ipaddress.ip_network("64:ff9b::/96")


class UrlReader:
    """Reads images at http and https URLs.

    Args:
        limit: Most bytes of an image.
        allowed: Whether an address may be connected to; public ones when None.

    Example:
        >>> UrlReader(1000).read("http://169.254.169.254/latest/meta-data", seconds=1)
        Traceback (most recent call last):
        rada.serving.problems.RequestError: http://169.254.169.254/latest/meta-data: it leads to an address \
that is not public; send the image itself, as a file or as base64
    """

    def __init__(self, limit: int, allowed: Callable[[str], bool] | None = None) -> None:
        self._limit = limit
        # No proxy of the environment: it would make the connections, and know nothing of the rule.
        self._pool = httpcore2.ConnectionPool(
            network_backend=_GuardedNetwork(allowed or is_public), max_keepalive_connections=0
        )

    def read(self, url: str, seconds: float) -> bytes:
        """Return what a URL holds.

        Args:
            url: The URL.
            seconds: Most seconds for all of it.

        Raises:
            RequestError: If it may not or cannot be read.
        """
        until, place = time.monotonic() + seconds, url
        try:
            for _ in range(_REDIRECTS + 1):
                found, content = self._get(_checked(place, url), url, until)
                if content is not None:
                    return content
                place = found
        except RequestError:
            raise
        except _RefusedError as error:
            raise _refused(url, "it leads to an address that is not public") from error
        except Exception as error:  # httpcore2, ssl, idna and sockets raise their own
            raise _refused(url, "it cannot be read") from error
        raise _refused(url, f"it redirects more than {_REDIRECTS} times")

    def _get(self, target: httpcore2.URL, url: str, until: float) -> tuple[str, bytes | None]:
        """Return where a URL redirects to, or what it holds."""
        step = min(_STEP, max(0.1, until - time.monotonic()))
        wait = {"connect": step, "read": step, "write": step, "pool": step}
        host = target.host.decode("ascii") + (f":{target.port}" if target.port else "")
        headers: dict[bytes | str, bytes | str] = {
            "Host": host,
            "User-Agent": "rada",
            "Accept": "image/*,*/*;q=0.5",
        }
        with self._pool.stream(
            "GET", target, headers=headers, extensions={"timeout": wait}
        ) as answer:
            if answer.status in _REDIRECTING:
                found = {name.lower(): value for name, value in answer.headers}
                place = found.get(b"location", b"").decode("ascii", "replace")
                return _joined(target, place), None
            if answer.status != 200:
                raise _refused(url, f"the server answers {answer.status}")
            content = bytearray()
            for part in answer.iter_stream():
                content += part
                if len(content) > self._limit:
                    raise _refused(url, f"it holds more than {self._limit} bytes")
                if time.monotonic() > until:
                    raise RequestError(504, "timeout", url, "it takes too long", _FIX)
            return "", bytes(content)

    def close(self) -> None:
        """Close all connections."""
        self._pool.close()


def _refused(url: str, cause: str) -> RequestError:
    return RequestError(422, "url", url, cause, _FIX)


def _checked(place: str, url: str) -> httpcore2.URL:
    """Return a URL that may be asked, as far as its text tells."""
    from urllib.parse import urlsplit

    try:
        parts = urlsplit(place)
        named, _ = parts.hostname, parts.port
        place.encode("ascii")
    except ValueError as error:
        raise _refused(url, "it is not a URL in ASCII") from error
    if parts.scheme not in ("http", "https") or not named:
        raise _refused(url, "it is not an http or https URL with a host")
    if parts.username is not None or parts.password is not None:
        raise _refused(url, "it holds a user's name")
    return httpcore2.URL(place.partition("#")[0])


def _joined(base: httpcore2.URL, place: str) -> str:
    from urllib.parse import urljoin

    host = base.host.decode("ascii")
    port = f":{base.port}" if base.port else ""
    return urljoin(f"{base.scheme.decode()}://{host}{port}{base.target.decode('ascii')}", place)


class _RefusedError(Exception):
    """A connection to an address that is not public."""


class _GuardedNetwork(httpcore2.NetworkBackend):
    """Resolves a name once, and connects to the very address that it looked at."""

    def __init__(self, allowed: Callable[[str], bool]) -> None:
        self._allowed = allowed
        self._sockets = httpcore2.SyncBackend()

    def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.NetworkStream:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        addresses = list(dict.fromkeys(str(entry[4][0]) for entry in found))
        # One that is refused refuses all: a name with public and private addresses is a trap.
        if not addresses or not all(map(self._allowed, addresses)):
            raise _RefusedError(host)
        failure: Exception | None = None
        for address in addresses[:4]:
            try:
                return self._sockets.connect_tcp(
                    address, port, timeout, local_address, socket_options
                )
            except (httpcore2.ConnectError, httpcore2.ConnectTimeout) as error:
                failure = error
        raise failure or _RefusedError(host)

    def connect_unix_socket(
        self, path: str, timeout: float | None = None, socket_options: Iterable[Any] | None = None
    ) -> httpcore2.NetworkStream:
        raise _RefusedError(path)
