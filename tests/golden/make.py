"""Fits every method on tiny data and returns its logits; `python -m` writes them to logits.json.

The file was made before the methods moved into one registry: what moved must still compute the same. A
change that is meant is named in the commit that writes the file again.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch.nn.functional import normalize

from toy import SCALE, toy

PATH = Path(__file__).with_name("logits.json")
ENCODER = Path(__file__).with_name("tiny_clip.safetensors")
NAMES = ("cat", "dog", "eel", "fox", "gnu", "hen")
NEW = ("cat", "dog", "owl", "pig")
QUICK: dict[str, dict[str, Any]] = {
    "clip_adapter": {"epochs": 8},
    "tip_adapter_f": {"epochs": 6},
    "cross_modal_probe": {"iterations": 20},
    "rada": {"epochs": 4, "min_steps": 30, "batch_size": 8},
    "rada_probe": {"epochs": 4, "min_steps": 30, "batch_size": 8},
    "rada_released": {"epochs": 2},
    "rada_adapter": {"epochs": 4, "min_steps": 30, "batch_size": 8, "hidden": 4},
    "coop": {"epochs": 4},
    "cocoop": {"epochs": 2},
    "kgcoop": {"epochs": 4},
    "prograd": {"epochs": 4, "length": 6},
    # A strength that is chosen, or fast steps of whole encoders, would make rounding visible: another
    # processor would take another branch.
    "rada_coop": {
        **{"epochs": 2, "min_steps": 10, "batch_size": 8, "prompt_epochs": 1, "strength": 1.0},
    },
    "rada_kgcoop": {"epochs": 4, "min_steps": 30, "batch_size": 8, "prompt_epochs": 2},
    "rada_ft": {"head_epochs": 1, "learning_rate": 1e-5, "strength": 0.5},
    "taskres": {"epochs": 8},
    "clap": {"epochs": 20},
    "lp_plus_plus": {"iterations": 40},
    "rla": {"iterations": 20, "learning_rate": 1e-3},
    # Versions of torch drop other numbers from one seed.
    "clip_lora": {"learning_rate": 1e-2, "dropout": 0.0},
    "mmrl": {"epochs": 2},
    "mma": {"epochs": 2, "learning_rate": 1e-2},
    "tcp": {"epochs": 4},
    "dept_coop": {"epochs": 3},
    "dept_cocoop": {"epochs": 3},
    "dept_kgcoop": {"epochs": 3},
    "dept_maple": {"epochs": 2, "learning_rate": 1e-2},
    "dept_promptsrc": {"epochs": 2, "learning_rate": 1e-2},
    "rada_promptsrc": {
        **{"epochs": 2, "learning_rate": 1e-2, "strength": 1.0},
        **{"head_epochs": 2, "head_min_steps": 20},
    },
    "maple": {"epochs": 2, "learning_rate": 1e-2},
    "promptsrc": {"epochs": 2, "learning_rate": 1e-2},
    "prolip": {"iterations": 20, "learning_rate": 1e-3},
}
TUNED = {"epochs": 1, "batch_size": 8, "learning_rate": 1e-3, "augmentation": "plain"}
COLOURS = {"red": (200, 40, 40), "green": (40, 200, 40), "blue": (40, 40, 200)}


def on_features(name: str) -> dict[str, list[list[float]]]:
    """Return logits among the trained classes and, where it can, among some new ones."""
    from rada.features import ClassSet, Features
    from rada.methods import Run, UnknownClassError, get_method

    images, labels, text = toy(classes=6, shots=4, dim=16)
    method = get_method(name)
    data = Features(images, labels, NAMES, text_features=text, scale=SCALE)
    model = method.fit(data, method.config(**QUICK.get(name, {})), Run(seed=1))
    found = {"trained": model.logits(images[:4], data.class_set())}
    strange = normalize(torch.randn(2, 16, generator=torch.Generator().manual_seed(5)), dim=-1)
    with contextlib.suppress(UnknownClassError):
        found["new"] = model.logits(images[:4], ClassSet(NEW, torch.cat([text[:2], strange])))
    return {key: value.tolist() for key, value in found.items()}


def tiny_encoder(folder: Path) -> Any:
    from encoders import tiny_models
    from rada.encoders import load_encoder

    with torch.random.fork_rng(devices=[]):
        tiny_models.clip(folder)
    # Versions of transformers draw other numbers from one seed, and what is golden must not depend on them.
    shutil.copyfile(ENCODER, folder / "model.safetensors")
    return load_encoder(folder)


def write_images(root: Path) -> Path:
    generator = np.random.default_rng(3)
    for name, base in COLOURS.items():
        (root / name).mkdir(parents=True)
        for index in range(4):
            pixels = np.clip(np.array(base) + generator.integers(-60, 60, (36, 36, 3)), 0, 255)
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{index}.png")
    return root


def quick_config(name: str) -> Any:
    """Return the config of a method that learns a little in a second."""
    from rada.methods import get_method
    from rada.training.encoder_config import EncoderConfig

    config = get_method(name).config
    tuned = TUNED if issubclass(config, EncoderConfig) else {}
    return config(**tuned | QUICK.get(name, {}))


def on_images(name: str, fits: Any) -> dict[str, list[list[float]]]:
    """Return logits of a method that asks or trains an encoder, among the trained classes."""
    clf = fits.load(name)
    return {"trained": clf.logits(str(fits.images)).tolist()}


def logits(name: str, fits: Any) -> dict[str, list[list[float]]]:
    from rada.methods import get_method

    found = on_images(name, fits) if get_method(name).needs else on_features(name)
    return {
        key: [[round(value, 4) for value in row] for row in rows] for key, rows in found.items()
    }


if __name__ == "__main__":
    from fits import Fits
    from rada.methods import list_methods

    wanted = sys.argv[1:] or [method.name for method in list_methods()]
    known = json.loads(PATH.read_text()) if PATH.exists() else {}
    with tempfile.TemporaryDirectory() as root:
        known |= {name: logits(name, Fits(Path(root))) for name in wanted}
    PATH.write_text(json.dumps(known, sort_keys=True) + "\n")
