"""The work that extraction is cut into: one batch of one view at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

import numpy as np
import PIL
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from rada.core.errors import DataError, FeatureError
from rada.core.extras import is_installed
from rada.core.threads import one_thread
from rada.data.views import seeded_view
from rada.encoders.transforms import stack_pixels
from rada.features.cache import FORMAT, EncodedBatch, FeatureCache, ShardKey
from rada.features.images import ImageItem, ImageReader, OpenImage

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["BatchWork", "Job", "JobResult", "ViewTransform"]

# Decoded images of a batch that are kept between its views, in bytes.
_KEPT_PIXELS = 256 << 20


@dataclass(frozen=True)
class ViewTransform:
    """How the views above 0 are made.

    Attributes:
        transform: Takes a Pillow RGB image and returns `(3, H, W)`; random through torch's global
            generator.
        key: Text that changes whenever the transform does; part of the cache key.
    """

    transform: Callable[[Image.Image], Tensor]
    key: str


@dataclass(frozen=True)
class Job:
    """One view of one batch: the images from position `start` on."""

    start: int
    items: tuple[ImageItem, ...]
    view: int


@dataclass(frozen=True)
class JobResult:
    """What became of a job.

    Attributes:
        job: The job.
        key: Name of its shard; None where nothing is cached.
        rows: `(n, D)` features of the images that could be read; None if the cache has them.
        pixels: `(n, 3, H, W)` in place of `rows` where the model runs in the main process.
        bad: Positions in the batch of the images that could not be read, with the reason.
    """

    job: Job
    key: ShardKey | None
    rows: np.ndarray | None = None
    pixels: Tensor | None = None
    bad: tuple[tuple[int, str], ...] = ()


class BatchWork(Dataset[JobResult]):
    """Does jobs; as a data set, so that `torch.utils.data.DataLoader` can hand them to workers.

    Args:
        encoder: The encoder.
        reader: Reads the images.
        views: How views above 0 are made.
        seed: Chooses them.
        cache: Where to look before encoding; None looks nowhere.
        keep: Whether jobs are views of the same batch in a row, so that decoded images are kept.
        exact_decoding: Whether view 0 is made of JPEGs decoded whole, as the others always are, which
            show parts of an image.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        reader: ImageReader,
        *,
        views: ViewTransform,
        seed: int,
        cache: FeatureCache | None,
        keep: bool,
        exact_decoding: bool = False,
    ) -> None:
        self.encoder = encoder
        self.reader = reader
        self.views = views
        self.seed = seed
        self.cache = cache
        self.keep = keep
        self.encode_here = True  # False: the workers decode, the main process encodes
        self.keeping = True  # False: the cache cannot be written
        self.one_thread = False  # as the workers do, so that the main process can stand in for one
        self._plain = ViewTransform(encoder.preprocess, encoder.transform_key("preprocess"))
        self._side = None if exact_decoding else getattr(encoder.preprocess, "shorter_side", None)
        self._folder = _folder_name(encoder)
        self._held: tuple[int, list[OpenImage]] = (-1, [])

    def __getitem__(self, job: Job) -> JobResult:
        return self.do(job)

    def do(self, job: Job, *, anew: bool = False) -> JobResult:
        """Do a job: look it up, or read, decode, transform and (on a CPU) encode.

        Args:
            job: The job.
            anew: Whether to encode even if the cache has it.
        """
        opened = self._open(job)
        key = None
        if self.cache is not None:
            key = self.key(job, [image.digest for image in opened])
            if not anew and self.cache.has(key):
                return JobResult(job, key)
        views: list[Tensor] = []
        bad: list[tuple[int, str]] = []
        for position, image in enumerate(opened):
            try:
                views.append(self._view(image, job.view))
            except DataError as error:
                bad.append((position, str(error)))
        result = JobResult(job, key, bad=tuple(bad))
        if not views:
            return dataclasses.replace(result, rows=np.zeros((0, self.encoder.dim), np.float32))
        pixels = stack_pixels(views)
        if not self.encode_here:
            return dataclasses.replace(result, pixels=pixels)
        return dataclasses.replace(result, rows=self.encode(pixels))

    def pixels(self, item: ImageItem, views: Iterable[int]) -> Tensor:
        """Return the pixels of views of one image, `(m, 3, H, W)`.

        Raises:
            DataError: If the image cannot be read.
        """
        (opened,) = _kept([self.reader.open(item)])
        return stack_pixels([self._view(opened, view) for view in views])

    def encode(self, pixels: Tensor) -> np.ndarray:
        """Encode `(n, 3, H, W)` to `(n, D)` float32."""
        with one_thread(self.one_thread):
            encoded = self.encoder.infer_images(pixels.to(self.encoder.device))
        rows: np.ndarray = encoded.float().cpu().numpy()
        return rows

    def finish(self, result: JobResult) -> EncodedBatch:
        """Return the features of a result that was not in the cache, checked.

        Raises:
            FeatureError: If the encoder gave NaN, infinite or zero features.
        """
        rows = result.rows
        if rows is None:
            assert result.pixels is not None
            rows = self.encode(result.pixels)
        norms = np.linalg.norm(rows, axis=1)
        wrong = np.flatnonzero(~(np.isfinite(norms) & (norms > 0)))
        bad = tuple(position for position, _ in result.bad)
        if len(wrong):
            good = [p for p in range(len(result.job.items)) if p not in bad]
            name = self.reader.name(result.job.items[good[int(wrong[0])]])
            raise FeatureError(
                f"the encoder {self.encoder.name!r} gave NaN, infinite or zero features for "
                f"{len(wrong)} images (the first: {name!r}): its weights or its preprocessing "
                "are broken"
            )
        return EncodedBatch(torch.from_numpy(rows), bad)

    def reasons(self, job: Job, bad: tuple[int, ...]) -> tuple[tuple[int, str], ...] | None:
        """Say why the images at `bad` cannot be read; None if one of them can by now."""
        found = []
        for position in bad:
            try:
                self._view(self.reader.open(job.items[position]), job.view)
            except DataError as error:
                found.append((position, str(error)))
            else:
                return None
        return tuple(found)

    def key(self, job: Job, digests: list[str]) -> ShardKey:
        """Return the name of a job's shard: a hash of all that decides its content."""
        causes: dict[str, Any] = {
            "format": FORMAT,
            "family": self.encoder.family,
            "fingerprint": self.encoder.fingerprint,
            "device": torch.device(self.encoder.device).type,
            "dtype": str(self.encoder.dtype),
            "versions": [torch.__version__, _torchvision_version(), PIL.__version__],
            "transform": self._plain.key if job.view == 0 else self.views.key,
            "view": job.view,
            "seed": self.seed if job.view > 0 else None,
            "pictures": digests,
        }
        if job.view == 0 and self._side is not None:
            causes["decoding"] = f"large JPEGs at a fraction, for {self._side}"
        text = json.dumps(causes, sort_keys=True).encode()
        digest = hashlib.blake2b(text, digest_size=20).hexdigest()
        return ShardKey(self._folder, digest, len(digests))

    def _open(self, job: Job) -> list[OpenImage]:
        if self._held[0] == job.start:
            return self._held[1]
        opened = [self.reader.open(item) for item in job.items]
        if self.keep:
            opened = _kept(opened)
            self._held = (job.start, opened)
        return opened

    def _view(self, source: OpenImage, view: int) -> Tensor:
        if view == 0:
            return self._plain.transform(source.load(self._side))
        image = source.load(None)
        return seeded_view(image, self.views.transform, self.seed, source.digest, view)


def _torchvision_version() -> str | None:
    """Return the version of what resizes images; an encoder of your own may do without."""
    return version("torchvision") if is_installed("torchvision") else None


def _folder_name(encoder: DualEncoder) -> str:
    name = f"{encoder.family} {encoder.fingerprint}".encode()
    return hashlib.blake2b(name, digest_size=16).hexdigest()


def _kept(opened: list[OpenImage]) -> list[OpenImage]:
    """Return the same images, which remember their pixels as far as the memory for it goes."""
    left = [_KEPT_PIXELS]

    def remember(source: OpenImage) -> OpenImage:
        held: dict[int | None, Image.Image] = {}

        def load(side: int | None) -> Image.Image:
            if side in held:
                return held[side]
            image = source.load(side)
            size = 3 * image.width * image.height
            if size <= left[0]:
                left[0] -= size
                held[side] = image
            return image

        return OpenImage(source.digest, load)

    return [remember(source) for source in opened]
