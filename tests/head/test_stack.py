"""Heads in one pass against the equations, head by head, in float64."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from oracle import oracle
from rada import RAdaHead
from rada.head.stack import StackLayout, StackWeights, stacked_attention

SCALE = 30.0


def heads_of(dim: int, members: int) -> list[RAdaHead]:
    torch.manual_seed(0)
    heads = [RAdaHead(dim, 4, 0.5).double() for _ in range(members)]
    for head in heads:
        for parameter in head.parameters():
            torch.nn.init.normal_(parameter, std=0.3)
    return heads


def joined(heads: list[RAdaHead]) -> StackWeights:
    layers = [(head.query_rational, head.key, head.value) for head in heads]
    return StackWeights(
        torch.stack([torch.cat([layer.weight for layer in own]) for own in layers]),
        torch.stack([torch.cat([layer.bias for layer in own]) for own in layers]),
        torch.stack([head.out.weight for head in heads]),
        torch.stack([head.out.bias for head in heads]),
    )


@pytest.mark.parametrize(
    ("images", "classes"),
    [((3, 3), (4, 4)), ((4, 2, 1), (5, 2, 3)), ((2, 3), (3, 3)), ((1,), (1,))],
)
def test_a_stack_is_its_members_forward_and_backward(
    images: tuple[int, ...], classes: tuple[int, ...]
) -> None:
    dim = 16
    heads = heads_of(dim, len(images))
    generator = torch.Generator().manual_seed(1)

    def unit(*shape: int) -> torch.Tensor:
        return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)

    image = unit(len(images), max(images), dim).requires_grad_()
    text = unit(len(images), max(classes), dim).requires_grad_()
    logit_weight = torch.randn(len(images), max(images), max(classes), generator=generator).double()
    peak_weight = torch.randn(len(images), max(images), generator=generator).double()
    layout = StackLayout(images, classes, image)
    root = SCALE**0.5
    queries = [
        torch.stack([getattr(head, name)(root * rows[s]) for s, head in enumerate(heads)])
        for name, rows in (("query_image", image), ("query_text", text))
    ]
    shift, peak = stacked_attention(
        root * image, root * text, *queries, joined(heads), layout, num_heads=4, temperature=0.5
    )
    sources = [image, text, *(p for head in heads for p in head.parameters())]
    total = (shift * logit_weight).sum() + (peak * peak_weight).sum()
    found = torch.autograd.grad(total, sources)
    expected = torch.zeros((), dtype=torch.float64)
    for s, head in enumerate(heads):
        f, h = image[s, : images[s]], text[s, : classes[s]]
        alone = oracle(head, f, h, SCALE)
        own = alone.logits - SCALE * f @ h.T
        torch.testing.assert_close(shift[s, : images[s], : classes[s]], own, rtol=0, atol=1e-9)
        torch.testing.assert_close(peak[s, : images[s]], alone.max_deviation, rtol=0, atol=1e-9)
        assert not bool(shift[s, images[s] :].any() or shift[s, :, classes[s] :].any())
        expected = expected + (own * logit_weight[s, : images[s], : classes[s]]).sum()
        expected = expected + (alone.max_deviation * peak_weight[s, : images[s]]).sum()
    for one, other in zip(found, torch.autograd.grad(expected, sources), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-9, atol=1e-9)
