"""What a user hands over as data: files and the same images in memory, arrays, data sets of others."""

from __future__ import annotations

import io
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Subset, TensorDataset
from torchvision.datasets import FakeData, ImageFolder
from torchvision.transforms import v2
from typer.testing import CliRunner

from rada import Classifier, EFTConfig, FineTuner
from rada.cli.app import app
from rada.convert import convert_data, images_to_predict
from rada.core.errors import DataError, FeatureError
from rada.data import ImageDataset, open_image
from rada.features import Features
from rada.features.store_writing import save_store
from rada.run_data import open_sets
from rada.test_time_adapter import TestTimeAdapter
from test_time.tiny_views import TinyEncoder

NAMES = ("cat", "dog")
QUICK = EFTConfig(epochs=1, min_steps=0, strength=1.0)


def noise(shape: tuple[int, ...], seed: int = 0, kind: type = np.uint8) -> np.ndarray:
    top = 65535 if kind is np.uint16 else 255
    return np.random.default_rng(seed).integers(0, top, shape, endpoint=True).astype(kind)


def write_kinds(folder: Path) -> dict[str, Path]:
    """One file of each kind in which a file and a plain conversion to RGB differ."""
    folder.mkdir(parents=True, exist_ok=True)
    exif = Image.Exif()
    exif[0x0112] = 6
    rgb = Image.fromarray(noise((24, 32, 3)))
    rgb.save(folder / "exif.jpg", exif=exif)
    rgb.save(folder / "exif.png", exif=exif)
    rgb.save(folder / "exif.tif", exif=exif)
    Image.fromarray(noise((24, 32, 4))).save(folder / "rgba.png")
    Image.fromarray(noise((24, 32, 2)), "LA").save(folder / "la.png")
    Image.fromarray(noise((24, 32), kind=np.uint16)).save(folder / "deep.png")
    Image.fromarray(noise((24, 32), kind=np.uint16)).save(folder / "deep.ppm")
    floats = np.random.default_rng(0).random((24, 32), dtype=np.float32)
    Image.fromarray(floats).save(folder / "float.tif")
    Image.fromarray(floats * 255).save(folder / "float255.tif")
    palette = rgb.quantize(16)
    palette.save(folder / "palette.png", transparency=3)
    return {path.name: path for path in sorted(folder.iterdir())}


KINDS = ["deep.png", "deep.ppm", "exif.jpg", "exif.png", "exif.tif", "float.tif", "float255.tif"]
KINDS += ["la.png", "palette.png", "rgba.png"]


