"""The real data sets' layouts, in miniature."""

from __future__ import annotations

import json

import numpy as np
import pytest
from timm.data import ImageNetInfo

import layouts
from rada.core.errors import DataError
from rada.data import open_dataset
from rada.data.kinds.coop import _LAYOUTS
from rada.data.wordnet import imagenet_classes

SYNSETS = ImageNetInfo().label_names()
JSON_SETS = [name for name, layout in _LAYOUTS.items() if layout.split]


@pytest.mark.parametrize("name", JSON_SETS)
def test_split_files_are_read_as_they_are(name, tmp_path):
    layout = _LAYOUTS[name]
    keys = ("Apply_Eye_Makeup", "zebra")
    layouts.split_file(tmp_path, layout.folder, layout.images, layout.split, keys)
    found = open_dataset(f"{name}?root={tmp_path}")
    assert found.name == name and found.templates == (layout.template,)
    assert found.classes == ("Apply Eye Makeup", "zebra")
    assert {split: len(part) for split, part in found.splits.items()} == {
        "train": 4, "val": 2, "test": 2,
    }  # fmt: skip
    assert found.split("test").labels.tolist() == [0, 1]
    assert found.split("train").load(0).size == (12, 12)


def test_templates_are_those_of_coop():
    templates = {name: layout.template for name, layout in _LAYOUTS.items()}
    assert templates["dtd"] == "{} texture."
    assert templates["food101"] == "a photo of {}, a type of food."
    assert len(templates) == 10


def test_class_names_are_cleaned_as_in_coop(tmp_path):
    eurosat = _LAYOUTS["eurosat"]
    keys = ("AnnualCrop", "Forest", "SeaLake")
    layouts.split_file(tmp_path, eurosat.folder, eurosat.images, eurosat.split, keys)
    found = open_dataset(f"eurosat?root={tmp_path}")
    assert found.classes == ("Annual Crop Land", "Forest", "Sea or Lake")
    caltech = _LAYOUTS["caltech101"]
    keys = ("BACKGROUND_Google", "Faces", "Faces_easy", "airplanes")
    layouts.split_file(tmp_path, caltech.folder, caltech.images, caltech.split, keys)
    found = open_dataset(f"caltech101?root={tmp_path}")
    assert found.classes == ("face", "airplane")
    assert found.split("train").labels.tolist() == [0, 0, 1, 1]


def test_aircraft_lists(tmp_path):
    layouts.aircraft(tmp_path)
    found = open_dataset(f"fgvc_aircraft?root={tmp_path}")
    assert found.classes == ("707-320", "A300B4", "DC-3")
    assert found.split("val").ids == ("0000004.jpg", "0000005.jpg", "0000006.jpg")


def test_the_root_of_the_environment(tmp_path, monkeypatch):
    layouts.aircraft(tmp_path)
    monkeypatch.setenv("RADA_DATA", str(tmp_path))
    assert len(open_dataset("fgvc_aircraft").splits) == 3


@pytest.mark.parametrize("name", _LAYOUTS)
def test_a_missing_set_says_what_belongs_where(name, tmp_path):
    with pytest.raises(DataError, match=rf"put .* there.*{name}\?root=DIR"):
        open_dataset(f"{name}?root={tmp_path}")


def test_missing_pictures_are_listed(tmp_path):
    layout = _LAYOUTS["dtd"]
    layouts.split_file(tmp_path, layout.folder, layout.images, layout.split, ("banded", "dotted"))
    (tmp_path / "dtd/images/banded/001.jpg").unlink()
    with pytest.raises(DataError, match=r"banded/001\.jpg.*does not exist"):
        open_dataset(f"dtd?root={tmp_path}")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"train": []}, "should have train, val and test"),
        ({"train": [["a.jpg", 0]], "test": []}, "train entry"),
        ({"train": [["../../etc/passwd", 0, "a"]], "test": []}, "leads out of its folder"),
        ({"train": [["/etc/passwd", 0, "a"]], "test": []}, "leads out of its folder"),
        ({"train": [["a.jpg", 0, "a"]], "test": [["b.jpg", 0, "b"]]}, "names class 0 'a'"),
    ],
)
def test_bad_split_files(content, message, tmp_path):
    path = tmp_path / "dtd" / "split_zhou_DescribableTextures.json"
    path.parent.mkdir()
    path.write_text(json.dumps(content))
    with pytest.raises(DataError, match=message):
        open_dataset(f"dtd?root={tmp_path}")


