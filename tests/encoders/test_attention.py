"""Queries, keys and values as linear layers: the encoder computes the same, and gets its weights back."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from rada.core.errors import EncoderError

WORDS = ["a dog", "the red car"]


def layer_count(encoder, part):
    return len(encoder.attention_layers(part))


@pytest.mark.parametrize("part", ["image", "text"])
def test_opened_encoders_compute_the_same(encoder, images, part):
    if f"{part}_attention" not in encoder.capabilities:
        with pytest.raises(EncoderError, match=f"does not offer '{part}_attention'"):
            encoder.open_attention(part)
        assert part == "image" or encoder.family == "custom"
        return
    before = {name: value.clone() for name, value in encoder.model.state_dict().items()}
    tokens = encoder.tokenize(WORDS)
    pixels = torch.stack([encoder.preprocess(image) for image in images[:2]])

    def features():
        with torch.no_grad():
            return torch.cat([encoder.forward_images(pixels), encoder.forward_texts(tokens)])

    plain = features()
    names = encoder.open_attention(part)
    try:
        modules = [encoder.model.get_submodule(name) for name in names]
        assert all(type(module) is nn.Linear for module in modules)
        assert len(names) == 3 * layer_count(encoder, part) == len(set(names))
        torch.testing.assert_close(features(), plain, atol=1e-5, rtol=1e-4)
        with torch.no_grad():
            modules[0].weight.add_(0.3 * torch.randn_like(modules[0].weight))
        changed = features()
        assert not torch.allclose(changed, plain, atol=1e-5)
    finally:
        encoder.close_attention()
    torch.testing.assert_close(features(), changed, atol=1e-5, rtol=1e-4)
    after = encoder.model.state_dict()
    assert list(after) == list(before)
    assert sum(not torch.equal(before[name], after[name]) for name in before) == 1


def test_all_three_learn_by_themselves(encoder, images):
    if "image_attention" not in encoder.capabilities:
        pytest.skip("no attention")
    encoder.freeze()
    names = encoder.open_attention("image")
    try:
        pixels = torch.stack([encoder.preprocess(image) for image in images[:2]])
        layers = [encoder.model.get_submodule(name) for name in names]
        for layer in layers:
            layer.weight.requires_grad_()
        encoder.forward_images(pixels)[:, 0].sum().backward()
        assert all(layer.weight.grad.abs().sum() > 0 for layer in layers)
    finally:
        encoder.close_attention()
