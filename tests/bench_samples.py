"""Features files for small benchmarks, which need neither pictures nor an encoder."""

from __future__ import annotations

import torch

from rada import Features
from toy import SCALE, toy

NAMES = ("cat", "dog", "eel", "fox", "gnu", "hen")
QUICK = {
    "rada": {"epochs": 2, "min_steps": 0, "batch_size": 8, "strength": 0.5},
    "clip_adapter": {"epochs": 2},
    "cross_modal_probe": {"iterations": 3},
}


def write_features(folder, dim=16, classes=6, name="pets"):
    for split, seed in (("train", 0), ("test", 0)):
        images, labels, text = toy(classes=classes, shots=6, dim=dim, seed=seed)
        if split == "test":
            noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(9)) / 8
            images = torch.nn.functional.normalize(images + noise, dim=-1)
        features = Features(images, labels, NAMES[:classes], text_features=text, scale=SCALE)
        features.save(folder / name / f"{split}.safetensors")
    return str(folder / name)