@pytest.mark.parametrize(
    ("name", "write", "classes"),
    [
        ("dtd", layouts.torchvision_dtd, ("banded", "polka-dotted")),
        ("oxford_pets", layouts.torchvision_pets, ("Abyssinian", "American Bulldog")),
    ],
)
def test_torchvision_reads_what_has_no_split_file(name, write, classes, tmp_path):
    write(tmp_path)
    found = open_dataset(f"{name}?root={tmp_path}")
    assert found.classes == classes and found.templates == (_LAYOUTS[name].template,)
    assert {"train", "test"} <= set(found.splits)
    assert sorted(set(found.split("test").labels.tolist())) == [0, 1]


def test_imagenet(tmp_path):
    layouts.imagenet(tmp_path, SYNSETS, (0, 1, 999))
    found = open_dataset(f"imagenet?root={tmp_path}")
    assert len(found.classes) == 1000 and found.classes == imagenet_classes()
    assert found.split("train").labels.tolist() == [0, 0, 1, 1, 999, 999]
    assert found.split("test").labels.tolist() == [0, 1, 999]


def test_imagenet_with_classnames(tmp_path):
    names = [f"class {k}" for k in range(1000)]
    names[744] = names[657] = "missile"
    layouts.imagenet(tmp_path, SYNSETS, (0, 1), names)
    found = open_dataset(f"imagenet?root={tmp_path}")
    assert found.classes[1] == "class 1"
    assert (found.classes[657], found.classes[744]) == ("missile", "projectile")


def test_imagenet_shifts(tmp_path):
    layouts.shifted(tmp_path, SYNSETS, (2, 10, 100))
    v2 = open_dataset(f"imagenet_v2?root={tmp_path}")
    assert v2.split("test").labels.tolist() == [2, 10, 100] and len(v2.classes) == 1000
    assert v2.split("test").ids[1].startswith("10/")
    for name in ("imagenet_r", "imagenet_a", "imagenet_sketch"):
        found = open_dataset(f"{name}?root={tmp_path}")
        assert found.classes == tuple(imagenet_classes()[label] for label in (2, 10, 100))
        assert found.split("test").labels.tolist() == [0, 1, 2]


def test_objectnet_groups_and_frame(tmp_path):
    layouts.objectnet(tmp_path)
    found = open_dataset(f"objectnet?root={tmp_path}")
    assert found.classes == ("alarm clock", "banana")
    names = imagenet_classes()
    assert found.candidates == (names[409], names[530], names[954]) and found.groups == (0, 0, 1)
    assert found.split("test").load(0).size == (8, 8)
    assert np.array(found.split("test").labels).tolist() == [0, 1]
    (tmp_path / "objectnet-1.0/mappings/objectnet_to_imagenet_1k.json").unlink()
    with pytest.raises(DataError, match="mappings of objectnet"):
        open_dataset(f"objectnet?root={tmp_path}")


@pytest.mark.parametrize("name", ["imagenet", "imagenet_v2", "imagenet_sketch", "objectnet"])
def test_a_missing_imagenet_says_what_belongs_where(name, tmp_path):
    with pytest.raises(DataError, match=rf"{name} is not at .*put .*{name}\?root=DIR"):
        open_dataset(f"{name}?root={tmp_path}")
    with pytest.raises(DataError, match="has no option 'split'"):
        open_dataset(f"{name}?split=val")
