"""Processes that encode for a service: the same answers, one that dies is replaced, none is left behind."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.parse import urlsplit

import httpx2
import pytest
import torch

from rada import Classifier
from rada.core.errors import DataError
from rada.serving import ServeSettings, Service
from rada.serving.processes import Keeper, Lane, ProcessDiedError
from serving.conftest import LIMITS, problem
from serving.test_process import running
from serving.test_service import check, expected, files

pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").is_dir(), reason="processes are forked on Linux"
)
TWO = LIMITS | {"threads": None, "processes": 2}


def children(pid: int) -> list[int]:
    """All processes below one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(path.read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        if parent == pid:
            found += [int(path.parent.name), *children(int(path.parent.name))]
    return found


@pytest.fixture
def address(models: dict[str, Classifier], one_thread: None) -> Iterator[str]:
    before = set(children(os.getpid()))
    with Service(models, ServeSettings(**TWO)).background() as address:
        yield address
    assert set(children(os.getpid())) <= before  # they end with the service


def test_answers_are_those_of_predict(
    address: str, models: dict[str, Classifier], images: list[Path]
) -> None:
    wanted = {name: expected(models[name], images, 1) for name in ("rada", "linear_probe")}
    many = httpx2.post(f"{address}/predict", files=files(images[:8]), timeout=60)
    check(many, wanted["rada"][:8])

    def ask(number: int) -> None:
        with httpx2.Client(base_url=address, timeout=60) as client:
            for place in range(number, number + 6):
                place %= len(images)
                name = ("rada", "linear_probe")[(place + number) % 2]
                answer = client.post("/predict", files=files([images[place]]), data={"model": name})
                check(answer, [wanted[name][place]])

    with ThreadPoolExecutor(12) as pool:
        list(pool.map(ask, range(12)))
    # Alone, an image is encoded by the service itself.
    check(
        httpx2.post(f"{address}/predict", files=files(images[:1]), timeout=60), wanted["rada"][:1]
    )


def test_bad_images_are_refused_and_the_others_answered(address: str, images: list[Path]) -> None:
    sent = [("files", ("bad.png", b"no image")), ("files", ("good.png", images[0].read_bytes()))]
    error = problem(httpx2.post(f"{address}/predict", files=sent, timeout=60), 422, "image")
    assert error["value"] == "bad.png" and "not an image" in error["cause"]
    answer = httpx2.post(f"{address}/predict", files=sent, data={"skip_bad": "true"}, timeout=60)
    bad, good = answer.json()["predictions"]
    assert bad["classes"] is None and bad["reason"] and good["classes"]


def test_processes_that_are_killed_are_replaced(address: str, images: list[Path]) -> None:
    """What a killed process had is tried again by another."""
    stop, killed = threading.Event(), []

    def kill() -> None:
        keeper = max(children(os.getpid()), key=lambda pid: len(children(pid)))
        # So few that at most five images can lose three processes in turn, however slow the machine is.
        while len(killed) < 12 and not stop.wait(0.05):
            for pid in children(keeper)[:1]:
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
                    killed.append(pid)

    def ask(place: int) -> httpx2.Response:
        sent = files(images[place : place + 4])
        return httpx2.post(f"{address}/predict", files=sent, timeout=60)

    assert ask(0).status_code == 200
    killer = threading.Thread(target=kill)
    killer.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(ask, [place % 8 for place in range(40)]))
    finally:
        stop.set()
        killer.join()
    # An image whose process was killed three times in turn is told so; the service goes on.
    assert {answer.status_code for answer in answers} <= {200, 500}
    assert sum(answer.status_code == 200 for answer in answers) >= 30
    assert len(killed) >= 4
    assert ask(0).status_code == 200


@pytest.fixture
def lane(models: dict[str, Classifier], one_thread: None) -> Iterator[Lane]:
    """A process whose reader obeys its images."""
    encoder = models["rada"].inputs.slot.get()
    side = 32

    def read(content: bytes) -> torch.Tensor:
        if content == b"end":
            os._exit(3)
        if content == b"hang":
            time.sleep(60)
        if content == b"bad":
            raise DataError("it cannot be read")
        if content == b"bug":
            raise KeyError("a bug")
        return torch.full((3, side, side), float(content) / 10)

    keeper = Keeper(encoder, read)
    found = Lane(keeper, encoder, patience=2.0)
    yield found
    found.stop()
    keeper.stop()


@pytest.mark.parametrize("alone", [False, True])
def test_one_that_ends_its_process_harms_no_other(lane: Lane, alone: bool) -> None:
    wanted = lane.encode([b"1", b"2"], alone)
    found = lane.encode([b"1", b"end", b"bad", b"bug", b"2"], alone)
    assert torch.allclose(found[0], wanted[0], atol=1e-5)
    assert torch.allclose(found[4], wanted[1], atol=1e-5)
    assert isinstance(found[1], ProcessDiedError) and not found[1].slow
    assert isinstance(found[2], DataError) and str(found[2]) == "it cannot be read"
    assert isinstance(found[3], RuntimeError) and "KeyError: 'a bug'" in str(found[3])


def test_one_that_hangs_is_ended(lane: Lane) -> None:
    begun = time.monotonic()
    found = lane.encode([b"1", b"hang"], False)
    assert time.monotonic() - begun < 10
    assert all(isinstance(entry, ProcessDiedError) and entry.slow for entry in found)
    assert isinstance(lane.encode([b"1"], False)[0], torch.Tensor)


def test_a_keeper_that_is_killed_is_an_error_of_the_images(lane: Lane) -> None:
    """Nothing can replace the processes then, and each image is told so."""
    os.kill(lane._keeper._pid, signal.SIGKILL)
    os.waitpid(lane._keeper._pid, 0)
    found = lane.encode([b"1", b"2"], False)
    assert len(found) == 2 and all(isinstance(entry, ProcessDiedError) for entry in found)


def test_nothing_is_left_of_a_service_that_is_killed(
    heads: dict[str, Path], images: list[Path]
) -> None:
    """Its processes see that it has gone, and hold neither its port nor its clients."""
    with running(str(heads["rada"]), "--port", "0", "--processes", "2") as (process, address):
        sent = {"files": images[0].read_bytes()}
        assert httpx2.post(f"{address}/predict", files=sent, timeout=60).status_code == 200
        below = children(process.pid)
        assert len(below) >= 2  # the keeper, and one that encodes
        place = urlsplit(address)
        waiting = socket.create_connection((place.hostname, place.port), timeout=10)
        process.kill()
        process.wait()
        with contextlib.suppress(ConnectionResetError):
            assert waiting.recv(1) == b""  # closed at once
        with socket.create_server((place.hostname or "", place.port or 0)):
            pass
        until = time.monotonic() + 10
        while any(Path(f"/proc/{pid}/exe").exists() for pid in below) and time.monotonic() < until:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{pid}/exe").exists() for pid in below)
