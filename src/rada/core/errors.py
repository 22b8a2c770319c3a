"""Errors that rada raises for bad input.

Every class derives from `RadaError`; the command line prints such an error in one
line and exits with code 2. Anything else is a bug and keeps its traceback. Each message names the
value, the cause and the fix.
"""

from __future__ import annotations

import textwrap

__all__ = [
    "CacheError",
    "CheckpointError",
    "ConfigError",
    "DataError",
    "EncoderError",
    "FeatureError",
    "MissingExtraError",
    "OutputError",
    "RadaError",
    "StorageError",
    "TrainingDivergedError",
    "UnknownClassError",
    "one_line",
]


class RadaError(Exception):
    """Base of every error that the user can mend."""


class ConfigError(RadaError, ValueError):
    """A configuration field is unknown, of the wrong type or out of range."""


class DataError(RadaError, ValueError):
    """Images, labels, class names or templates that cannot be used."""


class FeatureError(RadaError, ValueError):
    """Features that cannot be used: wrong width, NaN, Inf or zero rows, labels out of range."""


class UnknownClassError(ConfigError):
    """A method that knows its training classes alone was asked about others."""


class EncoderError(RadaError):
    """An encoder that cannot be found or loaded, or that lacks a capability."""


class CheckpointError(RadaError):
    """A saved head or training state that is damaged, hostile or belongs to something else."""


class StorageError(RadaError, OSError):
    """A disk that is full or read-only, or a folder without write permission."""


class TrainingDivergedError(RadaError):
    """Training left the numbers that can be computed with: a loss or logits became NaN or infinite."""


class OutputError(StorageError):
    """An output that is in the way: not rada's, in use by another process, or a part of the data."""


class CacheError(StorageError):
    """A feature cache that cannot be written."""


class MissingExtraError(RadaError, ImportError):
    """An optional dependency is not installed.

    Example:
        >>> str(MissingExtraError("onnx", extra="fast", needed_for="this"))
        "this needs the package 'onnx', which is not installed: pip install 'rada-vlm[fast]'"
    """

    def __init__(self, package: str, *, extra: str | None, needed_for: str) -> None:
        wanted = package if extra is None else f"'rada-vlm[{extra}]'"
        super().__init__(
            f"{needed_for} needs the package {package!r}, which is not installed: "
            f"pip install {wanted}"
        )
        self.package = package
        self.extra = extra


def one_line(error: BaseException, limit: int = 600) -> str:
    r"""Return another library's message, whole, as one line; a very long one ends at a word.

    Example:
        >>> one_line(ValueError("\nThis needs a package.\nInstall it.\n"))
        'This needs a package. Install it.'
    """
    return textwrap.shorten(str(error), limit, placeholder=" ...") or type(error).__name__
