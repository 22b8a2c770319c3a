"""Requests that mean harm, or that are merely wrong, are refused in JSON, and the service goes on."""

from __future__ import annotations

import http.client
import io
import json
import socket
import struct
import threading
import time
import zlib
from collections.abc import Iterator
from pathlib import Path
from urllib.error import HTTPError
from urllib.parse import urlsplit
from urllib.request import Request, urlopen

import httpx2
import pytest
from PIL import Image

from rada import Classifier
from rada.core.errors import ConfigError
from rada.serving import ServeSettings, Service
from serving.conftest import LIMITS, problem

TOKEN = "a-secret-of-the-tests-0123456789"


@pytest.fixture(autouse=True)
def goes_on(client: httpx2.Client, images: list[Path]) -> Iterator[None]:
    """After every test, a usual request is answered."""
    yield
    answer = client.post("/predict", files={"files": images[0].read_bytes()})
    assert answer.status_code == 200, answer.text


def png(width: int, height: int, content: bytes) -> bytes:
    def chunk(kind: bytes, data: bytes) -> bytes:
        check = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + check

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    parts = chunk(b"IHDR", head) + chunk(b"IDAT", content) + chunk(b"IEND", b"")
    return b"\x89PNG\r\n\x1a\n" + parts


def bad_images(good: bytes) -> dict[str, bytes]:
    noise = io.BytesIO()
    Image.effect_noise((200, 200), 50).save(noise, "JPEG")
    return {
        "truncated": noise.getvalue()[:3000],
        "cut at once": good[:20],
        "bomb": png(40_000, 40_000, zlib.compress(bytes(1_000_000))),
        "a little too large": png(2000, 501, zlib.compress(bytes(501 * 6001))),
        "no image": b"#!/bin/sh\nrm -rf /\n" * 50,
        "a page": b"<svg xmlns='http://www.w3.org/2000/svg'><image href='file:///etc/passwd'/></svg>",
        "postscript": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\nshowpage\n",
        "empty": b"",
        "zeros": bytes(5000),
    }


@pytest.mark.parametrize("kind", list(bad_images(b"")))
def test_bad_images(kind: str, client: httpx2.Client, images: list[Path]) -> None:
    good = images[0].read_bytes()
    bad = bad_images(good)[kind]
    begun = time.monotonic()
    answer = client.post("/predict", files=[("files", ("bad.png", bad)), ("files", ("a", good))])
    error = problem(answer, 422, "image")
    assert error["value"] == "bad.png"
    assert time.monotonic() - begun < 10
    kept = client.post(
        "/predict",
        files=[("files", ("bad.png", bad)), ("files", ("good.png", good))],
        data={"skip_bad": "true"},
    ).json()["predictions"]
    assert kept[0]["classes"] is None and kept[0]["reason"] and kept[1]["classes"]


@pytest.mark.parametrize(
    "name", ["../../../../etc/passwd", "C:\\x\\y.png", "/dev/zero", "\x1b[2J.png", "n" * 1000]
)
def test_names_are_only_names(name: str, client: httpx2.Client, images: list[Path]) -> None:
    answer = client.post("/predict", files={"files": (name, images[0].read_bytes())})
    assert answer.status_code == 200, answer.text
    (found,) = answer.json()["predictions"]
    assert found["classes"] and len(found["image"]) < 250 and "\x1b" not in answer.text


def test_a_path_is_no_image(client: httpx2.Client, images: list[Path]) -> None:
    """A file of the service is not reached by its name, in whatever field it stands."""
    for field in ("base64", "url"):
        answer = client.post("/predict", json={"images": [{field: str(images[0])}]})
        assert answer.status_code == 422, answer.text
    body = str(images[0]).encode()
    answer = client.post("/predict", content=body, headers={"Content-Type": "image/png"})
    problem(answer, 422, "image")


