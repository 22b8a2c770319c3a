"""Few-shot sampling depends on the seed and the images' keys alone."""

from __future__ import annotations

import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data.images import draw_folder
from rada.core.errors import DataError
from rada.core.values import LARGEST_SEED
from rada.data import ImageSplit, few_shot, few_shot_indices, open_dataset


def names(labels: list[int]) -> list[str]:
    return [f"{label}/{number}" for number, label in enumerate(labels)]


LABELS = st.lists(st.integers(-1, 3), min_size=1, max_size=40).filter(lambda x: max(x) >= 0)
SEEDS = st.integers(0, LARGEST_SEED)


def draw(labels: list[int], ids: list[str], shots: int, seed: int) -> list[str]:
    indices = few_shot_indices(
        np.array(labels), ids, shots, seed, classes=["a", "b", "c", "d"], allow_fewer=True
    )
    return [ids[index] for index in indices]


@settings(deadline=None)
@given(LABELS, st.integers(1, 6), SEEDS, st.randoms())
def test_the_order_of_the_images_does_not_matter(
    labels: list[int], shots: int, seed: int, shuffler: object
) -> None:
    ids = names(labels)
    order = list(range(len(labels)))
    shuffler.shuffle(order)  # type: ignore[attr-defined]
    shuffled = draw([labels[i] for i in order], [ids[i] for i in order], shots, seed)
    assert shuffled == draw(labels, ids, shots, seed)


@settings(deadline=None)
@given(LABELS, st.integers(1, 6), SEEDS)
def test_every_class_gives_its_shots(labels: list[int], shots: int, seed: int) -> None:
    drawn = [int(key.split("/")[0]) for key in draw(labels, names(labels), shots, seed)]
    assert drawn == sorted(drawn)
    for label in range(4):
        assert drawn.count(label) == min(shots, labels.count(label))


@settings(deadline=None)
@given(LABELS, st.integers(1, 6), SEEDS)
def test_more_shots_contain_fewer(labels: list[int], shots: int, seed: int) -> None:
    few = draw(labels, names(labels), shots, seed)
    assert set(few) <= set(draw(labels, names(labels), shots + 1, seed))


@settings(deadline=None)
@given(LABELS, st.integers(1, 4), SEEDS)
def test_other_classes_do_not_matter(labels: list[int], shots: int, seed: int) -> None:
    ids = names(labels)
    alone = [label if label == 0 else -1 for label in labels]
    if 0 not in alone:
        return
    together = [key for key in draw(labels, ids, shots, seed) if key.startswith("0/")]
    assert draw(alone, ids, shots, seed) == together


def test_seeds_differ_and_are_fair() -> None:
    labels = [0] * 10
    counts = np.zeros(10)
    for seed in range(400):
        for key in draw(labels, names(labels), 2, seed):
            counts[int(key.split("/")[1])] += 1
    assert counts.sum() == 800 and counts.min() > 50 and counts.max() < 115


def test_the_spelling_of_the_file_system_does_not_matter() -> None:
    ids = [f"é/{number}" for number in range(20)]
    apart = [unicodedata.normalize("NFD", key) for key in ids]
    one, two = draw([0] * 20, ids, 3, 1), draw([0] * 20, apart, 3, 1)
    assert [ids.index(key) for key in one] == [apart.index(key) for key in two]


def test_a_draw_is_for_ever() -> None:
    """Published results depend on this list: it must never change."""
    assert draw([0] * 6 + [1] * 6, [f"{n}.jpg" for n in range(12)], 2, 1) == GOLDEN


GOLDEN = ["5.jpg", "2.jpg", "7.jpg", "6.jpg"]


def test_a_split_and_the_class_that_lacks_images(tmp_path) -> None:  # type: ignore[no-untyped-def]
    split = open_dataset(draw_folder(tmp_path, {"cat": 3, "dog": 5, "emu": 1})).split("all")
    with pytest.raises(DataError, match=r"'emu' has 1.*--allow-fewer"):
        few_shot(split, 2, seed=0)
    chosen = few_shot(split, 2, seed=0, allow_fewer=True)
    assert chosen.counts().tolist() == [2, 2, 1] and chosen.classes == split.classes


@pytest.mark.parametrize("shots", [0, -1, 1.5, "2", None])
def test_bad_numbers_of_shots(shots: object) -> None:
    with pytest.raises(DataError, match=f"positive integer, not {shots!r}"):
        few_shot_indices(np.array([0]), ["x"], shots, 0, classes=["a"])  # type: ignore[arg-type]


def test_nothing_to_draw_from() -> None:
    for count in (0, 3):
        split = ImageSplit.from_files(".", [str(n) for n in range(count)], classes=["a"])
        with pytest.raises(DataError, match="no labelled images"):
            few_shot(split, 1, 0, allow_fewer=True)


def test_a_split_by_itself_gives_the_same_shots(tmp_path: Path) -> None:
    root = draw_folder(
        tmp_path, {f"{part}/{name}": 9 for part in ("train", "test") for name in "ab"}
    )
    for part in ("train", "test"):
        above = few_shot(open_dataset(root).split(part), 3, 1)
        below = few_shot(open_dataset(root / part).split("all"), 3, 1)
        assert above.fingerprint() == below.fingerprint() and above.ids == below.ids
