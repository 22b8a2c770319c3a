"""No command replaces or deletes what rada did not write; see `rada.core.output`."""

from __future__ import annotations

import contextlib
import io
import json
import os
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from rada import EFTConfig, Features, FineTuner, RAdaClassifier, write_report
from rada.core.errors import CheckpointError, OutputError
from rada.core.output import STATE_FOLDER
from rada.encoders import load_encoder
from rada.pretrained_0_1 import weights_hash
from toy import SCALE, toy

QUICK = ("--set", "epochs=2", "--set", "min_steps=0", "--set", "strength=1")


@pytest.fixture
def features(tmp_path: Path) -> Path:
    images, labels, text = toy(classes=4)
    names = tuple(f"class {index}" for index in range(4))
    found = Features(images, labels, names, text_features=text, scale=SCALE)
    return found.save(tmp_path / "data" / "toy.safetensors")


def photos(folder: Path, *names: str) -> Path:
    for name in names:
        for index in range(2):
            path = folder / name / f"{index}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.full((8, 8, 3), 40 * index, np.uint8)).save(path)
    return folder


def rada(*words: object, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run the program in this process, which spares the imports."""
    from rada.cli import main

    texts = [io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2)]
    argv = ["rada", *map(str, words)]
    with (
        contextlib.chdir(cwd or Path.cwd()),
        mock.patch.multiple(sys, argv=argv, stdout=texts[0], stderr=texts[1]),
        pytest.raises(SystemExit) as left,
    ):
        main()
    for text in texts:
        text.flush()
    out, err = (text.buffer.getvalue().decode() for text in texts)
    return subprocess.CompletedProcess(argv, int(left.value.code or 0), out, err)


def tree(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


@pytest.mark.parametrize(
    ("command", "classes"),
    [
        (("fit", ".", "--out", "."), ("test/cat", "test/dog", "training/cat", "training/dog")),
        (("fit", ".", "--out", "out"), ("train/cat", "train/dog")),
        (("fit", "train", "--out", "."), ("train/cat", "train/dog")),
        (("finetune", ".", "--out", "."), ("encoder", "checkpoints")),
        (("finetune", "encoder", "--out", ".", "--overwrite"), ("encoder/a", "encoder/b")),
        (("evaluate", "--model", "embedded", ".", "--report", "."), ("cat", "dog")),
        (("evaluate", "--model", "embedded", "cat", "--report", "dog"), ("cat/a", "cat/b", "dog")),
        (("demo", "--out", "."), ("runs/a", "head")),
        (("bench", "--methods", "zero_shot", "--datasets", "textiles", "--out", "."), ("cells",)),
        (("bench", "--methods", "zero_shot", "--datasets", "a", "--out", "a/b"), ("a/c", "a/d")),
    ],
)
def test_folders_of_pictures_stay_as_they_are(
    tmp_path: Path, command: tuple[str, ...], classes: tuple[str, ...]
) -> None:
    photos(tmp_path, *classes)
    before = tree(tmp_path)
    done = rada(*command, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, ""), done.stderr
    assert "choose" in done.stderr and "Traceback" not in done.stderr
    assert tree(tmp_path) == before


@pytest.mark.parametrize(
    "name", ["training", "checkpoints", "encoder", "result.json", "config.json"]
)
def test_fit_into_a_folder_that_is_in_use(features: Path, tmp_path: Path, name: str) -> None:
    out = tmp_path / "out"
    if "." in name:
        out.mkdir()
        (out / name).write_text('{"mine": true}')
    else:
        photos(out, f"{name}/cat")
    before = tree(out)
    for more in ((), ("--overwrite",)):
        done = rada("fit", features, "--out", out, *QUICK, *more)
        assert done.returncode == 2 and "rada did not write" in done.stderr, done.stderr
    assert tree(out) == before


def test_python_obeys_the_same_rule(features: Path, tmp_path: Path) -> None:
    out = photos(tmp_path / "out", "training/cat")
    before = tree(out)
    config = EFTConfig(epochs=1, min_steps=0, strength=1.0)
    classifier = RAdaClassifier(None, config=config, progress=False)
    with pytest.raises(OutputError):
        classifier.fit(features, output_dir=out, overwrite=True)
    classifier.fit(features)
    result = classifier.evaluate(features).to_dict()
    tuner = FineTuner("embedded", progress=False)
    for call in (
        lambda: classifier.save_pretrained(out),
        lambda: write_report(out, result),
        lambda: load_encoder("embedded").save(out),
        lambda: tuner.fit(photos(tmp_path / "data", "train/cat", "train/dog"), output_dir=out),
    ):
        with pytest.raises(OutputError, match="rada did not write"):
            call()
    assert tree(out) == before
    for _ in range(2):  # what rada wrote itself, it replaces
        classifier.save_pretrained(tmp_path / "head")
        write_report(tmp_path / "report", result)


def test_two_fits_at_once(features: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "rada", "fit", features, "--out", tmp_path / "out", "--json"]
    command += ["--set", "min_steps=3000", "--set", "strength=1"]
    first = subprocess.Popen(
        [*map(str, command), "--seed", "1"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    while not (tmp_path / "out" / STATE_FOLDER / "training").exists():
        assert first.poll() is None
        time.sleep(0.02)
    second = rada(*command[3:], "--seed", "2")
    third = rada(*command[3:], "--seed", "3", "--overwrite")
    out, _ = first.communicate()
    assert first.returncode == 0
    for done in (second, third):
        assert done.returncode == 2 and "another rada process" in done.stderr
    assert json.loads(out)["training"]["seed"] == 1
    saved = json.loads((tmp_path / "out" / "config.json").read_text())
    assert saved["training"]["seed"] == 1


@pytest.mark.parametrize(
    "config", ["", "{", "[]", '{"model_type": "clip"}', '{"dim": 16}', "\ud800", "1" * 5000]
)
def test_overwrite_gets_out_of_a_damaged_head(features: Path, tmp_path: Path, config: str) -> None:
    out = tmp_path / "out"
    settings = EFTConfig(epochs=1, min_steps=0, strength=1.0)

    def fit(**more: bool) -> RAdaClassifier:
        fresh = RAdaClassifier(None, config=settings, progress=False)
        return fresh.fit(features, output_dir=out, **more)

    fit()
    (out / "config.json").write_bytes(config.encode("utf-8", "surrogatepass"))
    with pytest.raises(CheckpointError, match="--overwrite"):
        fit()
    fit(overwrite=True)
    RAdaClassifier.from_pretrained(out)
    (out / "model.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="--overwrite"):
        fit()
    fit(overwrite=True)
    state = out / STATE_FOLDER / "training" / "state.safetensors"
    state.parent.mkdir()
    state.write_bytes(b"damaged")
    (out / "config.json").unlink()
    with pytest.raises(CheckpointError, match="damaged"):
        fit()
    fit(overwrite=True)
    RAdaClassifier.from_pretrained(out)


def head_of_0_1(features: Path, folder: Path, seed: int = 0) -> Path:
    """Write a head as rada 0.1 did: other names, and no list of rada's own files."""
    config = EFTConfig(epochs=1, min_steps=0, strength=1.0)
    classifier = RAdaClassifier(None, config=config, progress=False).fit(features, seed=seed)
    head, facts = classifier.model_.head, classifier.model_.facts
    folder.mkdir()
    save_file(head.state_dict(), folder / "head.safetensors")
    about = {
        "dim": facts.dim,
        "num_heads": config.num_heads,
        "scale": facts.scale,
        "strength": 1.0,
        "classes": list(facts.classes),
        "templates": [],
        "training": {"config": config.to_dict(), "seed": seed},
        "weights_hash": weights_hash(head.state_dict()),
    }
    (folder / "config.json").write_text(json.dumps(about))
    return folder


def test_a_kill_between_the_renames_of_0_1(features: Path, tmp_path: Path) -> None:
    """A new head beside the configuration of an old one, as 0.1 left them: --overwrite gets out."""
    out = tmp_path / "out"
    out.mkdir()
    head_of_0_1(features, tmp_path / "old", 1).joinpath("config.json").rename(out / "config.json")
    new = head_of_0_1(features, tmp_path / "new", 2) / "head.safetensors"
    new.rename(out / "head.safetensors")
    photos(out, "training/cat")
    refused = rada("fit", features, "--out", out, *QUICK)
    assert refused.returncode == 2 and "--overwrite" in refused.stderr
    done = rada("fit", features, "--out", out, *QUICK, "--overwrite", "--json")
    assert done.returncode == 0, done.stderr
    assert RAdaClassifier.from_pretrained(out).is_fitted
    assert not (out / "head.safetensors").exists()
    assert len(list((out / "training").rglob("*.png"))) == 2


def test_head_of_0_1_is_rada_s_own(features: Path, tmp_path: Path) -> None:
    """It loads, and a fit may replace it."""
    head = head_of_0_1(features, tmp_path / "h")
    assert RAdaClassifier.from_pretrained(head).evaluate(features)["images"] > 0
    config = EFTConfig(epochs=1, min_steps=0, strength=1.0)
    again = RAdaClassifier(None, config=config, progress=False)
    with pytest.raises(CheckpointError, match="--overwrite"):
        again.fit(features, output_dir=head)
    assert again.fit(features, output_dir=head, overwrite=True).is_fitted
    assert not (head / "head.safetensors").exists()


def test_predictions_never_replace_a_file_unasked(features: Path, tmp_path: Path) -> None:
    folder = photos(tmp_path / "photos", "cat")
    notes = tmp_path / "notes.csv"
    notes.write_text("mine")
    picture = folder / "cat" / "1.png"
    before = tree(tmp_path)
    model = ("predict", "--model", "embedded", "--class", "cat", "--class", "dog")
    for out, *more in (
        (notes,),
        (picture,),
        (picture, "--overwrite"),
        (os.devnull, "--overwrite"),
    ):
        done = rada(*model, folder, "--out", out, *more)
        assert done.returncode == 2 and "choose another name" in done.stderr, done.stderr
    assert tree(tmp_path) == before
    assert not Path(os.devnull).is_file()
    assert rada(*model, folder, "--out", notes, "--overwrite").returncode == 0
    assert len(notes.read_text().splitlines()) == 3


def test_modes_follow_the_umask(features: Path, tmp_path: Path) -> None:
    old = os.umask(0o027)
    try:
        config = EFTConfig(epochs=1, min_steps=0, strength=1.0)
        classifier = RAdaClassifier(None, config=config, progress=False)
        classifier.fit(features, output_dir=tmp_path / "head")
        Features.load(features).save(tmp_path / "copy" / "a.safetensors")
    finally:
        os.umask(old)
    for path in [*(tmp_path / "head").rglob("*"), *(tmp_path / "copy").rglob("*")]:
        expected = 0o750 if path.is_dir() else 0o640
        assert path.stat().st_mode & 0o777 == expected, path
    assert torch.is_tensor(Features.load(features).labels)
