"""`rada explain` and `rada predict --explain`: from the command line, with bad input too."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from cli.test_cli import rada
from golden.make import QUICK, tiny_encoder, write_images
from rada import Classifier, get_method

pytest.importorskip("captum", reason="needs the extra 'explain'")


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("explained")
    tiny_encoder(root / "clip")
    images = write_images(root / "images")
    config = get_method("rada").config(**QUICK["rada"])
    clf = Classifier(str(root / "clip"), config, workers=0, cache=False, progress=False)
    clf.fit(str(images), seed=1).save_pretrained(root / "model")
    (root / "broken.png").write_bytes(b"no image")
    return {"model": root / "model", "images": images, "broken": root / "broken.png"}


def run(*arguments: object) -> tuple[int, str, str]:
    done = rada(*map(str, arguments), environment={})
    return done.returncode, done.stdout, done.stderr


COMMON = ("--no-cache", "--workers", "0")
QUICKLY = ("--set", "grid=4", "--set", "words=3")


def test_a_page_is_written_and_lines_are_printed(places, tmp_path):
    image = places["images"] / "red" / "0.png"
    code, out, err = run(
        *("explain", places["model"], image, "--out", tmp_path / "why", *COMMON, *QUICKLY),
        *("--train", places["images"]),
    )
    assert code == 0, err
    assert "red against" in out or "against red" in out
    assert "most similar training images: red (1.000)" in out and "index.html" not in err
    told = json.loads((tmp_path / "why" / "explanations.json").read_text())
    (entry,) = told["explanations"]
    assert entry["name"].endswith("0.png") and entry["maps"][0]["method"] == "occlusion"
    assert (tmp_path / "why" / "index.html").is_file()


def test_json_needs_no_folder(places):
    code, out, err = run(
        *("explain", places["model"], places["images"] / "blue", "--json", *COMMON),
        *("--set", "where=none", "--set", "words=0", "--target", "blue", "--against", "red"),
    )
    assert code == 0, err
    found = json.loads(out)["explanations"]
    assert len(found) == 4
    for entry in found:
        (first, *_) = entry["evidence"]
        assert (first["target"], first["against"]) == ("blue", "red")
        total = sum(part["zero_shot"] + part["change"] for part in first["parts"])
        assert total == pytest.approx(first["adapted"], abs=1e-9)


def test_predictions_with_explanations(places):
    images = sorted((places["images"] / "green").glob("*.png"))[:2]
    code, out, err = run("predict", places["model"], *images, "--explain", *COMMON)
    assert code == 0, err
    assert len(out.splitlines()) == 3 and "against" in err and "zero-shot -> RAda" in err
    code, out, err = run("predict", places["model"], *images, "--explain", "--json", *COMMON)
    lines = [json.loads(line) for line in out.splitlines()]
    for line in lines:
        best = line["explanation"]["classes"][0]
        assert best["name"] == line["predictions"][0]["name"]
        assert best["probability"] == pytest.approx(line["predictions"][0]["probability"], abs=1e-5)


def test_test_time_training_explains_as_before(places):
    image = places["images"] / "green" / "0.png"
    code, _, err = run(
        *("predict", places["model"], image, "--explain", "--test-time", "rada", "--views", "10"),
        *COMMON,
    )
    assert code == 0 and "kept" in err and "of 10 views" in err


def test_images_that_cannot_be_read(places, tmp_path):
    image = places["images"] / "red" / "0.png"
    words = ("explain", places["model"], places["broken"], image, "--json", *COMMON, *QUICKLY)
    code, _, err = run(*words)
    assert code == 2 and "broken.png" in err
    code, out, err = run(*words, "--skip-bad")
    assert code == 0 and len(json.loads(out)["explanations"]) == 1 and "skipped" in err
    code, _, err = run(
        "explain", places["model"], places["broken"], "--json", "--skip-bad", *COMMON
    )
    assert code == 2 and "left out" in err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ((), "nothing to explain"),
        (("IMAGE",), "--out DIR"),
        (("IMAGE", "--json", "--set", "grid=1"), "grid"),
        (("IMAGE", "--json", "--set", "colour=red"), "colour"),
        (("IMAGE", "--json", "--target", "owl"), "'owl' is no candidate"),
        (("IMAGE", "--json", "--train", "no/such/folder"), "no/such/folder"),
        (("IMAGE", "--out", "OWN"), "did not write"),
        (("IMAGE", "--out", "DATA"), "same folder"),
    ],
)
def test_bad_input_is_refused(places, tmp_path, words, said):
    (tmp_path / "mine.txt").write_text("mine")
    names = {
        "IMAGE": places["images"] / "red" / "0.png",
        "OWN": tmp_path,
        "DATA": places["images"] / "red",
    }
    if "DATA" in words:
        words = (places["images"] / "red", *words[1:])
    code, _, err = run("explain", places["model"], *(names.get(w, w) for w in words), *COMMON)
    assert code == 2 and said in err and "Traceback" not in err


def test_labels_that_are_likely_wrong_are_named_when_fitting(places, tmp_path):
    pytest.importorskip("cleanlab", reason="needs the extra 'labels'")
    for name in ("red", "green", "blue"):
        for image in (places["images"] / name).glob("*.png"):
            for copy in range(3):
                wrong = (name, image.stem, copy) == ("red", "1", 0)
                folder = tmp_path / "data" / ("blue" if wrong else name)
                folder.mkdir(parents=True, exist_ok=True)
                noise = np.random.default_rng([copy, ord(name[0]), int(image.stem)])
                pixels = np.array(Image.open(image)) + noise.integers(-40, 40, (36, 36, 3))
                target = folder / f"{name}{image.stem}{copy}.png"
                Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(target)
    words = ("fit", tmp_path / "data", "--model", places["model"].parent / "clip", *COMMON)
    words = (*words, "--method", "linear_probe", "--check-labels", "--out", tmp_path / "out")
    code, out, err = run(*words)
    assert code == 0, err
    assert "1 label may be wrong" in out and "red10.png: labelled blue" in out
    told = json.loads((tmp_path / "out" / "result.json").read_text())["label_errors"]
    assert [(error["label"], error["suggested"]) for error in told] == [("blue", "red")]
