"""Write features of a toy problem as somebody with embeddings has them: .npz, without rada."""

import sys
from pathlib import Path

import numpy as np

folder = Path(sys.argv[1])
folder.mkdir(exist_ok=True)
random = np.random.default_rng(0)
texts = random.normal(size=(5, 32)).astype("float32")
for split in ("train", "test"):
    labels = np.arange(40) % 5
    images = texts[labels] + random.normal(size=(40, 32)).astype("float32")
    np.savez(
        folder / f"{split}.npz",
        image_features=images / np.linalg.norm(images, axis=1, keepdims=True),
        labels=labels,
        classes=np.array(["ant", "bee", "cat", "dog", "emu"]),
        text_features=texts / np.linalg.norm(texts, axis=1, keepdims=True),
        scale=np.float32(20),
    )
