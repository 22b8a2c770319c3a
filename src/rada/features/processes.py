"""Encoding with several processes, started by `accelerate launch` or `torchrun`.

Each process encodes a contiguous part of the images and writes it to a file beside the output,
which the main process joins. So nothing large goes over the network, and no process holds more than
its part but the main one in the end.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import json
import math
import os
import shutil
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import numpy as np
import torch

from rada.core.errors import ConfigError, DataError, EncoderError, StorageError
from rada.core.extras import needed_for
from rada.core.processes import leave_at_exit
from rada.core.storage import storage_errors
from rada.data import ImageSplit
from rada.features.extract import collect, iter_features
from rada.features.features import Features

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["OtherProcessError", "ProcessGroup", "extract_in_group", "part_of"]

Value = TypeVar("Value")
# How long to wait for each other at the end of the parts. A process that dies is noticed at once; this
# is for one that hangs, or that has a slower disk.
_PATIENCE = datetime.timedelta(hours=12)


class OtherProcessError(Exception):
    """Another process of the group failed, and says why itself."""


class ProcessGroup:
    """The processes that were started together; one process is a group too.

    Attributes:
        rank: Number of this process.
        count: Number of processes.

    Raises:
        ConfigError: If they cannot find each other.

    Example:
        >>> group = ProcessGroup(count=1)
        >>> group.is_main, group.device("cuda"), group.share("same")
        (True, 'cuda', 'same')
    """

    def __init__(self, count: int | None = None) -> None:
        self.count = _world_size() if count is None else count
        self.rank = self._local_rank = 0
        self._group: Any = None
        if self.count > 1:
            self._join()

    def _join(self) -> None:
        with needed_for("encoding with several processes"):
            from accelerate import PartialState
        from torch import distributed

        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", "OMP_NUM_THREADS")  # that it chose the threads
                # Little is said between the processes, so gloo does for every device.
                state = PartialState(cpu=True)
            leave_at_exit()
            self._group = distributed.new_group(backend="gloo", timeout=_PATIENCE)
        except (ValueError, RuntimeError) as error:
            raise ConfigError(
                f"WORLD_SIZE says {self.count} processes, but they do not find each other ({error}): "
                "start them with accelerate launch or torchrun, or unset WORLD_SIZE"
            ) from error
        self.count, self.rank = state.num_processes, state.process_index
        self._local_rank = state.local_process_index

    @property
    def is_main(self) -> bool:
        """Whether this process writes and prints."""
        return self.rank == 0

    def device(self, wanted: str | None) -> str | None:
        """Return the device of this process: of several GPUs its own, where "cuda" is asked for."""
        return f"cuda:{self._local_rank}" if self.count > 1 and wanted == "cuda" else wanted

    def share(self, value: Value) -> Value:
        """Return what the main process gave."""
        if self.count == 1:
            return value
        from torch import distributed

        shared = [value]
        _spoken(lambda: distributed.broadcast_object_list(shared, src=0, group=self._group))
        return shared[0]

    def agree(self, error: Exception | None = None) -> None:
        """Wait for all; go on only if none failed.

        Raises:
            Exception: `error` itself.
            OtherProcessError: If another process failed.
        """
        failed = error is not None
        if self.count > 1:
            from torch import distributed

            states: list[bool] = [False] * self.count
            try:
                _spoken(lambda: distributed.all_gather_object(states, failed, group=self._group))
                failed = any(states)
            except EncoderError:
                if error is None:
                    raise
        if error is not None:
            raise error
        if failed:
            raise OtherProcessError("another process failed")

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """Do the block in every process; if it fails in one, all stop."""
        failure: Exception | None = None
        try:
            yield
        except Exception as error:
            failure = error
        self.agree(failure)

    @contextlib.contextmanager
    def main_first(self) -> Iterator[None]:
        """Do the block in the main process, which fills caches, then in the others, quietly."""
        if self.is_main:
            with self.together():
                yield
            self.agree()
            return
        self.agree()
        with self.together(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield


def _world_size() -> int:
    text = os.environ.get("WORLD_SIZE", "")
    return max(1, int(text)) if text.isdecimal() else 1


def _spoken(talk: Callable[[], None]) -> None:
    """Do what needs all processes; a dead one is an error that says so."""
    try:
        talk()
    except RuntimeError as error:
        raise EncoderError(
            f"another process has died or does not answer ({str(error)[:160]}); batches that "
            "were finished are in the cache, and the same command goes on from there"
        ) from error


def part_of(total: int, rank: int, count: int, batch_size: int = 32) -> tuple[int, int]:
    """Return where the part of a process starts and stops.

    Parts are whole batches where there are enough, so that all processes together make the same
    batches as one would alone: the same bits, and the same entries of the cache.

    Example:
        >>> [part_of(100, rank, 2) for rank in (0, 1)], [part_of(3, rank, 2) for rank in (0, 1)]
        ([(0, 64), (64, 100)], [(0, 1), (1, 3)])
    """
    unit = batch_size if total >= batch_size * count else 1
    units = math.ceil(total / unit)
    return units * rank // count * unit, min(total, units * (rank + 1) // count * unit)


def extract_in_group(
    group: ProcessGroup,
    encoder: DualEncoder,
    split: ImageSplit,
    out: Path,
    *,
    views: int = 1,
    batch_size: int = 32,
    **options: Any,
) -> Features | None:
    """Encode the images of a split, each process a part of them.

    Args:
        group: The processes; all must call this with the same arguments.
        encoder: The encoder.
        split: The images and their labels.
        out: Where the features will be written; parts lie beside it meanwhile.
        views: Views of each image.
        batch_size: Images a batch.
        options: As for `iter_features`.

    Returns:
        The features of all images in the main process, None in the others.

    Raises:
        OtherProcessError: If another process failed.
        RadaError: As `extract_features`; in the process that it happens to.
    """
    folder = _parts_folder(group, out)
    flag = folder / "failed"

    def look() -> None:
        if flag.exists():
            raise OtherProcessError("another process failed")

    try:
        with group.together(), storage_errors(out):
            start, stop = part_of(len(split), group.rank, group.count, batch_size)
            part = split.subset(np.arange(start, stop))
            try:
                batches = iter_features(
                    encoder, part, views=views, batch_size=batch_size, **options
                )
                table = torch.empty((stop - start, views, encoder.dim))
                shown = None if group.is_main else False
                kept, bad = collect(batches, table, progress=shown, before=look)
                reasons = [[image.name, image.reason] for image in bad]
                _write(folder, group.rank, table[: len(kept)], [start + k for k in kept], reasons)
            except Exception:
                with contextlib.suppress(OSError):
                    flag.touch()  # the others need not go on to their end
                raise
        features = None
        with group.together():
            if group.is_main:
                features = _join(folder, group.count, encoder, split, views)
                exact = options.get("exact_decoding", False)
                features = dataclasses.replace(features, decoding="exact" if exact else "fast")
        return features
    finally:
        if group.is_main:
            shutil.rmtree(folder, ignore_errors=True)
        # A launcher ends all as soon as one has failed: not before the parts are gone.
        with contextlib.suppress(OtherProcessError, EncoderError):
            group.agree()


def _parts_folder(group: ProcessGroup, out: Path) -> Path:
    name = ""
    with group.together():
        if group.is_main:
            with storage_errors(out):
                out.parent.mkdir(parents=True, exist_ok=True)
                name = tempfile.mkdtemp(
                    prefix=f".{out.name[:100]}.", suffix=".parts", dir=out.parent.absolute()
                )
    folder = Path(group.share(name))
    with group.together():
        if not folder.is_dir():
            raise StorageError(
                f"process {group.rank} does not see the folder {str(folder)!r} of the main process: write "
                "to a place that all machines share"
            )
    return folder


def _write(
    folder: Path, rank: int, table: torch.Tensor, kept: list[int], bad: list[list[str]]
) -> None:
    from safetensors.torch import save_file

    reasons = torch.frombuffer(bytearray(json.dumps(bad).encode()), dtype=torch.uint8)
    rows = torch.tensor(kept, dtype=torch.int64)
    save_file(
        {"features": table.contiguous(), "kept": rows, "bad": reasons},
        folder / f"{rank}.safetensors",
    )


def _join(
    folder: Path, count: int, encoder: DualEncoder, split: ImageSplit, views: int
) -> Features:
    from safetensors.torch import load_file

    table = torch.empty((len(split), views, encoder.dim))
    kept: list[int] = []
    bad: list[tuple[str, str]] = []
    for rank in range(count):
        path = folder / f"{rank}.safetensors"
        part = load_file(path)
        table[len(kept) : len(kept) + len(part["kept"])] = part["features"]
        kept += part["kept"].tolist()
        bad += [(key, reason) for key, reason in json.loads(part["bad"].numpy().tobytes())]
        path.unlink()
    if not kept:
        first = f" (the first: {bad[0][1]})" if bad else ""
        raise DataError(f"none of the {len(split)} images can be read{first}")
    return Features(
        image_features=table[: len(kept)],
        labels=torch.from_numpy(np.array(split.labels[kept])),
        classes=split.classes,
        ids=tuple(split.ids[index] for index in kept),
        encoder=encoder.name,
        encoder_fingerprint=encoder.fingerprint,
        skipped=tuple(bad),
    )
