"""Images at URLs: only with --allow-urls, and never at an address that strangers cannot reach themselves."""

from __future__ import annotations

import http.server
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx2
import pytest

from rada import Classifier
from rada.serving import ServeSettings, Service
from rada.serving.problems import RequestError
from rada.serving.urls import UrlReader, is_public
from serving.conftest import LIMITS, problem

PUBLIC = "127.0.0.2"  # an address of this machine that the tests take for a public one


@contextmanager
def site(
    host: str, pages: dict[str, tuple[int, dict[str, str], bytes]]
) -> Iterator[tuple[str, list[str]]]:
    asked: list[str] = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            status, headers, body = pages.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    server = http.server.ThreadingHTTPServer((host, 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://{host}:{server.server_port}", asked
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def reader(limit: int = 10_000) -> UrlReader:
    return UrlReader(limit, lambda address: address == PUBLIC)


def refusal(found: UrlReader, url: str) -> RequestError:
    with pytest.raises(RequestError) as caught:
        found.read(url, 5)
    assert caught.value.status == 422
    return caught.value


def test_what_is_public() -> None:
    private = """127.0.0.1 127.8.8.8 10.1.2.3 172.16.0.1 192.168.1.1 169.254.169.254 100.64.0.1 0.0.0.0
        224.0.0.1 240.0.0.1 255.255.255.255 192.0.2.1 198.18.0.1 ::1 :: fe80::1 fe80::1%eth0 fc00::1
        fd12::1 ff02::1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 64:ff9b::7f00:1 2002:7f00:1:: 2001:db8::1 nonsense"""
    assert not [address for address in private.split() if is_public(address)]
    assert all(map(is_public, ("8.8.8.8", "93.184.216.34", "2606:4700:4700::1111")))


def test_reads_and_follows(images: list[Path]) -> None:
    content = images[0].read_bytes()
    with site(PUBLIC, {}) as (address, asked):
        pages = {"/a.png": (200, {}, content), "/b": (302, {"Location": "/a.png"}, b"")}
        with site(PUBLIC, pages) as (address, asked):
            assert reader().read(f"{address}/b", 5) == content
            assert asked == ["/b", "/a.png"]
            assert "holds more than 10 bytes" in str(refusal(reader(10), f"{address}/a.png"))
            assert "answers 404" in str(refusal(reader(), f"{address}/none"))


def test_private_addresses_are_never_asked(images: list[Path]) -> None:
    """Neither by number, nor by name, nor after a redirect: the private server sees no request."""
    inside = {"/secret.png": (200, {}, images[0].read_bytes())}
    with site("127.0.0.1", inside) as (private, asked):
        port = private.rpartition(":")[2]
        spellings = [
            "127.0.0.1",
            "localhost",
            "2130706433",
            "0x7f.1",
            "127.1",
            "[::ffff:127.0.0.1]",
        ]
        pages = {
            f"/{number}": (302, {"Location": f"http://{host}:{port}/secret.png"}, b"")
            for number, host in enumerate(spellings)
        }
        with site(PUBLIC, pages) as (address, _):
            for number, host in enumerate(spellings):
                refusal(UrlReader(10_000), f"http://{host}:{port}/secret.png")
                refusal(reader(), f"http://{host}:{port}/secret.png")
                refusal(reader(), f"{address}/{number}")
        assert asked == []


def test_other_schemes_and_loops() -> None:
    pages = {
        "/file": (302, {"Location": "file:///etc/passwd"}, b""),
        "/loop": (302, {"Location": "/loop"}, b""),
        "/nowhere": (302, {}, b""),
    }
    with site(PUBLIC, pages) as (address, _):
        assert "not an http" in str(refusal(reader(), f"{address}/file"))
        assert "more than 5 times" in str(refusal(reader(), f"{address}/loop"))
        refusal(reader(), f"{address}/nowhere")
    for url in (
        "file:///etc/passwd",
        "ftp://host/a",
        "gopher://x",
        "http://",
        "",
        "http://[::1",
        "http://a b",
    ):
        refusal(reader(), url)
    assert "user" in str(refusal(reader(), f"http://me:word@{PUBLIC}/a"))
    assert "cannot be read" in str(refusal(reader(), f"http://{PUBLIC}:9/a"))


def test_a_proxy_of_the_environment_is_not_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    with site(PUBLIC, {}) as (proxy, asked):
        monkeypatch.setenv("http_proxy", proxy)
        refusal(UrlReader(1000), "http://127.0.0.1:9/a.png")
        assert asked == []


def test_the_service_refuses_and_reads(
    models: dict[str, Classifier], images: list[Path], monkeypatch: pytest.MonkeyPatch, service: str
) -> None:
    pages = {"/a.png": (200, {}, images[0].read_bytes())}
    with site("127.0.0.1", pages) as (private, asked), site(PUBLIC, pages) as (public, _):
        body = {"images": [{"url": f"{private}/a.png"}]}
        off = problem(httpx2.post(f"{service}/predict", json=body), 422, "url")
        assert "--allow-urls" in off["fix"]
        with Service(models, ServeSettings(allow_urls=True, **LIMITS)).background() as address:
            on = problem(httpx2.post(f"{address}/predict", json=body), 422, "url")
            assert "not public" in on["cause"] and asked == []
        monkeypatch.setattr("rada.serving.urls.is_public", lambda text: text == PUBLIC)
        with Service(models, ServeSettings(allow_urls=True, **LIMITS)).background() as address:
            body = {"images": [{"url": f"{public}/a.png"}]}
            found = httpx2.post(f"{address}/predict", json=body).json()
            assert found["predictions"][0]["classes"]
