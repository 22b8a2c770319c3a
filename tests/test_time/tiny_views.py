"""A small encoder with all that a real one has, and images for it."""

from __future__ import annotations

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
    """A convolution and a linear layer; the text encoder reads the letters' sum."""

    family = "tiny"

    def __init__(self, seed=0):
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            layers = nn.Sequential(
                nn.Conv2d(3, 8, 5, stride=3), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 7 * 7, DIM)
            )
            text = nn.Embedding(97, DIM)
        super().__init__(
            nn.ModuleDict({"image": layers, "text": text}),
            name="tiny",
            dim=DIM,
            preprocess=EvalTransform(resize=24, **PLAIN),
            train_transform=TrainTransform(**PLAIN),
            scale=20.0,
        )

    @property
    def image_module(self):
        return self.model["image"]

    @property
    def text_module(self):
        return self.model["text"]

    def image_embeddings(self, pixels):
        return self.image_module(pixels)

    def text_embeddings(self, tokens):
        return self.text_module(tokens["input_ids"][:, 0])

    def tokenize_checked(self, prompts):
        return {"input_ids": torch.tensor([[sum(map(ord, text)) % 97] for text in prompts])}, []

    def tokenizer_key(self):
        return "sum of letters"


def write_images(folder, count=20, seed=0):
    """Write noise images of several sizes and formats; return the split of them."""
    generator = np.random.default_rng(seed)
    ids = []
    for index in range(count):
        height, width = generator.integers(24, 60, size=2)
        pixels = generator.integers(0, 256, size=(height, width, 3), dtype=np.uint8)
        ids.append(f"{index:02d}.{('png', 'jpg')[index % 2]}")
        Path(folder).mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(Path(folder) / ids[-1])
    return ImageSplit.from_files(
        folder, ids, labels=[index % 2 for index in range(count)], classes=("cat", "dog")
    )
