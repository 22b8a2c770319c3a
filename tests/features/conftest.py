"""Fixtures of the feature tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parent))  # test scripts import the tiny encoder by its name

from tiny import TinyEncoder, write_images

from rada.features import FeatureCache


@pytest.fixture
def encoder():
    return TinyEncoder()


@pytest.fixture
def split(tmp_path):
    return write_images(tmp_path / "images")


@pytest.fixture
def cache(tmp_path):
    return FeatureCache(tmp_path / "cache")
