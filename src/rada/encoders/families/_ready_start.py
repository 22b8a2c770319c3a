"""The embedded model's image encoder as it is after loading, kept in the cache with its fingerprint.

Putting the model together reads the text encoder, embeds a thousand class names and hashes every weight.
None of it changes before one of the packages' files does, so a later start reads the result alone.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib.metadata import version
from pathlib import Path

from torch import Tensor

from rada._version import __version__
from rada.core.caches import cache_root
from rada.core.errors import StorageError
from rada.core.hashing import fingerprint_tensors
from rada.core.warn import warn
from rada.encoders.fingerprint import digest

__all__ = ["ReadyStart"]

_METADATA = "rada"
_LIBRARIES = ("torch", "transformers", "open_clip_torch")
_DAMAGE = (OSError, KeyError, TypeError, ValueError)


class ReadyStart:
    """One file of the cache.

    Args:
        sources: Files that the content is made of; another path, size or time of one is another start.
        settings: What else decides it.
    """

    def __init__(self, sources: tuple[Path, ...], settings: str) -> None:
        seen = [(str(path), path.stat().st_size, path.stat().st_mtime_ns) for path in sources]
        made_by = [__version__, *map(version, _LIBRARIES)]
        key = digest(settings, json.dumps(seen), *made_by)
        self.path = cache_root() / "encoders" / f"embedded-{key}.safetensors"

    def read(self) -> tuple[dict[str, Tensor], tuple[str, str]] | None:
        """Return weights and fingerprints; None where they are not kept, or damaged."""
        from safetensors import SafetensorError, safe_open

        try:
            if not self.path.is_file():
                return None
            with safe_open(self.path, framework="pt") as file:
                # Copied, since mapped weights begin anywhere, and kernels may round by where they begin.
                state = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
                known = json.loads((file.metadata() or {})[_METADATA])
            now, before = map(str, known["fingerprints"])
        except (SafetensorError, *_DAMAGE) as error:
            warn(f"the cache file {str(self.path)!r} is damaged: {error}; rebuilding", stacklevel=2)
            return None
        if known.get("checksum") != _checksum(state, (now, before)):
            warn(f"the cache file {str(self.path)!r} is damaged; rebuilding it", stacklevel=2)
            return None
        return state, (now, before)

    def write(self, state: Mapping[str, Tensor], fingerprints: tuple[str, str]) -> None:
        """Keep weights and fingerprints; a cache that cannot be written costs the next start some seconds."""
        from safetensors.torch import save

        from rada.core.storage import write_bytes

        tensors = {name: value.contiguous() for name, value in state.items()}
        known = {"fingerprints": list(fingerprints), "checksum": _checksum(tensors, fingerprints)}
        try:
            write_bytes(self.path, save(tensors, metadata={_METADATA: json.dumps(known)}))
        except StorageError as error:
            warn(f"the embedded model was not cached: {error}", stacklevel=2)


def _checksum(state: Mapping[str, Tensor], fingerprints: tuple[str, str]) -> str:
    names = sorted(state)
    return fingerprint_tensors(*(state[name] for name in names), extra=[names, *fingerprints])
