"""The code of docs/extending.md runs as it stands."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import rada.data.registry
import rada.encoders.registry
import rada.methods.registry
from rada import Classifier
from rada.core.errors import ConfigError
from rada.data import open_dataset
from rada.encoders import list_families
from rada.features import extract_features
from rada.methods import get_method, list_methods

PAGE = Path(__file__).parents[1] / "docs" / "extending.md"


@pytest.fixture
def page(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the page's code defines; the registries are as before afterwards."""
    list_families(), list_methods(), rada.data.list_datasets()
    for module, table in (
        (rada.data.registry, "_KINDS"),
        (rada.encoders.registry, "_FAMILIES"),
        (rada.methods.registry._METHODS, "entries"),
    ):
        monkeypatch.setattr(module, table, dict(getattr(module, table)))
    names: dict[str, Any] = {"__name__": "documentation"}
    for number, code in enumerate(re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)):
        exec(compile(code, f"{PAGE.name}, block {number}", "exec", dont_inherit=True), names)
    return names


def test_what_the_page_registers_can_be_used(page: dict[str, Any], tmp_path: Path) -> None:
    for number, name in enumerate(("a-1", "b-1", "b-2")):
        pixels = np.random.default_rng(number).integers(0, 256, (20, 24, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    split = open_dataset(f"pairs:{tmp_path}").split("all")
    assert split.classes == ("ant", "bee") and split.labels.tolist() == [0, 1, 1]

    assert "two_towers" in [family.name for family in list_families()]
    encoder = page["encoder"]
    features = extract_features(encoder, split, workers=0, cache=False, views=2)
    assert features.image_features.shape == (3, 2, 16)
    assert encoder.scale == pytest.approx(float(np.exp(3.0)))
    page["colors"].encode_images([Image.new("RGB", (8, 8), "red")])

    assert get_method("class-means") is page["method"]
    features, classifier = page["features"], page["classifier"]
    assert classifier.predict(features).tolist() == ["cat", "dog"] * 4
    classifier.save_pretrained(tmp_path / "means")
    again = Classifier.from_pretrained(tmp_path / "means")
    assert np.array_equal(again.logits(features), classifier.logits(features))
    seen = [tmp_path / "a-1.png", tmp_path / "b-1.png"]
    fitted = Classifier(encoder, "class_means", cache=False, workers=0).fit(f"pairs:{tmp_path}")
    assert fitted.predict(seen).tolist() == ["ant", "bee"]
    with pytest.raises(ConfigError, match="share"):
        page["MeansConfig"](share=2.0)
