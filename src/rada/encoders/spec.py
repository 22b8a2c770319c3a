"""A model's name, taken apart, and what its directory says."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from rada.core.errors import EncoderError

__all__ = ["SCHEMES", "ModelSpec", "model_type"]

SCHEMES = ("open_clip", "hf-hub", "hf")
"""What stands before the colon of a name."""


@dataclass(frozen=True)
class ModelSpec:
    """A model's name, taken apart.

    Attributes:
        text: The name as it was given; of a directory the whole path.
        scheme: "embedded", "open_clip", "hf-hub" (open_clip from a hub), "hf" (transformers),
            or another word that a family claims.
        target: What follows the colon, or the path of a directory.
        directory: Where the files are, if they are on this machine.
    """

    text: str
    scheme: str
    target: str
    directory: Path | None = None


def model_type(directory: Path) -> str:
    """Return the `model_type` of a transformers directory.

    Raises:
        EncoderError: If `config.json` is missing or damaged, or names no type.
    """
    path = directory / "config.json"
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise EncoderError(f"{str(path)!r} cannot be read: {error}") from error
    kind = config.get("model_type") if isinstance(config, dict) else None
    if not isinstance(kind, str):
        raise EncoderError(f"{str(path)!r} names no model_type; it is not a transformers model")
    return kind
