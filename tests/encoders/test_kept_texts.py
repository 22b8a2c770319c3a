"""Embeddings of lists of texts are made once, and again where the file is damaged."""

from __future__ import annotations

import pytest
import torch
from typer.testing import CliRunner

from data.images import draw_folder
from rada import Classifier
from rada.encoders import DualEncoder, load_encoder
from rada.encoders.kept_texts import kept_classes, kept_texts

NAMES = tuple(f"thing {number}" for number in range(90))
TEMPLATES = ("a photo of a {}.", "a drawing of a {}.", "the {}.")


def test_a_damaged_file_is_made_again(tmp_path, monkeypatch):
    monkeypatch.setenv("RADA_CACHE", str(tmp_path))
    texts = torch.randn(3, 4)

    def never():
        pytest.fail("it was there")

    assert torch.equal(kept_texts("key", (3, 4), lambda: texts), texts)
    assert torch.equal(kept_texts("key", (3, 4), never), texts)
    path = tmp_path / "encoders" / "key.safetensors"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    for bad in (bytes(content), path.read_bytes()[:20], b""):
        path.write_bytes(bad)
        with pytest.warns(UserWarning, match="damaged"):
            assert torch.equal(kept_texts("key", (3, 4), lambda: texts + 1), texts + 1)
        assert torch.equal(kept_texts("key", (3, 4), never), texts + 1)


def counted(encoder, monkeypatch) -> list[int]:
    """Return a list to which every call of the text encoder adds its number of prompts."""
    runs: list[int] = []
    embed = encoder.text_embeddings

    def run(tokens):
        runs.append(len(tokens["input_ids"]))
        return embed(tokens)

    monkeypatch.setattr(encoder, "text_embeddings", run)
    return runs


@pytest.mark.parametrize("name", ["open_clip", "clip"])
def test_many_prompts_are_one_batched_pass_and_then_none(saved, tmp_path, monkeypatch, name):
    monkeypatch.setenv("RADA_CACHE", str(tmp_path))
    encoder = load_encoder(saved(name))
    runs = counted(encoder, monkeypatch)
    found = kept_classes(encoder, NAMES, TEMPLATES)
    assert runs == [64, 64, 64, 64, 14]  # whatever the classes and templates, batches are full
    singles = torch.stack([encoder.encode_classes(NAMES, (text,)) for text in TEMPLATES])
    one_by_one = torch.nn.functional.normalize(singles.mean(0), dim=-1)
    torch.testing.assert_close(found, one_by_one, atol=1e-6, rtol=0)
    runs.clear()
    assert torch.equal(kept_classes(load_encoder(saved(name)), NAMES, TEMPLATES), found)
    assert torch.equal(kept_classes(encoder, NAMES, TEMPLATES), found)
    assert runs == []
    kept_classes(encoder, NAMES, TEMPLATES, keep=False)
    kept_classes(encoder, NAMES[:5], TEMPLATES)  # few prompts: no file is worth it
    assert sum(runs) == 270 + 15
    assert len(list((tmp_path / "encoders").iterdir())) == 1


def test_other_names_templates_weights_and_precision_are_other_files(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("RADA_CACHE", str(tmp_path))
    encoder = load_encoder(saved("clip"))
    first = kept_classes(encoder, NAMES, TEMPLATES)
    others = [
        kept_classes(encoder, NAMES[::-1], TEMPLATES),
        kept_classes(encoder, NAMES, TEMPLATES[::-1]),
        kept_classes(load_encoder(saved("clip"), dtype="bfloat16"), NAMES, TEMPLATES),
    ]
    torch.testing.assert_close(others[0], first.flip(0))
    with torch.no_grad():
        next(encoder.text_module.parameters()).mul_(1.5)
    others.append(kept_classes(encoder, NAMES, TEMPLATES))
    assert not torch.equal(others[-1], first)
    assert len(list((tmp_path / "encoders").iterdir())) == 5


def test_a_classifier_keeps_them_unless_it_may_not(saved, tmp_path, monkeypatch):
    monkeypatch.setenv("RADA_CACHE", str(tmp_path / "cache"))
    draw_folder(tmp_path / "images", {"dark": 2, "light": 2})
    templates = [f"{{}} {number}" for number in range(130)]
    options = {"method": "zero_shot", "templates": templates, "progress": False, "workers": 0}
    for cache, files in ((False, 0), (None, 1), (None, 1)):
        Classifier(saved("clip"), cache=cache, **options).fit(tmp_path / "images")
        folder = tmp_path / "cache" / "encoders"
        assert len(list(folder.glob("classes-*.safetensors"))) == files


@pytest.mark.parametrize("out", ["features.safetensors", "store"])
def test_encode_keeps_them_too(saved, tmp_path, monkeypatch, out):
    from rada.cli.app import app

    monkeypatch.setenv("RADA_CACHE", str(tmp_path / "cache"))
    draw_folder(tmp_path / "photos" / "train", {"cat": 2, "dog": 2})
    options = ["--model", saved("clip"), "--split", "train", "--workers", "0"]
    options += [word for number in range(140) for word in ("--template", f"{number} times {{}}")]

    def encode(place, *more):
        command = ["encode", tmp_path / "photos", "--out", place, *options, *more]
        done = CliRunner().invoke(app, [str(word) for word in command])
        assert done.exit_code == 0, done.output

    encode(tmp_path / "other" / out, "--no-cache")
    assert not list((tmp_path / "cache").rglob("classes-*"))
    encode(tmp_path / out)
    assert len(list((tmp_path / "cache").rglob("classes-*"))) == 1
    monkeypatch.setattr(DualEncoder, "encode_classes", lambda *_: pytest.fail("they were there"))
    encode(tmp_path / "again" / out)
