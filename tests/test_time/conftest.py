"""Fixtures of the test-time tests."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # the tests import the tiny encoder by its name
