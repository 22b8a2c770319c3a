"""The common matrix: every test runs on every family, loaded from its own on-disk format."""

from __future__ import annotations

import io
import pickle
import subprocess
import sys
import warnings

import numpy as np
import pytest
import torch
from PIL import Image

from rada.core.errors import DataError, EncoderError
from rada.data import open_image
from rada.encoders import TruncationWarning, load_encoder


def own_logits(encoder, images, prompts):
    """Compute the logits as the family's own forward does, from its own processor."""
    model, family = encoder.model, encoder.family
    if family == "open_clip":
        pixels = torch.stack([encoder.preprocess(image) for image in images])
        output = model(pixels, encoder.tokenizer(prompts))
        if isinstance(output, dict):
            keys = ("image_features", "text_features", "logit_scale", "logit_bias")
            output = [output[key] for key in keys if key in output]
        image, text, scale, *bias = output
        return scale * image @ text.T + (bias[0] if bias else 0.0)
    inputs = encoder.preprocess.processor(images=images, return_tensors="pt")
    tokens = encoder.tokenizer(
        prompts, padding=encoder.padding, truncation=True, max_length=16, return_tensors="pt"
    )
    inputs |= {key: tokens[key] for key in encoder.tokenizer.model_input_names if key in tokens}
    if "siglip" in family:
        inputs = {k: v for k, v in inputs.items() if k != "attention_mask"}
    inputs = {k: v for k, v in inputs.items() if k != "token_type_ids"}
    if family == "blip":
        return model(**inputs, use_itm_head=False).itm_score / 0.07
    return model(**inputs).logits_per_image


@torch.no_grad()
def test_logits_equal_the_familys_own(encoder, images, prompts):
    own = own_logits(encoder, images, prompts)
    ours = encoder.logits(encoder.encode_images(images), encoder.encode_texts(prompts))
    torch.testing.assert_close(ours, own, rtol=1e-5, atol=1e-5)
    assert ours.shape == (len(images), len(prompts))
    assert torch.equal((ours - encoder.logit_bias).argmax(1), own.argmax(1))


def test_features_are_unit_norm_float32(encoder, images, prompts):
    encoded, texts = encoder.encode_images(images, batch_size=3), encoder.encode_texts(prompts)
    for features in (encoded, texts):
        assert features.dtype == torch.float32 and features.shape == (4, encoder.dim)
        torch.testing.assert_close(features.norm(dim=-1), torch.ones(4))
    assert not encoded.requires_grad and encoder.model.training is False


def test_pixels_and_images_agree(encoder, images):
    pixels = torch.stack([encoder.preprocess(image) for image in images])
    assert pixels.dtype == torch.float32
    torch.testing.assert_close(encoder.encode_images(pixels), encoder.encode_images(images))


def test_gradients_reach_both_encoders(encoder, images, prompts):
    pixels = torch.stack([encoder.train_transform(image) for image in images])
    encoded = encoder.forward_images(pixels)
    texts = encoder.forward_texts(encoder.tokenize(prompts))
    (encoder.forward_scale() * (encoded @ texts.T)).square().sum().backward()
    for part in ("image", "text"):
        touched = [p.grad is not None for p in encoder.trainable_parameters(part)]
        assert sum(touched) > len(touched) / 2, part
    if "learned_scale" in encoder.capabilities:
        assert encoder.scale_parameters()[0].grad is not None


def test_freezing(encoder):
    everything = len(encoder.trainable_parameters())
    encoder.freeze("image")
    assert encoder.trainable_parameters("image") == []
    assert 0 < len(encoder.trainable_parameters()) < everything
    assert len(encoder.trainable_parameters("text")) > 0
    encoder.freeze()
    assert encoder.trainable_parameters() == []
    encoder.unfreeze()
    assert len(encoder.trainable_parameters()) == everything
    with pytest.raises(EncoderError, match="'tail'"):
        encoder.freeze("tail")


