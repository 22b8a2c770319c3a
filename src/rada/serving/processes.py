"""Processes that read and encode images for a service, whose own threads share one interpreter.

A keeper is forked when nothing runs yet, and forks a process whenever one is asked for, so that one that
dies, of a broken image or of missing memory, is replaced without forking a process with threads. All share
the weights. They end when the service does, however it ends, since their pipes do.
"""

from __future__ import annotations

import contextlib
import gc
import logging
import os
import signal
import socket
import traceback
import warnings
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NoReturn

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import RadaError
from rada.encoders.transforms import stack_pixels

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["Encoded", "Keeper", "Lane", "ProcessDiedError", "Reader", "encode_each"]

Encoded = Tensor | Exception
"""What became of an image."""
Reader = Callable[[bytes], Tensor]
"""Makes pixels of the bytes of an image; DataError if they are none."""
_Wanted = Literal["features", "pixels"]
_Answer = np.ndarray | Exception

_log = logging.getLogger(__name__)

_START = 60.0
"""Most seconds for a process to start."""


class ProcessDiedError(Exception):
    """A process that encoded has ended, or was ended.

    Attributes:
        slow: Whether it was ended, since it took too long.
    """

    def __init__(self, slow: bool = False) -> None:
        self.slow = slow
        super().__init__("took too long" if slow else "ended")


def encode_each(encoder: DualEncoder, pixels: Sequence[Encoded]) -> list[Encoded]:
    """Return features `(D,)` of every image.

    Images of one shape are encoded together, and one that fails fails alone.

    Args:
        encoder: The encoder.
        pixels: What its preprocessing made of the images; an exception stays one.
    """
    found = list(pixels)
    groups: dict[tuple[torch.Size, torch.dtype], list[int]] = {}
    for place, image in enumerate(pixels):
        if isinstance(image, Tensor):
            groups.setdefault((image.shape, image.dtype), []).append(place)
    for places in groups.values():
        together = [image for place in places if isinstance(image := pixels[place], Tensor)]
        for place, row in zip(places, _encoded(encoder, together), strict=True):
            found[place] = row
    return found


def _encoded(encoder: DualEncoder, pixels: Sequence[Tensor]) -> list[Encoded]:
    try:
        return list(encoder.infer_images(stack_pixels(pixels)).float().cpu())
    except Exception as error:
        if len(pixels) == 1:
            return [error]
        return [one for image in pixels for one in _encoded(encoder, [image])]


class Keeper:
    """Starts processes that hold an encoder.

    Args:
        encoder: The encoder, ready to encode.
        read: Makes pixels of images.
    """

    def __init__(self, encoder: DualEncoder, read: Reader) -> None:
        self._control, other = socket.socketpair()
        with warnings.catch_warnings():
            # Threads of torch's pool: the keeper never computes, its processes do with one thread.
            warnings.simplefilter("ignore", DeprecationWarning)
            self._pid = os.fork()
        if self._pid == 0:
            _keep(other, encoder, read)
        other.close()

    def start(self) -> Worker:
        """Return a new process.

        Raises:
            ProcessDiedError: If it does not start.
        """
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                socket.send_fds(self._control, [b"+"], [theirs.fileno()])
            except OSError as error:  # the keeper itself has ended
                ours.close()
                raise ProcessDiedError from error
        return Worker(Connection(ours.detach()))

    def stop(self) -> None:
        """Wait until all processes have ended; each must have been stopped."""
        self._control.close()
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)


class Worker:
    """One process.

    Args:
        connection: Leads to it.
    """

    def __init__(self, connection: Connection) -> None:
        self._connection = connection
        self._pid = 0
        self._pid = self._received(_START)

    def encode(self, contents: Sequence[bytes], wanted: _Wanted, patience: float) -> list[Encoded]:
        """Return features `(D,)` or pixels of every image.

        Args:
            contents: The images, as they came.
            wanted: Which of both.
            patience: Most seconds.

        Raises:
            ProcessDiedError: If the process has ended, or took too long and was ended.
        """
        try:
            self._connection.send((wanted, list(contents)))
        except OSError as error:
            raise ProcessDiedError from error
        answers: list[_Answer] = self._received(patience)
        return [
            torch.from_numpy(answer) if isinstance(answer, np.ndarray) else answer
            for answer in answers
        ]

    def _received(self, patience: float) -> Any:
        try:
            if self._connection.poll(patience):
                return self._connection.recv()
        except (OSError, EOFError) as error:
            raise ProcessDiedError from error
        if self._pid:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._pid, signal.SIGKILL)
        raise ProcessDiedError(slow=True)

    def stop(self) -> None:
        """Let it end."""
        self._connection.close()


