"""Leaving out bad images, and random views that repeat."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from data.images import draw, draw_folder
from rada.core.errors import DataError
from rada.data import (
    ImageSplit,
    few_shot,
    find_bad,
    open_dataset,
    readable_shots,
    seeded_view,
    without_bad,
)


@pytest.fixture
def split(tmp_path: Path) -> ImageSplit:
    """20 images of 2 classes; 3 of the first class are bad."""
    root = draw_folder(tmp_path, {"a": 10, "b": 10})
    (root / "a" / "2.png").write_bytes(b"")
    (root / "a" / "5.png").write_bytes((root / "a" / "5.png").read_bytes()[:100])
    (root / "a" / "7.png").write_text("no image")
    return open_dataset(root).split("all")


def test_bad_images_are_named_and_left_out(split: ImageSplit) -> None:
    bad = find_bad(split, name="train")
    assert list(bad) == [2, 5, 7]
    assert [entry.id for entry in bad.values()] == ["a/2.png", "a/5.png", "a/7.png"]
    assert bad[2].split == "train" and "is empty" in bad[2].reason
    assert list(find_bad(split, [7, 3])) == [7]
    kept, skipped = without_bad(split, name="train")
    assert kept.counts().tolist() == [7, 10] and skipped == tuple(bad.values())
    assert not find_bad(kept)


def test_a_class_with_no_good_image(split: ImageSplit) -> None:
    with pytest.raises(DataError, match=r"no image of the class 'a' can be read; the first: .*2"):
        without_bad(split.subset([2, 5, 10, 11]))
    with pytest.raises(DataError, match="no image can be read"):
        without_bad(ImageSplit.from_files("/nowhere", ["1.png"]))


def test_shots_go_round_bad_images(split: ImageSplit) -> None:
    for seed in range(5):
        chosen, skipped = readable_shots(split, 7, seed)
        assert chosen.counts().tolist() == [7, 7] and not find_bad(chosen)
        assert {entry.id for entry in skipped} <= {"a/2.png", "a/5.png", "a/7.png"}
        good, _ = without_bad(split)
        assert chosen.ids == few_shot(good, 7, seed).ids
    with pytest.raises(DataError, match="'a' has 7"):
        readable_shots(split, 8, 0)
    chosen, skipped = readable_shots(split, 8, 0, allow_fewer=True)
    assert chosen.counts().tolist() == [7, 8] and len(skipped) == 3


def noisy(image: Image.Image) -> torch.Tensor:
    """Draw from all three generators, as timm's and torchvision's transforms do."""
    return torch.tensor([torch.rand(1).item(), np.random.rand(), random.random()])


def test_views_depend_on_their_arguments_alone() -> None:
    image = Image.new("RGB", (4, 4))
    first = seeded_view(image, noisy, 1, "ab", 2)
    for state in range(3):
        torch.manual_seed(state)
        np.random.seed(state)
        random.seed(state)
        assert torch.equal(seeded_view(image, noisy, 1, "ab", 2), first)
    for other in ((2, "ab", 2), (1, "ac", 2), (1, "ab", 3)):
        changed = seeded_view(image, noisy, *other)
        assert (changed != first).all()


def test_views_leave_the_generators_alone() -> None:
    def state() -> tuple[float, float, float]:
        return torch.rand(1).item(), float(np.random.rand()), random.random()

    def restart() -> None:
        torch.manual_seed(0)
        np.random.seed(0)
        random.seed(0)

    restart()
    expected = state()
    restart()
    seeded_view(Image.new("RGB", (4, 4)), noisy, 1, "ab", 2)

    def fail(image: Image.Image) -> torch.Tensor:
        noisy(image)
        raise DataError("bad")

    with pytest.raises(DataError):
        seeded_view(Image.new("RGB", (4, 4)), fail, 1, "ab", 2)
    assert state() == expected


def test_views_of_a_real_transform(tmp_path: Path) -> None:
    for folder in "ab":  # large enough that no two crops are the same by chance
        draw(tmp_path / folder / "0.png", size=(640, 480))
    split = open_dataset(tmp_path).split("all")
    transform = v2.Compose([v2.RandomResizedCrop(8), v2.RandomHorizontalFlip(), v2.PILToTensor()])
    views = [seeded_view(split.load(0), transform, 0, split.digest(0), k) for k in range(1, 9)]
    again = [seeded_view(split.load(0), transform, 0, split.digest(0), k) for k in range(8, 0, -1)]
    assert all(torch.equal(one, two) for one, two in zip(views, reversed(again), strict=True))
    assert len({view.numpy().tobytes() for view in views}) == 8
