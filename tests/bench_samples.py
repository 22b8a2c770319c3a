"""Features files for small benchmarks, which need no encoder, and images that look like their classes."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image, ImageColor

from rada import Features
from toy import SCALE, toy

COLORS = ("red", "lime", "blue", "yellow")
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


def colored(folder, domains):
    """Noisy images of four colours, in folders `domain/class` of unequal size."""
    generator = np.random.default_rng(0)
    for domain in domains:
        for place, name in enumerate(COLORS):
            for number in range(4 + place):
                noise = generator.integers(-40, 40, (24, 24, 3))
                pixels = np.clip(np.array(ImageColor.getrgb(name)) + noise, 0, 255)
                path = folder / domain / name / f"{number}.png"
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(pixels.astype(np.uint8)).save(path)
    return [str(folder / domain) for domain in domains]
