"""Weights in bfloat16 that are laid out once: the same products, and what must never be kept."""

from __future__ import annotations

import gc

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from torch import nn
from torch.nn import functional

from encoders.tiny_models import MAKERS
from rada.encoders import load_encoder, packing
from rada.encoders.packing import packed_weights

HALF, CPU = torch.bfloat16, torch.device("cpu")
PACKS = pytest.mark.skipif(not packing._is_possible(), reason="a processor without bfloat16")


def in_block(run, *inputs):
    with torch.no_grad(), packed_weights(HALF, CPU):
        return run(*inputs)


@given(
    rows=st.sampled_from([(1,), (3,), (2, 5), (1, 1), (0,), (4, 3, 2)]),
    width=st.integers(1, 70),
    out=st.integers(1, 70),
    bias=st.booleans(),
)
def test_products_are_the_same_to_the_bit(rows, width, out, bias):
    torch.manual_seed(width)
    layer = nn.Linear(width, out, bias=bias).to(HALF)
    inputs = torch.randn(*rows, width).to(HALF)
    with torch.no_grad():
        plain = layer(inputs)
    assert torch.equal(in_block(layer, inputs), plain)
    assert torch.equal(in_block(layer, inputs), plain)  # now from what is kept


@PACKS
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("first", [False, True])
def test_attention_is_that_of_float64(masked, first):
    torch.manual_seed(0)
    exact = nn.MultiheadAttention(64, 4, batch_first=first).double().eval()
    nn.init.normal_(exact.in_proj_bias)
    mask = torch.full((6, 6), float("-inf"), dtype=torch.float64).triu(1) if masked else None
    tokens = torch.randn(3, 6, 64) if first else torch.randn(6, 3, 64)

    def run(module, dtype):
        rows = tokens.to(dtype)
        options = {"attn_mask": None if mask is None else mask.to(dtype), "need_weights": False}
        with torch.no_grad():
            return module.to(dtype)(rows, rows, rows, **options)[0].double()

    wanted = run(exact, torch.float64)
    half = run(exact, HALF)
    found = in_block(run, exact, HALF)
    assert found.shape == wanted.shape
    assert all(weight in packing._kept for weight in (exact.in_proj_weight, exact.out_proj.weight))
    assert (found - wanted).norm() <= 1.2 * (half - wanted).norm() < 0.02 * wanted.norm()


ODD = {
    "weights are asked for": {"need_weights": True},
    "padding": {"need_weights": False, "key_padding_mask": torch.eye(3, 6, dtype=torch.bool)},
    "a mask of truth values": {"need_weights": False, "attn_mask": torch.eye(6).bool()},
    "a mask of each head": {"need_weights": False, "attn_mask": torch.zeros(12, 6, 6, dtype=HALF)},
}


@pytest.mark.parametrize("options", ODD.values(), ids=ODD)
def test_rare_forms_of_attention_are_as_before(options):
    torch.manual_seed(0)
    attention = nn.MultiheadAttention(32, 4).to(HALF).eval()
    tokens = torch.randn(6, 3, 32).to(HALF)
    with torch.no_grad():
        torch.backends.mha.set_fastpath_enabled(False)
        try:
            plain = attention(tokens, tokens, tokens, **options)
        finally:
            torch.backends.mha.set_fastpath_enabled(True)
    found = in_block(lambda: attention(tokens, tokens, tokens, **options))
    assert torch.allclose(found[0].float(), plain[0].float(), atol=0.01)
    assert (found[1] is None) == (plain[1] is None)


def test_other_keys_than_queries():
    attention = nn.MultiheadAttention(32, 4).to(HALF).eval()
    tokens, others = torch.randn(2, 3, 32).to(HALF), torch.randn(6, 3, 32).to(HALF)
    with torch.no_grad():
        plain = attention(tokens, others, others, need_weights=False)[0]
    found = in_block(lambda: attention(tokens, others, others, need_weights=False)[0])
    assert torch.allclose(found.float(), plain.float(), atol=0.01)


