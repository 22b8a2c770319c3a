"""A small encoder with all that a real one has, for tests and the scripts that they start."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import nn

from rada.data import ImageSplit
from rada.encoders import DualEncoder
from rada.encoders.transforms import EvalTransform, TrainTransform

DIM = 16
PLAIN = {"size": (24, 24), "mean": (0.5,) * 3, "std": (0.5,) * 3}


class TinyEncoder(DualEncoder):
    """Convolution, batch norm and a linear layer; `delay` seconds a batch, as a large model takes."""

    family = "tiny"

    def __init__(self, seed=0, resize=24, delay=0.0, name="tiny"):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layer = nn.Sequential(
                nn.Conv2d(3, 8, 5, stride=3),
                nn.BatchNorm2d(8),
                nn.ReLU(),
                nn.Flatten(),
                nn.Linear(8 * 7 * 7, DIM),
            )
            text = nn.Linear(1, DIM)
        super().__init__(
            nn.ModuleDict({"image": layer, "text": text}),
            name=name,
            dim=DIM,
            preprocess=EvalTransform(resize=resize, **PLAIN),
            train_transform=TrainTransform(**PLAIN),
        )
        self.delay = delay

    @property
    def image_module(self):
        return self.model["image"]

    @property
    def text_module(self):
        return self.model["text"]

    def image_embeddings(self, pixels):
        time.sleep(self.delay)
        return self.image_module(pixels)

    def text_embeddings(self, tokens):
        return self.text_module(tokens["input_ids"].float()[:, :1])

    def tokenize_checked(self, prompts):
        return {"input_ids": torch.tensor([[len(text)] for text in prompts])}, []

    def tokenizer_key(self):
        return "length"


def write_images(folder, count=20, seed=0, scale=1):
    """Write noise images of several sizes and formats; return the split of them.

    `scale` makes them larger, each pixel a square.
    """
    generator = np.random.default_rng(seed)
    ids = []
    for index in range(count):
        height, width = generator.integers(24, 60, size=2)
        pixels = generator.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
        pixels = pixels.repeat(scale, 0).repeat(scale, 1)
        ids.append(f"{index:02d}.{('png', 'jpg')[index % 2]}")
        Path(folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(Path(folder) / ids[-1])
    return ImageSplit.from_files(
        folder, ids, labels=[index % 2 for index in range(count)], classes=("cat", "dog")
    )
