"""`skip_bad` from the table to the features: missing files first, unreadable ones when they are met."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from data.images import draw, draw_folder
from features.tiny import TinyEncoder
from rada.core.errors import DataError
from rada.data import few_shot, open_dataset
from rada.data.bad import warn_of_bad
from rada.features import Features, extract_features


def spoil(root: Path) -> None:
    """One of each bad kind among six good images."""
    draw_folder(root, {"cat": 5, "dog": 5})
    (root / "cat" / "1.png").write_bytes(b"")
    (root / "cat" / "3.png").write_bytes((root / "cat" / "3.png").read_bytes()[:90])
    (root / "dog" / "0.png").write_text("no image")
    (root / "dog" / "4.png").unlink()
    rows = [f"{name}/{number}.png,{name}" for name in ("cat", "dog") for number in range(5)]
    (root / "t.csv").write_text("\n".join(["path,label", *rows]))


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", [None, False])
def test_missing_and_unreadable_files(tmp_path: Path, workers: int, cache: bool | None) -> None:
    spoil(tmp_path)
    with pytest.raises(DataError, match=r"dog/4\.png' does not exist.*--skip-bad"):
        open_dataset(tmp_path / "t.csv")
    dataset = open_dataset(tmp_path / "t.csv", skip_bad=True)
    assert [entry.id for entry in dataset.skipped] == ["dog/4.png"]
    split, encoder = dataset.split("all"), TinyEncoder()
    with pytest.raises(DataError, match=r"cat/1\.png' is empty.*--skip-bad"):
        extract_features(encoder, split, workers=0, cache=False, batch_size=4)
    features = extract_features(
        encoder, split, workers=workers, cache=cache, batch_size=4, skip_bad=True, views=2
    )
    assert [key for key, _ in features.skipped] == ["cat/1.png", "cat/3.png", "dog/0.png"]
    assert all(key in reason for key, reason in features.skipped)
    assert features.ids == tuple(
        f"{name}.png" for name in ("cat/0", "cat/2", "cat/4", "dog/1", "dog/2", "dog/3")
    )
    assert features.labels.tolist() == [0, 0, 0, 1, 1, 1]
    expected = extract_features(
        encoder, split.subset([0, 2, 4, 6, 7, 8]), workers=0, cache=False, views=2
    )
    np.testing.assert_allclose(features.image_features, expected.image_features, atol=1e-6)


def test_images_that_were_left_out_are_counted_and_named() -> None:
    reasons = [(f"{n}.jpg", f"'x/{n}.jpg' is empty") for n in range(4)]
    with pytest.warns(UserWarning) as told:
        warn_of_bad([("3", "no image"), *reasons], "test images")
        warn_of_bad(reasons[:1])
        warn_of_bad([])
    first, second = (str(entry.message) for entry in told)
    assert first.startswith("5 of the test images were left out as unreadable: 3: no image; 'x/0")
    assert first.endswith("'x/1.jpg' is empty; and 2 more")
    assert second == "1 of the images was left out as unreadable: 'x/0.jpg' is empty"


def test_bad_images_of_torchvision(tmp_path: Path) -> None:
    """Also where torchvision's own reader opens them: Caltech101 keeps numbers, not files."""
    base = tmp_path / "caltech101" / "101_ObjectCategories"
    (base / "BACKGROUND_Google").mkdir(parents=True)
    (tmp_path / "caltech101" / "Annotations").mkdir()
    for name in ("ant", "bee"):
        for number in (1, 2):
            draw(base / name / f"image_{number:04d}.jpg", number)
    (base / "ant" / "image_0001.jpg").write_bytes(b"no image")
    split = open_dataset(f"torchvision:Caltech101?root={tmp_path}", skip_bad=True).split("all")
    features = extract_features(TinyEncoder(), split, workers=0, cache=False, skip_bad=True)
    assert [key for key, _ in features.skipped] == ["Caltech101/all/0"]
    assert features.labels.tolist() == [0, 1, 1]


def test_odd_names_reach_a_file_of_features(tmp_path: Path) -> None:
    spoil(tmp_path)
    (tmp_path / "cat" / "0.png").rename(tmp_path / "cat" / "caf\udce9.png")
    split = few_shot(open_dataset(tmp_path).split("all"), 9, 0, allow_fewer=True)
    features = extract_features(TinyEncoder(), split, workers=0, cache=False, skip_bad=True)
    features.save(tmp_path / "f.safetensors")
    again = Features.load(tmp_path / "f.safetensors")
    assert len(again) == len(features) and len(set(again.ids)) == len(again)
