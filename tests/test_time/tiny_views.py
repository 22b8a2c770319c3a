"""A small encoder with all that a real one has, and images for it."""

from __future__ import annotations

import torch
from torch import nn

from features.tiny import DIM, PLAIN, write_images
from rada.encoders import DualEncoder
from rada.encoders.transforms import EvalTransform, TrainTransform

__all__ = ["TinyEncoder", "write_images"]


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
