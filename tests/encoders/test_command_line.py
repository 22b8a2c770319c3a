"""`rada fit --model DIRECTORY`, evaluate and predict, for every family from disk."""

from __future__ import annotations

import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from rich.console import Console

from cli.test_cli import ok, refused
from encoders.tiny_models import MAKERS
from rada import RAdaClassifier
from rada.cli.tables import plain_table
from rada.core.errors import CheckpointError
from rada.encoders import list_models
from rada.methods.rada import EFTConfig


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for name, colour in {
        "red": (220, 30, 30),
        "green": (30, 200, 40),
        "blue": (40, 40, 220),
    }.items():
        (root / name).mkdir()
        for index in range(4):
            pixels = np.clip(random.normal(colour, 12, (40, 40, 3)), 0, 255).astype(np.uint8)
            Image.fromarray(pixels).save(root / name / f"{index}.png")
    return root


@pytest.mark.parametrize("family", sorted(MAKERS))
def test_fit_save_load_evaluate_predict(family: str, saved, photos: Path, tmp_path: Path) -> None:
    config = EFTConfig(epochs=2, min_steps=0, num_heads=1, strength=1.0)
    classifier = RAdaClassifier(str(saved(family)), config=config, workers=0, progress=False)
    classifier.fit(photos, shots=3, seed=1, output_dir=tmp_path / "head")
    loaded = RAdaClassifier.from_pretrained(tmp_path / "head", workers=0, progress=False)
    assert loaded.encoder_ is not None
    assert loaded.encoder_.fingerprint == classifier.encoder_.fingerprint
    result = loaded.evaluate(photos).to_dict()
    assert result["images"] == 12
    assert result["adapted"]["accuracy"] == classifier.score(photos)
    json.dumps(result, allow_nan=False)
    answers = loaded.predict([photos / "red" / "0.png"], top_k=3)
    assert {entry.name for entry in answers[0]} == {"red", "green", "blue"}


def test_head_of_another_family(saved, photos: Path, tmp_path: Path) -> None:
    config = EFTConfig(epochs=1, min_steps=0, num_heads=1, strength=1.0)
    classifier = RAdaClassifier(str(saved("clip")), config=config, workers=0, progress=False)
    classifier.fit(photos, shots=2, seed=1, output_dir=tmp_path / "head")
    with pytest.raises(CheckpointError, match="encoder"):
        RAdaClassifier.from_pretrained(tmp_path / "head", encoder=str(saved("siglip")))


def test_head_whose_model_was_moved(saved, photos: Path, tmp_path: Path) -> None:
    environment = os.environ | {"RADA_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    shutil.copytree(saved("clip"), tmp_path / "here")
    head, image = tmp_path / "head", photos / "red" / "0.png"
    config = EFTConfig(epochs=1, min_steps=0, num_heads=1, strength=1.0)
    classifier = RAdaClassifier(tmp_path / "here", config=config, workers=0, progress=False)
    classifier.fit(photos, shots=2, seed=1, output_dir=head)
    before = ok("predict", head, image, "--workers", "0", environment=environment)
    (tmp_path / "here").rename(tmp_path / "there")
    for command, what in (("predict", image), ("evaluate", photos)):
        line = refused(command, head, what, environment=environment)
        assert "no such directory" in line and "--encoder FOLDER" in line
        other = ("--encoder", saved("align"))
        assert "the model was trained" in refused(
            command, head, what, *other, environment=environment
        )
        both = ("--encoder", tmp_path / "there", "--model", saved("clip"))
        assert "--encoder" in refused(command, what, *both, environment=environment)
    there = ("--encoder", tmp_path / "there", "--workers", "0")
    assert ok("predict", head, image, *there, environment=environment) == before
    found = json.loads(ok("evaluate", head, photos, *there, "--json", environment=environment))
    assert found["images"] == 12


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("ViT-B/32", "open_clip:ViT-B-32/openai"),
        ("facebook/metaclip-b32-400m", "hf:facebook/metaclip-b32-400m"),
    ],
)
def test_slips_on_the_command_line(photos: Path, tmp_path: Path, name: str, meant: str) -> None:
    environment = os.environ | {"RADA_CACHE": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "1"}
    for words in (
        ("predict", name, photos),
        ("evaluate", name, photos),
        ("predict", "--model", name, photos),
        ("fit", photos, "--model", name, "--out", tmp_path / "head"),
        ("models", name),
    ):
        assert f"did you mean {meant!r}" in refused(*words, environment=environment)


def test_models_are_listed_whole_and_filtered(tmp_path: Path) -> None:
    environment = os.environ | {"HF_HUB_CACHE": str(tmp_path), "COLUMNS": "80"}
    known = list_models()
    rows = ok("models", environment=environment).splitlines()[1:]
    assert [row.split()[-1] for row in rows] == [model.name for model in known]
    longest = max((model.name for model in known), key=len)
    assert len(longest) > 60 and any(row.endswith(longest) for row in rows)
    search = ("--search", "vit-l", "--search", "LAION")
    found = json.loads(ok("models", *search, "--json", environment=environment))
    names = [
        model.name for model in known if all(x in model.name.lower() for x in ("vit-l", "laion"))
    ]
    assert [entry["name"] for entry in found] == names != []
    found = json.loads(ok("models", "--family", "siglip", "--json", environment=environment))
    assert {entry["family"] for entry in found} == {"siglip"} and len(found) == 3
    found = json.loads(ok("models", "--local", "--json", environment=environment))
    assert [entry["name"] for entry in found] == [model.name for model in known if model.local]
    for words, message in (
        (("--family", "sigclip"), "the families are align,"),
        (("--search", "no-such-model"), "no known model passes"),
        (("embedded", "--local"), "leave out 'embedded'"),
    ):
        assert message in refused("models", *words, environment=environment)


def test_names_in_tables_are_not_cut() -> None:
    name = "a_class_name_" * 9
    table = plain_table(None, "class", "images")
    table.add_row(name, "3")
    console = Console(width=60, file=io.StringIO())
    console.print(table)
    text = console.file.getvalue()
    assert "".join(line.split("│")[1].strip() for line in text.splitlines() if "_" in line) == name
