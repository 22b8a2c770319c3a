"""Extraction: from images to unit-norm features, by worker processes, through the cache."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import CacheError, DataError
from rada.core.progress import progress_bar
from rada.core.values import check_count, check_seed
from rada.core.warn import warn
from rada.data import ImageSplit
from rada.features.cache import CacheWarning, EncodedBatch, FeatureCache
from rada.features.features import Features
from rada.features.images import ImageReader, ListReader, SplitReader
from rada.features.work import BatchWork, Job, JobResult, ViewTransform
from rada.features.workers import do_jobs, plan_workers

if TYPE_CHECKING:
    from rada.data.images import ImageLike
    from rada.encoders import DualEncoder

__all__ = ["BadImage", "FeatureBatch", "collect", "extract_features", "fill", "iter_features"]


@dataclass(frozen=True)
class BadImage:
    """An image that could not be read.

    Attributes:
        index: Its position among all images.
        name: Its id or path.
        reason: Why; names the file.
    """

    index: int
    name: str
    reason: str


@dataclass(frozen=True)
class FeatureBatch:
    """Features of the images at positions `start` to `stop`.

    Attributes:
        start: Position of the first image of the batch.
        stop: Position behind the last one.
        indices: `(n,)` positions of the images that could be read.
        features: `(n, V, D)` float32, unit-norm.
        bad: The others; empty unless bad images are to be skipped.
    """

    start: int
    stop: int
    indices: np.ndarray
    features: Tensor
    bad: tuple[BadImage, ...] = ()


def iter_features(
    encoder: DualEncoder,
    images: ImageSplit | Iterable[ImageLike],
    *,
    views: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    workers: int | None = None,
    cache: FeatureCache | Literal[False] | None = None,
    skip_bad: bool = False,
    view_transform: ViewTransform | None = None,
    exact_decoding: bool = False,
) -> Iterator[FeatureBatch]:
    """Encode images and yield their features batch by batch, in order.

    Memory stays bounded, however many images come. The features of an image do not depend on the
    number of workers; on the other images of its batch only by rounding (1e-6).

    Args:
        encoder: The encoder.
        images: A split, or any iterable of what `rada.data.open_image` takes (paths, URLs, bytes,
            Pillow images, arrays, ...), which is consumed as the features are.
        views: V; view 0 is the plain image, the others are random ones.
        seed: Chooses the random views, together with each image's content and the view's number.
        batch_size: Images a batch.
        workers: Worker processes; None chooses by cores and images, 0 works in this process and
            takes no more from `images` than the batch that it yields next.
        cache: The feature cache; default: `FeatureCache()`, False: none.
        skip_bad: Whether to go on without images that cannot be read.
        view_transform: How views above 0 are made; default: the encoder's `train_transform`.
        exact_decoding: Decode all JPEGs whole. Else those of 8 megapixels and more are decoded at 1/2, 1/4 or
            1/8 of their size for view 0, where twice what the encoder's preprocessing wants is left; the
            features differ a little, and are cached apart.

    Yields:
        `FeatureBatch(start, stop, indices, features, bad)`.

    Raises:
        ConfigError: If a number is out of range.
        DataError: If an image cannot be read and `skip_bad` is off.
        FeatureError: If the encoder gives NaN, infinite or zero features.
        EncoderError: If a worker process dies.
    """
    views, batch_size = check_count(views, "views"), check_count(batch_size, "batch_size")
    seed = check_seed(seed)
    kept = FeatureCache() if cache is None else (cache or None)
    if kept is not None and not encoder.lasting:
        kept = None  # no later process would find it
    total, reader = _reader(images, limit=2 * batch_size if workers is None else 0)
    work = BatchWork(
        encoder,
        reader,
        views=view_transform
        or ViewTransform(encoder.train_transform, encoder.transform_key("train_transform")),
        seed=seed,
        cache=kept,
        keep=views > 1,
        exact_decoding=exact_decoding,
    )
    device = torch.device(encoder.device).type
    count = plan_workers(
        workers, device, None if total is None else math.ceil(total / batch_size) * views
    )
    work.encode_here = device == "cpu" or count == 0
    work.one_thread = device == "cpu" and count > 0
    jobs = _Jobs(reader, batch_size, views)
    return _batches(work, do_jobs(work, jobs, count), views, skip_bad)


def _train_views(encoder: DualEncoder) -> ViewTransform:
    return ViewTransform(encoder.train_transform, encoder.transform_key("train_transform"))


def _reader(images: ImageSplit | Iterable[ImageLike], limit: int) -> tuple[int | None, ImageReader]:
    """Return the number of images (None: many, one by one) and their reader."""
    if isinstance(images, ImageSplit):
        return len(images), SplitReader(images)
    if isinstance(images, Sequence):
        return len(images), ListReader(images)
    stream = iter(images)
    first = list(itertools.islice(stream, limit))
    ended = len(first) < limit
    return (len(first) if ended else None), ListReader(itertools.chain(first, stream))


class _Jobs:
    """All jobs, batch by batch and view by view within a batch."""

    def __init__(self, reader: ImageReader, batch_size: int, views: int) -> None:
        self.reader = reader
        self.batch_size = batch_size
        self.views = views

    def __iter__(self) -> Iterator[Job]:
        items = self.reader.items()
        for start in itertools.count(step=self.batch_size):
            batch = tuple(itertools.islice(items, self.batch_size))
            if not batch:
                return
            for view in range(self.views):
                yield Job(start, batch, view)


def _batches(
    work: BatchWork, found: Iterator[JobResult], views: int, skip_bad: bool
) -> Iterator[FeatureBatch]:
    try:
        for first in found:
            group = [first, *itertools.islice(found, views - 1)]
            parts = []
            for result in group:
                shard, bad = _complete(work, result)
                if bad and not skip_bad:
                    raise _unreadable(bad)
                parts.append((shard, bad))
            yield _combine(first.job, parts)
    finally:
        close = getattr(found, "close", None)
        if close is not None:
            close()


def _complete(work: BatchWork, result: JobResult) -> tuple[EncodedBatch, list[BadImage]]:
    """Return the shard of a result: from the cache, or new and then put there."""
    if result.rows is None and result.pixels is None:
        assert work.cache is not None and result.key is not None
        shard = work.cache.read(result.key)
        reasons = None if shard is None else work.reasons(result.job, shard.bad)
        if shard is not None and reasons is not None:
            return shard, _named(work, result.job, reasons)
        result = work.do(result.job, anew=True)
    shard = work.finish(result)
    if work.cache is not None and result.key is not None and work.keeping:
        try:
            work.cache.write(result.key, shard, work.encoder.name)
        except CacheError as error:  # what was computed is worth more than its copy
            work.keeping = False
            warn(f"{error}; this run goes on without it", CacheWarning, stacklevel=2)
    return shard, _named(work, result.job, result.bad)


def _named(work: BatchWork, job: Job, bad: Iterable[tuple[int, str]]) -> list[BadImage]:
    return [
        BadImage(job.start + position, work.reader.name(job.items[position]), reason)
        for position, reason in bad
    ]


def _unreadable(bad: Sequence[BadImage]) -> DataError:
    more = f" (and {len(bad) - 1} more in the same batch)" if len(bad) > 1 else ""
    return DataError(
        f"{bad[0].reason}{more}; mend or remove it, or go on without it (--skip-bad, skip_bad=True)"
    )


def _combine(job: Job, parts: Sequence[tuple[EncodedBatch, list[BadImage]]]) -> FeatureBatch:
    """Put the views of a batch together; an image that is bad in one view is bad."""
    count = len(job.items)
    bad = {image.index - job.start: image for _, images in parts for image in images}
    good = [position for position in range(count) if position not in bad]
    columns = []
    for shard, _ in parts:
        there = [position for position in range(count) if position not in shard.bad]
        rows = [row for row, position in enumerate(there) if position not in bad]
        columns.append(shard.features[rows])
    return FeatureBatch(
        start=job.start,
        stop=job.start + count,
        indices=np.array(good, dtype=np.int64) + job.start,
        features=torch.stack(columns, dim=1),
        bad=tuple(bad[position] for position in sorted(bad)),
    )


def collect(
    batches: Iterable[FeatureBatch],
    table: Tensor,
    *,
    progress: bool | None = None,
    before: Callable[[], None] | None = None,
) -> tuple[list[int], list[BadImage]]:
    """Put the features of all batches into the first rows of a table.

    Args:
        batches: What `iter_features` yields.
        table: `(N, V, D)`, a row for each image; is changed.
        progress: Whether to show a bar; None shows it on a terminal.
        before: Called before each batch is put there; may raise.

    Returns:
        The positions of the images that the rows belong to, and the images left out.
    """
    with progress_bar("Encoding images", len(table), enabled=progress, unit="images") as advance:
        return fill(batches, table, advance, before)


def fill(
    batches: Iterable[FeatureBatch],
    table: Tensor,
    advance: Callable[[int], None],
    before: Callable[[], None] | None = None,
) -> tuple[list[int], list[BadImage]]:
    """Do what `collect` does under a bar of the caller's, of which `advance` is told."""
    kept: list[int] = []
    bad: list[BadImage] = []
    for batch in batches:
        if before is not None:
            before()
        table[len(kept) : len(kept) + len(batch.indices)] = batch.features
        kept.extend(batch.indices.tolist())
        bad.extend(batch.bad)
        advance(batch.stop - batch.start)
    return kept, bad


