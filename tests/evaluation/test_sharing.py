"""Results that are handed on name data and models, not the private folders that they lie in."""

import json
import shlex
from pathlib import Path

import pytest

from rada.evaluation import shareable, shown_name
from rada.inputs import data_name


@pytest.mark.parametrize(
    ("place", "shown"),
    [
        ("textiles", "textiles"),
        ("photos/test", "photos/test"),
        ("open_clip:ViT-B-32/openai", "open_clip:ViT-B-32/openai"),
        ("/home/ann/birds", "birds"),
        ("/home/ann/birds/Validation", "birds/Validation"),
        ("/test", "test"),
        ("../../clients/acme", "acme"),
        ("~/birds/train/", "birds/train"),
        (r"C:\Users\ann\birds", "birds"),
        ("/", "/"),
        ("s3://key:secret@bucket/a-{000..9}.tar?X-Amz-Signature=1", "s3://bucket/a-{000..9}.tar"),
    ],
)
def test_names(place, shown):
    assert shown_name(place) == shown
    assert data_name(place) == shown


def test_no_folder_is_left_in_a_result(monkeypatch):
    monkeypatch.setattr(Path, "home", lambda: Path("/home/ann"))
    data, head = "/home/ann/clients/acme corp's/birds/test", "/srv/private/heads/my head"
    command = shlex.join(
        [
            "rada",
            "evaluate",
            head,
            data,
            "--report=/srv/private/out",
            "--config",
            "/home/ann/c.json",
        ]
    )
    result = {
        "data": data,
        "head": head,
        "encoder": {"name": "/srv/private/models/clip", "fingerprint": "a/b"},
        "training": {"data": "/home/ann/clients/acme corp's/birds/train", "seed": 1},
        "skipped": [["a.png", f"'{data}/cat/a.png' is broken"]],
        "templates": ["a photo of a {}, 16/16"],
        "command": command,
        "value": 0.5,
    }
    before = json.dumps(result)
    shared = shareable(result)
    assert json.dumps(result) == before  # a copy
    text = json.dumps(shared)
    for private in ("/home", "/srv", "private", "clients", "acme"):
        assert private not in text
    assert shlex.split(shared["command"]) == [
        "rada", "evaluate", "my head", "birds/test", "--report=out", "--config", "c.json"
    ]  # fmt: skip
    assert shared["encoder"] == {"name": "clip", "fingerprint": "a/b"}
    assert shared["skipped"] == [["a.png", "'birds/test/cat/a.png' is broken"]]
    assert shared["templates"] == result["templates"] and shared["value"] == 0.5


def test_a_short_folder_is_not_taken_for_a_slash():
    shared = shareable(
        {"data": "/a", "command": "rada evaluate head /a", "note": "x/a and ViT-B/ab"}
    )
    assert shared["data"] == "a" and shared["note"] == "x/a and ViT-B/ab"
