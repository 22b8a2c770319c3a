"""What a run tells while it runs: JSON lines always, other trackers by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from rada.core.errors import ConfigError
from rada.core.extras import is_installed, missing_package
from rada.core.storage import storage_errors, write_bytes

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["TRACKERS", "StepLog", "check_trackers"]

TRACKERS = ("tensorboard", "wandb", "trackio")


def check_trackers(names: tuple[str, ...]) -> None:
    """Check that trackers exist and are installed.

    Raises:
        ConfigError: If a name is unknown.
        MissingExtraError: If its package is not installed.
    """
    for name in names:
        if name not in TRACKERS:
            raise ConfigError(f"there is no tracker {name!r}; there are {', '.join(TRACKERS)}")
        if not is_installed(name):
            raise missing_package(name, f"the tracker {name!r}")


class StepLog:
    """`log.jsonl`: one line for each step and each evaluation.

    Args:
        path: The file, or None for none.
        step: Steps that are done; lines of later ones, of a run that was killed, are dropped.
    """

    def __init__(self, path: Path | None, step: int) -> None:
        self._stream: TextIO | None = None
        if path is None:
            return
        lines = path.read_text().splitlines() if path.exists() else []
        kept = [line for line in lines if _done(line, step)]
        write_bytes(path, "".join(f"{line}\n" for line in kept).encode())
        with storage_errors(path):
            self._stream = path.open("a", encoding="utf-8")

    def write(self, values: dict[str, Any]) -> None:
        """Append a line."""
        if self._stream is not None:
            self._stream.write(json.dumps(values) + "\n")
            self._stream.flush()

    def close(self) -> None:
        """Close the file."""
        if self._stream is not None:
            self._stream.close()


def _done(line: str, step: int) -> bool:
    try:
        return int(json.loads(line)["step"]) <= step
    except (ValueError, KeyError, TypeError):  # the half line of a killed process
        return False


def start_trackers(
    accelerator: Accelerator, names: tuple[str, ...], config: dict[str, Any]
) -> None:
    """Start the trackers by Accelerate; values that are no scalars become text."""
    if names:
        plain = {k: v if isinstance(v, int | float | str) else str(v) for k, v in config.items()}
        accelerator.init_trackers("rada", config=plain)
