"""Near duplicates between training and test images, and images that have two labels."""

from __future__ import annotations

import shutil
import warnings

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from golden.make import QUICK, tiny_encoder
from rada import Classifier, Features, get_method
from rada.evaluation.duplicates import near_duplicates
from rada.report import find_problems
from rada.report.verdict import cautions


def photo(seed):
    """Smooth noise, which survives being compressed and resized."""
    small = np.random.default_rng(seed).integers(0, 255, (6, 6, 3)).astype(np.uint8)
    return Image.fromarray(small).resize((96, 96), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    root = tmp_path_factory.mktemp("world")
    tiny_encoder(root / "clip")
    for split, first in (("train", 0), ("test", 100)):
        for shift, name in enumerate(("red", "blue")):
            folder = root / "data" / split / name
            folder.mkdir(parents=True)
            for number in range(6):
                photo(first + 10 * shift + number).save(folder / f"{number}.png")
    return root


def fitted(world, data, name="rada"):
    config = get_method(name).config(**QUICK.get(name, {}))
    clf = Classifier(
        str(world / "clip"), name, config=config, workers=0, cache=False, progress=False
    )
    return clf.fit(str(data), seed=1)


def test_clean_data_gives_no_warning(world):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        clf = fitted(world, world / "data")
        assert clf.evaluate(str(world / "data" / "test"))["near_duplicates"] == []


def test_a_copy_in_another_form_is_found(world, tmp_path):
    folder = tmp_path / "test"
    for name in ("red", "blue"):
        (folder / name).mkdir(parents=True)
        photo(500 + len(name)).save(folder / name / "new.png")
    photo(3).resize((70, 70)).save(folder / "red" / "copy.jpg", quality=70)
    clf = fitted(world, world / "data")
    with pytest.warns(UserWarning, match=r"1 of the 3 test images are near duplicates.*copy\.jpg"):
        found = clf.evaluate(str(folder))["near_duplicates"]
    assert len(found) == 1 and found[0]["train"].endswith("3.png")
    clf.save_pretrained(tmp_path / "model")
    loaded = Classifier.from_pretrained(tmp_path / "model", workers=0, cache=False)
    assert loaded.evaluate(str(folder))["near_duplicates"] == []  # it has no training images
    with pytest.warns(UserWarning, match="near duplicates"):
        again = loaded.evaluate(str(folder), train=str(world / "data"))
    assert again["near_duplicates"] == found


def test_the_very_same_files_have_a_warning_of_their_own(world):
    clf = fitted(world, world / "data")
    with pytest.warns(UserWarning, match="trained on") as caught:
        found = clf.evaluate(str(world / "data" / "train"))
    assert found["near_duplicates"] == [] and found["seen_in_training"] == 12
    assert not any("near duplicates" in str(one.message) for one in caught)


def test_an_image_with_two_labels_is_told_when_fitting(world, tmp_path):
    for name, seeds in (("red", (0, 1, 2)), ("blue", (10, 11))):
        (tmp_path / "train" / name).mkdir(parents=True)
        for seed in seeds:
            photo(seed).save(tmp_path / "train" / name / f"{seed}.png")
    photo(2).save(tmp_path / "train" / "blue" / "again.jpg", quality=80)
    with pytest.warns(
        UserWarning, match=r"^2 training images.*another label, such as .*again\.jpg"
    ):
        fitted(world, tmp_path, "linear_probe")


def test_every_image_of_a_conflict_counts():
    rows = torch.eye(3)[[0, 0, 0, 1, 1, 2]]
    found = near_duplicates(Features(rows, [0, 1, 1, 0, 0, 1], ("a", "b")))
    assert sorted((pair.row, pair.other) for pair in found) == [(0, 1), (1, 0), (2, 0)]


def test_a_number_that_is_not_the_whole_is_said_to_be_one(world, monkeypatch):
    monkeypatch.setattr("rada.evaluation.duplicates.MOST_PAIRS", 2)
    (world / "again").mkdir(exist_ok=True)
    shutil.copytree(world / "data" / "train", world / "again" / "train", dirs_exist_ok=True)
    clf = fitted(world, world / "data")
    with pytest.warns(UserWarning, match="^at least 2 of the 12 test images are near duplicates"):
        found = clf.evaluate(str(world / "again" / "train"))
    assert found["near_duplicates_unchecked"] == 10
    assert cautions(found.result)[-1].startswith("At least 2 of the 12 test images")
    assert find_problems(found)["duplicates"]["least"] == "at least "


def test_of_features_alone_only_equal_ones_count():
    rows = normalize(torch.randn(6, 32, generator=torch.Generator().manual_seed(0)), dim=-1)
    train = Features(rows, [0, 1] * 3, ("a", "b"))
    near = normalize(rows[:1] + 0.05 * rows[1:2], dim=-1)
    test = Features(torch.cat([rows[4:5], near]), [0, 1], ("a", "b"))
    assert [(pair.row, pair.other) for pair in near_duplicates(test, train)] == [(0, 4)]
