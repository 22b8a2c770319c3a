"""The `Features` class and its files."""

from __future__ import annotations

import json
import zipfile

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import save_file

from rada.core.errors import FeatureError, StorageError
from rada.features import Features, FeatureWarning, check_features


def unit(*shape, seed=0):
    rows = torch.randn(*shape, generator=torch.Generator().manual_seed(seed))
    return torch.nn.functional.normalize(rows, dim=-1)


@pytest.fixture
def features():
    return Features(
        unit(6, 2, 8),
        [0, 1, 2, 0, 1, 2],
        ("cat", "dog", "eel"),
        ids=tuple("fedcba"),
        text_features=unit(3, 8, seed=1),
        scale=50.0,
        encoder="tiny",
        encoder_fingerprint="ab" * 16,
        templates=("a photo of a {}.",),
        skipped=(("x.jpg", "truncated"),),
    )


def assert_same(one, other):
    assert one.fingerprint == other.fingerprint
    assert torch.equal(one.image_features, other.image_features)
    assert torch.equal(one.labels, other.labels)
    for name in ("classes", "ids", "scale", "encoder", "templates", "skipped"):
        assert getattr(one, name) == getattr(other, name)


def test_a_file_gives_back_what_was_saved(features, tmp_path):
    assert_same(Features.load(features.save(tmp_path / "deep" / "f.safetensors")), features)


def test_views_subsets_and_classes(features):
    assert torch.equal(features.plain(), features.image_features[:, 0])
    part = features.subset(np.array([4, 0]))
    assert part.ids == ("b", "f") and part.labels.tolist() == [1, 0]
    two = features.select_classes([2, 0])
    assert two.classes == ("eel", "cat") and two.labels.tolist() == [1, 0, 1, 0]
    assert torch.equal(two.text_features, features.text_features[[2, 0]])
    same = features.select_classes([2, 0], relabel=False)
    assert same.classes == features.classes and same.labels.tolist() == [0, 2, 0, 2]


@pytest.mark.parametrize("rows", [[6], [-1], []])
def test_bad_subsets(features, rows):
    with pytest.raises(FeatureError, match=r"out of range|none of the 6 images is left"):
        features.subset(rows)


@pytest.mark.parametrize("classes", [[0, 0], [3], [-1]])
def test_bad_class_selection(features, classes):
    with pytest.raises(FeatureError, match="different labels in 0 to 2"):
        features.select_classes(classes)


def test_unlabelled_images_are_allowed_in_features_but_not_in_training():
    assert Features(unit(2, 4), [-1, 0], ("cat",)).labels.tolist() == [-1, 0]
    with pytest.raises(FeatureError, match="label -1 of row 0"):
        check_features(unit(2, 4), None, [-1, 0])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_types_become_float32_and_rounded_rows_stay(dtype, recwarn):
    rows = unit(50, 512).to(dtype)
    assert torch.equal(check_features(rows).image_features, rows.float())
    assert not recwarn.list


def test_float64_stays():
    assert check_features(unit(2, 4).double()).image_features.dtype is torch.float64


def test_rows_that_are_not_unit_norm_are_normalised_with_a_warning():
    rows = unit(4, 8)
    rows[2] *= 3
    with pytest.warns(FeatureWarning, match=r"image_features is not of unit norm in row 2 .* 3,"):
        checked = check_features(rows)
    assert torch.allclose(checked.image_features.norm(dim=1), torch.ones(4))
    assert torch.equal(checked.image_features[:2], rows[:2])


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f: f[1, 2].fill_(torch.nan), r"NaN or infinite values in row 1"),
        (lambda f: f[1, 2].fill_(torch.inf), r"NaN or infinite values in row 1"),
        (lambda f: f[3:].zero_(), r"is zero in 2 of 5 rows \(the first: row 3\)"),
    ],
)
def test_broken_rows(change, message):
    rows = unit(5, 4)
    change(rows)
    with pytest.raises(FeatureError, match=message):
        check_features(rows)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"image_features": unit(2, 4).int()}, "of type torch.int32"),
        ({"image_features": "text"}, "cannot be read as a tensor"),
        ({"image_features": unit(4)}, "shape"),
        ({"image_features": unit(0, 4)}, "empty"),
        ({"image_features": unit(2, 4), "dim": 5}, "has 4 dimensions, but 5"),
        ({"image_features": unit(2, 4), "text_features": unit(2, 5)}, "4 dimensions .* 5"),
        (
            {"image_features": unit(2, 4), "text_features": unit(2, 4), "num_classes": 3},
            "2 rows for 3",
        ),
        ({"image_features": unit(2, 4), "labels": [0]}, r"shape \(1,\) for 2 images"),
        ({"image_features": unit(2, 4), "labels": [0.0, 1.0]}, "give integers"),
        (
            {"image_features": unit(2, 4), "text_features": unit(2, 4), "labels": [0, 2]},
            "label 2 of row 1 is out of range: 2 classes have the labels 0 to 1",
        ),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(FeatureError, match=message):
        check_features(**arguments)


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_numpy_archives(save, tmp_path):
    images, texts = unit(6, 8).numpy().astype(np.float16), unit(3, 8).numpy()
    labels = np.array([0, 1, 2, 0, 1, 2], dtype=np.int32)
    names = np.array(["cat", "dog", "eel"])
    path = tmp_path / "f.npz"
    save(
        path, image_features=images, labels=labels, text_features=texts, scale=100.0, classes=names
    )
    read = Features.load(path)
    assert read.classes == ("cat", "dog", "eel") and read.scale == 100.0
    assert torch.equal(read.plain(), torch.from_numpy(images).float())
    assert read.labels.tolist() == labels.tolist()


