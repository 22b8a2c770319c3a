"""Writing a feature store: shard by shard, by one process or several, and on from where it stopped."""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rada.core.errors import DataError, EncoderError, FeatureError, OutputError
from rada.core.hashing import fingerprint_tensors
from rada.core.output import OutputFolder, claim
from rada.core.progress import progress_bar
from rada.core.storage import storage_errors, write_json
from rada.core.values import check_count
from rada.data import ImageSplit
from rada.data.sources import id_bytes
from rada.encoders.kept_texts import kept_classes
from rada.features.extract import BadImage, fill, iter_features
from rada.features.features import Features
from rada.features.files import checksum, file_key, is_whole, save_features
from rada.features.processes import OtherProcessError, ProcessGroup, part_of
from rada.features.store import CLASSES, INDEX, STORE_FORMAT, FeatureStore

if TYPE_CHECKING:
    from torch import Tensor

    from rada.encoders import DualEncoder

__all__ = ["SHARD_ROWS", "StorePlan", "save_store", "write_store"]

SHARD_ROWS = 65_536
"""Images in a shard."""


@dataclass(frozen=True)
class StorePlan:
    """What a store is to hold.

    Attributes:
        split: The images and their labels.
        templates: Prompt templates of the class features.
        views: Views of each image.
        seed: Chooses the random views.
        batch_size: Images a batch.
        shard_rows: Images in a shard; rounded up to whole batches, where it is one at least.
        half: Whether features are rounded to float16.
        exact_decoding: As for `iter_features`.
    """

    split: ImageSplit
    templates: tuple[str, ...]
    views: int = 1
    seed: int = 0
    batch_size: int = 32
    shard_rows: int = SHARD_ROWS
    half: bool = False
    exact_decoding: bool = False

    def shards(self) -> list[tuple[int, int]]:
        """Return where each shard starts and stops."""
        rows = check_count(self.shard_rows, "shard_rows")
        size = rows if rows < self.batch_size else -(-rows // self.batch_size) * self.batch_size
        total = len(self.split)
        return [(start, min(total, start + size)) for start in range(0, total, size)]

    def key(self, encoder: DualEncoder, start: int, stop: int) -> str:
        """Hash all that decides the content of a shard.

        Files are known by their size and time of change, since reading all of them again to go on with a
        run would take as long as reading them; images without a file of their own by their content.
        """
        facts: list[object] = [
            encoder.fingerprint,
            encoder.transform_key("preprocess"),
            STORE_FORMAT,
        ]
        facts += [self.views, self.seed, self.batch_size, self.half, self.exact_decoding]
        if self.views > 1:
            facts.append(encoder.transform_key("train_transform"))
        images = [self._image(index) for index in range(start, stop)]
        labels = self.split.labels[start:stop].tolist()
        return fingerprint_tensors(extra=[facts, images, labels])

    def shared(self, encoder: DualEncoder, out: Path, *, keep: bool = True) -> FeatureStore:
        """Return what all shards share, with the class features; `keep` is that of `kept_classes`."""
        classes = self.split.classes
        return FeatureStore(
            out,
            (),
            classes,
            encoder.dim,
            self.views,
            kept_classes(encoder, classes, self.templates, keep=keep, progress=None),
            float(encoder.scale),
            encoder.name,
            encoder.fingerprint,
            self.templates,
            self.decoding,
        )

    @property
    def decoding(self) -> str:
        """How JPEGs are decoded, as in `Features`."""
        return "exact" if self.exact_decoding else "fast"

    def _image(self, index: int) -> list[Any]:
        key, path = id_bytes(self.split.ids[index]).hex(), self.split.path(index)
        if path is None:
            try:
                return [key, self.split.digest(index)]
            except DataError:
                return [key, "unreadable"]
        try:
            facts = path.stat()
        except OSError:
            return [key, "missing"]
        return [key, facts.st_size, facts.st_mtime_ns]


def write_store(
    group: ProcessGroup,
    encoder: DualEncoder,
    plan: StorePlan,
    out: Path,
    *,
    overwrite: bool = False,
    inputs: list[object] | None = None,
    progress: bool | None = None,
    **options: Any,
) -> FeatureStore | None:
    """Encode the images of a split into a store, each process some of the shards.

    Shards that are there already, of the same images, encoder and configuration, are kept: the same call
    goes on where a killed one stopped, and writes damaged ones again.

    Args:
        group: The processes; all must call this with the same arguments.
        encoder: The encoder.
        plan: What the store is to hold.
        out: Its folder.
        overwrite: Replace shards of other images, of another encoder or configuration.
        inputs: What is read, which may not lie in the folder.
        progress: Whether to show a bar; None shows it on a terminal.
        options: As for `iter_features`: `workers`, `cache`, `skip_bad`.

    Returns:
        The store in the main process, None in the others.

    Raises:
        DataError: If an image cannot be read and bad ones are not to be skipped.
        OutputError: If the folder holds anything else, or shards of something else.
        OtherProcessError: If another process failed.
    """
    if not len(plan.split):
        raise DataError("there are no images to encode")
    places = plan.shards()
    names = [_name(number) for number in range(len(places))]
    with contextlib.ExitStack() as stack:
        folder: OutputFolder | None = None
        with group.together():
            if group.is_main:
                folder = stack.enter_context(claim(out, "features", inputs=inputs or ()))
                folder.take(INDEX, CLASSES, *names)
        keys = [plan.key(encoder, *place) for place in places]
        known = [file_key(out / name) for name in names]
        with group.together():
            if folder is not None:
                _check_replaced(out, dict(zip(names, known, strict=True)), keys, overwrite)
        first, last = part_of(len(places), group.rank, group.count, 1)
        todo = [
            number
            for number in range(first, last)
            if known[number] != keys[number] or not is_whole(out / names[number])
        ]
        with _told(group, out):
            _write_shards(encoder, plan, out, {n: keys[n] for n in todo}, progress, options)
        with group.together():
            if folder is not None:
                shards = _shards(out, keys)
                if not any(shard["rows"] for shard in shards):
                    raise DataError(f"none of the {len(plan.split)} images can be read")
                keep = options.get("cache") is not False
                _write_index(folder, plan.shared(encoder, out, keep=keep), shards)
    return FeatureStore.open(out) if group.is_main else None


def save_store(parts: Iterable[Features], out: str | Path, *, half: bool = False) -> FeatureStore:
    """Write features that somebody has to a new store, each part to a shard of its own.

    Args:
        parts: Features that share classes, class features, scale and encoder; taken one at a time.
        out: A new or empty folder.
        half: Whether features are rounded to float16.

    Raises:
        FeatureError: If there is no part, or one has other classes than the first.
        OutputError: If the folder holds anything.

    Example:
        >>> import tempfile
        >>> from rada import Features
        >>> part = Features(torch.eye(2), [0, 1], ("cat", "dog"))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     len(save_store([part, part], Path(folder) / "mine"))
        4
    """
    out, first, shards = Path(out), None, []
    with claim(out, "features") as folder:
        for number, part in enumerate(parts):
            first = first or part
            if (part.classes, part.dim, part.num_views) != (
                first.classes,
                first.dim,
                first.num_views,
            ):
                raise FeatureError(
                    f"part {number} has other classes, width or views than the first"
                )
            folder.take(_name(number))
            images = part.image_features
            values = {
                "image_features": images.half() if half else images,
                "labels": part.labels,
                "ids": part.ids,
                "skipped": part.skipped,
            }
            extra = {"key": part.fingerprint, "checksum": checksum(values)}
            save_features(values, out / _name(number), extra=extra)
            shards.append({"file": _name(number), "rows": len(part), "key": part.fingerprint})
        if first is None:
            raise FeatureError("there are no features to write")
        _write_index(folder, first, shards)
    return FeatureStore.open(out)


def _name(number: int) -> str:
    return f"shard-{number:05d}.safetensors"


def _check_replaced(
    out: Path, known: dict[str, str | None], keys: list[str], overwrite: bool
) -> None:
    for (name, found), wanted in zip(known.items(), keys, strict=True):
        if found not in (None, wanted) and not overwrite:
            raise OutputError(
                f"{str(out / name)!r} holds features of other images, of another encoder or configuration: "
                "choose another folder, or replace them with --overwrite"
            )
    if any(known[name] != key for name, key in zip(known, keys, strict=True)):
        (out / INDEX).unlink(missing_ok=True)  # until all shards are there, there is no store


@contextlib.contextmanager
def _told(group: ProcessGroup, out: Path) -> Iterator[None]:
    """Do the block in every process; where it fails in one, the others stop at their next shard."""
    failure: Exception | None = None
    try:
        with storage_errors(out):
            yield
    except Exception as error:
        failure = error
        if group.count > 1:
            with contextlib.suppress(OSError):
                _flag(out).touch()
    with (
        contextlib.suppress(OtherProcessError, EncoderError)
        if failure
        else contextlib.nullcontext()
    ):
        try:
            group.agree()
        finally:
            if group.is_main:
                _flag(out).unlink(missing_ok=True)
    if failure is not None:
        raise failure


def _flag(out: Path) -> Path:
    from rada.core.output import STATE_FOLDER

    return out / STATE_FOLDER / "failed"


def _write_shards(
    encoder: DualEncoder,
    plan: StorePlan,
    out: Path,
    keys: dict[int, str],
    progress: bool | None,
    options: dict[str, Any],
) -> None:
    places = plan.shards()
    total = sum(places[number][1] - places[number][0] for number in keys)
    with progress_bar("Encoding images", total, enabled=progress, unit="images") as advance:
        for number, key in keys.items():
            if _flag(out).exists():
                raise OtherProcessError("another process failed")
            start, stop = places[number]
            part = plan.split.subset(np.arange(start, stop))
            table = torch.empty((len(part), plan.views, encoder.dim))
            batches = iter_features(
                encoder,
                part,
                views=plan.views,
                seed=plan.seed,
                batch_size=plan.batch_size,
                exact_decoding=plan.exact_decoding,
                **options,
            )
            kept, bad = fill(batches, table, advance)
            _save(plan, part, table[: len(kept)], kept, bad, out / _name(number), key, encoder)


def _save(
    plan: StorePlan,
    part: ImageSplit,
    table: Tensor,
    kept: list[int],
    bad: list[BadImage],
    path: Path,
    key: str,
    encoder: DualEncoder,
) -> None:
    values = {
        "image_features": table.half() if plan.half else table,
        "labels": torch.from_numpy(np.array(part.labels[kept])),
        "ids": [part.ids[row] for row in kept],
        "classes": part.classes,
        "encoder": encoder.name,
        "encoder_fingerprint": encoder.fingerprint,
        "skipped": tuple((image.name, image.reason) for image in bad),
        "decoding": plan.decoding,
    }
    # That rada wrote what is there, damaged or not, is known of the folder.
    save_features(values, path, overwrite=True, extra={"key": key, "checksum": checksum(values)})


def _shards(out: Path, keys: list[str]) -> list[dict[str, Any]]:
    """Return what the index says of the shards that were written."""
    from safetensors import safe_open

    shards = []
    for number, key in enumerate(keys):
        with safe_open(out / _name(number), framework="pt") as file:
            rows = file.get_slice("image_features").get_shape()[0]
        shards.append({"file": _name(number), "rows": rows, "key": key})
    return shards


def _write_index(
    folder: OutputFolder, shared: Features | FeatureStore, shards: list[dict[str, Any]]
) -> None:
    """Write what the shards share; with it the store is finished."""
    folder.take(INDEX)
    if shared.text_features is not None:
        folder.take(CLASSES)
        values = {"image_features": shared.text_features, "ids": shared.classes}
        save_features(values, folder.path / CLASSES)
    index = {
        "format": STORE_FORMAT,
        "shards": shards,
        "classes": list(shared.classes),
        "dim": shared.dim,
        "views": shared.num_views,
        "scale": shared.scale,
        "encoder": shared.encoder,
        "encoder_fingerprint": shared.encoder_fingerprint,
        "templates": list(shared.templates),
        "decoding": shared.decoding,
    }
    write_json(folder.path / INDEX, index)
    folder.discard("shard-*.safetensors", keep=[shard["file"] for shard in shards])
