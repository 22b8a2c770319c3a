"""What `import rada` offers, and what it costs."""

from __future__ import annotations

import subprocess
import sys

import pytest

import rada


def test_every_public_name_is_there() -> None:
    assert sorted(rada.__all__) == rada.__all__ or set(rada.__all__) == set(dir(rada))
    for name in rada.__all__:
        assert getattr(rada, name) is not None


def test_unknown_name() -> None:
    with pytest.raises(AttributeError, match="no_such_name"):
        _ = rada.no_such_name


def test_import_loads_nothing_heavy() -> None:
    code = "import rada, sys; print([n for n in ('torch', 'numpy', 'transformers') if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
