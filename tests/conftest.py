"""Fixtures that all tests share: no network, no terminal bars, a cache of their own."""

from __future__ import annotations

import os
import random
import signal
import sys
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import settings

if TYPE_CHECKING:
    from fits import Fits

# In CI the same examples every time: a change is judged by itself, not by luck.
settings.register_profile("ci", derandomize=True)
if os.environ.get("CI"):
    settings.load_profile("ci")

# Set before anything imports transformers or huggingface_hub: a test that reaches for a hub must fail at
# once, not after retries.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

# A shell that starts the tests in the background lets them ignore Ctrl-C, which some of them are about.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)

SHARED_DATA = Path(__file__).resolve().parents[2] / "shared" / "data"


@pytest.fixture(autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Give the whole test session one cache that is not the user's."""
    monkeypatch.setenv("RADA_CACHE", str(tmp_path_factory.getbasetemp() / "rada-cache"))


@pytest.fixture(autouse=True)
def same_numbers() -> None:
    """Draw the same random numbers in every run: what a test finds is not a matter of luck."""
    random.seed(0)
    for name, seed in (("numpy", "random.seed"), ("torch", "manual_seed")):
        if name in sys.modules:  # else the test needs none, and importing it takes seconds
            attrgetter(seed)(sys.modules[name])(0)


@pytest.fixture(scope="session")
def fits(tmp_path_factory: pytest.TempPathFactory) -> Fits:
    """Every method fitted once, for all processes of this run."""
    from fits import Fits

    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent
    (root / "fits").mkdir(exist_ok=True)
    return Fits(root / "fits")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real test data, or a skip where it is absent."""
    if not SHARED_DATA.is_dir():
        pytest.skip(f"the real test data is not at {SHARED_DATA}")
    return SHARED_DATA
