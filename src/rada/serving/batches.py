"""Dynamic batching: images of many requests are encoded together, as they come."""

from __future__ import annotations

import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from PIL import Image
from torch import Tensor

from rada.core.errors import FeatureError
from rada.data import open_image
from rada.features.workers import plan_workers
from rada.predictions import probabilities_of
from rada.serving.metrics import Metrics
from rada.serving.problems import RequestError
from rada.serving.processes import Encoded, Keeper, Lane, ProcessDiedError, encode_each
from rada.serving.settings import ServeSettings

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["Batches", "Scorer", "cores"]

Scorer = Callable[[Tensor], Tensor]
"""Makes logits `(N, K)` of features `(N, D)`."""

T = TypeVar("T")


def cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(eq=False)
class _Waiting:
    """An image that waits, and what becomes of it."""

    content: bytes
    score: Scorer
    pixels: Tensor | None = None
    answer: Future[Tensor] = field(default_factory=Future)


class Batches:
    """Reads and encodes the images of one encoder, and scores each as its request wants.

    What waits is taken in batches up to a size; an image waits for others no longer than
    `settings.batch_wait`. An image whose request has ended is left out. One that fails fails alone.

    On a CPU of several cores there is a process for each core, which reads and encodes with one thread; an
    image that comes alone is encoded here with all cores. Otherwise threads of this process read images, and
    others encode them.

    Args:
        encoder: The encoder.
        settings: Sizes and waits.
        metrics: What is counted.
    """

    def __init__(self, encoder: DualEncoder, settings: ServeSettings, metrics: Metrics) -> None:
        self.encoder, self._settings, self._metrics = encoder, settings, metrics
        self._queue: deque[_Waiting] = deque()
        self._changed = threading.Condition()
        self._stopping = False
        self._waiting = self._at_work = 0
        on_cpu = torch.device(encoder.device).type == "cpu"
        processes = _processes(settings) if on_cpu else 0
        self._lanes = processes or settings.threads or 1
        # None leaves it alone; a batch beside others has its part of what one alone has.
        self._threads_of_torch = torch.get_num_threads() if on_cpu else None
        self._keeper: Keeper | None = None
        self._readers: ThreadPoolExecutor | None = None
        if processes:
            grey = encoder.preprocess(Image.new("RGB", (64, 64), (128,) * 3))
            encode_each(encoder, [grey])  # what an encoder makes once is shared then
            self._keeper = Keeper(encoder, self._read)
        else:
            self._readers = ThreadPoolExecutor(max(2, cores()), "rada-decode")
        self._threads = [
            threading.Thread(target=self._run, name=f"rada-encode-{number}", daemon=True)
            for number in range(self._lanes)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, content: bytes, score: Scorer) -> Future[Tensor]:
        """Let an image wait for its probabilities `(K,)`.

        Args:
            content: The image as it came. The future raises a DataError if it cannot be read.
            score: Makes logits of features.

        Raises:
            RequestError: 503 if too many wait, or the service stops.
        """
        entry = _Waiting(content, score)
        with self._changed:
            if self._stopping or self._waiting >= self._settings.max_waiting:
                raise busy(f"{self._waiting} images wait")
            self._waiting += 1
            self._metrics.waiting.inc()
            if self._readers is None:
                self._queue.append(entry)
                self._changed.notify()
        if self._readers is not None:
            self._readers.submit(self._read_first, entry)
        return entry.answer

    def stop(self) -> None:
        """Finish what waits, then end the threads and processes."""
        if self._readers is not None:
            self._readers.shutdown()
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()
        if self._keeper is not None:
            self._keeper.stop()

    def _read(self, content: bytes) -> Tensor:
        """Return the pixels of an image as the encoder takes them.

        Raises:
            DataError: If the image cannot be read.
        """
        preprocess = self.encoder.preprocess
        side = getattr(preprocess, "shorter_side", None)
        image = open_image(content, max_pixels=self._settings.max_pixels, shorter_side=side)
        return preprocess(image)

    def _read_first(self, entry: _Waiting) -> None:
        """Read an image in a thread of the readers, and let it wait for a batch."""
        try:
            entry.pixels = self._read(entry.content)
        except Exception as error:
            with self._changed:
                self._taken(1)
            if entry.answer.set_running_or_notify_cancel():
                entry.answer.set_exception(error)
            return
        with self._changed:
            self._queue.append(entry)
            self._changed.notify()

    def _taken(self, count: int) -> None:
        self._waiting -= count
        self._metrics.waiting.dec(count)

    def _run(self) -> None:
        keeper, patience = self._keeper, self._settings.timeout
        lane = None if keeper is None else Lane(keeper, self.encoder, patience)
        while True:
            batch, alone = self._next()
            if not batch:
                break
            if self._threads_of_torch is not None:
                share = self._threads_of_torch // (1 if alone else self._lanes)
                torch.set_num_threads(max(1, share))  # of this thread
            wanted = [entry for entry in batch if entry.answer.set_running_or_notify_cancel()]
            if wanted:
                self._answer(wanted, lane, alone)
            with self._changed:
                self._at_work -= 1
        if lane is not None:
            lane.stop()

    def _next(self) -> tuple[list[_Waiting], bool]:
        """Wait for a batch, empty at the end; and whether it is one image with nothing beside it."""
        size = self._settings.batch_size
        with self._changed:
            while not self._wait_for_others(size):
                if self._stopping:
                    return [], False
                self._changed.wait()
            # Processes share what waits, so that none is idle while others have much.
            share = -(-len(self._queue) // self._lanes)
            batch = [self._queue.popleft() for _ in range(min(size, share))]
            self._taken(len(batch))
            if self._queue:
                self._changed.notify()  # of a new image only one thread is told, which may be this one
            alone = len(batch) == 1 and not self._queue and self._at_work == 0
            self._at_work += 1
            return batch, alone

    def _wait_for_others(self, size: int) -> bool:
        """Give others the time to come; False where nothing waits, or nothing is left by another thread."""
        until = time.monotonic() + self._settings.batch_wait
        while 0 < len(self._queue) < size and not self._stopping:
            left = until - time.monotonic()
            if left <= 0 or not self._changed.wait(left):
                break
        return len(self._queue) > 0

    @torch.no_grad()
    def _answer(self, batch: Sequence[_Waiting], lane: Lane | None, alone: bool) -> None:
        """Set the answers of some images."""
        begun = time.perf_counter()
        try:
            encoded = self._encode(batch, lane, alone)
        except Exception as error:  # the thread goes on with the next batch
            encoded = [error] * len(batch)
        self._metrics.batches.observe(len(batch))
        self._metrics.encoding.observe(time.perf_counter() - begun)
        whole: list[tuple[_Waiting, Tensor]] = []
        for entry, features in zip(batch, encoded, strict=True):
            if isinstance(features, ProcessDiedError):
                entry.answer.set_exception(_ended(features))
            elif isinstance(features, Exception):
                entry.answer.set_exception(features)
            elif not (0 < float(features.norm()) < float("inf")):
                entry.answer.set_exception(self._broken())
            else:
                whole.append((entry, features))
        for group in _grouped(whole, lambda pair: id(pair[0].score)):
            self._score(group)

    def _encode(self, batch: Sequence[_Waiting], lane: Lane | None, alone: bool) -> list[Encoded]:
        if lane is not None:
            return lane.encode([entry.content for entry in batch], alone)
        return encode_each(self.encoder, [e.pixels for e in batch if e.pixels is not None])

    def _score(self, group: Sequence[tuple[_Waiting, Tensor]]) -> None:
        """Set the answers of images that are scored together; where that fails, of each alone."""
        try:
            logits = group[0][0].score(torch.stack([features for _, features in group]))
            for (entry, _), row in zip(group, probabilities_of(logits), strict=True):
                entry.answer.set_result(row)
        except Exception as error:
            if len(group) == 1:
                group[0][0].answer.set_exception(error)
                return
            for pair in group:
                self._score([pair])

    def _broken(self) -> FeatureError:
        return FeatureError(
            f"the encoder {self.encoder.name!r} gave NaN, infinite or zero features for the image: its "
            "weights or its preprocessing are broken"
        )


def _processes(settings: ServeSettings) -> int:
    """Return the processes that encode on a CPU; 0 where threads do."""
    if settings.processes is None and settings.threads is not None:
        return 0
    return plan_workers(settings.processes, "cpu", jobs=None)


def _ended(error: ProcessDiedError) -> RequestError:
    return RequestError(
        500,
        "process",
        "the image",
        f"the process that encoded it {error}",
        "try again; if that ends it again, send the image in another format",
    )


def _grouped(entries: Sequence[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    found: dict[Hashable, list[T]] = {}
    for entry in entries:
        found.setdefault(key(entry), []).append(entry)
    return list(found.values())


def busy(cause: str) -> RequestError:
    """Return the answer of a service that has too much to do."""
    return RequestError(503, "busy", "the service", cause, "try again in a second, or send fewer")
