"""Turn a file of CLIP features of ImageNet into features that `rada bench` reads.

    python benchmarks/imagenet_features.py clip_vitb32_imagenet.npz imagenet-b32

The `.npz` holds `text (1000, D)`, `two_shot`, `two_shot_labels`, `one_shot` and `one_shot_labels`. The
two shots become `train.safetensors`, the one shot `test.safetensors`; both hold all classes, since the
protocol chooses which it trains on:

    rada bench --protocol base-to-new --datasets imagenet-b32 --shots 2 --methods zero_shot,rada --out DIR
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from rada import Features
from rada.data.kinds.imagenet import imagenet_classes

SCALE = 100.0


def main(source: str, out: str) -> None:
    with np.load(source, allow_pickle=False) as file:
        arrays = {name: torch.from_numpy(file[name].astype(np.float32)) for name in file.files}
    for split, name in (("train", "two_shot"), ("test", "one_shot")):
        features = Features(
            torch.nn.functional.normalize(arrays[name], dim=-1),
            arrays[f"{name}_labels"].long(),
            imagenet_classes(),
            text_features=torch.nn.functional.normalize(arrays["text"], dim=-1),
            scale=SCALE,
            encoder="CLIP ViT-B/32",
        )
        Path(out).mkdir(parents=True, exist_ok=True)
        print(features.save(Path(out) / f"{split}.safetensors"), len(features))


if __name__ == "__main__":
    main(*sys.argv[1:])
