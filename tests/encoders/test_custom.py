"""A user's own pair of functions."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from rada import Classifier
from rada.core.errors import EncoderError
from rada.encoders import CustomEncoder, load_encoder
from rada.features import FeatureCache

COLOURS = {"red": (255, 0, 0), "green": (0, 255, 0), "blue": (0, 0, 255)}


def text_fn(texts):
    return (
        np.array([COLOURS.get(text.split()[-1].strip("."), (255, 255, 255)) for text in texts])
        / 255.0
    )


def image_fn(pixels):
    return pixels.mean((2, 3)) + 1


def make(**options):
    return CustomEncoder(image_fn, text_fn, scale=10.0, dim=3, **options)


def test_functions_become_an_encoder():
    encoder = make()
    images = encoder.encode_images([Image.new("RGB", (40, 30), colour) for colour in COLOURS])
    texts = encoder.encode_classes(list(COLOURS))
    assert (images @ texts.T).argmax(1).tolist() == [0, 1, 2]
    assert images.dtype == texts.dtype == torch.float32
    assert encoder.scale == 10.0 and load_encoder(encoder) is encoder
    assert encoder.trainable_parameters() == [] and encoder.capabilities == frozenset()


def test_modules_can_be_trained():
    torch.manual_seed(0)
    layer, table = nn.Linear(3, 4), nn.Embedding(10, 4)
    encoder = CustomEncoder(
        lambda pixels: layer(pixels.mean((2, 3))),
        lambda tokens: table(tokens["numbers"]),
        scale=5.0,
        dim=4,
        tokenize=lambda texts: {"numbers": torch.tensor([len(text) for text in texts])},
        image_module=layer,
        text_module=table,
    )
    before = encoder.fingerprint
    texts = encoder.forward_texts_chunked(encoder.tokenize(["a", "bb", "ccc"]), chunk_size=2)
    images = encoder.forward_images(torch.rand(2, 3, 8, 8))
    (images @ texts.T)[0, 0].backward()
    assert len(encoder.trainable_parameters()) == 3
    assert all(parameter.grad is not None for parameter in encoder.trainable_parameters())
    torch.optim.SGD(encoder.trainable_parameters(), lr=0.1).step()
    assert encoder.fingerprint != before


def test_fingerprint():
    assert make().fingerprint == make().fingerprint
    brighter = CustomEncoder(lambda pixels: image_fn(pixels) + 1, text_fn, scale=10.0, dim=3)
    assert brighter.fingerprint != make().fingerprint
    assert make(fingerprint="1").fingerprint != make(fingerprint="2").fingerprint
    assert make(fingerprint="1").fingerprint == make(fingerprint="1").fingerprint


@pytest.mark.parametrize(
    ("result", "message"),
    [
        (torch.ones(1, 4), r"shape \(1, 4\), not \(1, 3\)"),
        (torch.full((1, 3), float("nan")), "NaN"),
        (torch.zeros(1, 3), "zeros"),
        (None, r"image_fn returned NoneType, not features \(1, 3\)"),
        ("red", "image_fn returned str"),
        ([[1.0], [1.0, 2.0]], "image_fn returned list"),
    ],
)
def test_bad_features_are_refused(result, message):
    encoder = CustomEncoder(lambda pixels: result, text_fn, scale=1.0, dim=3)
    with pytest.raises(EncoderError, match=message):
        encoder.encode_images([Image.new("RGB", (8, 8))])


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.zeros((3, 8, 8), np.float32), "gave an image as ndarray, not as a tensor"),
        (torch.zeros(3), r"pixels should be \(B, 3, H, W\), not \(1, 3\)"),
    ],
)
def test_bad_preprocessing_is_refused(pixels, message):
    encoder = make(preprocess=lambda image: pixels)
    options = {"cache": False, "workers": 0, "progress": False}
    image = Image.new("RGB", (8, 8))
    with pytest.warns(UserWarning, match="image_fn .* cannot embed"):
        assert encoder.fingerprint == encoder.fingerprint
    with pytest.raises(EncoderError, match=message):
        encoder.encode_images([image])
    with pytest.raises(EncoderError, match=message):
        Classifier(encoder, "zero_shot", ["red", "green"], **options).predict([image])


def test_functions_that_know_their_own_input_alone(tmp_path):
    def of_words(texts):
        return torch.tensor([COLOURS[text] for text in texts]) / 255.0

    def opened(**options):
        return CustomEncoder(image_fn, of_words, scale=10.0, dim=3, **options)

    encoder = opened()
    cache = FeatureCache(tmp_path / "cache")
    options = {"templates": "{}", "workers": 0, "progress": False, "cache": cache}
    with pytest.warns(UserWarning, match=r"text_fn .* \(KeyError: .*fingerprint='"):
        fingerprint = encoder.fingerprint
    assert encoder.fingerprint == fingerprint
    images = [Image.new("RGB", (40, 30), colour) for colour in COLOURS]
    zero_shot = Classifier(encoder, "zero_shot", list(COLOURS), **options)
    assert zero_shot.predict(images).tolist() == list(COLOURS)
    learned = Classifier(encoder, "linear_probe", **options)
    learned.fit((images * 4, list(COLOURS) * 4)).save_pretrained(tmp_path / "own")
    assert learned.predict(images).tolist() == list(COLOURS)
    assert not encoder.lasting and not cache.list()  # no later process would find it
    with pytest.warns(UserWarning):  # another pair may have other words
        assert opened().fingerprint != fingerprint
    assert opened(fingerprint="1").fingerprint == opened(fingerprint="1").fingerprint
    with pytest.raises(KeyError) as raised:
        encoder.encode_texts(["owl"])
    assert raised.value.__notes__ == ["in text_fn of the encoder 'custom'"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dim": 0}, "dim"),
        ({"scale": 0.0}, "scale"),
        ({"image_fn": None}, "image_fn"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    given = {"image_fn": image_fn, "text_fn": text_fn, "scale": 1.0, "dim": 3} | arguments
    with pytest.raises(EncoderError, match=message):
        CustomEncoder(**given)


def test_missing_capability_is_a_clear_error():
    with pytest.raises(EncoderError, match=r"does not offer 'token_embeddings'.*it offers: none"):
        make().embed_tokens({})
    with pytest.raises(EncoderError, match="does not offer 'save'"):
        make().save("/nowhere")
