"""`rada push` and `push_to_hub`, against a stand-in of the hub; and the card that they write."""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from typer.testing import CliRunner

import rada.cli.app as cli
from golden.make import QUICK, tiny_encoder, write_images
from publishing.hub_stand_in import TOKEN, Hub, Repository, hub_stand_in
from rada import Classifier, get_method
from rada.core.errors import CheckpointError, ConfigError, DataError
from rada.pretrained import load_model
from rada.publishing import model_card, push_folder
from rada.publishing.push import prepare

SOURCE = Path(__file__).parents[2] / "src"
OPTIONS: dict[str, Any] = {"workers": 0, "cache": False, "progress": False}


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("images") / "colours")


@pytest.fixture(scope="module")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "clip"
    tiny_encoder(folder)
    return folder


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, images: Path) -> Path:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    config = get_method("rada").config(**QUICK["rada"])
    clf = Classifier(str(encoder_folder), "rada", config=config, **OPTIONS)
    place = tmp_path_factory.mktemp("model") / "colours"
    clf.fit(str(images), shots=3, seed=1, output_dir=place)
    torch.set_num_threads(threads)
    return place


@pytest.fixture
def hub() -> Iterator[Hub]:
    with hub_stand_in() as found:
        yield found


def run(hub: Hub, home: Path, *words: str, token: str | None = TOKEN) -> Any:
    """Run Python in a process of its own: the hub's client reads its settings when it is imported."""
    environment = {name: text for name, text in os.environ.items() if not name.startswith("HF_")}
    environment |= {
        "HF_ENDPOINT": hub.address,
        "HF_HOME": str(home),
        "HF_HUB_DISABLE_XET": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "PYTHONPATH": str(SOURCE),
        "OMP_NUM_THREADS": "1",
    }
    if token is not None:
        environment["HF_TOKEN"] = token
    done = subprocess.run(
        [sys.executable, *words], capture_output=True, text=True, env=environment, cwd=home
    )
    assert TOKEN not in done.stdout + done.stderr
    return done


PUSH = ("-m", "rada", "push")


def test_push_and_load_again(hub: Hub, model: Path, images: Path, tmp_path: Path) -> None:
    done = run(hub, tmp_path, *PUSH, str(model), "me/colours", "--license", "mit")
    assert done.returncode == 0, done.stderr
    assert f"Pushed config.json, model.safetensors, README.md to {hub.address}/me/colours" in (
        done.stdout
    )
    kept = hub.repositories["me/colours"]
    assert kept.private and len(kept.commits) == 1
    assert set(kept.files) == {"config.json", "model.safetensors", "README.md"}
    for name in ("config.json", "model.safetensors"):
        assert kept.files[name] == (model / name).read_bytes()
    paths = sorted(str(path) for path in images.rglob("*.png"))[:5]
    code = (
        "import json, sys; from rada import Classifier\n"
        "clf = Classifier.from_pretrained('me/colours', workers=0, cache=False)\n"
        "print(json.dumps(clf.predict_proba(sys.argv[1:]).tolist()))"
    )
    loaded = run(hub, tmp_path, "-c", code, *paths)
    assert loaded.returncode == 0, loaded.stderr
    clf = Classifier.from_pretrained(model, **OPTIONS)
    expected = torch.from_numpy(clf.predict_proba(paths))
    assert torch.allclose(torch.tensor(json.loads(loaded.stdout)), expected, atol=1e-6)


def test_python_public_and_again(hub: Hub, model: Path, tmp_path: Path) -> None:
    """From Python; a second push replaces rada's own card, and leaves somebody's own."""
    code = (
        "import sys; from rada import Classifier\n"
        "clf = Classifier.from_pretrained(sys.argv[1], workers=0, cache=False)\n"
        f"print(clf.push_to_hub('me/open', private=False, token={TOKEN!r}[:]))\n"
        "clf.classes = ['a red thing', 'a blue thing']\n"
        f"clf.push_to_hub('me/open', token={TOKEN!r}[:], message='other classes')"
    )
    done = run(hub, tmp_path, "-c", code, str(model), token=None)
    assert done.returncode == 0, done.stderr
    assert done.stdout == f"{hub.address}/me/open\n"
    kept = hub.repositories["me/open"]
    assert not kept.private
    assert [commit["message"] for commit in kept.commits] == ["A model of rada", "other classes"]
    assert b"a blue thing" in kept.files["README.md"]
    kept.files["README.md"] = b"# My own words\n"
    kept.files["encoder/old.bin"] = b"of an earlier model"
    done = run(hub, tmp_path, *PUSH, str(model), "me/open")
    assert "left as it is" in done.stdout, done.stderr
    assert kept.files["README.md"] == b"# My own words\n" and "encoder/old.bin" not in kept.files