def extract_features(
    encoder: DualEncoder,
    split: ImageSplit,
    *,
    views: int = 1,
    seed: int = 0,
    batch_size: int = 32,
    workers: int | None = None,
    cache: FeatureCache | Literal[False] | None = None,
    progress: bool | None = None,
    skip_bad: bool = False,
    view_transform: ViewTransform | None = None,
    exact_decoding: bool = False,
) -> Features:
    """Encode all images of a split, or read their features from the cache.

    A run that was interrupted, even killed, goes on where it stopped and gives the same features
    to the bit.

    Args:
        encoder: The encoder.
        split: The images and their labels.
        views: V; view 0 is the plain image, the others are random ones.
        seed: Chooses the random views.
        batch_size: Images a batch.
        workers: Worker processes; None chooses, 0 works in this process.
        cache: The feature cache; default: `FeatureCache()`, False: none.
        progress: Whether to show a bar; None shows it on a terminal.
        skip_bad: Whether to go on without images that cannot be read; they are listed in
            `Features.skipped`.
        view_transform: How views above 0 are made; default: the encoder's `train_transform`.
        exact_decoding: As for `iter_features`.

    Returns:
        `Features` with `(N, V, D)` image features; without text features.

    Raises:
        DataError: If there is no image, or one cannot be read and `skip_bad` is off.
        RadaError: See `iter_features`.
    """
    if len(split) == 0:
        raise DataError("there are no images to encode")
    batches = iter_features(
        encoder,
        split,
        views=views,
        seed=seed,
        batch_size=batch_size,
        workers=workers,
        cache=cache,
        skip_bad=skip_bad,
        view_transform=view_transform,
        exact_decoding=exact_decoding,
    )
    table = torch.empty((len(split), views, encoder.dim))
    kept, bad = collect(batches, table, progress=progress)
    if not kept:
        raise DataError(f"none of the {len(split)} images can be read (the first: {bad[0].reason})")
    return Features(
        image_features=table[: len(kept)],
        labels=torch.from_numpy(np.array(split.labels[kept])),
        classes=split.classes,
        ids=tuple(split.ids[index] for index in kept),
        encoder=encoder.name,
        encoder_fingerprint=encoder.fingerprint,
        skipped=tuple((image.name, image.reason) for image in bad),
        decoding="exact" if exact_decoding else "fast",
        images=split.subset(kept) if bad else split,
    )
