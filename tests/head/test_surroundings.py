"""What surrounds the mathematics: transforms, compilation, types, memory, work that is not done."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from torch.func import functional_call, grad, jacrev, vmap
from torch.utils._python_dispatch import TorchDispatchMode

from rada.bench.memory import peak_allocated
from rada.head import RAdaHead, attention
from rada.head.kernels.plan import default_budget, make_plan


def unit(rows: int, dim: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(rows, dim, dtype=torch.float64), dim=-1).to(dtype)


def make_head(dim: int = 16, num_heads: int = 4, **kwargs: int) -> RAdaHead:
    torch.manual_seed(0)
    head = RAdaHead(dim, num_heads, **kwargs).double()
    nn.init.normal_(head.out.weight, std=0.2)
    return head


def stacked(heads: list[RAdaHead]) -> dict[str, torch.Tensor]:
    names = [name for name, _ in heads[0].named_parameters()]
    return {n: torch.stack([h.get_parameter(n).detach() for h in heads]) for n in names}


def test_vmap_over_stacked_heads() -> None:
    heads = [make_head() for _ in range(3)]
    for head in heads:
        nn.init.normal_(head.out.weight, std=0.2)
    views, text = unit(12, 16).view(3, 4, 16), unit(5, 16)

    def predict(parameters: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        return functional_call(heads[0], parameters, (image, text, 30.0)).logits

    together = vmap(predict)(stacked(heads), views)
    alone = torch.stack([h(v, text, 30.0).logits for h, v in zip(heads, views, strict=True)])
    assert torch.allclose(together, alone, rtol=0, atol=1e-11)


def test_torch_without_is_exporting(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch 2.6 cannot tell an export from a compilation: both take the plain form."""
    head, image, text = make_head(), unit(4, 16), unit(5, 16)
    expected = head(image, text, 30.0).logits
    compiling = []
    old = SimpleNamespace(is_compiling=lambda: bool(compiling))
    names = {"_C": torch._C, "is_grad_enabled": torch.is_grad_enabled, "compiler": old}
    monkeypatch.setattr(attention, "torch", SimpleNamespace(**names))
    assert not attention.transforms_active()
    assert torch.equal(head(image, text, 30.0).logits, expected)
    compiling.append(True)
    assert attention.transforms_active()
    assert torch.allclose(head(image, text, 30.0).logits, expected, rtol=0, atol=1e-11)


def test_vmap_of_grad_over_stacked_heads() -> None:
    heads = [make_head() for _ in range(3)]
    for head in heads:
        nn.init.normal_(head.out.weight, std=0.2)
    views, text = unit(12, 16).view(3, 4, 16), unit(5, 16)

    def loss(parameters: dict[str, torch.Tensor], image: torch.Tensor) -> torch.Tensor:
        output = functional_call(heads[0], parameters, (image, text, 30.0))
        return output.logits.logsumexp(-1).sum() + output.max_deviation.sum()

    together = vmap(grad(loss))(stacked(heads), views)
    for index, head in enumerate(heads):
        loss(dict(head.named_parameters()), views[index]).backward()
        for name, parameter in head.named_parameters():
            assert torch.allclose(together[name][index], parameter.grad, rtol=1e-9, atol=1e-11)


def test_vmap_over_scale_and_jacobian() -> None:
    head, image, text = make_head(), unit(2, 16), unit(5, 16)
    scales = torch.tensor([10.0, 20.0], dtype=torch.float64)
    together = vmap(lambda s: head(image, text, s).logits)(scales)
    assert torch.allclose(together[1], head(image, text, 20.0).logits, rtol=0, atol=1e-11)
    jacobian = jacrev(lambda x: head(x, text, 10.0).logits)(image)
    expected = torch.autograd.functional.jacobian(lambda x: head(x, text, 10.0).logits, image)
    assert torch.allclose(jacobian, expected, rtol=0, atol=1e-10)


