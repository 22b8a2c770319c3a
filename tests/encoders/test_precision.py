"""`dtype="auto"`, and a saved model that keeps the precision of its encoder."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from data.images import draw_folder
from rada import Classifier, EFTConfig
from rada.core.errors import CheckpointError
from rada.encoders import load_encoder, loading

CONFIG = EFTConfig(epochs=1, min_steps=0, num_heads=1, strength=1.0)


@pytest.mark.parametrize(("faster", "dtype"), [(True, torch.bfloat16), (False, torch.float32)])
def test_auto_takes_what_is_faster(saved, monkeypatch, faster, dtype):
    monkeypatch.setattr(loading, "_half_is_faster", lambda device: faster)
    for name in ("clip", "open_clip"):
        encoder = load_encoder(saved(name), dtype="auto")
        assert encoder.dtype is dtype
        assert encoder.forward_scale().dtype is torch.float32
    built = load_encoder(encoder.model.float(), tokenizer=encoder.tokenizer, dtype="auto")
    assert built.dtype is dtype


def test_auto_leaves_the_embedded_model_alone(embedded_encoder, monkeypatch):
    monkeypatch.setattr(loading, "_half_is_faster", lambda device: True)
    encoder = load_encoder("embedded", dtype="auto")
    assert encoder.dtype is torch.float32
    assert encoder.fingerprint == embedded_encoder.fingerprint
    pixels = torch.rand(4, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    half = load_encoder("embedded", dtype="bfloat16").infer_images(pixels)
    assert (half * encoder.infer_images(pixels)).sum(1).min() < 0.9999  # which is why


def test_the_processor_is_asked():
    cpu = loading._half_is_faster(torch.device("cpu"))
    assert cpu == torch.cpu._is_avx512_bf16_supported()
    assert loading._half_is_faster(torch.device("meta")) is False


def test_a_model_keeps_the_precision_of_its_encoder(saved, tmp_path: Path):
    draw_folder(tmp_path / "images", {"dark": 3, "light": 3})
    options = {"progress": False, "cache": False, "workers": 0}
    one = Classifier(saved("clip"), config=CONFIG, dtype="bfloat16", **options)
    one.fit(tmp_path / "images", output_dir=tmp_path / "half")
    told = json.loads((tmp_path / "half" / "config.json").read_text())["encoder"]
    assert told["dtype"] == "bfloat16"
    again = Classifier.from_pretrained(tmp_path / "half", **options)
    image = tmp_path / "images" / "dark" / "0.png"
    assert (again.logits(image) == one.logits(image)).all()
    assert again.encoder_.dtype is torch.bfloat16
    other = Classifier.from_pretrained(tmp_path / "half", dtype="float32", **options)
    with pytest.raises(CheckpointError, match=r"precision \(here torch.float32\)"):
        other.predict(image)
    whole = Classifier(saved("clip"), config=CONFIG, **options)
    whole.fit(tmp_path / "images", output_dir=tmp_path / "whole")
    assert "dtype" not in json.loads((tmp_path / "whole" / "config.json").read_text())["encoder"]