@pytest.mark.parametrize(
    ("body", "status", "kind"),
    [
        (b"{", 400, "json"),
        (b"[" * 100_000, 400, "json"),
        (b"\xff\xfe", 400, "json"),
        (b"{}", 422, "json"),
        (b'{"images": []}', 422, "images"),
        (b'{"images": [{}]}', 422, "json"),
        (b'{"images": [{"base64": "####"}]}', 422, "base64"),
        (b'{"images": [{"base64": "QQ==", "path": "/etc/passwd"}]}', 422, "json"),
        (b'{"images": [{"base64": "QQ=="}], "top_k": 0}', 422, "json"),
        (b'{"images": [{"base64": "QQ=="}], "top_k": NaN}', 422, "json"),
        (b'{"images": [{"base64": "QQ=="}], "top_k": true}', 422, "json"),
        (b'{"images": [{"base64": "QQ=="}], "top_k": "2"}', 422, "json"),
        (b'{"images": [{"base64": "QQ=="}], "top_k": 1000000000}', 422, "json"),
        (b'{"images": [{"base64": "QQ=="}], "skip_bad": 1}', 422, "json"),
        (b'{"images": [{"url": "http://127.0.0.1/a.png"}]}', 422, "url"),
        (json.dumps({"images": [{"base64": "QQ=="}] * 9}).encode(), 422, "images"),
        (
            json.dumps({"images": [{"base64": "QQ=="}], "classes": ["a", "a"]}).encode(),
            422,
            "classes",
        ),
        (
            json.dumps(
                {"images": [{"base64": "QQ=="}], "classes": [str(i) for i in range(21)]}
            ).encode(),
            422,
            "classes",
        ),
        (
            json.dumps({"images": [{"base64": "QQ=="}], "classes": ["n" * 2000]}).encode(),
            422,
            "classes",
        ),
    ],
)
def test_bad_json(body: bytes, status: int, kind: str, client: httpx2.Client) -> None:
    answer = client.post("/predict", content=body, headers={"Content-Type": "application/json"})
    problem(answer, status, kind)


@pytest.mark.parametrize(
    ("classes", "cause", "fix"),
    [
        ([], "there are no class names", "give at least one"),
        (["a", " "], "class name number 1 is ' '", "give every class a name"),
        (["a", "A"], "which differ in spelling only", "give each class its own name"),
    ],
)
def test_bad_classes(classes: list[str], cause: str, fix: str, client: httpx2.Client) -> None:
    """What to do about them is of the cause; it was always to name each once."""
    body = {"images": [{"base64": "QQ=="}], "classes": classes}
    error = problem(client.post("/predict", json=body), 422, "classes")
    assert cause in error["cause"] and error["fix"] == fix


def test_a_form_that_stops(client: httpx2.Client, images: list[Path]) -> None:
    """It was taken for one of fewer parts, or of none."""
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    part = b'--x\r\nContent-Disposition: form-data; name="files"; filename="a"\r\n\r\n'
    part += images[0].read_bytes() + b"\r\n"
    for body in (b"", b"--x\r\n", part, part + part, part + b"--x", part + b"--x\r\n"):
        answer = client.post("/predict", content=body, headers=form)
        assert "before its last boundary" in problem(answer, 400, "multipart")["cause"]
    for end in (b"--x--", b"--x--\r\n", b"--x--\r\nmore"):
        answer = client.post("/predict", content=part + end, headers=form)
        assert answer.status_code == 200, answer.text


def test_bad_forms(client: httpx2.Client, images: list[Path]) -> None:
    good = images[0].read_bytes()
    form = {"Content-Type": "multipart/form-data; boundary=x"}
    for body in (b"--x\r\nnonsense", b"--x\r\n\r\n--x--", b"\x00" * 100):
        assert client.post("/predict", content=body, headers=form).status_code in (400, 422)
    no_boundary = {"Content-Type": "multipart/form-data"}
    problem(client.post("/predict", content=b"a", headers=no_boundary), 400, "multipart")
    problem(client.post("/predict", files={"files": good}, data={"top_k": "-1"}), 422, "top_k")
    huge = {"top_k": "1000000000"}
    problem(client.post("/predict", files={"files": good}, data=huge), 422, "top_k")
    most = {"top_k": "999999999"}
    assert client.post("/predict", files={"files": good}, data=most).status_code == 200
    problem(client.post("/predict", files={"files": good}, data={"skip_bad": "?"}), 422, "skip_bad")
    problem(client.post("/predict", files={"files": good}, data={"strenght": "1"}), 422, "field")
    problem(client.post("/predict", files=[("files", good)] * 9), 422, "images")
    text = {"Content-Type": "text/plain"}
    problem(client.post("/predict", content=b"hello", headers=text), 415, "content_type")
    problem(client.get("/predict"), 405, "http")
    problem(client.get("/../../etc/passwd"), 404, "http")


def raw(address: str, *parts: bytes, wait: float = 10) -> bytes:
    """Send bytes, and return what comes back."""
    place = urlsplit(address)
    with socket.create_connection((place.hostname, place.port), timeout=wait) as connection:
        for part in parts:
            connection.sendall(part)
        found = b""
        try:
            while more := connection.recv(65536):
                found += more
                if b"\r\n\r\n" in found and found.endswith(b"}"):
                    break
        except (ConnectionResetError, TimeoutError):
            pass
        return found


HEAD = b"POST /predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: image/png\r\n"


def test_huge_bodies(service: str) -> None:
    """A body is refused by the length that it claims, or as soon as it has come to the limit."""
    claimed = raw(service, HEAD + b"Content-Length: 99999999999\r\n\r\n")
    assert claimed.startswith(b"HTTP/1.1 413") and b'"type": "body"' in claimed
    piece = b"40000\r\n" + bytes(0x40000) + b"\r\n"
    chunked = raw(service, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[piece] * 5)
    assert chunked.startswith(b"HTTP/1.1 413")
    nonsense = raw(service, HEAD + b"Content-Length: -5\r\n\r\n")
    assert nonsense.startswith(b"HTTP/1.1 4")


