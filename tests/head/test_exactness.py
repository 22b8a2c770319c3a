"""The head equals the plain transcription: outputs and every gradient, in float64 to 1e-9."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracle import oracle
from rada.head import RAdaHead

TOLERANCE = 1e-9


def make_head(
    dim: int, num_heads: int, temperature: float, seed: int, memory_budget: int | None = None
) -> RAdaHead:
    torch.manual_seed(seed)
    head = RAdaHead(dim, num_heads, temperature, memory_budget=memory_budget).double()
    nn.init.normal_(head.out.weight, std=0.5 / dim**0.5)
    nn.init.normal_(head.out.bias, std=0.2)
    return head


def unit(rows: int, dim: int) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(rows, dim, dtype=torch.float64), dim=-1)


def assert_same_as_oracle(
    head: RAdaHead,
    image: torch.Tensor,
    text: torch.Tensor,
    scale: torch.Tensor,
    strength: float,
    *,
    mask_gradient: bool,
) -> None:
    inputs = [image, text, scale, *head.parameters()]
    cotangents = None
    results = []
    for run in (lambda *a: head(*a, return_mask=True), lambda *a: oracle(head, *a)):
        output = run(image, text, scale, strength)
        values = [output.logits, output.max_deviation, output.mask]
        if cotangents is None:
            cotangents = [torch.randn_like(v) for v in values]
        pairs = list(zip(values, cotangents, strict=True))
        total = sum((v * c).sum() for v, c in (pairs if mask_gradient else pairs[:2]))
        gradients = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        results.append([*values, *gradients])
    for got, expected in zip(*results, strict=True):
        allowed = TOLERANCE * max(1.0, float(expected.abs().max()))
        assert float((got - expected).abs().max()) <= allowed


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 5),
    classes=st.sampled_from([1, 2, 3, 5, 7, 11, 13, 17, 24, 31]),
    shape=st.sampled_from([(4, 4), (8, 1), (16, 2), (24, 4), (48, 1), (64, 1), (96, 2)]),
    scale=st.floats(0.5, 150.0),
    temperature=st.floats(0.05, 4.0),
    strength=st.floats(-0.5, 1.5),
    mask_gradient=st.booleans(),
    seed=st.integers(0, 2**16),
)
def test_outputs_and_gradients(
    batch: int,
    classes: int,
    shape: tuple[int, int],
    scale: float,
    temperature: float,
    strength: float,
    mask_gradient: bool,
    seed: int,
) -> None:
    dim, num_heads = shape
    head = make_head(dim, num_heads, temperature, seed)
    assert_same_as_oracle(
        head,
        unit(batch, dim).requires_grad_(),
        unit(classes, dim).requires_grad_(),
        torch.tensor(scale, dtype=torch.float64, requires_grad=True),
        strength,
        mask_gradient=mask_gradient,
    )