def test_a_weight_that_changes_is_laid_out_again():
    layer, rows = nn.Linear(8, 4).to(HALF), torch.randn(2, 8).to(HALF)
    before = in_block(layer, rows)
    optimizer = torch.optim.SGD(layer.parameters(), lr=1.0)
    layer(rows).sum().backward()
    optimizer.step()
    after = in_block(layer, rows)
    assert not torch.equal(after, before)
    assert torch.equal(after, layer(rows).detach())
    layer.load_state_dict({"weight": torch.ones(4, 8), "bias": torch.zeros(4)})
    assert torch.equal(in_block(layer, rows), layer(rows).detach())
    layer.weight = nn.Parameter(torch.zeros(4, 8, dtype=HALF))
    assert in_block(layer, rows).count_nonzero() == 0


@PACKS
def test_what_is_kept_is_freed_with_the_weight():
    layer, rows = nn.Linear(8, 4).to(HALF), torch.randn(2, 8).to(HALF)
    count = len(packing._kept)
    in_block(layer, rows)
    assert len(packing._kept) == count + 1
    del layer
    gc.collect()
    assert len(packing._kept) == count


@pytest.mark.parametrize(
    ("dtype", "device"), [(torch.float32, "cpu"), (torch.float16, "cpu"), (HALF, "meta")]
)
def test_other_precisions_and_devices_are_left_alone(dtype, device):
    layer, rows = nn.Linear(8, 4).to(dtype), torch.randn(2, 8).to(dtype)
    count = len(packing._kept)
    with torch.no_grad(), packed_weights(dtype, torch.device(device)):
        found = layer(rows)
    assert torch.equal(found, layer(rows))
    assert len(packing._kept) == count


def test_processors_that_do_not_multiply_in_bfloat16_are_left_alone(monkeypatch):
    monkeypatch.setattr(packing, "_is_possible", lambda: False)
    layer, rows = nn.Linear(8, 4).to(HALF), torch.randn(2, 8).to(HALF)
    count = len(packing._kept)
    assert torch.equal(in_block(layer, rows), layer(rows).detach())
    assert len(packing._kept) == count


def test_the_processor_is_asked():
    packing._is_possible.cache_clear()
    assert packing._is_possible() == torch.ops.mkldnn._is_mkldnn_bf16_supported()


def test_gradients_and_mixed_types_pass():
    layer, rows = nn.Linear(8, 4).to(HALF), torch.randn(2, 8).to(HALF)
    with packed_weights(HALF, CPU):
        layer(rows).sum().backward()
    assert layer.weight.grad is not None
    found = in_block(functional.linear, rows, layer.weight * 2, layer.bias)
    assert torch.equal(found, functional.linear(rows, layer.weight * 2, layer.bias).detach())
    exact = nn.Linear(8, 4)
    assert torch.equal(in_block(exact, rows.float()), exact(rows.float()).detach())
    with pytest.raises(RuntimeError, match=r"dtype|type"):
        in_block(exact, rows)


@PACKS
@pytest.mark.parametrize("family", sorted(MAKERS))
def test_encoders_in_bfloat16_keep_their_features(saved, family):
    exact, half = load_encoder(saved(family)), load_encoder(saved(family), dtype="bfloat16")
    count = len(packing._kept)
    prompts = ["a cat", "two red dogs"]
    assert ((exact.encode_texts(prompts) * half.encode_texts(prompts)).sum(1) > 0.999).all()
    assert len(packing._kept) > count
    images = [Image.new("RGB", (40, 30), color) for color in ("red", "teal")]
    features = half.encode_images(images)
    assert ((exact.encode_images(images) * features).sum(1) > 0.999).all()
    assert torch.equal(half.encode_images(images), features)


def test_a_compiled_model_runs():
    layer = nn.Linear(12, 4).to(HALF)
    compiled = torch.compile(nn.Sequential(nn.Flatten(), layer), backend="eager")
    rows = torch.randn(2, 3, 2, 2).to(HALF)
    assert torch.allclose(in_block(compiled, rows), layer(rows.flatten(1)), atol=0.01)
