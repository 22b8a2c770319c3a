"""`rada predict` on a features file: the same as in memory, in parts, and with test-time methods."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pytest
import torch
from torch.nn.functional import normalize

from cli.test_cli import ok, refused
from rada import Classifier, EFTConfig, Features, predictions

NAMES = ("ant", "bee", "cat")


def table(count: int, views: int = 1, **more: object) -> Features:
    generator = torch.Generator().manual_seed(count)
    text = normalize(torch.randn(3, 16, generator=generator), dim=-1)
    labels = torch.arange(count) % 3
    noise = 0.2 * torch.randn(count, views, 16, generator=generator)
    rows = normalize(text[labels][:, None] + noise, dim=-1)
    ids = tuple(f"there/{index}.jpg" for index in range(count))
    return Features(rows, labels, NAMES, ids, text_features=text, scale=20.0, **more)


@pytest.fixture
def place(tmp_path: Path) -> Path:
    features = table(30, views=4)
    features.save(tmp_path / "rows.safetensors")
    config = EFTConfig(epochs=2, min_steps=0, num_heads=2, strength=0.5)
    Classifier(None, config, progress=False).fit(features, output_dir=tmp_path / "head")
    return tmp_path


def test_rows_are_named_by_their_ids(place: Path) -> None:
    text = ok("predict", place / "head", place / "rows.safetensors", "--top-k", "2", environment={})
    rows = list(csv.DictReader(io.StringIO(text)))
    features = Features.load(place / "rows.safetensors")
    expected = Classifier.from_pretrained(place / "head").predict(features, top_k=2)
    assert [row["path"] for row in rows] == list(features.ids)
    assert [(row["class_1"], row["class_2"]) for row in rows] == [
        (first.name, second.name) for first, second in expected
    ]
    chances = [float(row["probability_1"]) for row in rows]
    assert chances == pytest.approx([first.probability for first, _ in expected], abs=1e-4)


@pytest.mark.parametrize("options", [(), ("--explain",)])
def test_test_time_methods_take_the_views(place: Path, options: tuple[str, ...]) -> None:
    words = ("predict", place / "head", place / "rows.safetensors", "--json")
    more = ("--test-time", "rada", "--views", "4", "--test-time-set", "selection=0.5", *options)
    lines = [json.loads(line) for line in ok(*words, *more, environment={}).splitlines()]
    assert [line["path"] for line in lines] == [f"there/{index}.jpg" for index in range(30)]
    assert all(("explanation" in line) == bool(options) for line in lines)


def test_an_encoder_takes_the_classes_of_the_file(place: Path) -> None:
    from rada.cli.opening import open_classifier

    found = open_classifier("embedded", is_model=True, data=str(place / "rows.safetensors"))
    assert found.candidates() == NAMES


def test_parts_are_the_whole(monkeypatch: pytest.MonkeyPatch, place: Path) -> None:
    classifier = Classifier.from_pretrained(place / "head")
    features = Features.load(place / "rows.safetensors")
    sizes = []
    inner = predictions.rank
    monkeypatch.setattr(
        predictions, "rank", lambda rows, *more: sizes.append(len(rows)) or inner(rows, *more)
    )
    found = list(classifier.predict_stream(table(1500)))
    assert sizes == [1024, 476] and [each.name for each in found] == list(table(1500).ids)
    other = Features(torch.eye(16)[:2], [0, 1], ("x", "y"), encoder="a", encoder_fingerprint="b")
    named = [entry.predictions[0].name for entry in classifier.predict_stream(features)]
    assert named == list(classifier.predict(features))
    assert {entry.predictions[0].name for entry in classifier.predict_stream(other)} <= set(NAMES)


def test_what_cannot_be_used_is_said(place: Path) -> None:
    rows = place / "rows.safetensors"
    words = ("predict", place / "head")
    assert "does not exist" in refused(*words, place / "none.npz", environment={})
    assert "a run of its own" in refused(*words, rows, rows, environment={})
    message = refused(*words, rows, "--out", rows, "--overwrite", environment={})
    assert str(rows) in message and Features.load(rows).ids[0] == "there/0.jpg"
