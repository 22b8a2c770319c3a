"""The built-in set, torchvision's sets, and the registry they stand in."""

from __future__ import annotations

import importlib.util
import struct
import sys
from pathlib import Path

import numpy as np
import pytest

import rada.data.registry as registry
from data.images import draw, draw_folder
from rada.core.errors import DataError, MissingExtraError
from rada.data import ImageDataset, ImageSplit, list_datasets, open_dataset, register_dataset

# -- textiles ------------------------------------------------------------------------------------

needs_textiles = pytest.mark.skipif(
    importlib.util.find_spec("conformal_clip_data") is None, reason="the extra embedded is absent"
)


@needs_textiles
def test_textiles() -> None:
    dataset = open_dataset("textiles")
    assert dataset.keys == ("nominal", "local", "global")
    assert dataset.classes == ("nominal fabric", "local defect", "global defect")
    train, test = dataset.split("train"), dataset.split("test")
    assert train.counts().tolist() == test.counts().tolist() == [500, 250, 250]
    assert not set(train.ids) & set(test.ids)
    assert train.load(0).size == (250, 250)
    assert train.ids[:2] == ("nominal/textile_0003.jpg", "nominal/textile_0004.jpg")


@needs_textiles
def test_a_folder_does_not_hide_the_built_in_set(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw_folder(tmp_path / "textiles", {"a": 1, "b": 1})
    monkeypatch.chdir(tmp_path)
    assert len(open_dataset("textiles").classes) == 3
    for spec in ("./textiles", Path("textiles"), tmp_path / "textiles"):
        assert open_dataset(spec).classes == ("a", "b")


def test_textiles_without_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "conformal_clip_data", None)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, package=None: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'rada-vlm\[embedded\]'"):
        open_dataset("textiles")
    entry = next(info for info in list_datasets() if info.name == "textiles")
    assert entry.missing == "pip install 'rada-vlm[embedded]'"


# -- torchvision ---------------------------------------------------------------------------------


def write_mnist(root: Path, name: str, count: int) -> None:
    """Write MNIST's real layout: idx files of bytes, images and labels."""
    folder = root / "MNIST" / "raw"
    folder.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(count).integers(0, 256, (count, 28, 28), dtype=np.uint8)
    images = struct.pack(">IIII", 2051, count, 28, 28) + pixels.tobytes()
    (folder / f"{name}-images-idx3-ubyte").write_bytes(images)
    labels = bytes(number % 10 for number in range(count))
    (folder / f"{name}-labels-idx1-ubyte").write_bytes(struct.pack(">II", 2049, count) + labels)


def test_torchvision_with_arrays(tmp_path: Path) -> None:
    write_mnist(tmp_path, "train", 30)
    write_mnist(tmp_path, "t10k", 12)
    dataset = open_dataset(f"torchvision:MNIST?root={tmp_path}")
    assert list(dataset.splits) == ["train", "test"] and dataset.classes[0] == "0 - zero"
    test = dataset.split("test")
    assert test.labels.tolist() == [*range(10), 0, 1] and test.ids[11] == "MNIST/test/11"
    assert test.load(3).mode == "RGB" and test.load(3).size == (28, 28)
    assert test.path(3) is None and test.digest(3) != test.digest(4)
    part = test.subset([11, 3])
    assert part.ids == ("MNIST/test/11", "MNIST/test/3") and part.digest(1) == test.digest(3)
    named = dict(zip(dataset.keys, "abcdefghij", strict=True))
    digits = open_dataset(f"torchvision:MNIST?root={tmp_path}", class_names=named)
    assert digits.split("train").classes == tuple("abcdefghij")


def test_torchvision_with_files(tmp_path: Path) -> None:
    draw_folder(tmp_path / "eurosat" / "2750", {"AnnualCrop": 2, "Forest": 1})
    dataset = open_dataset(f"torchvision:EuroSAT?root={tmp_path}")
    split = dataset.split("all")
    assert dataset.classes == ("AnnualCrop", "Forest")
    assert split.ids[2] == "eurosat/2750/Forest/0.png"
    assert split.path(2) == tmp_path / split.ids[2]


