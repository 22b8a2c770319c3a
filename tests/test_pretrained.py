"""Saved models: what is written comes back, and what is hostile or damaged is refused."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import pickle
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from rada import Classifier, ClassSet, EFTConfig, Features, __version__
from rada.core.errors import CheckpointError, FeatureError
from rada.core.hashing import fingerprint_tensors
from rada.core.records import RunStateRecord, StrengthRecord
from rada.predictions import probabilities_of
from rada.pretrained import Fitted, load_model
from rada.training.checkpoints import RunState
from rada.training.strength import StrengthChoice
from toy import SCALE, toy, toy_features


@pytest.fixture
def features() -> Features:
    return toy_features()


@pytest.fixture
def saved(features: Features, tmp_path: Path) -> Path:
    classifier = Classifier(
        None, config=EFTConfig(epochs=2, min_steps=0, strength=0.5), progress=False
    )
    classifier.fit(features, seed=3).save_pretrained(tmp_path / "head")
    return tmp_path / "head"


def load_head(folder: Path) -> Fitted:
    return load_model(folder)


def edit(folder: Path, field: str, value: object) -> None:
    """Set a field of the configuration, such as "training.seed"."""
    config = json.loads((folder / "config.json").read_text())
    *outer, last = field.split(".")
    place = config
    for name in outer:
        place = place[name]
    place[last] = value
    (folder / "config.json").write_text(json.dumps(config))


def rewrite(folder: Path, state: dict[str, torch.Tensor]) -> None:
    """Replace the weights, with a configuration that was written for them."""
    # Older safetensors reads weights from the file itself, which must not change under them.
    save_file(state, folder / "half")
    (folder / "half").replace(folder / "model.safetensors")
    names = sorted(state)
    edit(folder, "weights_hash", fingerprint_tensors(*(state[k] for k in names), extra=names))


def test_round_trip(saved: Path, features: Features) -> None:
    config = json.loads((saved / "config.json").read_text())
    assert config["method"] == "rada"
    assert config["strength"]["value"] == 0.5
    assert config["training"]["seed"] == 3
    assert config["method_config"]["epochs"] == 2
    loaded = Classifier.from_pretrained(saved)
    again = Classifier(None, config=EFTConfig(epochs=2, min_steps=0, strength=0.5)).fit(
        features, seed=3
    )
    assert loaded.candidates() == features.classes
    assert loaded.inputs.scale_for() == SCALE
    assert loaded.resolved() == again.resolved()
    assert (loaded.predict_proba(features) == again.predict_proba(features)).all()
    loaded.save_pretrained(saved.parent / "copy")
    copy = json.loads((saved.parent / "copy" / "config.json").read_text())
    assert copy == config


@pytest.mark.parametrize("value", [2, "0.5", True])
def test_damaged_strength_of_trained_classes(saved: Path, value: object) -> None:
    edit(saved, "strength.trained", value)
    with pytest.raises(CheckpointError, match=r"trained strength"):
        Classifier.from_pretrained(saved)


def test_double_precision_is_kept(saved: Path) -> None:
    state = {name: value.double() for name, value in load_file(saved / "model.safetensors").items()}
    rewrite(saved, state)
    head = load_head(saved).model.head
    assert head is not None and head.out.weight.dtype == torch.float64


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "noise", "folder", "link"])
def test_damaged_files(saved: Path, tmp_path: Path, name: str, damage: str) -> None:
    path = saved / name
    content = path.read_bytes()
    path.unlink()
    if damage == "folder":
        path.mkdir()
    elif damage == "link":
        (tmp_path / "outside").write_bytes(content)
        path.symlink_to(tmp_path / "outside")
    elif damage != "missing":
        path.write_bytes({"empty": b"", "truncated": content[:-20], "noise": b"\xff" * 99}[damage])
    with pytest.raises(CheckpointError, match=name.replace(".", r"\.")):
        load_head(saved)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors"])
@pytest.mark.parametrize("damage", ["missing", "empty", "truncated", "flipped"])
def test_a_damaged_model_says_how_to_mend_it(saved: Path, name: str, damage: str) -> None:
    path = saved / name
    content = path.read_bytes()
    place = content.index(b'"scale": ') + 9 if name == "config.json" else len(content) - 1
    flipped = content[:place] + bytes([content[place] ^ 64]) + content[place + 1 :]
    path.write_bytes(
        {"empty": b"", "truncated": content[:-20], "flipped": flipped}.get(damage, b"")
    )
    if damage == "missing":
        path.unlink()
    with pytest.raises(CheckpointError, match=r"damaged.*copy the folder again.*fit again"):
        load_head(saved)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", 10**12),
        ("dim", 0),
        ("dim", "16"),
        ("method_config.num_heads", 3),
        ("method_config.temperature", 0),
        ("method_config.temperature", None),
        ("method_config.epochs", "many"),
        ("method_config", []),
        ("method", "no_such_method"),
        ("method", 3),
        ("scale", -1.0),
        ("strength.value", 2),
        ("strength.value", True),
        ("strength", 0.5),
        ("classes", "abc"),
        ("classes", [1, 2]),
        ("templates", None),
        ("encoder", {"name": "x"}),
        ("encoder", "embedded"),
        ("aliases", {"a": 1}),
        ("training", []),
        ("no_such_field", 1),
    ],
)
def test_bad_configuration_is_named(saved: Path, field: str, value: object) -> None:
    edit(saved, field, value)
    with pytest.raises(
        CheckpointError, match=f"{field.split('.')[-1]}|fingerprint|out|weight|bias"
    ):
        load_head(saved)


def test_missing_field_is_named(saved: Path) -> None:
    config = json.loads((saved / "config.json").read_text())
    del config["classes"]
    (saved / "config.json").write_text(json.dumps(config))
    with pytest.raises(CheckpointError, match="missing field 'classes'"):
        load_head(saved)


def test_width_that_is_not_the_configurations(saved: Path) -> None:
    state = load_file(saved / "model.safetensors")
    del state["class_features"]
    rewrite(saved, state)
    edit(saved, "dim", 32)
    with pytest.raises(CheckpointError, match=r"'head.key.bias'.*\(16,\).*\(32,\)"):
        load_head(saved)


def test_header_that_promises_too_much(saved: Path) -> None:
    """A header of a few bytes cannot make the loader allocate what it claims."""
    huge = 10**13
    header = {"out.weight": {"dtype": "F32", "shape": [huge, 4], "data_offsets": [0, huge * 16]}}
    text = json.dumps(header).encode()
    (saved / "model.safetensors").write_bytes(struct.pack("<Q", len(text)) + text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_head(saved)
    (saved / "model.safetensors").write_bytes(struct.pack("<Q", 2**62) + text)
    with pytest.raises(CheckpointError, match=r"model\.safetensors"):
        load_head(saved)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(saved: Path, value: float) -> None:
    state = load_file(saved / "model.safetensors")
    state["head.key.weight"][3, 2] = value
    rewrite(saved, state)
    with pytest.raises(CheckpointError, match=r"'head\.key\.weight'.*NaN"):
        load_head(saved)


def test_pickle_is_never_read(saved: Path, tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return Path.touch, (str(tmp_path / "exploded"),)

    payload = pickle.dumps(Bomb()).replace(b"PosixPath", b"PosixPath")
    for name in ("config.json", "model.safetensors", "pytorch_model.bin", "head.pt"):
        (saved / name).write_bytes(payload)
    with pytest.raises(CheckpointError):
        load_head(saved)
    assert not (tmp_path / "exploded").exists()


def test_kill_between_files_is_noticed(saved: Path, features: Features) -> None:
    """Weights of one run beside the configuration of another are refused."""
    other = Classifier(None, config=EFTConfig(epochs=1, min_steps=0, strength=0.5), progress=False)
    other.fit(features, seed=4).save_pretrained(saved.parent / "other")
    (saved / "model.safetensors").write_bytes(
        (saved.parent / "other" / "model.safetensors").read_bytes()
    )
    with pytest.raises(CheckpointError, match="hash"):
        load_head(saved)


HUGE = 10**400


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", HUGE),
        ("dim", True),
        ("method_config.num_heads", HUGE),
        ("method_config.temperature", HUGE),
        ("method_config.epochs", HUGE),
        ("method_config.strength", HUGE),
        ("method_config.learning_rate", HUGE),
        ("scale", HUGE),
        ("scale", 1e308),
        ("strength.value", HUGE),
        ("strength.value", -HUGE),
        ("strength.trained", HUGE),
        ("strength.classes", 5),
        ("strength.classes", "abc"),
        ("strength.classes", [["a"]]),
        ("strength.classes", [{}]),
        ("classes", ["a", None]),
        ("classes", {"a": 1}),
        ("trained_classes", "abc"),
        ("trained_classes", [["a"]]),
        ("encoder", {"name": 1, "fingerprint": "x"}),
        ("tuned", 5),
        ("format", "rada-model-99"),
        ("format", None),
        ("weights_hash", 1),
        ("rada_version", None),
        ("training.seed", "abc"),
        ("training.seed", HUGE),
        ("training.seed", None),
        ("training.seed", 1.5),
        ("training.details.history", 5),
        ("training.details.history", [5]),
        ("training.details.history", {"loss": 1}),
        ("training.details.strength_choice", "best"),
        ("training.details.strength_choice", {"strength": 1.0}),
        ("training.details.strength_choice", {"strength": 1.0, "method": "magic"}),
        ("training.details.strength_choice", {"strength": 1.0, "method": "none", "more": 1}),
        ("training.details.strength_choice", {"strength": HUGE, "method": "none"}),
        ("training.details", []),
        ("training.key", 5),
        ("training.skipped", "abc"),
        ("training.shots", HUGE),
        ("training.shots", 0),
        ("training.images", -1),
        ("training.data", ["x"]),
        ("training.image_keys", [1]),
    ],
)
def test_hostile_fields_are_named(saved: Path, field: str, value: object) -> None:
    edit(saved, field, value)
    for load in (Classifier.from_pretrained, load_head):
        with pytest.raises(CheckpointError, match=field.split(".")[-1]) as caught:
            load(saved)
        assert len(str(caught.value)) < 600


def test_a_curve_of_anything_but_numbers_is_none(saved: Path) -> None:
    edit(saved, "training.details.history", [{"loss": "a"}])
    assert Classifier.from_pretrained(saved).fitted_.record.history == []


@pytest.mark.parametrize(
    "text",
    [
        '{"classes": ["\\ud800"]}',
        '{"\\uDC00": 1}',
        '{"scale": NaN}',
        '{"scale": Infinity}',
        '{"scale": 1e999}',
        '{"dim": ' + "9" * 5000 + "}",
        "[" * 100_000,
        "\x00",
        '{"dim": 16, "dim": 16}',
    ],
)
def test_json_that_nobody_should_write(saved: Path, text: str) -> None:
    (saved / "config.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"config\.json"):
        Classifier.from_pretrained(saved)


@pytest.mark.parametrize("dtype", [torch.float8_e4m3fn, torch.float8_e5m2, torch.int32, torch.bool])
def test_types_of_weights(saved: Path, dtype: torch.dtype) -> None:
    state = load_file(saved / "model.safetensors")
    state["head.key.weight"] = state["head.key.weight"].to(dtype)
    rewrite(saved, state)
    with pytest.raises(CheckpointError, match=r"'head\.key\.weight'.*torch\."):
        load_head(saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_predicts(saved: Path, features: Features, dtype: torch.dtype) -> None:
    whole = Classifier.from_pretrained(saved).predict_proba(features)
    state = load_file(saved / "model.safetensors")
    rewrite(saved, {name: value.to(dtype) for name, value in state.items()})
    half = Classifier.from_pretrained(saved).predict_proba(features)
    assert abs(half - whole).max() < 0.05


@pytest.mark.parametrize(
    "layer", ["head", "key.weight", "query_image.weight", "out.weight", "value.bias"]
)
@pytest.mark.parametrize("size", [1e15, 1e30, 3e38])
def test_huge_weights_never_give_nan(
    saved: Path, features: Features, layer: str, size: float
) -> None:
    state = load_file(saved / "model.safetensors")
    for name, value in state.items():
        if layer in name:
            state[name] = value / value.abs().max().clamp(min=1e-6) * size
    rewrite(saved, state)
    with pytest.raises(CheckpointError, match="what no weights are"):
        load_head(saved)
    with contextlib.suppress(CheckpointError, FeatureError):
        found = Classifier.from_pretrained(saved).predict_proba(features)
        assert np.isfinite(found).all()
        assert found.sum(1) == pytest.approx(1, abs=1e-5)


def test_class_features_that_overflow_are_no_probabilities(saved: Path) -> None:
    model = load_head(saved).model
    images, _, text = toy()
    classes = ClassSet(model.facts.classes, text * 1e38)
    for strength in (0.0, None):
        with pytest.raises(FeatureError, match="NaN or infinite"):
            probabilities_of(model.logits(images, classes, strength=strength))


def test_the_schemas_have_the_fields_of_what_they_describe() -> None:
    for record, kind in (
        (StrengthRecord, StrengthChoice),
        (RunStateRecord, RunState),
    ):
        assert set(record.model_fields) == {entry.name for entry in dataclasses.fields(kind)}


# -- rada 0.1 --------------------------------------------------------------------------------------------


@pytest.fixture
def old(saved: Path, tmp_path: Path) -> Path:
    """The same head as rada 0.1 wrote it."""
    new = json.loads((saved / "config.json").read_text())
    state = load_file(saved / "model.safetensors")
    state = {name.removeprefix("head."): value for name, value in state.items() if "head." in name}
    training = {
        "setting": "eft", "images": 24, "shots": None, "data": "toys", "data_fingerprint": "1" * 32,
        "skipped": [["cat/1.png", "no image"]], "trained_classes": new["classes"], "origin": None,
        "origin_name": None, "config": new["method_config"], "seed": 3, "strength": 0.25,
        "trained_strength": 0.5, "strength_choice": None, "history": [{"loss": 0.5}],
        "fingerprint": "2" * 32,
    }  # fmt: skip
    config = {
        "dim": 16, "num_heads": 8, "temperature": 1.0, "scale": SCALE, "strength": 0.25, "encoder": None,
        "classes": new["classes"], "templates": ["a photo of a {}."], "aliases": new["aliases"],
        "training": training, "rada_version": "0.1.0", "parts": ["head"],
        "weights_hash": fingerprint_tensors(*(state[name] for name in sorted(state))),
    }  # fmt: skip
    folder = tmp_path / "old"
    folder.mkdir()
    save_file(state, folder / "head.safetensors", metadata={"format": "pt"})
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_a_head_of_rada_0_1_predicts_as_before(
    old: Path, saved: Path, features: Features, tmp_path: Path
) -> None:
    loaded = Classifier.from_pretrained(old)
    expected = Classifier.from_pretrained(saved).predict_proba(features)  # at strength 0.5
    assert np.array_equal(loaded.predict_proba(features), expected)
    assert loaded.candidates() == features.classes
    assert loaded.strength_for(features.classes) == 0.5
    assert loaded.strength == loaded.strength_for([*features.classes, "new"]) == 0.25
    record = loaded.fitted_.record
    assert (record.seed, record.images, record.data) == (3, 24, "toys")
    assert record.history == [{"loss": 0.5}] and record.skipped == (("cat/1.png", "no image"),)
    loaded.save_pretrained(tmp_path / "new")
    again = Classifier.from_pretrained(tmp_path / "new")
    assert np.array_equal(again.predict_proba(features), expected)
    assert again.fitted_.record == record
    config = json.loads((tmp_path / "new" / "config.json").read_text())
    assert config["format"] == "rada-model-2" and config["rada_version"] == __version__


def test_a_head_of_rada_0_1_from_before_there_were_two_strengths(old: Path) -> None:
    training = json.loads((old / "config.json").read_text())["training"]
    del training["trained_strength"], training["trained_classes"]
    edit(old, "training", training)
    loaded = Classifier.from_pretrained(old)
    assert loaded.strength_for(loaded.candidates()) == loaded.strength == 0.25


def test_a_head_of_rada_0_1_may_be_replaced_in_its_folder(old: Path, features: Features) -> None:
    Classifier.from_pretrained(old).save_pretrained(old)
    assert not (old / "head.safetensors").exists()
    assert (Classifier.from_pretrained(old).predict(features) != "").all()


def test_a_head_of_rada_0_1_knows_the_encoder_of_its_features(old: Path) -> None:
    edit(old, "training.origin", "3" * 32)
    edit(old, "training.origin_name", "embedded")
    encoder = load_model(old).encoder
    assert encoder is not None and (encoder.name, encoder.fingerprint) == ("embedded", "3" * 32)


@pytest.mark.parametrize("parts", [["head", "encoder"], ["classes", "encoder"], ["classes"], 3])
def test_a_tuned_model_of_rada_0_1_is_refused_with_the_way_out(old: Path, parts: object) -> None:
    edit(old, "parts", parts)
    with pytest.raises(CheckpointError, match=r"fine-tune again, or use rada-vlm==0\.1\.0"):
        Classifier.from_pretrained(old)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("dim", HUGE),
        ("num_heads", 3),
        ("strength", 2),
        ("scale", "20"),
        ("encoder", "embedded"),
        ("encoder", {"name": "x"}),
        ("training", []),
        ("training", "abc"),
        ("training.config", "abc"),
        ("training.config", {"epochs": -1}),
        ("training.seed", "one"),
        ("training.history", 5),
        ("training.trained_classes", [1]),
        ("classes", None),
        ("no_such_field", 1),
        ("weights_hash", "0" * 32),
    ],
)
def test_damaged_heads_of_rada_0_1(old: Path, field: str, value: object) -> None:
    edit(old, field, value)
    with pytest.raises(CheckpointError, match=r"config\.json|hash|head\.safetensors"):
        Classifier.from_pretrained(old)
