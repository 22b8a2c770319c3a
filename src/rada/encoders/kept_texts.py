"""Embeddings of lists of texts, kept in the cache: made once for each encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from rada.core.caches import cache_root
from rada.core.errors import StorageError
from rada.core.warn import warn
from rada.encoders.fingerprint import digest

if TYPE_CHECKING:
    from rada.encoders.base import DualEncoder

__all__ = ["kept_classes", "kept_texts"]

_FROM = 256  # prompts; fewer take a second or two, about as long as hashing the encoder


def kept_classes(
    encoder: DualEncoder,
    classes: Sequence[str],
    templates: Sequence[str],
    *,
    keep: bool = True,
    progress: bool | None = False,
) -> Tensor:
    """Return the class features `(K, D)` of `encode_classes`; those of many prompts are kept in the cache.

    Args:
        encoder: Embeds the prompts.
        classes: K names.
        templates: Each with one `{}`.
        keep: Whether the cache may be read and written.
        progress: Show a bar where there are many prompts; None on a terminal only.
    """
    if len(classes) * len(templates) < _FROM:
        return encoder.encode_classes(classes, templates)

    def made() -> Tensor:
        return encoder.encode_classes(classes, templates, progress=progress)

    if not keep or not encoder.lasting:
        return made()
    # A digest of each list: a name that moved from one into the other gives another file.
    key = digest(encoder.fingerprint, digest(*classes), digest(*templates))
    return kept_texts(f"classes-{key}", (len(classes), encoder.dim), made)


def kept_texts(name: str, shape: tuple[int, int], make: Callable[[], Tensor]) -> Tensor:
    """Return embeddings `(N, D)` from the cache, or make and keep them.

    Args:
        name: Name of the file, which changes with all that decides the content.
        shape: N and D.
        make: Computes them.
    """
    found = _read(name, shape)
    if found is None:
        found = make()
        _write(name, found)
    return found


def _path(name: str) -> Path:
    return cache_root() / "encoders" / f"{name}.safetensors"


def _read(name: str, shape: tuple[int, int]) -> Tensor | None:
    """Return what `_write` wrote, if it is whole."""
    from safetensors import SafetensorError, safe_open

    path = _path(name)
    try:
        if not path.is_file():
            return None
        with safe_open(path, framework="pt") as file:
            texts: Tensor = file.get_tensor("sentences")
            checksum = (file.metadata() or {}).get("checksum")
    except (OSError, SafetensorError, KeyError) as error:
        warn(f"the cache file {str(path)!r} is damaged: {error}; rebuilding", stacklevel=2)
        return None
    if texts.shape != shape or checksum != _checksum(texts):
        warn(f"the cache file {str(path)!r} is damaged; rebuilding it", stacklevel=2)
        return None
    return texts


def _checksum(texts: Tensor) -> str:
    return digest(texts.numpy().tobytes().hex())


def _write(name: str, texts: Tensor) -> None:
    from safetensors.torch import save

    from rada.core.storage import write_bytes

    try:
        content = save({"sentences": texts}, metadata={"checksum": _checksum(texts)})
        write_bytes(_path(name), content)
    except StorageError as error:
        # The next start takes some seconds longer; nothing else is lost.
        warn(f"the embedded texts were not cached: {error}", stacklevel=2)
