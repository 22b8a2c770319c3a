"""The transforms' own normalisation against torchvision's steps."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from rada.encoders import EvalTransform, TrainTransform
from rada.encoders.transforms import stack_pixels

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)


def draw(width: int, height: int) -> Image.Image:
    pixels = np.random.default_rng(width).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.mark.parametrize("size", [(16, 16), (20, 12), (1, 1), (51, 30), (20, 37), (64, 65)])
def test_pixels_equal_torchvision_to_the_bit(size: tuple[int, int]) -> None:
    steps = [
        transforms.Resize(24, transforms.InterpolationMode.BICUBIC),
        transforms.CenterCrop(size),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    for image in (draw(31, 40), draw(40, 25), draw(24, 24), draw(7, 90)):
        pixels = EvalTransform(size, 24, MEAN, STD)(image)
        assert pixels.shape == (3, *size)
        assert torch.equal(pixels, transforms.Compose(steps)(image))


def test_a_random_view_equals_torchvision_to_the_bit() -> None:
    steps = [
        transforms.RandomResizedCrop(
            (16, 18), scale=(0.5, 1.0), interpolation=transforms.InterpolationMode.BICUBIC
        ),
        transforms.RandomHorizontalFlip(0.5),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    for seed in range(4):
        torch.manual_seed(seed)
        view = TrainTransform((16, 18), MEAN, STD)(draw(31, 40))
        torch.manual_seed(seed)
        assert torch.equal(view, transforms.Compose(steps)(draw(31, 40)))


def test_stacking_keeps_the_layout_and_the_numbers() -> None:
    last = [EvalTransform((8, 6), 8, MEAN, STD)(draw(9, 10 + i)) for i in range(3)]
    stacked = stack_pixels(last)
    assert torch.equal(stacked, torch.stack(last))
    assert stacked.is_contiguous(memory_format=torch.channels_last)
    planes = [view.contiguous() for view in last]
    assert stack_pixels(planes).is_contiguous()
    assert torch.equal(stack_pixels(planes), stacked)
    assert stack_pixels([torch.zeros(5, 2)] * 3).shape == (3, 5, 2)
