"""The head equals the plain transcription: outputs and every gradient, in float64 to 1e-9."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from oracle import oracle
from rada.head import RAdaHead
from rada.head.kernels import tiles
from rada.head.kernels.plan import make_plan

TOLERANCE = 1e-9
TILED, RECOMPUTED, GROUPED = 1, 60_000, 4_000_000
"""Memory budgets that force the ways of computing; `test_budgets_force_the_paths` checks that."""


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
    peak_gradient: bool = True,
) -> None:
    inputs = [image, text, scale, *head.parameters()]
    cotangents = None
    results = []
    for run in (lambda *a: head(*a, return_mask=True), lambda *a: oracle(head, *a)):
        output = run(image, text, scale, strength)
        values = [output.logits, output.max_deviation, output.mask]
        if cotangents is None:
            cotangents = [torch.randn_like(v) for v in values]
        wanted = (True, peak_gradient, mask_gradient)
        total = sum(
            (v * c).sum() for v, c, want in zip(values, cotangents, wanted, strict=True) if want
        )
        gradients = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        results.append([*values, *gradients])
    # In sharp maps small gradients are differences of large ones, so the largest sets the measure.
    allowed = TOLERANCE * max(1.0, *(float(value.detach().abs().max()) for value in results[1]))
    for got, expected in zip(*results, strict=True):
        assert float((got - expected).detach().abs().max()) <= allowed


@settings(max_examples=100, deadline=None)
@given(
    batch=st.integers(1, 5),
    classes=st.sampled_from([1, 2, 3, 5, 7, 11, 13, 17, 24, 31]),
    shape=st.sampled_from([(4, 4), (8, 1), (16, 2), (24, 4), (48, 1), (64, 1), (96, 2)]),
    scale=st.floats(0.5, 150.0),
    temperature=st.floats(0.1, 4.0),
    strength=st.floats(-0.5, 1.5),
    mask_gradient=st.booleans(),
    budget=st.sampled_from([TILED, RECOMPUTED, GROUPED, None]),
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
    budget: int | None,
    seed: int,
) -> None:
    dim, num_heads = shape
    head = make_head(dim, num_heads, temperature, seed, budget)
    assert_same_as_oracle(
        head,
        unit(batch, dim).requires_grad_(),
        unit(classes, dim).requires_grad_(),
        torch.tensor(scale, dtype=torch.float64, requires_grad=True),
        strength,
        mask_gradient=mask_gradient,
    )


def test_budgets_force_the_paths() -> None:
    plans = {
        b: make_plan(3, 17, 24, 4, itemsize=8, budget=b, keep=True)
        for b in (TILED, RECOMPUTED, GROUPED)
    }
    assert plans[TILED].rows == 8
    assert not plans[TILED].keep
    assert plans[RECOMPUTED].rows is None
    assert not plans[RECOMPUTED].keep
    assert plans[GROUPED].keep
    assert plans[GROUPED].images == 3


@pytest.mark.parametrize("budget", [TILED, RECOMPUTED, None])
@pytest.mark.parametrize("temperature", [1.0, 0.01, 1e-4])
@pytest.mark.parametrize("kernel", [True, False])
def test_sharp_maps_keep_their_gradients(
    budget: int | None, temperature: float, kernel: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At temperature 0.01 whole maps hang on one entry; their gradients are what cancels to it."""
    monkeypatch.setattr(tiles, "_has_row_kernel", lambda _: kernel)
    head = make_head(16, 2, temperature, 3, budget)
    assert_same_as_oracle(
        head,
        unit(3, 16).requires_grad_(),
        unit(24, 16).requires_grad_(),
        torch.tensor(20.0, dtype=torch.float64, requires_grad=True),
        1.0,
        mask_gradient=True,
    )


@pytest.mark.parametrize("budget", [None, RECOMPUTED])
def test_a_width_of_real_models(budget: int | None) -> None:
    head = make_head(512, 8, 1.0, 0, budget)
    assert_same_as_oracle(
        head,
        unit(2, 512).requires_grad_(),
        unit(37, 512).requires_grad_(),
        torch.tensor(100.0, dtype=torch.float64, requires_grad=True),
        0.5,
        mask_gradient=False,
    )