@pytest.fixture(scope="module")
def kinds(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return write_kinds(tmp_path_factory.mktemp("kinds"))


@pytest.fixture(scope="module")
def clf() -> Classifier:
    return Classifier(TinyEncoder(), classes=NAMES, cache=False, workers=0, progress=False)


# -- images --------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", KINDS)
def test_an_image_is_the_same_from_a_file_and_from_memory(kinds, clf, name: str) -> None:
    """EXIF, alpha, 16 bits and floats, by every door: library, encoder, prediction, streams."""
    assert set(KINDS) == set(kinds)
    path = kinds[name]
    expected = np.asarray(open_image(path))
    probability = clf.predict_proba(path)
    with path.open("rb") as stream:
        forms = [Image.open(path), path.read_bytes(), stream, io.BytesIO(path.read_bytes())]
        for form in forms:
            assert np.array_equal(np.asarray(open_image(form)), expected)
        for form in forms:
            assert np.array_equal(clf.predict_proba(form), probability)
    assert torch.equal(
        clf.encoder_.encode_images([Image.open(path)]), clf.encoder_.encode_images([path])
    )
    streamed = [list(clf.predict_stream(iter([form]), 2)) for form in (path, Image.open(path))]
    assert streamed[0][0].predictions == streamed[1][0].predictions
    # The random views of test-time training come from the bytes of a file, or else from the pixels.
    adapter = TestTimeAdapter(clf)
    adapted = [adapter.predict_proba(form) for form in (Image.open(path), open_image(path))]
    assert np.array_equal(*adapted)


def test_workers_see_images_in_memory_as_files(kinds) -> None:
    """Pillow's images lose their tags on the way to another process."""
    clf = Classifier(TinyEncoder(), classes=NAMES, cache=False, workers=2, progress=False)
    paths = [kinds[name] for name in KINDS]
    expected = clf.predict_proba(paths)
    assert np.array_equal(clf.predict_proba([Image.open(path) for path in paths]), expected)
    names = [
        [image.predictions for image in clf.predict_stream(form, 2)]
        for form in (iter(paths), map(Image.open, paths), (path.open("rb") for path in paths))
    ]
    assert names[0] == names[1] == names[2]


def test_the_argument_stays_as_it_is(kinds) -> None:
    for path in kinds.values():
        image = Image.open(path)
        image.load()  # Pillow turns a TIFF when it loads it
        mode, size, tags = image.mode, image.size, dict(image.getexif())
        open_image(image)
        assert (image.mode, image.size, dict(image.getexif())) == (mode, size, tags)


def test_arrays(clf) -> None:
    pixels = noise((8, 6, 3))
    image = Image.fromarray(pixels)
    expected = np.asarray(image)
    forms: list[Any] = [
        pixels,
        pixels.astype(np.int64),
        pixels.astype(np.uint16) * np.uint16(257),
        pixels / 255,
        (pixels / 255).astype(np.float16),
        torch.from_numpy(pixels).permute(2, 0, 1),
        v2.functional.to_dtype(v2.functional.to_image(image), torch.float32, scale=True),
    ]
    for form in forms:
        assert np.array_equal(np.asarray(open_image(form)), expected)
        assert np.array_equal(clf.predict_proba(form), clf.predict_proba(image))
    batch = clf.predict_proba(np.stack([pixels] * 3))
    assert np.allclose(batch, clf.predict_proba(image), atol=1e-6) and len(batch) == 3
    assert clf.predict_proba(torch.from_numpy(pixels).permute(2, 0, 1)[None]).shape == (1, 2)
    grey = noise((8, 6))
    for form in (grey, grey[..., None], torch.from_numpy(grey)[None]):
        assert np.array_equal(np.asarray(open_image(form))[..., 0], grey)
    assert open_image(np.array([[True, False]])).getpixel((0, 0)) == (255, 255, 255)
    clear = np.zeros((2, 2, 4), np.uint8)
    assert open_image(clear).getpixel((0, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.zeros((3, 8, 6)), r"transpose\(1, 2, 0\)"),
        (torch.zeros(8, 6, 3), r"permute\(2, 0, 1\)"),
        (np.zeros((8, 6, 3)) - 2, "before it was normalised"),
        (np.full((8, 6, 3), 200.0), "divide by 255"),
        (np.full((8, 6, 3), np.nan), "should be 0 to 1"),
        (np.full((8, 6), 300, np.int32), "0 to 255: convert it to uint8"),
        (np.zeros((0, 6, 3), np.uint8), "no pixels"),
        (np.zeros((8, 6, 3), complex), "pixels are numbers"),
        (np.zeros(5), r"shape \(5,\)"),
        (torch.zeros(2, 3, 8, 6), "shape"),
    ],
)
def test_arrays_that_are_no_images(array: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        open_image(array)


@pytest.mark.parametrize("thing", [3, None, {"a": 1}, object(), ("a.png", 1)])
def test_things_that_are_no_images(thing: Any, clf) -> None:
    with pytest.raises(DataError, match=r"Pillow image|a path, folder"):
        open_image(thing) if thing is not None else clf.predict(thing)
    with pytest.raises(DataError):
        clf.predict(thing)
    with pytest.raises(DataError, match="Pillow image"):
        list(clf.predict_stream(iter([thing])))


def test_a_url_of_another_kind_is_refused_by_name(clf) -> None:
    for url in ("s3://bucket/a.png", "gs://bucket/a.png", "ftp://host/a.png"):
        with pytest.raises(DataError, match=rf"{url}.*http and https"):
            clf.predict(url)
        with pytest.raises(DataError, match=rf"{url}.*http and https"):
            list(clf.predict_stream([url]))


# -- data with labels ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("pets")
    for label, name in enumerate(NAMES):
        (root / name).mkdir()
        for number in range(3):
            pixels = noise((16, 16, 3), 10 * label + number) // 4 + 128 * label
            Image.fromarray(pixels.astype(np.uint8)).save(root / name / f"{number}.png")
    return root


class Pairs(Dataset):
    """A map-style data set that somebody wrote, which keeps misleading attributes."""

    targets = (1, 1, 1, 1, 1, 1)

    def __init__(self, root: Path) -> None:
        self.inner = ImageFolder(root)

    def __len__(self) -> int:
        return len(self.inner)

    def __getitem__(self, index: int) -> tuple[Any, int]:
        image, label = self.inner[index]
        return v2.functional.to_dtype(
            v2.functional.to_image(image), torch.float32, scale=True
        ), label


def frame(root: Path, **more: Any) -> Any:
    pandas = pytest.importorskip("pandas")
    paths = sorted(root.rglob("*.png"))
    return pandas.DataFrame(
        {
            "path": map(str, paths),
            "label": [path.parent.name for path in paths],
            "width": 16,
            **more,
        }
    )


def of_pandas(values: list[Any], kind: str) -> Any:
    """A column of a type that has a missing value of its own."""
    return pytest.importorskip("pandas").array(values, dtype=kind)


def hugging_face(root: Path) -> Any:
    datasets = pytest.importorskip("datasets")
    paths = sorted(root.rglob("*.png"))
    columns = datasets.Features(
        {"image": datasets.Image(), "y": datasets.ClassLabel(names=list(NAMES))}
    )
    labels = [NAMES.index(path.parent.name) for path in paths]
    rows = {"image": list(map(str, paths)), "y": labels}
    return datasets.Dataset.from_dict(rows, features=columns)


def of_every_kind(root: Path) -> dict[str, Any]:
    paths = sorted(root.rglob("*.png"))
    labels = [NAMES.index(path.parent.name) for path in paths]
    images = np.stack([np.asarray(Image.open(path)) for path in paths])
    return {
        "folder": root,
        "ImageFolder": ImageFolder(root),
        "ImageFolder with tensors": ImageFolder(root, v2.ToTensor()),
        "ImageFolder with other labels": ImageFolder(root, target_transform=lambda label: label),
        "Subset": Subset(ImageFolder(root), list(range(6))),
        "Dataset": Pairs(root),
        "Subset of a Dataset": Subset(Pairs(root), list(range(6))),
        "pairs of paths and names": [(str(path), path.parent.name) for path in paths],
        "pairs of images and numbers": [
            (Image.open(path), label) for path, label in zip(paths, labels, strict=True)
        ],
        "arrays": (images, np.array(labels)),
        "tensors": (torch.from_numpy(images).permute(0, 3, 1, 2), torch.tensor(labels)),
        "lists": (paths, labels),
        "DataFrame": frame(root),
        "DataFrame of images": frame(root)
        .assign(path=list(images))
        .rename(columns={"path": "image"}),
        "Hugging Face": hugging_face(root),
    }


def test_every_kind_of_data_gives_the_same_classifier(folder: Path) -> None:
    probabilities, scores = {}, {}
    for name, data in of_every_kind(folder).items():
        clf = Classifier(
            TinyEncoder(), classes=NAMES, config=QUICK, cache=False, workers=0, progress=False
        )
        clf.fit(data, seed=1)
        result = clf.evaluate(data)
        assert result["adapted"]["accuracy"] == clf.score(data), name
        scores[name] = (clf.score(data), clf.zero_shot_score(data))
        probabilities[name] = clf.predict_proba(folder)
        assert clf.fitted_.record.data in (folder.name, None), name
        if not isinstance(data, tuple) and not isinstance(data, list):
            assert np.allclose(clf.predict_proba(data), probabilities[name], atol=1e-6), name
    assert len(set(scores.values())) == 1, scores
    for name, found in probabilities.items():
        assert np.allclose(found, probabilities["folder"], atol=1e-6), name


def test_a_folder_of_images_keeps_its_files(folder: Path) -> None:
    split = convert_data(ImageFolder(folder)).split("all")
    assert split.ids[0] == "cat/0.png" and split.path(0) == folder / "cat" / "0.png"
    drawn = convert_data(Subset(ImageFolder(folder), [4, 0])).split("all")
    assert drawn.ids == ("dog/1.png", "cat/0.png") and drawn.labels.tolist() == [1, 0]


def test_features_as_arrays() -> None:
    images, labels = np.eye(4)[[0, 1, 0, 1]] * 3, np.array([0, 1, 0, 1])
    for data in ((images, labels), (torch.tensor(images), torch.tensor(labels))):
        found = convert_data(data, NAMES)
        assert isinstance(found, Features)
        assert found.classes == NAMES and found.labels.tolist() == [0, 1, 0, 1] and found.dim == 4
    named = convert_data((images, ["dog", "cat"] * 2))
    assert named.classes == NAMES and named.labels.tolist() == [1, 0, 1, 0]
    images[:] = 0
    assert float(named.plain().norm()) == pytest.approx(2.0)  # the arrays are still the user's
    predicted = Classifier(TinyEncoder(), classes=NAMES).predict(np.eye(8, TinyEncoder().dim))
    assert len(predicted) == 8
    with pytest.raises(FeatureError):
        convert_data((np.full((2, 4), np.nan), [0, 1]), NAMES)
    with pytest.raises(FeatureError, match="for 2 images"):
        convert_data((np.eye(4)[:2], [0]), NAMES)


def test_a_table_of_pandas_with_splits(folder: Path) -> None:
    found = convert_data(frame(folder, split=["train", "test", "validation"] * 2))
    assert isinstance(found, ImageDataset) and list(found.splits) == ["train", "val", "test"]
    assert [len(split) for split in found.splits.values()] == [2, 2, 2]


def test_a_dict_of_hugging_face_has_splits(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    both = datasets.DatasetDict(train=hugging_face(folder), test=hugging_face(folder))
    assert list(convert_data(both).splits) == ["train", "test"]
    with pytest.raises(DataError, match=r"'train', 'test': give one .* data\['train'\]"):
        images_to_predict(both)


def test_fine_tuning_takes_the_same_data(folder: Path) -> None:
    tuner = FineTuner(TinyEncoder(), "linear_probe", cache=False, workers=0, progress=False)
    tuner.fit(ImageFolder(folder))
    assert tuner.fitted.record.images == 6


@pytest.mark.filterwarnings("ignore:the data has no test split")
def test_fine_tuning_and_encoding_refuse_features_by_name(folder: Path, tmp_path: Path) -> None:
    file, store = tmp_path / "f.safetensors", tmp_path / "store"
    found = Features(torch.eye(4), [0, 1, 0, 1], NAMES, text_features=torch.eye(4)[:2], scale=10.0)
    found.save(file)
    stored = save_store([found], store)
    tuner = FineTuner(TinyEncoder(), "linear_probe", cache=False, workers=0, progress=False)
    given = {
        "f.safetensors": file,
        "store": str(store),
        "FeatureStore": stored,
        "type Features": found,
    }
    for name, data in (given | {"the type Features": (np.eye(4)[:2], ["cat", "dog"])}).items():
        message = (
            f"opens images, but .*{name}'? holds features of them: give images, or use Classifier"
        )
        with pytest.raises(DataError, match=message):
            tuner.fit(data)
        with pytest.raises(DataError, match=message):
            tuner.fit(folder, {"a": data})
    for command in ("finetune", "encode"):
        for place in (file, store):  # before the encoder is loaded
            words = [command, str(place), "--out", str(tmp_path / "out"), "--model", "nowhere"]
            refusal = CliRunner().invoke(app, words).exception
            assert isinstance(refusal, DataError) and "holds features of them" in str(refusal)


@pytest.mark.filterwarnings("ignore:the data has no test split")
def test_shifted_sets_have_the_numbers_of_training(folder: Path) -> None:
    labels = frame(folder).label.map(NAMES.index)
    numbered = frame(folder).assign(label=labels)
    paths = numbered.path.tolist()
    shifted = {
        "frame": numbered,
        "lists": (paths, labels.tolist()),
        "pairs": list(zip(paths, labels, strict=True)),
        "folder": folder,
    }
    for data, given in ((numbered, NAMES), (folder, NAMES), (folder, None)):
        for test in open_sets(data, shifted, given).tests:
            called = [test.classes[label] for label in test.split.labels]
            assert called == [Path(path).parent.name for path in paths]
    with pytest.raises(DataError, match="label 2 is out of range: there are 2 class names"):
        open_sets(folder, {"a": (paths, [0, 1, 2, 0, 1, 2])})


@pytest.mark.filterwarnings("ignore:the data has no test split", "ignore:the classes of")
def test_numbers_that_are_names_in_a_list_are_no_places(folder: Path, tmp_path: Path) -> None:
    for number, name in enumerate(NAMES):
        shutil.copytree(folder / name, tmp_path / "two" / str(number))
    opened = open_sets(tmp_path / "two", {"a": tmp_path / "two"}, ["1", "0"])
    for split in (opened.train, opened.tests[0].split):
        found = {Path(split.ids[row]).parts[0]: split.labels[row] for row in range(len(split))}
        assert found == {"0": 1, "1": 0}


class Stream(IterableDataset):
    def __iter__(self) -> Any:
        return iter(())


REFUSED = {
    "DataLoader": (lambda root: DataLoader(ImageFolder(root)), r"loader\.dataset"),
    "stream": (lambda root: Stream(), "at random"),
    "array": (lambda root: np.eye(3), r"the pair \(X, y\)"),
    "number": (lambda root: 3, "int cannot be used; give a folder"),
    "nothing": (lambda root: None, "NoneType cannot be used; give a folder"),
    "dict": (lambda root: {"cat": []}, "dict cannot be used; give a folder"),
    "paths alone": (lambda root: [str(root)], r"not pairs|not a pair"),
    "features of torch": (lambda root: TensorDataset(torch.eye(3)), "not pairs"),
    "empty": (lambda root: [], "no items"),
    "frame without label": (lambda root: frame(root).drop(columns="label"), "nothing says"),
    "frame without path": (lambda root: frame(root).drop(columns="path"), "no column of the image"),
    "frame of two labels": (lambda root: frame(root, Label=1), "2 columns of the label"),
    "label missing": (
        lambda root: frame(root).assign(label=[None, float("nan"), *"abcd"]),
        "missing",
    ),
    "label missing in a column of texts": (
        lambda root: frame(root).assign(label=of_pandas(["cat"] * 5 + [None], "string")),
        "row 5 of the DataFrame is missing",
    ),
    "label missing in a column of integers": (
        lambda root: frame(root).assign(label=of_pandas([0, 1, 0, None, 1, 1], "Int64")),
        "row 3 of the DataFrame is missing",
    ),
    "label missing beside paths": (
        lambda root: (["a.png"] * 6, frame(root, y=of_pandas([0, 1, None] * 2, "Int64"))["y"]),
        "item 2 is missing",
    ),
    "path missing": (
        lambda root: frame(root).assign(path=of_pandas(["a.png"] * 5 + [None], "string")),
        "the path of row 5 of the DataFrame is missing",
    ),
    "labels mixed": (lambda root: [("a.png", "cat"), ("b.png", 1)], "texts .* numbers"),
    "labels of floats": (lambda root: (np.eye(3), [0.0, 1.0, 1.0]), r"label of item 0 is 0\.0"),
    "labels of truth": (lambda root: (np.eye(3), [True, False, True]), "item 0 is True"),
    "unknown class": (lambda root: (np.eye(3), [0, 1, 2]), r"label 2 is out of range.*2 class"),
    "file missing": (lambda root: [("no/a.png", "cat"), ("no/b.png", "dog")], "does not exist"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_the_rest_is_refused_with_what_to_give(folder: Path, name: str) -> None:
    make, message = REFUSED[name]
    clf = Classifier(TinyEncoder(), classes=NAMES, config=QUICK, cache=False, progress=False)
    if name == "frame without label":
        clf = Classifier(TinyEncoder(), config=QUICK, cache=False, progress=False)
    for use in (clf.fit, clf.score, clf.evaluate):
        with pytest.raises(DataError, match=message):
            use(make(folder))


def test_prediction_looks_at_images_alone(folder: Path) -> None:
    clf = Classifier(TinyEncoder(), classes=NAMES, config=QUICK, cache=False, progress=False)
    rows = frame(folder)[::-1].reset_index(drop=True)
    expected = clf.predict_proba(rows["path"].tolist())
    labels = of_pandas(["cat", None, "owl"] * 2, "string")
    for split in (["train", "test"] * 3, ["left"] * 6):
        told = rows.assign(label=labels, target=1, split=split)
        assert np.allclose(clf.predict_proba(told), expected, atol=1e-6)
    datasets = pytest.importorskip("datasets")
    columns = {"image": rows["path"].tolist(), "label": [[0, 1]] * 6, "class": ["cat"] * 6}
    several = datasets.Dataset.from_dict(columns)
    assert np.allclose(clf.predict_proba(several), expected, atol=1e-6)


def test_numbers_without_names_are_not_guessed() -> None:
    with pytest.raises(DataError, match="nothing says which classes"):
        convert_data((np.eye(3), [0, 1, 1]))


def test_a_set_of_torchvision_in_memory() -> None:
    data = FakeData(4, (3, 8, 8), 2)
    found = convert_data(data, NAMES).split("all")
    assert len(found) == 4 and found.load(0).size == (8, 8)


def test_a_head_of_images_whose_names_are_no_unicode(folder: Path, tmp_path: Path) -> None:
    """What is recorded of the data can be read back, whatever bytes the names are."""
    import os
    import shutil

    root = os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9")
    try:
        shutil.copytree(folder, root)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    Path(root, "cat", os.fsdecode(b"\xe9.png")).write_bytes(b"no image")
    clf = Classifier(
        TinyEncoder(), config=QUICK, cache=False, workers=0, skip_bad=True, progress=False
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        clf.fit(root).save_pretrained(tmp_path / "head")
    again = Classifier.from_pretrained(tmp_path / "head", encoder=TinyEncoder(), cache=False)
    assert again.fitted_.record.data == "caf\\xe9"
    assert [entry[0] for entry in again.fitted_.record.skipped] == ["cat/\\xe9.png"]
    assert np.array_equal(again.predict_proba(folder), clf.predict_proba(folder))
