"""A tiny CLIP on disk, and folders of pictures whose class is their colour."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from encoders import tiny_models
from golden.make import tiny_encoder
from rada import extract_features
from rada.data import open_dataset
from rada.encoders import load_encoder

COLOURS = {
    "red": (200, 40, 40),
    "green": (40, 200, 40),
    "blue": (40, 40, 200),
    "white": (220, 220, 220),
}


def write_pictures(root: Path, count: int, seed: int, *, names=COLOURS, shift: int = 0) -> Path:
    """Write `count` noisy pictures of each class; `shift` makes them darker."""
    generator = np.random.default_rng(seed)
    for name in names:
        folder = root / name
        folder.mkdir(parents=True)
        base = np.array(COLOURS[name.lower().replace("_", "")]) - shift
        for index in range(count):
            noise = generator.integers(-60, 60, (36, 36, 3))
            pixels = np.clip(base + noise, 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("tiny") / "clip"
    tiny_encoder(folder)  # the same weights with every version of transformers
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory) -> Path:
    """Train 5, test 4, val 3 pictures of each of 4 classes: batches of 8 leave 4 over."""
    root = tmp_path_factory.mktemp("pictures") / "colours"
    for seed, (split, count) in enumerate((("train", 5), ("test", 4), ("val", 3))):
        write_pictures(root / split, count, seed)
    return root


@pytest.fixture(scope="session")
def dark(tmp_path_factory) -> Path:
    return write_pictures(tmp_path_factory.mktemp("dark") / "test", 3, 9, shift=40).parent


@pytest.fixture
def encoder(model_folder):
    return load_encoder(model_folder)


def examples_of(encoder, data):
    """Return the training pictures as features, with class features and scale."""
    split = open_dataset(data).split("train")
    features = extract_features(encoder, split, workers=0, progress=False)
    text = encoder.encode_classes(features.classes)
    return dataclasses.replace(features, text_features=text, scale=encoder.scale)


@pytest.fixture
def examples(encoder, data):
    return examples_of(encoder, data)


@pytest.fixture(scope="session")
def open_clip_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("open-clip") / "model"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        tiny_models.MAKERS["open_clip"](folder)
    return folder


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]