@pytest.mark.parametrize(
    ("path", "kind", "status"),
    [("predict", "image/png", 413), ("predict", "text/plain", 413), ("nowhere", "image/png", 413)],
)
def test_a_client_that_sends_all_before_it_reads(
    path: str, kind: str, status: int, service: str
) -> None:
    """Python's own client got a reset connection where the answer was that the body is too large."""
    request = Request(f"{service}/{path}", bytes(40 << 20), {"Content-Type": kind})
    with pytest.raises(HTTPError) as caught:
        urlopen(request, timeout=60)
    assert (
        caught.value.code == status and json.loads(caught.value.read())["error"]["type"] == "body"
    )


@pytest.mark.parametrize(
    ("path", "kind", "status"), [("predict", "text/plain", 415), ("x", "", 404)]
)
def test_a_body_that_nobody_reads(path: str, kind: str, status: int, service: str) -> None:
    place = urlsplit(service)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=60)
    for _ in range(2):  # and the connection goes on
        connection.request("POST", f"/{path}", bytes(1_000_000), {"Content-Type": kind})
        answer = connection.getresponse()
        assert answer.status == status and json.loads(answer.read())["error"]
    connection.close()


def test_a_client_that_goes_away(service: str, images: list[Path]) -> None:
    """One that ends in the middle of its body, or before its answer, harms nobody."""
    content, place = images[0].read_bytes(), urlsplit(service)
    for sent in (content[:50], content):
        head = HEAD + f"Content-Length: {len(content)}\r\n\r\n".encode()
        with socket.create_connection((place.hostname, place.port)) as connection:
            connection.sendall(head + sent)


def test_other_hosts_are_refused(client: httpx2.Client) -> None:
    """A page of a stranger that leads to this machine by its own name (DNS rebinding) reads nothing."""
    problem(client.get("/models", headers={"Host": "evil.example"}), 400, "host")
    for name in ("localhost:80", "LOCALHOST:8123", "LocalHost"):
        assert client.get("/models", headers={"Host": name}).status_code == 200


def test_token(models: dict[str, Classifier], images: list[Path]) -> None:
    settings = ServeSettings(host="0.0.0.0", **{**LIMITS, "max_waiting": 4})
    with pytest.raises(ConfigError, match="lets other machines in"):
        Service(models, settings)
    with pytest.raises(ConfigError, match="has 5 characters"):
        Service(models, settings, "short")
    files = {"files": images[0].read_bytes()}
    with Service(models, settings, TOKEN).background() as address:
        address = address.replace("0.0.0.0", "127.0.0.1")
        assert httpx2.get(f"{address}/health").status_code == 200
        for path in ("/models", "/metrics"):
            problem(httpx2.get(f"{address}{path}"), 401, "token")
        for wrong in ("", "Bearer", f"Bearer {TOKEN}x", TOKEN, f"Basic {TOKEN}", "Bearer \xe9"):
            headers = [(b"authorization", wrong.encode("latin-1"))]
            answer = httpx2.post(f"{address}/predict", files=files, headers=headers)
            assert TOKEN not in problem(answer, 401, "token").values()
        right = {"Authorization": f"Bearer {TOKEN}"}
        assert httpx2.post(f"{address}/predict", files=files, headers=right).status_code == 200


def test_time_and_waiting(models: dict[str, Classifier], images: list[Path]) -> None:
    """A slow answer ends in 504, a slow body in 408; too many that wait are told 503."""
    content = images[0].read_bytes()
    settings = ServeSettings(**LIMITS | {"timeout": 0.5, "max_waiting": 2})
    service, free = Service(models, settings), threading.Event()
    encoder = models["rada"].inputs.slot.get()
    infer = encoder.infer_images

    def slow(pixels: object) -> object:
        free.wait(20)
        return infer(pixels)  # type: ignore[arg-type]

    with service.background() as address:
        encoder.infer_images = slow  # type: ignore[method-assign,assignment]
        try:
            answer = httpx2.post(f"{address}/predict", files={"files": content}, timeout=30)
            problem(answer, 504, "timeout")
            full = httpx2.post(f"{address}/predict", files=[("files", content)] * 8, timeout=30)
            assert problem(full, 503, "busy") and full.headers["retry-after"] == "1"
        finally:
            free.set()
            del encoder.infer_images
        late = raw(address, HEAD + b"Content-Length: 100\r\n\r\nslow")
        assert late.startswith(b"HTTP/1.1 408")
        answer = httpx2.post(f"{address}/predict", files={"files": content}, timeout=30)
        assert answer.status_code == 200
