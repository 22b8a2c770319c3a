"""The final head and those of the folds in threads side by side: the same as one after another."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from rada import Features, get_method
from rada.core import threads
from rada.core.errors import TrainingDivergedError
from rada.core.threads import side_by_side, stop_if_told
from rada.methods import Run, rada
from rada.methods.base import AdaptedModel
from rada.training import feature_loop, strength
from rada.training.feature_loop import TrainingInterrupted
from toy import NAMES, SCALE, toy
from training.interrupting import interrupt_in_third_epoch

QUICK = {"epochs": 4, "min_steps": 0, "batch_size": 8}


@pytest.fixture(autouse=True, params=[2, 5])
def torch_threads(request: pytest.FixtureRequest) -> Iterator[int]:
    before = torch.get_num_threads()
    torch.set_num_threads(request.param)
    yield request.param
    torch.set_num_threads(before)


def data_of(classes: int = 6, shots: int = 5, views: int | None = None) -> Features:
    images, labels, text = toy(classes=classes, shots=shots, views=views)
    return Features(images, labels, NAMES[:classes], text_features=text, scale=SCALE)


def fitted(name: str, data: Features, folder: Path | None = None, **own: object) -> AdaptedModel:
    method = get_method(name)
    return method.fit(data, method.config(**(QUICK | own)), Run(seed=1, state_dir=folder))


def equal(one: AdaptedModel, other: AdaptedModel) -> None:
    for mine, its in zip(one.state_dict().values(), other.state_dict().values(), strict=True):
        assert torch.equal(mine, its)
    assert one.record["history"] == other.record["history"]
    assert one.record["strength_choice"] == other.record["strength_choice"]


@pytest.fixture
def learners(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the threads in which an epoch was learned."""
    found: list[str] = []
    ordinary = feature_loop._epoch

    def watched(*args):  # type: ignore[no-untyped-def]
        found.append(threading.current_thread().name)
        return ordinary(*args)

    monkeypatch.setattr(feature_loop, "_epoch", watched)
    return found


@pytest.mark.parametrize(
    ("name", "classes", "views", "own"),
    [
        ("rada", 6, None, {}),
        ("rada", 3, 2, {"classes_per_step": 0}),
        ("rada", 6, None, {"strength_folds": 3, "views": 1}),
        ("rada", 6, None, {"shortlist": 4}),
        ("rada_probe", 5, None, {}),
        ("rada_adapter", 6, None, {"hidden": 4}),
    ],
)
def test_heads_side_by_side_learn_what_they_learn_alone(
    monkeypatch: pytest.MonkeyPatch,
    learners: list[str],
    torch_threads: int,
    name: str,
    classes: int,
    views: int | None,
    own: dict[str, object],
) -> None:
    data = data_of(classes, views=views)
    before = torch.random.get_rng_state()
    together = fitted(name, data, **own)
    assert torch.equal(torch.random.get_rng_state(), before)
    heads = 1 + int(str(own.get("strength_folds", 2)))
    assert len(set(learners)) == min(torch_threads, heads)
    assert torch.get_num_threads() == torch_threads
    equal(together, fitted(name, data, **own))
    learners.clear()
    monkeypatch.setattr(rada, "_MOST_PAIRS", 0)
    alone = fitted(name, data, **own)
    assert len(set(learners)) == 1
    for at in (1.0, None):
        found, wanted = (
            model.logits(data.plain(), data.class_set(), strength=at) for model in (together, alone)
        )
        torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4)
    assert together.strength.value == alone.strength.value
    assert together.strength.trained == alone.strength.trained
    assert together.strength.temperature == pytest.approx(alone.strength.temperature)
    for one, other in zip(together.record["history"], alone.record["history"], strict=True):
        assert one == pytest.approx(other, abs=1e-4)
    zero_shot = together.logits(data.plain(), data.class_set(), strength=0.0)
    assert (found - zero_shot).abs().max() > 1e-2 or together.strength.value == 0


class Stop(BaseException):
    pass


