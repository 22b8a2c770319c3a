"""A small benchmark on features files."""

from __future__ import annotations

import pytest

from bench_samples import QUICK, write_features
from rada.bench import Plan


@pytest.fixture
def pets(tmp_path):
    return write_features(tmp_path)


@pytest.fixture
def plan(pets):
    return Plan(
        methods=("zero_shot", "tip_adapter", "rada"),
        datasets=(pets,),
        shots=(1, 2),
        seeds=(1, 2),
        options={"rada": QUICK["rada"]},
    )