def test_compiled_head_gives_the_same() -> None:
    head, image, text = make_head(), unit(4, 16), unit(5, 16)
    compiled = torch.compile(head, backend="aot_eager")
    expected, got = (h(image, text, 30.0) for h in (head, compiled))
    assert torch.allclose(got.logits, expected.logits, rtol=0, atol=1e-12)
    gradients = []
    for output in (expected, got):
        total = output.logits.square().sum() + output.max_deviation.sum()
        gradients.append(torch.autograd.grad(total, list(head.parameters())))
    for a, b in zip(*gradients, strict=True):
        assert torch.allclose(a, b, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_features_and_half_heads_compute_in_float32(dtype: torch.dtype) -> None:
    head = make_head().float()
    image, text = unit(3, 16, dtype), unit(5, 16, dtype)
    expected = head(image.float(), text.float(), 50.0)
    got = head(image.requires_grad_(), text.requires_grad_(), 50.0)
    assert got.logits.dtype == torch.float32
    assert torch.equal(got.logits, expected.logits)
    got.logits.sum().backward()
    assert image.grad.dtype == text.grad.dtype == dtype
    head.to(dtype)
    output = head(image, text, 50.0)
    output.logits.sum().backward()
    assert output.logits.dtype == torch.float32
    assert head.key.weight.grad.dtype == dtype


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_autocast_changes_nothing(dtype: torch.dtype) -> None:
    head = make_head().float()
    image, text = unit(3, 16, torch.float32), unit(5, 16, torch.float32)
    expected = head(image, text, 50.0)
    expected.logits.sum().backward()
    gradient = head.key.weight.grad.clone()
    head.zero_grad()
    with torch.autocast("cpu", dtype=dtype):
        got = head(image, text, 50.0)
        got.logits.sum().backward()
    assert got.logits.dtype == torch.float32
    assert torch.equal(got.logits, expected.logits)
    assert torch.equal(head.key.weight.grad, gradient)


def test_float64_features_meet_a_float32_head() -> None:
    head = make_head().float()
    image, text = unit(3, 16), unit(5, 16)
    assert torch.equal(head(image, text, 9.0).logits, head(image.float(), text.float(), 9.0).logits)


class CountProducts(TorchDispatchMode):
    """Sums the flops of matrix products."""

    def __init__(self) -> None:
        super().__init__()
        self.flops = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        name = func._overloadpacket.__name__
        if name in ("mm", "bmm", "addmm", "addmm_", "baddbmm", "baddbmm_"):
            left = args[0] if name in ("mm", "bmm") else args[1]
            right = args[1] if name in ("mm", "bmm") else args[2]
            self.flops += 2 * left.numel() * right.shape[-1]
        return out


def flops(head: RAdaHead, image: torch.Tensor, text: torch.Tensor) -> int:
    with CountProducts() as count:
        output = head(image, text, 10.0)
        if output.logits.requires_grad:
            (output.logits.sum() + output.max_deviation.sum()).backward()
    return count.flops


def test_no_work_for_what_needs_no_gradient() -> None:
    batch, classes, dim = 4, 20, 64
    linear, maps = 2 * batch * classes * dim**2, 2 * batch * classes**2 * dim
    small = 12 * (batch + classes) * dim**2 + 40 * batch * classes * dim
    image, text = unit(batch, dim), unit(classes, dim)
    head = make_head(dim, 8)

    def assert_near(measured: int, expected: int) -> None:
        assert expected <= measured <= expected + small

    with torch.no_grad():
        assert_near(flops(head, image, text), 4 * linear + 3 * maps)
    assert_near(flops(head, image, text), 9 * linear + 11 * maps)
    everything = flops(head, image.clone().requires_grad_(), text.clone().requires_grad_())
    assert_near(everything, 12 * linear + 11 * maps)
    head.requires_grad_(False)
    only_features = flops(head, image.clone().requires_grad_(), text)
    assert_near(only_features, 8 * linear + 11 * maps)
    head.out.requires_grad_(True)
    assert_near(flops(head, image, text), 5 * linear + 3 * maps)


def test_memory_grows_linearly_with_the_classes() -> None:
    """No K x K map, and no mask of the whole batch, is ever made."""
    head = make_head(16, 2).float()
    image = unit(3, 16, torch.float32)

    def step(classes: int) -> int:
        text = unit(classes, 16, torch.float32)
        return peak_allocated(lambda: head(image, text, 10.0).logits.sum().backward())

    small, large = step(1500), step(3000)
    tiles = 3 * 2 * 512 * 512 * 4
    assert large - tiles <= 2.3 * (small - tiles)
    assert large < 3000 * 3000 * 4
    with torch.no_grad():
        forward = peak_allocated(lambda: head(image, unit(3000, 16, torch.float32), 10.0))
    assert forward < 20 * 3000 * 16 * 4


def test_a_small_budget_bounds_the_memory() -> None:
    image, text = unit(64, 64, torch.float32), unit(60, 64, torch.float32)

    def peak(budget: int | None) -> int:
        head = make_head(64, 8, memory_budget=budget).float()
        return peak_allocated(lambda: head(image, text, 10.0).logits.sum().backward())

    assert peak(1 << 20) < 1 << 20
    assert peak(None) > 1 << 22


def test_gradients_accumulate_and_a_second_backward_is_refused() -> None:
    head, image, text = make_head(), unit(3, 16), unit(5, 16)
    head(image, text, 9.0).logits.sum().backward()
    once = head.value.weight.grad.clone()
    output = head(image, text, 9.0)
    output.logits.sum().backward()
    assert torch.allclose(head.value.weight.grad, 2 * once)
    with pytest.raises(RuntimeError, match="second time"):
        output.logits.sum().backward()


def test_editing_a_weight_before_backward_is_refused() -> None:
    head, image, text = make_head(), unit(3, 16), unit(5, 16)
    output = head(image, text, 9.0)
    with torch.no_grad():
        head.key.weight.mul_(2)
    with pytest.raises(RuntimeError, match="inplace"):
        output.logits.sum().backward()


def test_only_one_output_is_differentiated() -> None:
    head, image, text = make_head(), unit(3, 16), unit(5, 16)
    total = head(image, text, 9.0).max_deviation.sum()
    alone = torch.autograd.grad(total, head.value.weight)[0]
    output = head(image, text, 9.0)
    both = output.max_deviation.sum() + 0 * output.logits.sum()
    assert torch.allclose(alone, torch.autograd.grad(both, head.value.weight)[0])
    mask = head(image, text, 9.0, return_mask=True).mask
    assert torch.autograd.grad(mask.sum(), head.value.weight)[0].any()


def test_the_default_budget_is_a_power_of_two_and_steady() -> None:
    budget = default_budget()
    assert budget == default_budget()
    assert budget & (budget - 1) == 0
    assert 1 << 19 <= budget <= 1 << 30


@pytest.mark.parametrize("budget", [1, 10_000, 1 << 20, 1 << 30])
@pytest.mark.parametrize(("batch", "classes"), [(0, 5), (1, 1), (32, 24), (3, 21_000), (1000, 2)])
def test_plans_are_sane(budget: int, batch: int, classes: int) -> None:
    plan = make_plan(batch, classes, 512, 8, itemsize=4, budget=budget)
    assert 1 <= plan.images <= max(1, batch)
    assert plan.maps >= 1
    assert plan.rows is None or plan.rows >= 8
    assert 1 <= plan.columns <= classes or plan.columns == 8


@pytest.mark.parametrize(("frozen", "units"), [(True, 4), (False, 5)])
def test_the_mask_is_kept_only_where_the_features_learn(frozen: bool, units: int) -> None:
    head = RAdaHead(32, 4)
    nn.init.normal_(head.out.weight, std=0.01)
    image, text = (nn.functional.normalize(torch.randn(n, 32), dim=-1) for n in (4, 50))
    text.requires_grad_(not frozen)
    kept: list[int] = []

    def note(tensor: torch.Tensor) -> torch.Tensor:
        kept.append(tensor.numel())
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        head(image, text, 20.0)
    one = 4 * 50 * 32
    assert sum(size for size in kept if size >= one) == units * one