@pytest.mark.parametrize("epochs", [3, 5, 9])
def test_heads_side_by_side_go_on_bit_for_bit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, epochs: int
) -> None:
    """Killed after so many epochs of all heads together, of which one began its second."""
    data = data_of()
    ordinary, finished, lock = feature_loop._epoch, [], threading.Lock()

    def stopping(*args):  # type: ignore[no-untyped-def]
        with lock:
            finished.append(epochs)
            if len(finished) > epochs:
                raise Stop
        return ordinary(*args)

    whole = fitted("rada", data)
    monkeypatch.setattr(feature_loop, "_epoch", stopping)
    with pytest.raises(Stop):
        fitted("rada", data, tmp_path)
    assert list(tmp_path.glob("*.safetensors"))  # the state of one or another
    monkeypatch.setattr(feature_loop, "_epoch", ordinary)
    equal(whole, fitted("rada", data, tmp_path))


def test_a_fold_that_was_asked_is_not_learned_again(
    tmp_path: Path, learners: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    data = data_of()
    whole = fitted("rada", data, tmp_path)
    learners.clear()
    asked: list[object] = []
    monkeypatch.setattr(strength._Folds, "_asked", lambda *args: asked.append(args))
    equal(whole, fitted("rada", data, tmp_path))
    assert not learners and not asked


def test_an_interrupt_keeps_the_final_model_so_far(monkeypatch: pytest.MonkeyPatch) -> None:
    data = data_of()
    interrupt_in_third_epoch(monkeypatch)
    with pytest.raises(TrainingInterrupted) as caught:
        fitted("rada", data)
    assert len(caught.value.history) == 2
    assert not [one for one in threading.enumerate() if one.name.startswith("rada-beside")]
    model = caught.value.model
    assert isinstance(model, AdaptedModel)
    assert not model.training
    change = model.logits(data.plain(), data.class_set()) - model.logits(
        data.plain(), data.class_set(), strength=0.0
    )
    assert change.abs().max() > 1e-3


def test_a_head_that_diverges_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TrainingDivergedError, match="learning rate"):
        fitted("rada", data_of(), tmp_path, learning_rate=1e30)
    assert not list(tmp_path.glob("*.safetensors"))


def test_a_fold_that_diverges_is_told_of_and_stops_the_others(
    monkeypatch: pytest.MonkeyPatch, learners: list[str]
) -> None:
    ordinary = feature_loop._check_loss

    def checked(losses, place, rate):  # type: ignore[no-untyped-def]
        if threading.current_thread() is not threading.main_thread():
            raise TrainingDivergedError("the fold's loss is nan")
        return ordinary(losses, place, rate)

    monkeypatch.setattr(feature_loop, "_check_loss", checked)
    with pytest.raises(TrainingDivergedError, match="fold's"):
        fitted("rada", data_of(shots=50), epochs=200, batch_size=4)
    assert len(learners) < 200


def endless(started: threading.Event) -> None:
    started.set()
    while True:
        stop_if_told()
        time.sleep(0.001)


def test_results_come_in_order_and_each_task_has_its_share_of_the_threads(
    torch_threads: int,
) -> None:
    def task(number: int) -> tuple[int, int]:
        time.sleep(0.01 * (3 - number))
        return number, torch.get_num_threads()

    share = torch_threads // 2
    tasks = [lambda number=number: task(number) for number in range(3)]
    assert side_by_side(tasks, 2) == [(0, share), (1, share), (2, share)]
    assert side_by_side(tasks, 1) == [(number, torch_threads) for number in range(3)]
    assert side_by_side([], 2) == []
    found: list[int] = []
    later = threading.Thread(target=lambda: found.append(torch.get_num_threads()))
    later.start()
    later.join()
    assert found == [torch_threads]


@pytest.mark.parametrize("place", [0, 1, 2])
def test_an_error_of_one_task_ends_all_and_keeps_its_traceback(place: int) -> None:
    started = threading.Event()

    def fails() -> None:
        if place != 2:
            assert started.wait(10)
        raise ValueError("of one task")

    # two threads: behind a task without end the third would never be asked
    tasks = [lambda: endless(started), lambda: endless(started)]
    tasks.insert(place, fails)
    with pytest.raises(ValueError, match="of one task") as caught:
        side_by_side(tasks, 3)
    assert "fails" in [entry.name for entry in caught.traceback]
    assert threads._told_to_stop.get() is None


def test_an_interrupt_of_the_first_task_is_raised_as_it_is() -> None:
    started = threading.Event()

    def interrupted() -> None:
        assert started.wait(10)
        raise TrainingInterrupted(torch.nn.Identity(), [])

    with pytest.raises(TrainingInterrupted):
        side_by_side([interrupted, lambda: endless(started)], 2)


def test_outside_of_tasks_nothing_stops() -> None:
    stop_if_told()
