"""Dynamic batching: images of many requests are encoded together, as they come."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeVar

import torch
from torch import Tensor

from rada.core.errors import FeatureError
from rada.encoders.transforms import stack_pixels
from rada.predictions import probabilities_of
from rada.serving.metrics import Metrics
from rada.serving.problems import RequestError
from rada.serving.settings import ServeSettings

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["Batches", "Scorer", "cores"]

Scorer = Callable[[Tensor], Tensor]
"""Makes logits `(N, K)` of features `(N, D)`."""

T = TypeVar("T")

_log = logging.getLogger(__name__)


def cores() -> int:
    """Return the cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@dataclass(eq=False)
class _Waiting:
    """An image that waits, and what becomes of it."""

    pixels: Tensor
    score: Scorer
    answer: Future[Tensor] = field(default_factory=Future)


class Batches:
    """Encodes the images of one encoder, and scores each as its request wants.

    Threads take what waits, up to the size of a batch; an image waits for others no longer than
    `settings.batch_wait`. An image whose request has ended is left out. One that fails fails alone.

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
        on_cpu = torch.device(encoder.device).type == "cpu"
        count = settings.threads or 1
        # Several threads share the cores; one alone has all of them.
        self._threads_each = max(1, cores() // count) if on_cpu else None
        self._threads = [
            threading.Thread(target=self._run, name=f"rada-encode-{number}", daemon=True)
            for number in range(count)
        ]
        for thread in self._threads:
            thread.start()

    def submit(self, pixels: Tensor, score: Scorer) -> Future[Tensor]:
        """Let an image wait for its probabilities `(K,)`.

        Args:
            pixels: What the encoder's preprocessing made of it.
            score: Makes logits of features.

        Raises:
            RequestError: 503 if too many wait, or the service stops.
        """
        entry = _Waiting(pixels, score)
        with self._changed:
            if self._stopping or len(self._queue) >= self._settings.max_waiting:
                raise busy(f"{len(self._queue)} images wait")
            self._queue.append(entry)
            self._metrics.waiting.inc()
            self._changed.notify()
        return entry.answer

    def stop(self) -> None:
        """Finish what waits, then end the threads."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        for thread in self._threads:
            thread.join()

    def _run(self) -> None:
        if self._threads_each is not None:
            torch.set_num_threads(self._threads_each)  # of this thread alone
        while True:
            batch = self._next()
            if batch is None:
                return
            wanted = [entry for entry in batch if entry.answer.set_running_or_notify_cancel()]
            for group in _grouped(wanted, lambda entry: (entry.pixels.shape, entry.pixels.dtype)):
                self._answer(group)

    def _next(self) -> list[_Waiting] | None:
        """Wait for a batch; None at the end."""
        size = self._settings.batch_size
        with self._changed:
            while not self._queue:
                if self._stopping:
                    return None
                self._changed.wait()
            until = time.monotonic() + self._settings.batch_wait
            while len(self._queue) < size and not self._stopping:
                left = until - time.monotonic()
                if left <= 0 or not self._changed.wait(left):
                    break
            batch = [self._queue.popleft() for _ in range(min(size, len(self._queue)))]
            self._metrics.waiting.dec(len(batch))
            return batch

    def _answer(self, batch: Sequence[_Waiting]) -> None:
        """Set the answers of images of one shape; where that fails, of each alone."""
        try:
            for entry, row in zip(batch, self._probabilities(batch), strict=True):
                entry.answer.set_result(row)
        except Exception as error:
            if len(batch) == 1:
                batch[0].answer.set_exception(error)
                return
            _log.debug("a batch of %d images failed, each is tried alone: %s", len(batch), error)
            for entry in batch:
                self._answer([entry])

    @torch.no_grad()
    def _probabilities(self, batch: Sequence[_Waiting]) -> list[Tensor]:
        """Return probabilities `(K,)` of each image, K of its own request."""
        begun = time.perf_counter()
        features = self.encoder.infer_images(stack_pixels([entry.pixels for entry in batch]))
        features = features.float().cpu()
        self._metrics.batches.observe(len(batch))
        self._metrics.encoding.observe(time.perf_counter() - begun)
        norms = features.norm(dim=-1)
        if not bool((norms.isfinite() & (norms > 0)).all()):
            raise FeatureError(
                f"the encoder {self.encoder.name!r} gave NaN, infinite or zero features for the image: its "
                "weights or its preprocessing are broken"
            )
        rows: dict[int, Tensor] = {}
        for group in _grouped(list(enumerate(batch)), lambda pair: id(pair[1].score)):
            places = [place for place, _ in group]
            found = probabilities_of(group[0][1].score(features[places]))
            rows.update(zip(places, found, strict=True))
        return [rows[place] for place in range(len(batch))]


def _grouped(entries: Sequence[T], key: Callable[[T], Hashable]) -> list[list[T]]:
    found: dict[Hashable, list[T]] = {}
    for entry in entries:
        found.setdefault(key(entry), []).append(entry)
    return list(found.values())


def busy(cause: str) -> RequestError:
    """Return the answer of a service that has too much to do."""
    return RequestError(503, "busy", "the service", cause, "try again in a second, or send fewer")
