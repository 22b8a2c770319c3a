"""The properties that the head promises, whatever its implementation."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from rada.core.errors import ConfigError, FeatureError
from rada.head import RAdaHead, rational_matrix

ALL_LAYERS = ("query_image", "query_text", "query_rational", "key", "value", "out")


def features(rows: int, dim: int, seed: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(rows, dim, generator=generator, dtype=torch.float64)
    return nn.functional.normalize(x, dim=-1).to(dtype)


def trained_head(dim: int = 16, num_heads: int = 4, seed: int = 0, **kwargs: float) -> RAdaHead:
    """A float64 head whose `out` is not zero."""
    torch.manual_seed(seed)
    head = RAdaHead(dim, num_heads, **kwargs).double()
    nn.init.normal_(head.out.weight, std=0.3)
    nn.init.normal_(head.out.bias, std=0.1)
    return head


def test_identity_at_initialisation() -> None:
    head = RAdaHead(32).double()
    image, text = features(5, 32, 1), features(7, 32, 2)
    output = head(image, text, 100.0, return_mask=True)
    assert torch.equal(output.mask, torch.ones(5, 7, 32, dtype=torch.float64))
    assert torch.equal(output.max_deviation, torch.zeros(5, dtype=torch.float64))
    assert torch.allclose(output.logits, 100.0 * image @ text.T, rtol=0, atol=1e-12)


def test_strength_zero_is_zero_shot_exactly() -> None:
    head = trained_head()
    image, text = features(5, 16, 1), features(7, 16, 2)
    output = head(image, text, 50.0, strength=0.0, return_mask=True)
    assert torch.equal(output.logits, 50.0 * (image @ text.T))
    assert torch.equal(output.mask, torch.ones(5, 7, 16, dtype=torch.float64))
    assert not torch.equal(head(image, text, 50.0).logits, output.logits)


def test_strength_interpolates_the_mask() -> None:
    head = trained_head()
    image, text = features(3, 16, 1), features(4, 16, 2)
    full = head(image, text, 50.0, return_mask=True)
    half = head(image, text, 50.0, strength=0.25, return_mask=True)
    assert torch.allclose(half.mask, 1 + 0.25 * (full.mask - 1))
    assert torch.allclose(half.max_deviation, 0.25 * full.max_deviation)
    assert torch.allclose(half.logits, 0.75 * 50.0 * image @ text.T + 0.25 * full.logits)


def test_logits_are_the_masked_sum_and_deviation_is_of_the_mask() -> None:
    head = trained_head()
    image, text = features(3, 16, 1), features(4, 16, 2)
    output = head(image, text, 20.0, return_mask=True)
    expected = 20.0 * (output.mask * rational_matrix(image, text)).sum(-1)
    assert torch.allclose(output.logits, expected, rtol=0, atol=1e-12)
    assert torch.allclose(output.max_deviation, (output.mask - 1).abs().amax((1, 2)))


def test_permuting_the_classes_permutes_the_output() -> None:
    head = trained_head()
    image, text = features(3, 16, 1), features(11, 16, 2)
    order = torch.randperm(11, generator=torch.Generator().manual_seed(3))
    plain = head(image, text, 30.0, return_mask=True)
    permuted = head(image, text[order], 30.0, return_mask=True)
    assert torch.allclose(permuted.logits, plain.logits[:, order], rtol=0, atol=1e-12)
    assert torch.allclose(permuted.mask, plain.mask[:, order], rtol=0, atol=1e-12)


def test_images_of_a_batch_do_not_see_each_other() -> None:
    head = trained_head()
    image, text = features(6, 16, 1), features(5, 16, 2)
    together = head(image, text, 30.0).logits
    alone = torch.cat([head(row[None], text, 30.0).logits for row in image])
    assert torch.allclose(together, alone, rtol=0, atol=1e-12)


def test_one_head_serves_any_number_of_classes() -> None:
    head = trained_head()
    shapes = {name: tuple(p.shape) for name, p in head.named_parameters()}
    for classes in (1, 2, 9, 40):
        assert head(features(2, 16, 1), features(classes, 16, 2), 10.0).logits.shape == (2, classes)
    assert {name: tuple(p.shape) for name, p in head.named_parameters()} == shapes
    assert sum(p.numel() for p in RAdaHead(512).parameters()) == 1_575_936


def test_a_subset_of_classes_is_not_a_slice_of_the_logits() -> None:
    head = trained_head()
    image, text = features(4, 16, 1), features(10, 16, 2)
    whole = head(image, text, 100.0).logits[:, :5]
    subset = head(image, text[:5], 100.0).logits
    assert (whole - subset).abs().max() > 1e-4


def test_only_out_learns_at_first_and_then_every_layer() -> None:
    torch.manual_seed(0)
    head = RAdaHead(16, 4).double()
    image, text = features(6, 16, 1), features(5, 16, 2)
    labels = torch.arange(6) % 5
    optimizer = torch.optim.SGD(head.parameters(), lr=0.1)

    def layers_with_gradient() -> set[str]:
        optimizer.zero_grad()
        output = head(image, text, 50.0)
        loss = nn.functional.cross_entropy(output.logits, labels) + output.max_deviation.mean()
        loss.backward()
        return {
            name
            for name in ALL_LAYERS
            if (grad := getattr(head, name).weight.grad) is not None and bool(grad.any())
        }

    assert layers_with_gradient() == {"out"}
    optimizer.step()
    assert layers_with_gradient() == set(ALL_LAYERS)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("scale", "temperature"), [(100.0, 1.0), (100.0, 1e-3), (1e-3, 1.0)])
def test_no_nan_however_sharp_the_maps(
    dtype: torch.dtype, scale: float, temperature: float
) -> None:
    head = trained_head(temperature=temperature).to(dtype)
    with torch.no_grad():
        for layer in (head.query_image, head.query_text, head.query_rational, head.key):
            layer.weight.mul_(30)
    image, text = features(3, 16, 1, dtype), features(6, 16, 2, dtype)
    output = head(image, text, scale, return_mask=True)
    (output.logits.sum() + output.max_deviation.sum()).backward()
    assert output.logits.isfinite().all()
    assert output.mask.isfinite().all()
    assert all(p.grad.isfinite().all() for p in head.parameters())


def test_an_empty_batch_is_an_empty_answer() -> None:
    output = trained_head()(torch.zeros(0, 16).double(), features(3, 16, 2), 1.0, return_mask=True)
    assert output.logits.shape == (0, 3)
    assert output.max_deviation.shape == (0,)
    assert output.mask.shape == (0, 3, 16)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dim": 10, "num_heads": 4}, "10"),
        ({"dim": 0}, "0"),
        ({"dim": -8}, "-8"),
        ({"dim": 8.0}, "8.0"),
        ({"dim": 8, "num_heads": 0}, "num_heads"),
        ({"dim": 8, "num_heads": True}, "True"),
        ({"dim": 8, "temperature": 0.0}, "temperature"),
        ({"dim": 8, "temperature": float("nan")}, "nan"),
        ({"dim": 8, "temperature": "1"}, "'1'"),
        ({"dim": 8, "memory_budget": 0}, "memory_budget"),
        ({"dim": 8, "memory_budget": 1.5}, "1.5"),
    ],
)
def test_bad_settings_are_named(arguments: dict, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RAdaHead(**arguments)


@pytest.mark.parametrize(
    ("image", "text", "named"),
    [
        (torch.zeros(2, 8), torch.zeros(3, 16), "width 8"),
        (torch.zeros(2, 16), torch.zeros(3, 8), "width 8"),
        (torch.zeros(16), torch.zeros(3, 16), r"\(16,\)"),
        (torch.zeros(2, 16), torch.zeros(1, 3, 16), r"\(1, 3, 16\)"),
        (torch.zeros(2, 16), torch.zeros(0, 16), "no rows"),
        (torch.zeros(2, 16).long(), torch.zeros(3, 16), "int64"),
        (torch.zeros(2, 16), torch.zeros(3, 16).to(torch.complex64), "complex64"),
        ([[0.0] * 16], torch.zeros(3, 16), "list"),
        (torch.zeros(2, 16, device="meta"), torch.zeros(3, 16), "meta"),
    ],
)
def test_bad_features_are_named(image: torch.Tensor, text: torch.Tensor, named: str) -> None:
    with pytest.raises(FeatureError, match=named):
        RAdaHead(16)(image, text, 1.0)


@pytest.mark.parametrize(
    ("scale", "strength", "named"),
    [
        (0.0, 1.0, "scale"),
        (-3.0, 1.0, "-3.0"),
        (float("inf"), 1.0, "inf"),
        ("10", 1.0, "'10'"),
        (torch.ones(2), 1.0, r"\(2,\)"),
        (torch.tensor(1), 1.0, "int64"),
        (1.0, float("nan"), "nan"),
        (1.0, None, "None"),
    ],
)
def test_bad_scale_and_strength_are_named(scale: object, strength: object, named: str) -> None:
    with pytest.raises(ConfigError, match=named):
        RAdaHead(16)(torch.zeros(2, 16), torch.zeros(3, 16), scale, strength)


def test_state_dict_holds_the_twelve_tensors_and_nothing_else() -> None:
    head = trained_head()
    names = {f"{layer}.{part}" for layer in ALL_LAYERS for part in ("weight", "bias")}
    assert set(head.state_dict()) == names
    other = RAdaHead(16, 4).double()
    other.load_state_dict(head.state_dict())
    image, text = features(3, 16, 1), features(6, 16, 2)
    assert torch.equal(head(image, text, 9.0).logits, other(image, text, 9.0).logits)
    assert torch.equal(head(image, text, 9.0).logits, copy.deepcopy(head)(image, text, 9.0).logits)
