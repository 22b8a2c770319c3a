"""Reads of the network end: in time, after few tries, with the address."""

from __future__ import annotations

import io
import socket
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from network_samples import hanging_server
from rada.core import network
from rada.core.errors import DataError
from rada.core.network import download, fetch, socket_timeout
from rada.data import open_image


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(network, "READ_TIMEOUT", 0.2)
    monkeypatch.setattr(network, "_PAUSE", 0.0)


def whole(content: bytes, status: str = "200 OK") -> bytes:
    head = f"HTTP/1.1 {status}\r\nContent-Length: {len(content)}\r\nConnection: close\r\n\r\n"
    return head.encode() + content


def png() -> bytes:
    stream = io.BytesIO()
    Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3)).save(stream, "PNG")
    return stream.getvalue()


@pytest.mark.parametrize("bad", [b"", whole(b"", "503 Busy"), whole(b"abcdef")[:-3]])
def test_what_may_recover_is_tried_again(bad: bytes) -> None:
    """No answer, a busy server, an answer that is cut off: the second try gives the image, once."""
    with hanging_server(bad, whole(png())) as (address, asked):
        assert open_image(f"{address}/a.png").size == (4, 4)
        assert len(asked) == 2


@pytest.mark.parametrize(
    ("answer", "message", "tries"),
    [
        (b"", "nothing came in time", network.TRIES),
        (whole(b"", "503 Busy"), "answers 503 Busy", network.TRIES),
        (whole(b"", "404 Not Found"), "answers 404 Not Found", 1),
        (b"HTTP/1.1 301 Moved\r\nContent-Length: 0\r\nLocation: ftp://x/y\r\n\r\n", "protocol", 1),
    ],
)
def test_errors_name_the_address(answer: bytes, message: str, tries: int) -> None:
    with hanging_server(answer) as (address, asked):
        with pytest.raises(DataError, match=message) as caught:
            fetch(f"{address}/a.png", limit=100)
        assert f"{address}/a.png" in str(caught.value) and len(asked) == tries


def test_nobody_listens() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    with pytest.raises(DataError, match=f"'http://127.0.0.1:{port}/a.png' cannot be read"):
        open_image(f"http://127.0.0.1:{port}/a.png")
    with pytest.raises(DataError, match="http://"):
        open_image("http://")


def test_more_than_is_read() -> None:
    with hanging_server(whole(b"x" * 500)) as (address, _), pytest.raises(DataError, match="100 b"):
        fetch(address, limit=100)


def test_a_second_try_starts_anew(tmp_path: Path) -> None:
    with (
        hanging_server(whole(b"abcdef")[:-3], whole(b"whole")) as (address, _),
        (tmp_path / "a").open("wb") as target,
    ):
        download(address, target)
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_the_timeout_of_sockets_is_put_back() -> None:
    before = socket.getdefaulttimeout()
    with pytest.raises(OSError, match="own"), socket_timeout():
        assert socket.getdefaulttimeout() == 0.2
        raise OSError("own")
    assert socket.getdefaulttimeout() == before
