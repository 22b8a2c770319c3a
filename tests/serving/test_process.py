"""`rada serve` as a process: it starts, refuses bad options, finishes what is in flight, starts again."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest

from cli.test_cli import rada
from rada import Classifier

SOURCE = Path(__file__).parents[2] / "src"


def environment(**more: str) -> dict[str, str]:
    return os.environ | {"PYTHONPATH": str(SOURCE), "OMP_NUM_THREADS": "1"} | more


def command(*words: str) -> list[str]:
    return [sys.executable, "-m", "rada", "serve", *words]


@contextlib.contextmanager
def running(*words: str) -> Iterator[tuple[subprocess.Popen[str], str]]:
    process = subprocess.Popen(
        command(*words),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    )
    try:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("Serving at "):
                yield process, line.split()[2].rstrip(";")
                return
        raise AssertionError(process.communicate()[1])
    finally:
        process.kill()
        process.wait()


def half(address: str, content: bytes) -> socket.socket:
    """Send a request but for its last byte."""
    place = urlsplit(address)
    connection = socket.create_connection((place.hostname, place.port), timeout=60)
    head = (
        f"POST /predict HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: image/png\r\n"
        f"Content-Length: {len(content)}\r\n\r\n"
    )
    connection.sendall(head.encode() + content[:-1])
    return connection


def answered(connection: socket.socket) -> bytes:
    found = b""
    while more := connection.recv(65536):
        found += more
    connection.close()
    return found


def test_stops_when_what_is_in_flight_is_done_and_starts_again(
    heads: dict[str, Path], images: list[Path]
) -> None:
    content = images[0].read_bytes()
    place = str(heads["rada"])
    with running(f"first={place}", f"second={heads['linear_probe']}", "--port", "0") as (
        process,
        address,
    ):
        port = str(urlsplit(address).port)
        wanted = httpx2.post(f"{address}/predict", files={"files": content}, timeout=60).json()
        assert wanted["model"] == "first"
        clf = Classifier.from_pretrained(heads["rada"], workers=0, cache=False)
        ((name, probability),) = clf.predict([str(images[0])], top_k=1)[0]
        (best,) = wanted["predictions"][0]["classes"]
        assert best["name"] == name and best["probability"] == pytest.approx(probability, abs=1e-5)
        open_ones = [half(address, content) for _ in range(4)]
        time.sleep(0.3)  # the service has read them
        process.send_signal(signal.SIGTERM)
        time.sleep(0.3)
        with pytest.raises(OSError):  # nobody new gets in
            socket.create_connection(("127.0.0.1", int(port)), timeout=5).recv(1)
        for connection in open_ones:
            connection.sendall(content[-1:])
        for connection in open_ones:
            found = answered(connection)
            assert found.startswith(b"HTTP/1.1 200") and f'"{name}"'.encode() in found
        assert process.wait(30) == 0
        assert process.stdout is not None and process.stdout.read().endswith("stopped\n")
        assert process.stderr is not None and "Traceback" not in process.stderr.read()


def test_killed_and_started_again_with_clients_that_ask_again(
    heads: dict[str, Path], images: list[Path]
) -> None:
    """A process that is killed outright takes its own requests along; asked again, all are answered."""
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as free:
        port = str(free.getsockname()[1])
    words = (f"head={heads['linear_probe']}", "--port", port)
    address = f"http://127.0.0.1:{port}"

    def ask(number: int) -> int:
        tries = 0
        while True:
            tries += 1
            with contextlib.suppress(httpx2.TransportError):
                content = images[number % len(images)].read_bytes()
                answer = httpx2.post(f"{address}/predict", files={"files": content}, timeout=60)
                assert answer.status_code == 200, answer.text
                return tries
            assert tries < 600
            time.sleep(0.1)

    with running(*words) as (process, _), ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(ask, number) for number in range(40)]
        while sum(entry.done() for entry in asked) < 5:
            time.sleep(0.005)
        process.kill()
        process.wait()
        with running(*words):
            tries = [entry.result() for entry in asked]
    assert len(tries) == 40 and max(tries) > 1


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("HEAD", "--host", "0.0.0.0"), "lets other machines in"),
        (("HEAD", "--port", "70000"), "port"),
        (("HEAD", "a=HEAD", "a=HEAD"), "two models are called 'a'"),
        (("bad name=HEAD",), "gives no name"),
        (("HEAD", "--token-file", "none.txt"), "cannot be read"),
        (("no-such-folder/",), "no-such-folder"),
        (("HEAD", "--timeout", "0"), "--timeout should be"),
        (("HEAD", "--max-body-mb", "nan"), "--max-body-mb should be a finite number"),
        (("HEAD", "--max-body-mb", "inf"), "--max-body-mb should be a finite number"),
        (("HEAD", "--max-body-mb", "1e308"), "--max-body-mb should be a finite number"),
        (("HEAD", "--max-body-mb", "1e300"), "--max-body-mb, in bytes, should be below"),
        (("HEAD", "--max-body-mb", "0"), "--max-body-mb, in bytes, should be 1024 or more"),
        (("HEAD", "--batch-wait-ms", "nan"), "--batch-wait-ms, in seconds, should be a finite"),
        (("HEAD", "--max-images", "0"), "--max-images should be 1 or more"),
    ],
)
def test_bad_options_are_one_line(
    words: tuple[str, ...], said: str, heads: dict[str, Path], tmp_path: Path
) -> None:
    from typer.testing import CliRunner

    from rada.cli.app import app
    from rada.core.errors import RadaError

    place = str(heads["linear_probe"])
    given = ["serve", *(word.replace("HEAD", place) for word in words)]
    done = CliRunner().invoke(app, given, env={"RADA_SERVE_TOKEN": ""})
    assert isinstance(done.exception, RadaError), done.output
    assert said in str(done.exception)


def test_a_port_in_use(heads: dict[str, Path]) -> None:
    with contextlib.closing(socket.create_server(("127.0.0.1", 0))) as taken:
        port = str(taken.getsockname()[1])
        done = rada("serve", heads["linear_probe"], "--port", port, environment={})
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert f"nothing can listen at 127.0.0.1:{port}" in done.stderr