REFUSED = (
    ("me/colours", "hf_wrong_token_wrong_token", "hf auth login"),
    ("others/colours", TOKEN, "choose a name of your own"),
    ("me/theirs", TOKEN, "rada did not write"),
)
PUSHES = """
import contextlib, io, json, os, sys
from rada.cli import main
model, *pushes = sys.argv[1:]
for name, token in map(json.loads, pushes):
    os.environ["HF_TOKEN"] = token
    sys.argv = ["rada", "push", model, name]
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        try:
            main()
        except SystemExit as ended:
            code = ended.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def test_refused_by_the_hub(hub: Hub, model: Path, tmp_path: Path) -> None:
    theirs = {"config.json": b'{"model_type": "clip"}', "model.safetensors": b"weights"}
    hub.repositories["me/theirs"] = Repository(False, dict(theirs))
    pushes = [json.dumps([name, token]) for name, token, _ in REFUSED]
    done = run(hub, tmp_path, "-c", PUSHES, str(model), *pushes)
    assert done.returncode == 0, done.stderr
    for line, (_, token, said) in zip(done.stdout.splitlines(), REFUSED, strict=True):
        code, out, err = json.loads(line)
        assert code == 2 and said in err, err
        assert err.count("error:") == 1 and "Traceback" not in err
        assert token not in out + err
    assert hub.repositories["me/theirs"].files == theirs


def test_a_server_that_repeats_the_token(hub: Hub, model: Path, tmp_path: Path) -> None:
    hub.refuse = 400
    done = run(hub, tmp_path, *PUSH, str(model), "me/colours")
    assert done.returncode == 2 and "(status 400)" in done.stderr  # and `run` looked for the token


def test_what_is_no_model_is_refused(model: Path, tmp_path: Path) -> None:
    """Before the hub is asked at all."""
    (tmp_path / "config.json").write_text('{"model_type": "clip"}')
    for place in (tmp_path, tmp_path / "none", Path("/")):
        with pytest.raises(CheckpointError, match="not a folder with a saved model"):
            push_folder(place, "me/x")
    damaged = tmp_path / "damaged"
    damaged.mkdir()
    for name in ("config.json", "model.safetensors"):
        (damaged / name).write_bytes((model / name).read_bytes()[: -1 if name[0] == "m" else None])
    with pytest.raises(CheckpointError, match="damaged"):
        push_folder(damaged, "me/x")
    for name in ("x", "a/b/c", "../x/y", "me/", "me/a b", "me/..", "-me/x"):
        with pytest.raises(ConfigError, match="no name of a repository"):
            push_folder(model, name)


def card_of(model: Path, **options: Any) -> tuple[dict[str, Any], str]:
    text = model_card(load_model(model), "me/colours", **options)
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_card(model: Path, images: Path) -> None:
    head, body = card_of(model, license="mit")
    assert head["license"] == "mit" and head["library_name"] == "rada"
    assert "rada" in head["tags"] and head["pipeline_tag"] == "image-classification"
    assert "9 images of the data set colours, 3 images a class" in body
    assert "blue, green, red" in body
    assert "| RAda |" in body and " to " in body.partition("95 % interval")[2]
    assert "none of the classes" in body and "| Seed | 1 |" in body
    assert str(images.parent) not in body  # no folder of the one who made it


def test_an_encoder_that_nobody_else_has(model: Path, encoder_folder: Path) -> None:
    """The card's code works where its reader has the encoder, and whoever pushes is warned."""
    head, body = card_of(model)
    assert 'Classifier.from_pretrained("me/colours", encoder="ENCODER")' in body
    assert "rada predict me/colours image.jpg --encoder ENCODER" in body
    assert "ENCODER is the encoder clip, which is not in this repository" in body
    assert str(encoder_folder) not in body and "base_model" not in head
    with pytest.warns(UserWarning, match=r"nobody else can load .*clip'.*--encoder"):
        prepare(model, "me/colours")


@pytest.mark.parametrize(
    ("method", "encoder", "extras"),
    [
        ("rada", "embedded", "embedded"),
        ("clip_lora", "embedded", "finetune,models"),  # with its encoder
        ("maple", "embedded", "embedded"),
        ("rada", "hf:openai/clip-vit-base-patch16", "models"),
        ("rada", "open_clip:ViT-B-32/laion2b_s34b_b79k", "models"),
    ],
)
def test_the_extra_of_the_encoder(method: str, encoder: str, extras: str, model: Path) -> None:
    fitted = load_model(model)
    assert fitted.encoder is not None
    named = dataclasses.replace(fitted.encoder, name=encoder)
    known = copy.copy(fitted.model)
    known.method = get_method(method)
    card = model_card(dataclasses.replace(fitted, encoder=named, model=known), "me/colours")
    assert f"pip install 'rada-vlm[{extras}]==" in card
    assert 'Classifier.from_pretrained("me/colours")' in card and "ENCODER" not in card


def test_dry_run(model: Path) -> None:
    command = ["push", str(model), "me/colours", "--dry-run"]
    done = CliRunner().invoke(cli.app, [*command, "--json"])
    said = json.loads(done.stdout)
    assert said["repository"] == "me/colours"
    assert said["files"] == ["config.json", "model.safetensors", "README.md"]
    assert said["card"] == model_card(load_model(model), "me/colours")
    assert CliRunner().invoke(cli.app, command).stdout == said["card"] + "\n"


def test_card_with_a_test(model: Path, images: Path) -> None:
    clf = Classifier.from_pretrained(model, **OPTIONS)
    result = clf.evaluate(str(images)).to_dict()
    accuracy = 100 * result["adapted"]["accuracy"]
    _, body = card_of(model, result=result)
    assert "On 12 test images of colours. 9 of them were in training." in body
    assert f"| RAda | {accuracy:.1f} % |" in body or f"| RAda | {accuracy:.0f} % |" in body, body
    other = json.loads(json.dumps(result))
    other["training"]["key"] = "0" * 40
    with pytest.raises(DataError, match="another model"):
        card_of(model, result=other)
    for wrong in ({}, [], {"rows": ["adapted"], "images": 3, "adapted": {"accuracy": 7}}):
        with pytest.raises(DataError, match="rada evaluate"):
            card_of(model, result=wrong)


def test_names_are_text_in_the_card(model: Path, tmp_path: Path) -> None:
    clf = Classifier.from_pretrained(model, **OPTIONS)
    clf.classes = ["<script>alert(1)</script>", "a|b", "[x](http://evil.example)", "two\n# lines"]
    clf.save_pretrained(tmp_path / "m")
    _, body = card_of(tmp_path / "m")
    assert "<script" not in body and "[x](" not in body and "\n# lines" not in body
    assert "a\\|b" in body
