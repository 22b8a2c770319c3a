"""Training the head on features: what it learns, repeats, resumes and refuses."""

from __future__ import annotations

import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from oracle import oracle
from rada import ClassSet, EFTConfig, Features, get_method, train_head
from rada.core.errors import CheckpointError, FeatureError
from rada.methods import Run
from rada.methods.rada import HeadModel
from rada.training import feature_loop
from rada.training.feature_loop import TrainingInterrupted, draw_classes
from rada.training.state import TrainingState
from toy import SCALE, toy
from training.interrupting import interrupt_in_third_epoch

QUICK = EFTConfig(epochs=4, min_steps=0, batch_size=8, strength=1.0)


def class_set(text: Tensor) -> ClassSet:
    return ClassSet(tuple(map(str, range(len(text)))), text)


def history(model: HeadModel) -> list[dict[str, float]]:
    found: list[dict[str, float]] = model.record["history"]
    return found


def same_weights(one: torch.nn.Module, other: torch.nn.Module) -> bool:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return all(torch.equal(a, b) for a, b in pairs)


def test_learns() -> None:
    images, labels, text = toy(classes=10)
    trained = train_head(
        images,
        labels,
        text,
        SCALE,
        EFTConfig(epochs=30, min_steps=0, batch_size=8, strength=1.0),
        1,
    )
    logits = trained.logits(images, class_set(text))
    zero_shot = SCALE * images @ text.T
    assert cross_entropy(logits, labels) < 0.5 * cross_entropy(zero_shot, labels)
    assert history(trained)[-1]["loss"] < history(trained)[0]["loss"]
    assert len(history(trained)) == 30


def test_first_step_is_the_equations() -> None:
    """The loss of the first step is that of the identity mask; the update, Adam's on its gradient."""
    images, labels, text = toy()
    config = EFTConfig(
        epochs=1, min_steps=0, batch_size=100, classes_per_step=0, warmup=0.0, strength=1.0
    )
    trained = train_head(images, labels, text, SCALE, config, 3)
    entropy = cross_entropy(SCALE * images @ text.T, labels)
    assert history(trained)[0]["loss"] == pytest.approx(float(entropy), abs=1e-6)
    exact = cross_entropy(SCALE * images.double() @ text.double().T, labels)
    data = Features(images, labels, class_set(text).names, text_features=text, scale=SCALE)
    start = get_method("rada").start(data, config, Run(seed=3)).double()
    loss = start.loss(images.double(), labels, class_set(text.double()))["loss"]
    assert loss.item() == pytest.approx(float(exact), abs=1e-12)
    # From zero, Adam's first step has the size of the learning rate wherever there is a gradient.
    moved = trained.head.out.bias.detach().abs()
    assert moved.max() == pytest.approx(config.learning_rate, rel=1e-3)


def test_trained_head_is_the_oracle() -> None:
    images, labels, text = toy()
    trained = train_head(images, labels, text, SCALE, QUICK, 1)
    got = trained.logits(images, class_set(text))
    expected = oracle(trained.head.double(), images.double(), text.double(), SCALE).logits
    assert (got.double() - expected).abs().max() < 1e-4


@pytest.mark.parametrize("views", [None, 3])
def test_same_seed_same_bits(views: int | None) -> None:
    data = toy(views=views)
    runs = [train_head(*data, SCALE, QUICK, seed) for seed in (1, 1, 2)]
    assert same_weights(runs[0].head, runs[1].head)
    assert history(runs[0]) == history(runs[1])
    assert not same_weights(runs[0].head, runs[2].head)


def test_global_random_state_neither_matters_nor_changes() -> None:
    data = toy()
    torch.manual_seed(5)
    first = train_head(*data, SCALE, QUICK, 1)
    after_first = torch.rand(1)
    torch.manual_seed(5)
    assert torch.equal(after_first, torch.rand(1))
    torch.manual_seed(6)
    assert same_weights(first.head, train_head(*data, SCALE, QUICK, 1).head)


def test_views_are_drawn_by_chance() -> None:
    images, labels, text = toy(views=4)
    one = train_head(images, labels, text, SCALE, QUICK, 1)
    other = train_head(images[:, :1], labels, text, SCALE, QUICK, 1)
    assert not same_weights(one.head, other.head)


class Stop(BaseException):
    """What a test raises in the middle of training."""


@pytest.mark.parametrize("epoch", [0, 1, 3])
def test_resume_is_exact(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epoch: int) -> None:
    data = toy()
    whole = train_head(*data, SCALE, QUICK, 1)
    ordinary, finished = feature_loop._epoch, []

    def stopping(*args):  # type: ignore[no-untyped-def]
        if len(finished) == epoch:
            raise Stop
        finished.append(epoch)
        return ordinary(*args)

    monkeypatch.setattr(feature_loop, "_epoch", stopping)
    with pytest.raises(Stop):
        train_head(*data, SCALE, QUICK, 1, state_dir=tmp_path)
    monkeypatch.undo()
    resumed = train_head(*data, SCALE, QUICK, 1, state_dir=tmp_path)
    assert same_weights(whole.head, resumed.head)
    assert history(whole) == history(resumed)


def _train_slowly(folder: str) -> None:
    torch.set_num_threads(1)
    train_head(*toy(), SCALE, EFTConfig(epochs=60, min_steps=0, batch_size=8), 1, state_dir=folder)


