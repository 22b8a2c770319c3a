"""Images a second of `rada serve` against `rada predict` on the same images, latencies and failures under load.

    python benchmarks/serve.py [--requests 10000] [--clients 16] [--rounds 10] [--out result.json] [--serve-option=...]

A model fitted on 4 shots of the built-in textiles set names the class of the test images: by `predict_stream` (which is
`rada predict`, its start left out, without the cache) and by `rada serve` in a process of its own at loopback, asked by
`--clients` connections that send one image a request and wait for the answer. Both take turns, so that a machine whose speed
drifts does both equally; the ratio is the median over the turns. The clients run on the same machine and take their share of
it. Every answer is compared with that of `predict_stream`; one that differs, or that is no answer, is a failure.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import cast
from urllib.parse import urlsplit

import httptools
import uvloop

from rada import Classifier, open_dataset
from rada.core.storage import write_json
from rada.evaluation import environment

Answers = dict[Path, tuple[str, float]]


def predicted(classifier: Classifier, paths: list[Path]) -> tuple[float, Answers]:
    """Seconds for all images, and the class and probability of each."""
    begun = time.perf_counter()
    found: Answers = {}
    for path, answer in zip(paths, classifier.predict_stream(iter(paths)), strict=True):
        assert answer.predictions is not None
        found[path] = tuple(answer.predictions[0])
    return time.perf_counter() - begun, found


class Load:
    """Connections that send images until there are none left."""

    def __init__(self, address: str, contents: dict[Path, bytes], expected: Answers) -> None:
        self.place = urlsplit(address)
        head = "POST /predict HTTP/1.1\r\nHost: {}\r\nContent-Type: image/jpeg\r\nContent-Length: {}\r\n\r\n"
        self.requests = {
            path: head.format(self.place.netloc, len(content)).encode() + content
            for path, content in contents.items()
        }
        self.expected = expected
        self.seconds: list[float] = []
        self.failures: list[str] = []
        self.largest = 0.0
        self.left: Iterator[Path] = iter(())

    def run(self, paths: list[Path], clients: int) -> float:
        """Seconds until every path is answered."""
        self.left = iter(paths)

        async def all_of_them() -> None:
            await asyncio.gather(*(self._client() for _ in range(clients)))

        begun = time.perf_counter()
        with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
            runner.run(all_of_them())
        return time.perf_counter() - begun

    async def _client(self) -> None:
        connection = None
        for path in self.left:
            begun = time.perf_counter()
            try:
                if connection is None:
                    connection = await Connection.open(self.place.hostname, self.place.port)
                status, body = await asyncio.wait_for(connection.ask(self.requests[path]), 120)
                failure, difference = self._check(path, status, body)
            except (OSError, TimeoutError) as error:
                failure, difference, connection = f"{path.name}: {error!r}", 0.0, None
            self.seconds.append(time.perf_counter() - begun)
            self.largest = max(self.largest, difference)
            if failure:
                self.failures.append(failure)
        if connection is not None:
            connection.transport.close()

    def _check(self, path: Path, status: int, body: bytes) -> tuple[str, float]:
        """What is wrong with an answer, and how far its probability is from the expected one."""
        if status != 200:
            return f"{path.name}: {status} {body[:200]!r}", 0.0
        best = json.loads(body)["predictions"][0]["classes"][0]
        name, probability = self.expected[path]
        difference = abs(best["probability"] - probability)
        if best["name"] != name and difference > 1e-4:
            return f"{path.name}: {best} instead of {name!r} {probability}", difference
        return "", difference


class Connection(asyncio.Protocol):
    """One connection, one request at a time; as light as can be, since it runs on the service's machine."""

    transport: asyncio.Transport
    parser: httptools.HttpResponseParser
    done: asyncio.Future[tuple[int, bytes]]

    @classmethod
    async def open(cls, host: str | None, port: int | None) -> Connection:
        return (await asyncio.get_running_loop().create_connection(cls, host, port))[1]

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        self.parser = httptools.HttpResponseParser(self)
        self.done = asyncio.get_running_loop().create_future()

    def ask(self, request: bytes) -> asyncio.Future[tuple[int, bytes]]:
        self.body, self.done = b"", asyncio.get_running_loop().create_future()
        self.transport.write(request)
        return self.done

    def data_received(self, data: bytes) -> None:
        self.parser.feed_data(data)

    def connection_lost(self, error: Exception | None) -> None:
        if not self.done.done():
            self.done.set_exception(ConnectionResetError("the connection was closed"))

    def on_body(self, body: bytes) -> None:
        self.body += body

    def on_message_complete(self) -> None:
        self.done.set_result((self.parser.get_status_code(), self.body))


def started(model: Path, options: list[str]) -> tuple[subprocess.Popen[str], str]:
    """The service, and its address."""
    words = [sys.executable, "-m", "rada", "serve", str(model), "--port", "0", *options]
    environ = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, env=environ)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("Serving at "):
            return process, line.split()[2].rstrip(";")
    raise SystemExit("the service did not start")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--requests", type=int, default=10_000)
    parser.add_argument("--clients", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--serve-option", action="append", default=[], help="handed to rada serve")
    parser.add_argument("--out", help="JSON file for the result")
    options = parser.parse_args()
    dataset = open_dataset("textiles")
    test = dataset.split("test")
    each = options.requests // options.rounds
    paths = [test.path(number % len(test)) for number in range(each)]
    contents = {path: path.read_bytes() for path in set(paths)}
    classifier = Classifier("embedded", cache=False, progress=False)
    rates: dict[str, list[float]] = {"predict": [], "serve": []}
    with tempfile.TemporaryDirectory() as folder:
        classifier.fit(dataset, shots=4, seed=1, output_dir=Path(folder) / "model")
        _, expected = predicted(classifier, list(contents))
        process, address = started(Path(folder) / "model", options.serve_option)
        load = Load(address, contents, expected)
        try:
            for number in range(options.rounds):
                rates["predict"].append(each / predicted(classifier, paths)[0])
                rates["serve"].append(each / load.run(paths, options.clients))
                print(
                    f"turn {number}: predict {rates['predict'][-1]:.1f}, serve {rates['serve'][-1]:.1f}"
                )
        finally:
            process.terminate()
            stopped = process.wait(60)
    ratio = statistics.median(a / b for a, b in zip(rates["serve"], rates["predict"], strict=True))
    percentiles = statistics.quantiles(load.seconds, n=100)
    result = {
        "command": " ".join(["python", "benchmarks/serve.py", *sys.argv[1:]]),
        "environment": environment(),
        "requests": len(load.seconds),
        "clients": options.clients,
        "failures": len(load.failures),
        "images_per_second": {name: statistics.median(found) for name, found in rates.items()},
        "ratio": ratio,
        "latency_ms": {f"p{p}": 1000 * percentiles[p - 1] for p in (50, 90, 95, 99)},
        "largest_difference_of_a_probability": load.largest,
        "exit_status": stopped,
    }
    print(json.dumps({k: v for k, v in result.items() if k != "environment"}, indent=2))
    for failure in load.failures[:5]:
        print("failure:", failure)
    if options.out:
        write_json(options.out, result)


if __name__ == "__main__":
    main()