def test_texts_in_chunks(encoder, prompts):
    tokens = encoder.tokenize(prompts * 3)
    whole = encoder.forward_texts(tokens)
    chunked = encoder.forward_texts_chunked(tokens, chunk_size=5)
    torch.testing.assert_close(chunked, whole)
    parameter = encoder.trainable_parameters("text")[0]
    (expected,) = torch.autograd.grad(whole.square().sum() + whole[0].sum(), parameter)
    (found,) = torch.autograd.grad(chunked.square().sum() + chunked[0].sum(), parameter)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=5e-6)


@pytest.mark.parametrize("name", ["open_clip", "open_clip_siglip"])
def test_padding_of_open_clip_is_not_computed(saved, name):
    encoder = load_encoder(saved(name))
    prompts = ["a dog", "a photo of a red dog", "word " * 11]
    whole = encoder.tokenizer(prompts)
    theirs = encoder.model.encode_text(whole, normalize=True)
    torch.testing.assert_close(encoder.forward_texts(encoder.tokenize(prompts)), theirs)
    short = encoder.tokenize(prompts[:2])
    assert short["input_ids"].shape == (2, 8)
    torch.testing.assert_close(encoder.forward_texts(short), theirs[:2], atol=1e-6, rtol=1e-5)
    # Rows of full length, as somebody else's tokenizer makes them, are as good.
    torch.testing.assert_close(encoder.forward_texts({"input_ids": whole}), theirs)


def test_rows_stay_whole_where_padding_counts(saved):
    encoder = load_encoder(saved("open_clip_coca"))
    assert encoder.tokenize(["a dog"])["input_ids"].shape[1] == encoder.max_tokens


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_gives_float32_features(encoder, images, prompts, dtype):
    half = load_encoder(encoder.name, dtype=dtype, device="cpu")
    assert half.dtype == dtype
    for ours, exact in (
        (half.encode_images(images), encoder.encode_images(images)),
        (half.encode_texts(prompts), encoder.encode_texts(prompts)),
    ):
        assert ours.dtype == torch.float32
        assert (ours * exact).sum(1).min() > 0.99
    assert half.fingerprint != encoder.fingerprint
    # Rounded to bfloat16, CLIP's logarithm of 14.285 gives 14.25.
    assert half.scale == encoder.scale and half.logit_bias == encoder.logit_bias


def train_a_step(encoder, images, prompts):
    pixels = torch.stack([encoder.preprocess(image) for image in images])
    similarity = encoder.forward_images(pixels) @ encoder.forward_texts(encoder.tokenize(prompts)).T
    optimizer = torch.optim.AdamW(encoder.trainable_parameters(), lr=1e-2)
    (encoder.forward_scale() * similarity).diagonal().sum().neg().backward()
    optimizer.step()


def test_what_is_remembered_follows_weights(encoder, images, prompts):
    fingerprint = encoder.fingerprint
    assert load_encoder(encoder.name).fingerprint == fingerprint
    before, texts = encoder.encode_images(images), encoder.encode_texts(prompts)
    train_a_step(encoder, images, prompts)
    assert encoder.fingerprint != fingerprint
    assert not torch.equal(encoder.encode_images(images), before)
    assert not torch.equal(encoder.encode_texts(prompts), texts)


def test_fingerprint_is_the_same_in_another_process(saved):
    names = ["clip", "open_clip"]
    code = (
        "import sys; from rada.encoders import load_encoder\n"
        "for name in sys.argv[1:]:\n"
        "    e = load_encoder(name); print(e.fingerprint, e.transform_key('train_transform'))"
    )
    paths = [str(saved(name)) for name in names]
    output = subprocess.run(
        [sys.executable, "-c", code, *paths], capture_output=True, text=True, check=True
    ).stdout.split()
    here = []
    for path in paths:
        encoder = load_encoder(path)
        here += [encoder.fingerprint, encoder.transform_key("train_transform")]
    assert output == here


def test_transforms_can_be_pickled(encoder, images):
    for kind in ("preprocess", "train_transform"):
        transform = getattr(encoder, kind)
        copy = pickle.loads(pickle.dumps(transform))
        assert repr(copy) == repr(transform)
        torch.manual_seed(3)
        expected = transform(images[0])
        torch.manual_seed(3)
        torch.testing.assert_close(copy(images[0]), expected)
        assert expected.dtype == torch.float32


