"""The registry, the lists, and the page that is made from them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import ClassVar

import pytest

from rada.encoders import (
    CAPABILITIES,
    EncoderFamily,
    describe_model,
    list_families,
    list_models,
    register_family,
)
from rada.encoders.registry import families_table

PAGE = Path(__file__).parents[2] / "docs" / "encoders.md"


def test_families():
    names = {family.name for family in list_families()}
    expected = (
        "embedded open_clip clip siglip siglip2 align blip altclip chinese_clip vision_text custom"
    )
    assert names == set(expected.split())


def test_page_holds_the_generated_table():
    assert families_table() in PAGE.read_text("utf-8")


def test_models_are_plain_json():
    models = list_models()
    assert models[0].name == "embedded"
    rows = json.loads(json.dumps([model.to_dict() for model in models]))
    names = [row["name"] for row in rows]
    assert len(names) == len(set(names)) > 100
    assert {"name", "family", "dim", "parameters", "local", "capabilities"} <= set(rows[0])
    assert all(row["dim"] for row in rows)
    assert all(set(row["capabilities"]) <= set(CAPABILITIES) for row in rows)


def test_every_listed_name_can_be_described():
    for name in ("embedded", "open_clip:ViT-B-32/openai", "hf:openai/clip-vit-base-patch32"):
        info = describe_model(name)
        assert info.name == name and info.dim and info.parameters
    assert describe_model("hf:someone/something").dim is None


def test_embedded_numbers_are_true(embedded_encoder):
    info = describe_model("embedded")
    assert (info.dim, info.parameters) == (embedded_encoder.dim, embedded_encoder.parameter_count)


def family(new_name, offered=frozenset()):
    class New(EncoderFamily):
        family: ClassVar[str] = new_name
        capabilities = offered

    return New


@pytest.mark.parametrize(
    ("new", "message"),
    [
        (family("clip"), "registered already"),
        (family("No Name"), "lower-case"),
        (family(""), "lower-case"),
        (family("other", frozenset({"flying"})), "flying"),
    ],
)
def test_bad_families_are_refused(new, message):
    with pytest.raises(ValueError, match=message):
        register_family(new)