@pytest.mark.parametrize("layout", ["transposed", "strided", "expanded", "sliced"])
@pytest.mark.parametrize("budget", [TILED, None])
def test_any_strides(layout: str, budget: int | None) -> None:
    head = make_head(16, 4, 1.0, 0, budget)

    def lay_out(x: torch.Tensor) -> torch.Tensor:
        if layout == "transposed":
            return x.T.contiguous().T
        if layout == "strided":
            return x.repeat_interleave(3, dim=1)[:, ::3]
        if layout == "expanded":
            return x[:1].expand(x.shape)
        return torch.cat([x, x], 1)[:, : x.shape[1]]

    image, text = lay_out(unit(3, 16)), lay_out(unit(9, 16))
    scale = torch.tensor([30.0], dtype=torch.float64).expand(1)
    with torch.no_grad():
        head.key.weight.set_(head.key.weight.T.contiguous().T)
    assert_same_as_oracle(
        head,
        image.requires_grad_(),
        text.requires_grad_(),
        scale.requires_grad_(),
        1.0,
        mask_gradient=True,
        peak_gradient=layout != "expanded",  # equal classes tie for the maximum
    )


def test_images_in_several_chunks() -> None:
    head = make_head(16, 4, 1.0, 0)
    assert make_plan(23, 40, 16, 4, itemsize=8, budget=1 << 30, keep=True).images < 23
    assert_same_as_oracle(
        head,
        unit(23, 16).requires_grad_(),
        unit(40, 16).requires_grad_(),
        torch.tensor(50.0, dtype=torch.float64, requires_grad=True),
        1.0,
        mask_gradient=True,
    )


@pytest.mark.parametrize("budget", [TILED, RECOMPUTED, None])
def test_gradcheck(budget: int | None) -> None:
    head = make_head(6, 2, 0.7, 1, budget)
    names = [name for name, _ in head.named_parameters()]

    def run(image: torch.Tensor, text: torch.Tensor, scale: torch.Tensor, *p: torch.Tensor):
        call = (image, text, scale, 0.8)
        output = torch.func.functional_call(
            head, dict(zip(names, p, strict=True)), call, {"return_mask": True}
        )
        return output.logits, output.max_deviation, output.mask

    inputs = (
        unit(2, 6).requires_grad_(),
        unit(9, 6).requires_grad_(),
        torch.tensor(5.0, dtype=torch.float64, requires_grad=True),
        *(p.detach().clone().requires_grad_() for p in head.parameters()),
    )
    assert torch.autograd.gradcheck(run, inputs, atol=1e-7)


def test_gradients_of_gradients() -> None:
    head = make_head(4, 2, 1.0, 1)

    def run(image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
        return head(image, text, 3.0).logits

    inputs = (unit(2, 4).requires_grad_(), unit(3, 4).requires_grad_())
    assert torch.autograd.gradgradcheck(run, inputs, atol=1e-6)


@pytest.mark.parametrize("budget", [TILED, None])
@pytest.mark.parametrize("classes", [1, 2, 24, 150])
def test_float32_is_as_near_as_float32_can_be(classes: int, budget: int | None) -> None:
    exact_head = make_head(64, 8, 1.0, 0, budget)
    image, text = unit(4, 64), unit(classes, 64)
    expected = oracle(exact_head, image, text, 100.0)
    got = exact_head.float()(image.float(), text.float(), 100.0, return_mask=True)
    assert got.logits.dtype == torch.float32
    assert torch.allclose(got.logits.double(), expected.logits, rtol=1e-5, atol=2e-4)
    assert torch.allclose(got.mask.double(), expected.mask, rtol=1e-5, atol=1e-5)


def test_float32_gradients_of_sharp_maps() -> None:
    """Folding the joint maximum into one log-sum-exp would lose them in float32."""
    for budget in (TILED, None):
        head = make_head(64, 8, 0.02, 0, budget)
        image, text = unit(3, 64), unit(40, 64)

        def gradients(head: RAdaHead, image: torch.Tensor, text: torch.Tensor) -> torch.Tensor:
            head(image, text, 100.0).logits.square().sum().backward()
            grads = [head.query_text.weight.grad, head.key.weight.grad]
            head.zero_grad()
            return torch.stack(grads).double()

        exact = gradients(head, image, text)
        rough = gradients(head.float(), image.float(), text.float())
        assert float((rough - exact).norm() / exact.norm()) < 1e-3


def test_an_accelerator_gets_few_large_pieces():
    """On a card every piece costs some thirty launches; on the CPU it must fit the caches."""
    options = {"itemsize": 4, "budget": 4 << 30}
    here = make_plan(32, 100, 512, 8, **options)
    there = make_plan(32, 100, 512, 8, device_type="cuda", **options)
    assert here.images < there.images == 32 and there.maps == 32 * 8
    tiled = make_plan(1, 21_000, 512, 8, device_type="cuda", **options)
    assert tiled.rows == tiled.columns == 4096