def test_train_transform_is_random_and_like_the_plain_one(encoder, images):
    torch.manual_seed(0)
    first, second = (encoder.train_transform(images[1]) for _ in range(2))
    plain = encoder.preprocess(images[1])
    assert first.shape == second.shape == plain.shape
    assert not torch.equal(first, second)
    assert abs(float(first.mean() - plain.mean())) < 0.3  # the same normalisation


def test_truncation_is_said_and_empty_text_refused(encoder, prompts):
    long = "a photo of " + "a red " * 30 + "dog"
    with pytest.warns(TruncationWarning, match="a red a red.*and 1 more"):
        tokens = encoder.tokenize([*prompts, long, long])
    assert tokens["input_ids"].shape[1] <= 16
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        encoder.tokenize(prompts)
    for bad in (["red", "  "], [""], [], [3], "red"):
        with pytest.raises(DataError):
            encoder.encode_texts(bad)


def test_save_is_read_by_load(encoder, images, prompts, tmp_path):
    train_a_step(encoder, images, prompts)
    encoder.save(tmp_path / "saved")
    again = load_encoder(tmp_path / "saved")
    torch.testing.assert_close(again.encode_images(images), encoder.encode_images(images))
    torch.testing.assert_close(again.encode_texts(prompts), encoder.encode_texts(prompts))
    assert again.scale == pytest.approx(encoder.scale)
    assert again.fingerprint == encoder.fingerprint


def test_built_objects(encoder, images, prompts):
    if encoder.family == "open_clip":
        extra = {"tokenizer": encoder.tokenizer}
    else:
        extra = {"processor": encoder.preprocess.processor, "tokenizer": encoder.tokenizer}
    wrapped = load_encoder(encoder.model, name="mine", **extra)
    assert wrapped.fingerprint == encoder.fingerprint
    assert wrapped.family == encoder.family and wrapped.name == "mine"
    torch.testing.assert_close(wrapped.encode_images(images), encoder.encode_images(images))
    torch.testing.assert_close(wrapped.encode_texts(prompts), encoder.encode_texts(prompts))
    with pytest.raises(EncoderError, match="needs its"):
        load_encoder(encoder.model)
    assert load_encoder(wrapped) is wrapped


def test_scale_can_be_overridden(encoder):
    assert load_encoder(encoder.name, scale=12.5).scale == 12.5
    with pytest.raises(EncoderError, match="scale"):
        load_encoder(encoder.name, scale=-1.0)


def test_the_decoder_may_know_what_is_wanted(encoder, monkeypatch):
    """Where the preprocessing says what it resizes to, a JPEG at a fraction of its size does as well."""
    monkeypatch.setattr("rada.data.images._PHOTO", 0)
    rows = np.random.default_rng(0).integers(0, 256, (9, 16, 3), dtype=np.uint8)
    image = Image.fromarray(rows).resize((800, 450), Image.Resampling.BICUBIC)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=95)
    side = encoder.preprocess.shorter_side
    assert (side is None) == (encoder.family == "siglip2")  # NaFlex keeps the number of patches
    if side is None:
        return
    part = open_image(file, shorter_side=side)
    assert 2 * side <= min(part.size) < 450
    whole, fast = (encoder.preprocess(each) for each in (open_image(file), part))
    assert whole.shape == fast.shape and (whole - fast).abs().mean() < 0.05


def test_the_place_that_is_read_decides(saved):
    """A tokenizer whose padding is the highest number: CLIP reads the first padding, which must be there."""
    encoder = load_encoder(saved("open_clip"))
    encoder.tokenizer = _HighPadding()
    ids = encoder.tokenizer(["a b"])
    tokens = encoder.tokenize(["a b"])
    assert tokens["input_ids"].tolist() == [[1, 5, 6, 49407]]
    theirs = encoder.model.encode_text(ids, normalize=True)
    torch.testing.assert_close(encoder.forward_texts(tokens), theirs, atol=1e-6, rtol=1e-5)


class _HighPadding:
    context_length = 16

    def __call__(self, texts):
        return torch.tensor([[1, 5, 6] + [49407] * 13 for _ in texts])

    def encode(self, text):
        return [5]