def test_a_plain_table_of_others(tmp_path):
    path = tmp_path / "f.safetensors"
    save_file({"image_features": unit(3, 4), "labels": torch.tensor([0, 1, 1])}, path)
    read = Features.load(path)
    assert read.classes == ("class 0", "class 1") and read.ids == ("0", "1", "2")


def test_objects_in_archives_are_never_unpickled(tmp_path):
    path = tmp_path / "f.npz"
    np.savez(path, image_features=np.array([{"a": 1}], dtype=object))
    with pytest.raises(FeatureError, match="Python objects"):
        Features.load(path)


def test_an_archive_cannot_claim_memory(tmp_path):
    path = tmp_path / "bomb.npz"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("image_features.npy", bytes(80 << 20))
    with pytest.raises(FeatureError, match="hostile"):
        Features.load(path)
    header = b"\x93NUMPY\x01\x00\x76\x00" + (
        b"{'descr': '<f4', 'fortran_order': False, 'shape': (1000000000, 1000000), }".ljust(117)
        + b"\n"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("image_features.npy", header + bytes(64))
    with pytest.raises(FeatureError, match="its header claims"):
        Features.load(path)


@pytest.mark.parametrize(
    ("tensors", "metadata", "message"),
    [
        ({"labels": torch.zeros(1, dtype=torch.int64)}, {}, "no 'image_features'"),
        ({"image_features": unit(2, 4).int()}, {}, "of type torch.int32"),
        ({"image_features": torch.zeros(2, 4)}, {}, "zero in 2 of 2 rows"),
        ({"image_features": unit(2, 4)}, {"classes": "["}, "should be JSON"),
        ({"image_features": unit(2, 4)}, {"classes": "[" * 100_000}, "should be JSON"),
        ({"image_features": unit(2, 4)}, {"classes": "{}"}, "list of strings"),
        ({"image_features": unit(2, 4)}, {"classes": '["a", "a"]'}, "different names"),
        ({"image_features": unit(2, 4)}, {"classes": '["a", " "]'}, "not blank"),
        ({"image_features": unit(2, 4)}, {"rada_features": "3"}, "another version"),
        ({"image_features": unit(2, 4)}, {"rada_features": '{"format": "x"}'}, "another version"),
        ({"image_features": unit(2, 4)}, {"scale": '"big"'}, "'scale' should be one number"),
        ({"image_features": unit(2, 4)}, {"scale": "-1"}, "above 0"),
        ({"image_features": unit(2, 4)}, {"scale": "NaN"}, "above 0"),
        ({"image_features": unit(2, 4)}, {"encoder": "3"}, "'encoder' should be a string"),
        ({"image_features": unit(2, 4)}, {"skipped": '["a"]'}, "list of"),
        ({"image_features": unit(2, 4), "ids": torch.zeros(2)}, {}, "JSON list"),
        ({"image_features": unit(2, 4), "text_features": unit(2, 5)}, {}, "same encoder"),
        (
            {"image_features": unit(2, 4), "labels": torch.tensor([0, 5])},
            {"classes": '["a", "b"]'},
            "label 5 of row 1",
        ),
        (
            {"image_features": unit(2, 4), "labels": torch.tensor([0, 1 << 60])},
            {},
            "out of range",
        ),
    ],
)
def test_bad_files(tensors, metadata, message, tmp_path):
    path = tmp_path / "f.safetensors"
    save_file(tensors, path, metadata=metadata)
    with pytest.raises(FeatureError, match=message) as caught:
        Features.load(path)
    assert str(path) in str(caught.value)


def test_missing_and_foreign_files(tmp_path):
    for name, content in (("a.safetensors", b""), ("b.npz", b"PK"), ("c.txt", b"hello" * 9)):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(FeatureError, match="write it again"):
            Features.load(tmp_path / name)
    with pytest.raises(FeatureError, match="does not exist"):
        Features.load(tmp_path / "none.npz")
    with pytest.raises(FeatureError, match="is a folder"):
        Features.load(tmp_path)


def test_a_header_cannot_claim_memory(tmp_path):
    path = tmp_path / "f.safetensors"
    claim = {
        "image_features": {"dtype": "F32", "shape": [1 << 40, 4], "data_offsets": [0, 1 << 44]}
    }
    header = json.dumps(claim).encode()
    path.write_bytes(len(header).to_bytes(8, "little") + header + bytes(64))
    with pytest.raises(FeatureError, match="not a whole safetensors file"):
        Features.load(path)


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_file_is_an_error_or_valid(data, tmp_path_factory):
    path = tmp_path_factory.getbasetemp() / "damaged.safetensors"
    Features(unit(3, 4), [0, 1, 1], ("a", "b"), scale=2.0).save(path, overwrite=True)
    content = bytearray(path.read_bytes())
    if data.draw(st.booleans()):
        del content[data.draw(st.integers(0, len(content) - 1)) :]
    else:
        place = data.draw(st.integers(0, len(content) - 1))
        content[place] ^= data.draw(st.integers(1, 255))
    path.write_bytes(content)
    try:
        read = Features.load(path)
    except FeatureError:
        return
    assert torch.isfinite(read.image_features).all()


def test_saving_where_it_cannot(features, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="cannot write"):
        features.save(tmp_path / "file" / "f.safetensors")
