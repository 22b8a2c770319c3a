"""AugMix against a transcription of the code that TPT runs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torchvision.transforms import functional

from rada.encoders.transforms import TrainTransform
from rada.test_time.augmix import OPERATIONS, augment_and_mix
from rada.test_time.views import AugMixTransform

SIZE = 224


@pytest.fixture(scope="module")
def image():
    """Smooth colours with fine noise: every operation has something to change."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0:SIZE, 0:SIZE] / SIZE
    base = np.stack([rows, columns, (rows + columns) / 2], -1) * 200 + 40
    noise = generator.integers(-15, 15, base.shape)
    return Image.fromarray(np.clip(base + noise, 0, 255).astype(np.uint8))


def published(image, preprocess, random):
    """`augmix` of TPT's data/datautils.py with data/augmix_ops.py, at severity 1."""
    level = lambda: random.uniform(0.1, 1)  # noqa: E731
    sign = lambda: -1 if random.uniform() > 0.5 else 1  # noqa: E731

    def shift(matrix):
        return image_.transform((SIZE, SIZE), Image.AFFINE, matrix, Image.BILINEAR)

    def one(name):
        if name == "autocontrast":
            return ImageOps.autocontrast(image_)
        if name == "equalize":
            return ImageOps.equalize(image_)
        if name == "posterize":
            return ImageOps.posterize(image_, 4 - int(level() * 4 / 10))
        if name == "rotate":
            degrees = int(level() * 30 / 10)
            return image_.rotate(sign() * degrees, resample=Image.BILINEAR)
        if name == "solarize":
            return ImageOps.solarize(image_, 256 - int(level() * 256 / 10))
        if name.startswith("shear"):
            part = float(level()) * 0.3 / 10
            part = sign() * part
            return shift((1, part, 0, 0, 1, 0) if name == "shear_x" else (1, 0, 0, part, 1, 0))
        pixels = int(level() * (SIZE / 3) / 10)
        pixels = sign() * pixels
        return shift((1, 0, pixels, 0, 1, 0) if name == "translate_x" else (1, 0, 0, 0, 1, pixels))

    names = ["autocontrast", "equalize", "posterize", "rotate", "solarize"]
    names += ["shear_x", "shear_y", "translate_x", "translate_y"]
    weights = random.dirichlet([1.0, 1.0, 1.0])
    share = random.beta(1.0, 1.0)
    mix = torch.zeros(3, SIZE, SIZE)
    for index in range(3):
        image_ = image.copy()
        for _ in range(random.integers(1, 4)):
            image_ = one(names[random.integers(9)])
        mix += np.float32(weights[index]) * preprocess(image_)
    return np.float32(share) * preprocess(image) + np.float32(1 - share) * mix


def preprocess(image):
    pixels = functional.pil_to_tensor(image).float() / 255
    return functional.normalize(pixels, [0.48, 0.46, 0.41], [0.27, 0.26, 0.28])


@pytest.mark.parametrize("seed", range(12))
def test_augmix_is_tpts(image, seed):
    found = augment_and_mix(image, preprocess, np.random.default_rng(seed))
    expected = published(image, preprocess, np.random.default_rng(seed))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", OPERATIONS)
def test_every_operation_does_something_at_severity_one(image, name):
    generator = np.random.default_rng(0)
    before = np.asarray(image).astype(float)
    changed = [
        float(np.abs(np.asarray(OPERATIONS[name](image, 1, generator)) - before).mean())
        for _ in range(20)
    ]
    assert np.mean([value > 0.1 for value in changed]) >= 0.5


def test_transform_mixes_on_the_crop_and_depends_on_torchs_seed_alone(image):
    crop = TrainTransform((64, 64), (0.5,) * 3, (0.25,) * 3, (0.08, 1.0), "bilinear")
    mixed = AugMixTransform(crop)

    def view(transform, seed):
        torch.manual_seed(seed)
        np.random.seed(seed + 100)
        return transform(image)

    with torch.random.fork_rng(devices=[]):
        views = [view(mixed, seed) for seed in range(8)]
        assert torch.equal(view(mixed, 3), views[3])
        # The crop is drawn first, so the same seed gives the same crop without the chains.
        plain = [view(crop, seed) for seed in range(8)]
    moved = [float((a - b).abs().mean()) for a, b in zip(views, plain, strict=True)]
    assert min(moved) > 0 and np.mean(moved) > 0.02
    assert max(moved) < 1.0  # still the same image
