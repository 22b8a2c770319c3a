"""The final head and those of the folds in one loop: the same as one after another."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from rada import Features, get_method
from rada.core.errors import TrainingDivergedError
from rada.methods import Run, head_stack
from rada.methods.base import AdaptedModel
from rada.training import feature_loop
from rada.training.feature_loop import TrainingInterrupted
from toy import NAMES, SCALE, toy

QUICK = {"epochs": 4, "min_steps": 0, "batch_size": 8}


def data_of(classes: int = 6, shots: int = 5, views: int | None = None) -> Features:
    images, labels, text = toy(classes=classes, shots=shots, views=views)
    return Features(images, labels, NAMES[:classes], text_features=text, scale=SCALE)


def fitted(name: str, data: Features, folder: Path | None = None, **own: object) -> AdaptedModel:
    method = get_method(name)
    return method.fit(data, method.config(**QUICK, **own), Run(seed=1, state_dir=folder))


@pytest.fixture
def one_after_another(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    def fit(*args: object, **own: object) -> AdaptedModel:
        with monkeypatch.context() as patched:
            patched.setattr(head_stack, "_MOST_ROWS", 0)
            return fitted(*args, **own)  # type: ignore[arg-type]

    return fit


@pytest.fixture
def stacks(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Numbers of members of the stacks that were trained."""
    found: list[int] = []
    ordinary = head_stack.HeadStack.__init__

    def counted(self, models):  # type: ignore[no-untyped-def]
        found.append(len(models))
        ordinary(self, models)

    monkeypatch.setattr(head_stack.HeadStack, "__init__", counted)
    return found


@pytest.mark.parametrize(
    ("name", "classes", "views", "own"),
    [
        ("rada", 6, None, {}),
        ("rada", 3, 2, {"classes_per_step": 0}),
        ("rada", 6, None, {"strength_folds": 3, "views": 1}),
        ("rada_probe", 5, None, {}),
        ("rada_adapter", 6, None, {"hidden": 4}),
    ],
)
def test_a_stack_learns_what_its_members_learn_alone(
    one_after_another, stacks, name: str, classes: int, views: int | None, own: dict[str, object]
) -> None:
    data = data_of(classes, views=views)
    alone, stack = one_after_another(name, data, **own), fitted(name, data, **own)
    assert stacks == [own.get("strength_folds", 2) + 1]
    for strength in (1.0, None):
        found, wanted = (
            model.logits(data.plain(), data.class_set(), strength=strength)
            for model in (stack, alone)
        )
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert stack.strength.value == alone.strength.value
    assert stack.strength.trained == alone.strength.trained
    assert stack.strength.temperature == pytest.approx(alone.strength.temperature)
    curves = zip(stack.record["history"], alone.record["history"], strict=True)
    for one, other in curves:
        assert one == pytest.approx(other, abs=1e-4)
    zero_shot = stack.logits(data.plain(), data.class_set(), strength=0.0)
    assert (found - zero_shot).abs().max() > 1e-2 or stack.strength.value == 0


class Stop(BaseException):
    pass


@pytest.mark.parametrize("epoch", [1, 3])
def test_a_stack_goes_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stacks: list[int], epoch: int
) -> None:
    """Folds have epochs of other lengths, so the final model's end in the middle of theirs."""
    data = data_of()
    ordinary, finished = feature_loop._epoch, []

    def stopping(*args):  # type: ignore[no-untyped-def]
        if len(finished) == epoch:
            raise Stop
        finished.append(epoch)
        return ordinary(*args)

    whole = fitted("rada", data)
    monkeypatch.setattr(feature_loop, "_epoch", stopping)
    with pytest.raises(Stop):
        fitted("rada", data, tmp_path)
    monkeypatch.setattr(feature_loop, "_epoch", ordinary)
    resumed = fitted("rada", data, tmp_path)
    assert stacks == [3, 3, 3]
    for one, other in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(one, other)
    assert whole.record["history"] == resumed.record["history"]
    assert whole.record["strength_choice"] == resumed.record["strength_choice"]


def test_an_interrupt_keeps_the_final_model_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of()
    ordinary, finished = feature_loop._epoch, []

    def interrupted(*args):  # type: ignore[no-untyped-def]
        found = ordinary(*args)
        if len(finished) == 2:
            raise KeyboardInterrupt
        finished.append(found)
        return found

    monkeypatch.setattr(feature_loop, "_epoch", interrupted)
    with pytest.raises(TrainingInterrupted) as caught:
        fitted("rada", data)
    assert len(caught.value.history) == 2
    model = caught.value.model
    assert isinstance(model, AdaptedModel)
    assert not model.training
    change = model.logits(data.plain(), data.class_set()) - model.logits(
        data.plain(), data.class_set(), strength=0.0
    )
    assert change.abs().max() > 1e-3


def test_a_diverging_stack_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="learning rate"):
        fitted("rada", data_of(), tmp_path, learning_rate=1e30)
    assert not (tmp_path / "state.safetensors").exists()
