"""What a checkpoint says of itself without being loaded."""

from __future__ import annotations

import math
from pathlib import Path

__all__ = ["count_parameters"]


def count_parameters(directory: Path) -> int | None:
    """Return the number of values in the safetensors files of a directory; None if there are none.

    Only the headers are read.
    """
    from safetensors import SafetensorError, safe_open

    total = 0
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as file:
                total += sum(math.prod(file.get_slice(key).get_shape()) for key in file.keys())  # noqa: SIM118
        except (OSError, SafetensorError):
            return None
    return total or None
