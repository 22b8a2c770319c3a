"""The projection of images: what comes before it, and what changing it does."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import normalize

from rada.core.errors import EncoderError

WITHOUT = ("align", "siglip", "siglip2", "open_clip_siglip")


@pytest.fixture
def pixels(encoder, images):
    return torch.stack([encoder.preprocess(image) for image in images])


def test_who_offers_it(request, encoder):
    assert ("image_projection" in encoder.capabilities) == (
        request.node.callspec.params["encoder"] not in WITHOUT
    )


def projected(weight, bias, before):
    width = weight.shape[1]
    embeddings = before[:, :width] @ weight.T
    if bias is not None:
        embeddings = embeddings + before[:, width:] * bias
    return normalize(embeddings, dim=-1)


def test_projection_of_what_is_before_it_gives_the_features(encoder, pixels):
    if "image_projection" not in encoder.capabilities:
        for call in (encoder.image_projection, encoder.before_image_projection):
            with pytest.raises(EncoderError, match="does not offer 'image_projection'"):
                call()
        return
    fingerprint = encoder.fingerprint
    weight, bias = encoder.image_projection()
    earlier = encoder.before_image_projection()
    before = earlier.encode_images(pixels)
    assert weight.shape == (encoder.dim, earlier.dim - (bias is not None))
    assert before.shape == (len(pixels), earlier.dim)
    expected = encoder.encode_images(pixels)
    torch.testing.assert_close(projected(weight, bias, before), expected, atol=1e-5, rtol=1e-4)
    # The encoder itself is as it was.
    assert encoder.fingerprint == fingerprint != earlier.fingerprint
    changed = torch.randn(weight.shape, generator=torch.Generator().manual_seed(0))
    encoder.set_image_projection(changed)
    assert encoder.fingerprint != fingerprint
    found = encoder.encode_images(pixels)
    torch.testing.assert_close(found, projected(changed, bias, before), atol=1e-5, rtol=1e-4)
    assert not torch.allclose(found, expected, atol=1e-2)


def test_a_bias_is_there_in_some(loaded):
    assert loaded("open_clip_resnet").image_projection().bias is not None
    assert loaded("blip").image_projection().bias is not None
    assert loaded("clip").image_projection().bias is None


def test_embedded_model(embedded_encoder, images):
    pixels = torch.stack([embedded_encoder.preprocess(image) for image in images])
    weight, bias = embedded_encoder.image_projection()
    assert weight.shape == (384, 1000) and bias is None
    before = embedded_encoder.before_image_projection().encode_images(pixels)
    expected = embedded_encoder.encode_images(pixels)
    torch.testing.assert_close(projected(weight, None, before), expected, atol=1e-4, rtol=1e-3)