class Lane:
    """One process, replaced by another whenever it ends; its images are tried again, each alone, twice.

    Args:
        keeper: Starts processes.
        encoder: The encoder, in this process.
        patience: Most seconds for a batch: then nobody waits for it any more.
    """

    def __init__(self, keeper: Keeper, encoder: DualEncoder, patience: float) -> None:
        self._keeper, self._encoder, self._patience = keeper, encoder, patience
        self._worker: Worker | None = None

    def encode(self, contents: Sequence[bytes], alone: bool, tries: int = 3) -> list[Encoded]:
        """Return features `(D,)` of every image; ProcessDiedError of one that no process outlived.

        Args:
            contents: The images, as they came.
            alone: Encode here, with all threads of torch; only reading is left to the process.
            tries: Processes that may end.
        """
        try:
            if self._worker is None:
                self._worker = self._keeper.start()
            wanted: _Wanted = "pixels" if alone else "features"
            found = self._worker.encode(contents, wanted, self._patience)
        except ProcessDiedError as error:
            self.stop()
            _log.warning("a process that encoded %d images %s", len(contents), error)
            if error.slow or tries == 1:
                return [error] * len(contents)
            return [one for c in contents for one in self.encode([c], alone, tries - 1)]
        return encode_each(self._encoder, found) if alone else found

    def stop(self) -> None:
        """Let the process end."""
        if self._worker is not None:
            self._worker.stop()
            self._worker = None


# -- in the other processes --------------------------------------------------------------------------


def _keep(control: socket.socket, encoder: DualEncoder, read: Reader) -> NoReturn:
    """Fork a process for every one that is asked for, until nobody can ask any more."""
    status = 1
    try:
        # The service alone decides when to stop: a signal may reach all of its processes.
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, signal.SIG_IGN)
        signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # those that end leave nothing behind
        gc.freeze()  # what was garbage before may not close a file of ours by its number
        _close_all_but(control.fileno())
        while True:
            message, files, _, _ = socket.recv_fds(control, 1, 1)
            if not message:
                break
            if os.fork() == 0:
                control.close()
                _work(Connection(files[0]), encoder, read)
            os.close(files[0])
        with contextlib.suppress(ChildProcessError):
            os.wait()  # until all have ended
        status = 0
    finally:
        os._exit(status)


def _close_all_but(kept: int) -> None:
    """Close what was inherited: connections of clients, places that listen, other keepers."""
    for number in [int(path.name) for path in Path("/proc/self/fd").iterdir()]:
        if number > 2 and number != kept:
            with contextlib.suppress(OSError):  # that of the listing itself
                os.close(number)


def _work(connection: Connection, encoder: DualEncoder, read: Reader) -> NoReturn:
    """Answer until the service has gone."""
    try:
        # More than one OpenMP thread hangs in a process forked from one that has used OpenMP.
        torch.set_num_threads(1)
        connection.send(os.getpid())
        while True:
            wanted, contents = connection.recv()
            connection.send(_answers(encoder, read, contents, wanted))
    except (EOFError, OSError):
        os._exit(0)
    finally:
        os._exit(1)


@torch.no_grad()
def _answers(
    encoder: DualEncoder, read: Reader, contents: Sequence[bytes], wanted: _Wanted
) -> list[_Answer]:
    found: list[Encoded] = []
    for content in contents:
        try:
            found.append(read(content))
        except Exception as error:
            found.append(error)
    if wanted == "features":
        found = encode_each(encoder, found)
    return [_plain(entry) for entry in found]


def _plain(entry: Encoded) -> _Answer:
    if isinstance(entry, Tensor):
        return entry.numpy()
    if isinstance(entry, RadaError):
        return entry
    # Not every exception can travel.
    return RuntimeError("".join(traceback.format_exception(entry)))
