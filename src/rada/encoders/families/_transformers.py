"""What all families of transformers share: loading that refuses missing weights."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rada.errors import EncoderError

__all__ = ["load_module", "quiet"]


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Silence transformers' own bars and reports while the block runs; rada reports itself."""
    from transformers.utils import logging as hf_logging

    bars = hf_logging.is_progress_bar_enabled()
    level = hf_logging.get_verbosity()
    hf_logging.disable_progress_bar()
    hf_logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        hf_logging.set_verbosity(level)
        if bars:
            hf_logging.enable_progress_bar()


def load_module(cls: Any, directory: Path, **options: Any) -> Any:
    """Load a transformers model from files and refuse it unless every weight was there.

    Args:
        cls: The model's class.
        directory: With `config.json` and weights; nothing is downloaded.
        **options: For `from_pretrained`.

    Raises:
        EncoderError: Naming the weights that are missing or have the wrong shape, or the damage.
    """
    with quiet():
        try:
            model, report = cls.from_pretrained(
                directory,
                output_loading_info=True,
                local_files_only=True,
                ignore_mismatched_sizes=True,  # so that they are reported, by name
                dtype="float32",
                **options,
            )
        except Exception as error:
            reason = str(error).strip().split("\n")[0] or type(error).__name__
            raise EncoderError(
                f"{cls.__name__} cannot be loaded from {str(directory)!r}: {reason}"
            ) from error
    refuse_missing(cls.__name__, directory, report)
    return model.eval()


def refuse_missing(name: str, directory: Path, report: dict[str, Any]) -> None:
    """Raise an `EncoderError` that names the weights that a checkpoint did not hold."""
    mismatched = [
        entry[0] if isinstance(entry, tuple) else entry for entry in report["mismatched_keys"]
    ]
    missing = sorted({*report["missing_keys"], *mismatched})
    if missing:
        shown = ", ".join(missing[:8]) + (f" and {len(missing) - 8} more" if missing[8:] else "")
        raise EncoderError(
            f"{str(directory)!r} does not hold the weights of {name}: {shown} "
            f"{'are' if len(missing) > 1 else 'is'} missing or of another shape. They would be "
            "random; choose a checkpoint of this architecture"
        )