def test_torchvision_with_split_names(tmp_path: Path) -> None:
    base = tmp_path / "dtd" / "dtd"
    for name in ("banded", "dotted"):
        for number in range(3):
            draw(base / "images" / name / f"{name}_{number}.jpg", seed=number)
    (base / "labels").mkdir()
    for number, split in enumerate(("train", "val", "test")):
        lines = [f"{name}/{name}_{number}.jpg" for name in ("banded", "dotted")]
        (base / "labels" / f"{split}1.txt").write_text("\n".join(lines))
    dataset = open_dataset(f"torchvision:DTD?root={tmp_path}")
    assert list(dataset.splits) == ["train", "val", "test"] and len(dataset.split("val")) == 2
    only = open_dataset(f"torchvision:DTD?root={tmp_path}&split=test&partition=1")
    assert list(only.splits) == ["all"]
    assert only.split("all").ids[0] == "dtd/dtd/images/banded/banded_2.jpg"


def test_torchvision_without_class_names() -> None:
    spec = "torchvision:FakeData?size=30&num_classes=3"
    with pytest.warns(UserWarning, match="called by numbers"):
        split = open_dataset(spec).split("all")
    assert split.classes == ("0", "1", "2") and split.digest(0) == split.digest(0)
    assert open_dataset(spec, class_names=["a", "b", "c"]).classes == ("a", "b", "c")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("CIFAR11", "no data set 'CIFAR11'; did you mean CIFAR10"),
        ("", "no data set ''"),
        ("CIFAR10?root={root}", "Dataset not found or corrupted.* Put its files there"),
        ("OxfordIIITPet?root={root}", "Put its files there, name another folder"),
        ("ImageNet?root={root}", "cannot be opened in"),
        ("CIFAR10?shots=3", "no option 'shots'; it has root, train"),
        ("FakeData?size=many", "size should be an integer, not 'many'"),
        ("EMNIST?root={root}", "needs the option 'split'"),
        ("CocoDetection?root={root}", "needs the option 'annFile'"),
    ],
)
def test_torchvision_that_cannot_be_opened(tmp_path: Path, spec: str, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_dataset("torchvision:" + spec.format(root=tmp_path))


def test_nothing_is_downloaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("urllib.request.urlopen", pytest.fail)
    with pytest.raises(DataError, match="download=true"):
        open_dataset(f"torchvision:CIFAR10?root={tmp_path}")
    assert not list(tmp_path.iterdir())


# -- the registry --------------------------------------------------------------------------------


def test_a_new_kind_is_one_call(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))

    def load(spec: str) -> ImageDataset:
        split = ImageSplit.from_files("/", [], classes=["a_1", "b"])
        return ImageDataset(spec, split.classes, {"all": split}, keys=split.classes)

    register_dataset("mine:NAME", "mine", matches=lambda spec: spec[:5] == "mine:", load=load)
    assert "mine:NAME" in [info.name for info in list_datasets()]
    assert open_dataset("mine:x").name == "mine:x"
    for name in ("mine:NAME", " "):
        with pytest.raises(ValueError, match="blank or registered already"):
            register_dataset(name, "again", matches=lambda spec: False, load=load)


def test_the_kind_of_the_documentation(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_KINDS", dict(registry._KINDS))
    page = Path(__file__).parents[2] / "docs" / "datasets.md"
    code = page.read_text(encoding="utf-8").split("```python\n")[-1].split("```")[0]
    exec(compile(code, str(page), "exec"), {"__name__": "documentation"})
    for name in ("ant-1", "bee-1", "ant-2"):
        draw(tmp_path / f"{name}.jpg")
    dataset = open_dataset(f"numbered:{tmp_path}", class_names={"ant": "red ant"})
    assert dataset.classes == ("red ant", "bee")
    assert dataset.split("all").labels.tolist() == [0, 0, 1]
