"""Predictors on disk: one safetensors file with the facts as JSON, read without trusting it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from rada.core.errors import CheckpointError, RadaError
from rada.core.storage import atomic_path
from rada.methods.base import Predictor
from rada.methods.registry import get_method

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["load_predictor", "save_predictor"]

_FORMAT = "rada-predictor-1"


def save_predictor(predictor: Predictor, path: str | Path) -> None:
    """Write a predictor in one step.

    Raises:
        StorageError: If the place cannot be written.
    """
    facts = {"format": _FORMAT, "method": predictor.method, "facts": predictor.facts}
    facts["record"] = predictor.record
    state = {
        name: value.detach().cpu().contiguous() for name, value in predictor.state_dict().items()
    }
    with atomic_path(path) as temporary:
        save_file(state, temporary, metadata={"rada_predictor": json.dumps(facts)})


def load_predictor(path: str | Path, encoder: DualEncoder | None = None) -> Predictor:
    """Read a predictor.

    Args:
        path: A file that `Predictor.save` wrote.
        encoder: The encoder, for methods that work through one.

    Raises:
        CheckpointError: If the file is missing, damaged, or does not fit what it says of itself.
    """
    try:
        with safe_open(path, framework="pt") as stream:
            said: dict[str, Any] = json.loads((stream.metadata() or {})["rada_predictor"])
            state = {name: stream.get_tensor(name) for name in stream.keys()}  # noqa: SIM118
        if said["format"] != _FORMAT:
            raise CheckpointError(
                f"{str(path)!r} was written by another version: {said['format']!r}"
            )
        predictor = get_method(said["method"]).build(said["facts"], encoder)
        predictor.load_state_dict(state)
        predictor.record = said["record"]
    except CheckpointError:
        raise
    except (
        *(SafetensorError, OSError, KeyError, TypeError, ValueError, RuntimeError, AttributeError),
        RadaError,
    ) as error:
        raise CheckpointError(f"{str(path)!r} is not a whole predictor: {error}") from error
    return predictor.eval()
