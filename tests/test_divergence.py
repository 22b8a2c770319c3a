"""Training that leaves the finite numbers says where and why, and keeps nothing of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rada import (
    Classifier,
    EFTConfig,
    Features,
    FineTuner,
    TTTConfig,
    adapt_views,
    get_method,
    train_head,
)
from rada.core.errors import FeatureError, TrainingDivergedError
from rada.encoders import load_encoder
from rada.methods import Run
from rada.training.state import TrainingState
from toy import SCALE, toy, toy_features

pytest_plugins = ["finetune.conftest"]

HUGE = 1e30


@pytest.fixture
def features() -> Features:
    return toy_features()


@pytest.mark.parametrize("epochs", [1, 3])
def test_fit_says_step_and_cause_and_keeps_nothing(
    epochs: int, features: Features, tmp_path: Path
) -> None:
    config = EFTConfig(
        epochs=epochs, min_steps=0, batch_size=24, learning_rate=HUGE, warmup=0.0, strength=1.0
    )
    clf = Classifier(None, config=config, progress=False)
    for _ in range(2):  # the same command fails in the same way
        with pytest.raises(TrainingDivergedError, match=r"after step 1 .*learning rate 1e"):
            clf.fit(features, output_dir=tmp_path / "out")
    assert clf.model_ is None
    assert not list(tmp_path.rglob("*.safetensors"))
    mended = Classifier(None, config=EFTConfig(epochs=1, min_steps=0, strength=1.0))
    mended.fit(features, output_dir=tmp_path / "out")


def test_the_state_that_is_kept_is_from_before(tmp_path: Path) -> None:
    """With a warm-up the first epochs are harmless; the bad ones are not written."""
    images, labels, text = toy()
    config = EFTConfig(
        epochs=8, min_steps=0, batch_size=24, learning_rate=1e6, warmup=0.9, strength=1.0
    )
    with pytest.raises(TrainingDivergedError):
        train_head(images, labels, text, SCALE, config, state_dir=tmp_path, progress=False)
    for path in tmp_path.glob("*.safetensors"):
        for value in TrainingState.load(path).weights.values():
            assert value.isfinite().all()


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("clip_adapter", {"learning_rate": HUGE, "epochs": 12}),
        ("rada_adapter", {"learning_rate": HUGE, "epochs": 3}),
        ("rada", {"learning_rate": HUGE, "epochs": 3, "min_steps": 0}),
    ],
)
def test_every_method_says_at_which_step(
    name: str, options: dict, features: Features, tmp_path: Path
) -> None:
    method = get_method(name)
    known = {field: value for field, value in options.items() if hasattr(method.config(), field)}
    with pytest.raises(TrainingDivergedError, match=r"step \d+"):
        method.fit(features, method.config(**known), Run(state_dir=tmp_path))
    for path in tmp_path.glob("*.safetensors"):
        assert all(value.isfinite().all() for value in TrainingState.load(path).weights.values())


@pytest.mark.parametrize("method", ["rada-ft", "ft", "flyp"])
def test_fine_tuning_keeps_no_bad_checkpoint(
    method: str, data: Path, model_folder: Path, tmp_path: Path
) -> None:
    options = {"epochs": 2, "batch_size": 32, "learning_rate": HUGE, "warmup": 0.0}
    options |= {"evaluate_every": 1, "checkpoint_every": 1}
    if method == "rada-ft":
        options |= {"head_learning_rate": HUGE, "head_first": False}
    config = get_method(method).config(**options)
    tuner = FineTuner(load_encoder(model_folder), method, config, progress=False, workers=0)
    for _ in range(2):
        with pytest.raises(
            TrainingDivergedError, match=r"(at|after) step \d+ \(epoch \d, learning"
        ):
            tuner.fit(data, seed=1, output_dir=tmp_path / "out")
    assert not list(tmp_path.rglob("step-*")) and not (tmp_path / "out" / "result.json").exists()


def test_test_time_adaptation() -> None:
    images, _, text = toy(views=10)
    with pytest.raises(TrainingDivergedError, match="lower max_step"):
        adapt_views(images, text, SCALE, None, TTTConfig(max_step=HUGE, selection=0.2, steps=3))


def test_logits_that_are_not_finite_are_no_prediction(features: Features) -> None:
    config = EFTConfig(epochs=1, min_steps=0, strength=1.0)
    clf = Classifier(None, config=config, progress=False).fit(features)
    assert clf.model_ is not None
    with torch.no_grad():
        for parameter in clf.model_.parameters():
            parameter.fill_(HUGE)
    for measure in (clf.predict, clf.predict_proba, clf.score, clf.evaluate):
        with pytest.raises(FeatureError, match="NaN or infinite"):
            measure(features)