def test_kill_and_the_same_call_again(tmp_path: Path) -> None:
    """Killed for real, in training or in the choice of the strength; the bits are the same."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        config = EFTConfig(epochs=60, min_steps=0, batch_size=8)
        process = multiprocessing.get_context("spawn").Process(
            target=_train_slowly, args=(str(tmp_path),)
        )
        process.start()
        state = tmp_path / "state.safetensors"
        while not state.exists():
            assert process.is_alive()
            time.sleep(0.01)
        time.sleep(0.2)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert 0 < TrainingState.load(state).epoch <= 60
        resumed = train_head(*toy(), SCALE, config, 1, state_dir=tmp_path)
        whole = train_head(*toy(), SCALE, config, 1)
    finally:
        torch.set_num_threads(threads)
    assert same_weights(whole.head, resumed.head)
    assert whole.strength == resumed.strength
    assert whole.record["strength_choice"] == resumed.record["strength_choice"]


def test_state_of_another_run_is_not_taken(tmp_path: Path) -> None:
    images, labels, text = toy()
    train_head(images, labels, text, SCALE, QUICK, 1, state_dir=tmp_path)
    other = train_head(images, labels, text, SCALE, QUICK, 2, state_dir=tmp_path)
    assert same_weights(other.head, train_head(images, labels, text, SCALE, QUICK, 2).head)


@pytest.mark.parametrize("damage", [b"", b"\xff" * 100, None])
def test_damaged_state_is_named(tmp_path: Path, damage: bytes | None) -> None:
    train_head(*toy(), SCALE, QUICK, 1, state_dir=tmp_path)
    state = tmp_path / "state.safetensors"
    state.write_bytes(state.read_bytes()[:-10] if damage is None else damage)
    with pytest.raises(CheckpointError, match=r"state\.safetensors.*delete it"):
        train_head(*toy(), SCALE, QUICK, 1, state_dir=tmp_path)


def test_interrupt_keeps_the_head_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    data = toy()
    interrupt_in_third_epoch(monkeypatch)
    with pytest.raises(TrainingInterrupted) as caught:
        train_head(*data, SCALE, QUICK, 1)
    model = caught.value.model
    assert len(caught.value.history) == 2
    assert isinstance(model, HeadModel)
    assert model.head(data[0], data[2], SCALE).max_deviation.max() > 0


@pytest.mark.parametrize("size", [2, 3, 5])
def test_drawn_classes_hold_the_batch(size: int) -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.tensor([7, 1, 7])
    drawn = draw_classes(labels, 9, size, generator)
    assert drawn is not None
    assert len(drawn.unique()) == size
    assert {1, 7} <= set(drawn.tolist())
    assert drawn.tolist() == sorted(drawn.tolist())


def test_more_labels_than_drawn_classes() -> None:
    drawn = draw_classes(torch.arange(8), 20, 3, torch.Generator().manual_seed(0))
    assert drawn is not None
    assert set(drawn.tolist()) <= set(range(8))
    assert draw_classes(torch.arange(8), 20, 20, torch.Generator()) is None


@pytest.mark.parametrize("size", [None, 0, 2, 4])
def test_batches_are_relabelled_rightly(size: int | None) -> None:
    images, labels, text = toy()
    config = EFTConfig(batch_size=5, classes_per_step=size, strength=1.0)
    names = class_set(text).names
    data = Features(images, labels, names, text_features=text, scale=SCALE)
    seen = 0
    for step in feature_loop._steps(data, config.recipe(), 1, config.subset(len(text)), 0):
        where = (images[:, None] == step.images[None]).all(-1).nonzero()
        rows = where[where[:, 1].argsort(), 0]
        assert torch.equal(rows, step.rows)
        assert torch.equal(text[labels[rows]], step.classes.text_features[step.labels])
        assert [step.classes.names[k] for k in step.labels] == [names[labels[k]] for k in rows]
        seen += len(step.images)
    assert seen == len(images) if size == 0 else 0 < seen <= len(images)


def bad_inputs() -> dict[str, tuple[Tensor, Tensor, Tensor]]:
    images, labels, text = toy()
    nan = images.clone()
    nan[3, 2] = float("nan")
    zero = images.clone()
    zero[5] = 0
    return {
        "NaN": (nan, labels, text),
        "zero": (zero, labels, text),
        "out of range|label": (images, labels + 1, text),
        "dimensions": (images[:, :8], labels, text),
        "labels": (images, labels[:-1], text),
        "at least 2 classes": (images, labels * 0, text),
        "shape": (images[0], labels, text),
    }


@pytest.mark.parametrize("message", list(bad_inputs()))
def test_bad_features_are_refused(message: str) -> None:
    with pytest.raises(FeatureError, match=message):
        train_head(*bad_inputs()[message], SCALE, QUICK, 1)


@pytest.mark.parametrize("scale", [0.0, -1.0, float("nan"), float("inf")])
def test_bad_scale_is_refused(scale: float) -> None:
    images, labels, text = toy()
    with pytest.raises(FeatureError, match="scale"):
        train_head(images, labels, text, scale, QUICK, 1)


def test_width_and_heads_must_fit() -> None:
    from rada.core.errors import ConfigError

    with pytest.raises(ConfigError, match="num_heads"):
        train_head(*toy(), SCALE, EFTConfig(num_heads=5), 1)
