"""A few-shot problem on made-up features, and one on the text encoder of a tiny CLIP."""

from __future__ import annotations

import pytest
import torch

from golden.make import tiny_encoder
from rada.features import Features
from toy import SCALE, toy

NAMES = ("cat", "dog", "eel", "fox", "gnu", "hen")


@pytest.fixture(scope="session")
def clip(tmp_path_factory):
    return tiny_encoder(tmp_path_factory.mktemp("tiny") / "clip")


@pytest.fixture
def data() -> Features:
    images, labels, text = toy(classes=6, shots=4, dim=16)
    return Features(images, labels, NAMES, text_features=text, scale=SCALE)


@pytest.fixture
def text_data(clip) -> Features:
    """Images near the class features of a tiny CLIP."""
    generator = torch.Generator().manual_seed(0)
    names = ("red", "green", "blue")
    text = clip.encode_classes(names)
    labels = torch.arange(3).repeat(2)
    noise = torch.randn(6, text.shape[1], generator=generator) / 8
    images = torch.nn.functional.normalize(text[labels] + noise, dim=-1)
    return Features(images, labels, names, text_features=text, scale=50.0)
