"""What every method can do, through the one classifier: fit, predict, save, load in a new process, go on.

Each method fits images with a tiny encoder, and features where it needs no pixels. All saved folders are
loaded by one new process, which knows nothing of this one.
"""

from __future__ import annotations

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fits import OPTIONS, Fits
from golden.make import quick_config
from rada import Classifier, Features, list_methods
from rada.core.errors import CheckpointError, ConfigError, RadaError, UnknownClassError
from rada.features import ClassSet
from rada.training.strength import Strength
from toy import SCALE, toy

METHODS = [method.name for method in list_methods()]
ON_FEATURES = [method.name for method in list_methods() if not method.needs]
FEATURE_CLASSES = ("cat", "dog", "eel", "fox", "gnu", "hen")

LOADER = """
import json, sys
import numpy as np
from rada import Classifier, Features
root, images = sys.argv[1:]
found = {}
for folder in sorted(__import__("pathlib").Path(root).iterdir()):
    loaded = Classifier.from_pretrained(folder, workers=0, cache=False, progress=False)
    data = Features.load(f"{root}/../test.safetensors") if "-features" in folder.name else images
    found[folder.name] = loaded.predict_proba(data).tolist()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def images(fits: Fits) -> Path:
    return fits.images


@pytest.fixture(scope="module")
def features() -> Features:
    rows, labels, text = toy(classes=6, shots=4, dim=16)
    return Features(rows, labels, FEATURE_CLASSES, text_features=text, scale=SCALE)


@pytest.fixture(scope="module")
def fitted(
    tmp_path_factory: pytest.TempPathFactory, fits: Fits, features: Features
) -> dict[str, Any]:
    """Fit and save every method; return classifiers, folders and what a new process predicts."""
    root = tmp_path_factory.mktemp("saved") / "models"
    root.mkdir()
    classifiers: dict[str, Classifier] = {}
    for name in METHODS:
        clf = Classifier(str(fits.encoder), name, config=quick_config(name), **OPTIONS)
        place = root / f"{name}-images"
        classifiers[place.name] = clf.fit(str(fits.images), seed=1, output_dir=place)
    for name in ON_FEATURES:
        clf = Classifier(None, name, config=quick_config(name), progress=False)
        classifiers[f"{name}-features"] = clf.fit(features, seed=1)
    for name in ON_FEATURES:
        classifiers[f"{name}-features"].save_pretrained(root / f"{name}-features")
    features.save(root.parent / "test.safetensors")
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", LOADER, str(root), str(fits.images)],
        capture_output=True,
        text=True,
        env=env,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    loaded = json.loads(done.stdout.splitlines()[-1])
    return {"classifiers": classifiers, "root": root, "loaded": loaded}


def cases() -> list[str]:
    return [f"{name}-images" for name in METHODS] + [f"{name}-features" for name in ON_FEATURES]


@pytest.mark.parametrize("case", cases())
def test_a_new_process_predicts_the_same(case, fitted, images, features):
    data = str(images) if case.endswith("-images") else features
    here = fitted["classifiers"][case].predict_proba(data)
    np.testing.assert_allclose(np.array(fitted["loaded"][case]), here, atol=1e-5)
    assert here.shape[1] == (3 if case.endswith("-images") else 6)


@pytest.mark.parametrize("case", cases())
def test_predict_logits_and_score_agree(case, fitted, images, features):
    clf = fitted["classifiers"][case]
    data = str(images) if case.endswith("-images") else features
    logits, chances = clf.logits(data), clf.predict_proba(data)
    assert logits.dtype == chances.dtype == np.float32
    np.testing.assert_allclose(torch.from_numpy(logits).softmax(-1).numpy(), chances, atol=1e-6)
    named = clf.predict(data)
    assert (named == clf.classes_[logits.argmax(1)]).all()
    best = clf.predict(data, top_k=2)
    assert [row[0].name for row in best] == named.tolist()
    evaluation = clf.evaluate(data)
    assert evaluation["adapted"]["accuracy"] == pytest.approx(clf.score(data))
    assert json.dumps(evaluation.to_dict())


@pytest.mark.parametrize("name", METHODS)
def test_new_classes_are_scored_or_refused_by_name(name, fitted, images):
    method = next(method for method in list_methods() if method.name == name)
    root = fitted["root"]
    clf = Classifier.from_pretrained(root / f"{name}-images", workers=0, cache=False)
    clf.classes = ("red", "yellow")
    paths = sorted(images.glob("*/*.png"))[:2]
    if method.new_classes:
        assert clf.predict_proba(paths).shape == (2, 2)
    else:
        with pytest.raises(UnknownClassError, match="yellow"):
            clf.predict_proba(paths)


@pytest.mark.parametrize("name", METHODS)
def test_the_same_call_again_loads_the_finished_model(name, fitted, fits, images, monkeypatch):
    first, place = fitted["classifiers"][f"{name}-images"], fitted["root"] / f"{name}-images"
    monkeypatch.setattr(
        type(first.model_.method), "train", lambda *_: pytest.fail("it trained again")
    )
    options = {"config": quick_config(name), **OPTIONS}
    again = Classifier(str(fits.encoder), name, **options)
    again.fit(str(images), seed=1, output_dir=place)
    assert np.array_equal(first.predict_proba(str(images)), again.predict_proba(str(images)))
    with pytest.raises(CheckpointError, match="another run"):
        Classifier(str(fits.encoder), name, **options).fit(str(images), seed=2, output_dir=place)


@pytest.mark.parametrize("name", [name for name in METHODS if name not in ON_FEATURES])
def test_methods_that_need_more_than_features_say_so(name, features):
    clf = Classifier(None, name, config=quick_config(name), progress=False)
    with pytest.raises(ConfigError, match=name):
        clf.fit(features)


@pytest.mark.parametrize("case", cases())
def test_a_damaged_folder_is_refused(case, fitted, tmp_path):
    source = fitted["root"] / case
    folder = tmp_path / case
    folder.mkdir()
    for path in source.rglob("*"):
        if path.is_file() and ".rada-state" not in path.parts:
            target = folder / path.relative_to(source)
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_bytes(path.read_bytes())
    config = json.loads((folder / "config.json").read_text())
    for change in (
        {"dim": 10**400},
        {"dim": config["dim"] * 2},
        {"scale": 1e308},
        {"strength": {"value": 10**400}},
        {"trained_classes": ["red", 3]},
        {"classes": ["a", "\ud800"]},
        {"training": {"seed": "one"}},
        {"training": {"details": 3}},
        {"method_config": {"epochs": -1, "no_such_field": 1}},
        {"method": "no_such_method"},
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(RadaError):
            Classifier.from_pretrained(folder).predict_proba(
                Features(torch.eye(config["dim"] if config["dim"] < 100 else 4), [-1] * 16, ("a",))
            )
    (folder / "config.json").write_text(json.dumps(config))
    weights = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(weights[:-8] + b"\xff" * 8)
    if len(weights) > 200:
        with pytest.raises(CheckpointError):
            Classifier.from_pretrained(folder)


def test_a_failed_fit_changes_nothing(features):
    clf = Classifier(None, "rada", config=quick_config("rada"), progress=False).fit(features)
    before = clf.predict_proba(features)
    bad = dataclasses.replace(features, labels=torch.zeros(len(features), dtype=torch.long))
    with pytest.raises(RadaError):
        clf.fit(bad)
    assert np.array_equal(clf.predict_proba(features), before)


def test_flyp_takes_its_80_templates_unless_some_are_named(fitted, fits, images):
    clf = fitted["classifiers"]["flyp-images"]
    assert len(clf.model_.facts.templates) == len(clf.fitted_.templates) == 80
    options = {"config": quick_config("flyp"), **OPTIONS}
    named = Classifier(str(fits.encoder), "flyp", templates="a {}.", **options)
    assert named.fit(str(images), seed=1).model_.facts.templates == ("a {}.",)


@pytest.mark.parametrize("name", ON_FEATURES)
def test_zero_shot_logits_that_are_known_change_no_number(name, fitted, features):
    model = fitted["classifiers"][f"{name}-features"].model_
    rows, classes = features.plain(), features.class_set()
    known = model.logits(rows, classes, strength=0.0, batch_size=7)
    for strength in (None, 0.0, 0.5, 1.0):
        found = model.logits(rows, classes, strength=strength, batch_size=7)
        given = model.logits(rows, classes, strength=strength, batch_size=7, zero_shot=known)
        assert torch.equal(found, given)


@pytest.mark.parametrize("name", ["prior_probe", "rada_probe", "tip_adapter"])
def test_an_evaluation_computes_zero_shot_logits_once(name, fitted, features, monkeypatch):
    clf = fitted["classifiers"][f"{name}-features"]
    monkeypatch.setattr(clf.model_, "strength", Strength(0.5))
    calls, plain = [], ClassSet.zero_shot_logits

    def counted(classes: ClassSet, images: torch.Tensor, scale: float) -> torch.Tensor:
        calls.append(len(images))
        return plain(classes, images, scale)

    monkeypatch.setattr(ClassSet, "zero_shot_logits", counted)
    clf.evaluate(features)
    assert calls == [len(features)]
