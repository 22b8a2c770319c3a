"""RAda learns on every architecture: its head beats the tiny model's zero-shot."""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image

from rada.head import RAdaHead

COLOURS = {
    "red": (220, 40, 40),
    "green": (40, 200, 40),
    "blue": (40, 40, 220),
    "yellow": (230, 230, 40),
}


def coloured(count, seed):
    """Make noisy images of four colours, which any image encoder tells apart."""
    generator = np.random.default_rng(seed)
    labels = np.arange(count) % len(COLOURS)
    means = np.array(list(COLOURS.values()))[labels][:, None, None]
    noise = generator.normal(0, 30, (count, 40, 40, 3))
    pixels = (means + noise).clip(0, 255).astype(np.uint8)
    return [Image.fromarray(array) for array in pixels], torch.from_numpy(labels)


def test_head_beats_zero_shot(encoder):
    torch.manual_seed(0)
    images, labels = coloured(24, seed=0)
    others, truth = coloured(24, seed=1)
    texts = encoder.encode_classes(list(COLOURS))
    train, test = encoder.encode_images(images), encoder.encode_images(others)
    head = RAdaHead(encoder.dim, num_heads=4)
    optimizer = torch.optim.AdamW(head.parameters(), lr=5e-3)
    scale = max(encoder.scale, 50.0)
    for _ in range(50):
        output = head(train, texts, scale)
        loss = torch.nn.functional.cross_entropy(output.logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        adapted = (head(test, texts, scale).logits.argmax(1) == truth).float().mean()
    zero_shot = (encoder.logits(test, texts).argmax(1) == truth).float().mean()
    assert adapted > zero_shot + 0.2, (float(adapted), float(zero_shot))
