"""The plain form in the benchmark is the oracle's mathematics, and its report can be written."""

from __future__ import annotations

import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
import torch
from torch import nn

from oracle import oracle
from rada.head import RAdaHead

SCRIPT = Path(__file__).resolve().parents[2] / "benchmarks" / "head.py"


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    if not SCRIPT.is_file():
        pytest.skip("the benchmarks are not part of this installation")
    spec = importlib.util.spec_from_file_location("benchmark_head", SCRIPT)
    module = sys.modules["benchmark_head"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("form", ["plain", "ours"])
def test_both_forms_are_the_oracle(benchmark: ModuleType, form: str) -> None:
    torch.manual_seed(0)
    head = RAdaHead(24, 4, 0.5).double()
    nn.init.normal_(head.out.weight, std=0.3)
    image, text = (nn.functional.normalize(torch.randn(n, 24).double(), dim=-1) for n in (3, 7))
    logits, peak = benchmark.FORMS[form](head, image, text, 30.0)
    expected = oracle(head, image, text, 30.0)
    assert torch.allclose(logits, expected.logits, rtol=0, atol=1e-10)
    assert torch.allclose(peak, expected.max_deviation, rtol=0, atol=1e-10)


def test_flops_of_a_step_are_those_of_the_page(benchmark: ModuleType) -> None:
    size = benchmark.Size(2, 3, 5)
    assert benchmark.flops(size, "forward") == 8 * 2 * 3 * 25 + 6 * 2 * 9 * 5
    assert benchmark.flops(size, "step") == 18 * 2 * 3 * 25 + 22 * 2 * 9 * 5


def test_memory_is_that_of_the_form(benchmark: ModuleType) -> None:
    size = benchmark.Size(8, 150, 64)
    plain, ours = (benchmark.measure_memory(f, size, "forward", None) for f in ("plain", "ours"))
    one_map = 8 * 8 * 150 * 150 * 4
    assert plain > 3 * one_map
    assert 0 < ours < one_map


def test_the_exponent_is_the_slope(benchmark: ModuleType) -> None:
    rows = [
        {"size": {"classes": k}, "seconds": {"ours.forward": 3e-6 * k**1.5}}
        for k in (2000, 4000, 9000)
    ]
    assert math.isclose(benchmark.fitted_exponent(rows), 1.5, rel_tol=1e-9)
    assert math.isnan(benchmark.fitted_exponent(rows[:1]))
