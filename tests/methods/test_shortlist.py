"""Methods with a shortlist of classes: fit, answer, explain, save, refuse."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from rada import Classifier, EFTConfig, Features, get_method
from rada.core.errors import ConfigError
from rada.exporting import ExportSettings, export_model
from rada.methods import Run
from rada.methods.base import AdaptedModel
from rada.training import feature_loop
from rada.training.feature_loop import draw_classes
from toy import SCALE, toy

NAMES = tuple(f"class {number}" for number in range(8))
QUICK = {"epochs": 3, "min_steps": 0, "batch_size": 8}
METHODS = ("rada", "rada_probe", "rada_adapter")


def data_of() -> Features:
    images, labels, text = toy(classes=8)
    return Features(images, labels, NAMES, text_features=text, scale=SCALE)


def fitted(name: str, **own: object) -> AdaptedModel:
    method = get_method(name)
    config = method.config(**QUICK, shortlist=3, **own)
    return method.fit(data_of(), config, Run(seed=1))


@pytest.mark.parametrize("name", METHODS)
def test_only_the_likely_classes_move(name: str) -> None:
    """At full strength, among classes of which one is new; the probe knows the trained ones alone."""
    data, model = data_of(), fitted(name, strength=1.0)
    classes = data.class_set()
    classes = type(classes)((*NAMES[:7], "new"), classes.text_features)
    text, images = classes.text_features, data.plain()
    with torch.no_grad():
        adapted = model.adapted_images(images) @ model.adapted_text(text).T
    moved = (model.logits(images, classes, strength=1.0) - SCALE * adapted).abs() > 1e-4
    likely = torch.zeros_like(moved).scatter(1, adapted.topk(3, 1).indices, True)
    assert bool(moved.any()) and not bool((moved & ~likely).any())


@pytest.mark.parametrize("name", METHODS)
def test_a_strength_is_chosen_with_the_shortlist_and_terms_sum_up(name: str) -> None:
    data, model = data_of(), fitted(name)
    assert model.record["strength_choice"]["method"] == "classes"
    logits = model.logits(data.plain(), data.class_set())
    terms = model.logit_terms(data.plain(), data.class_set())
    torch.testing.assert_close(terms.logits(), logits, rtol=0, atol=1e-4)
    one = torch.cat([model.logits(row[None], data.class_set()) for row in data.plain()])
    torch.testing.assert_close(one, logits, rtol=0, atol=1e-4)


def test_auto_is_all_of_few_classes() -> None:
    data = data_of()
    method = get_method("rada")
    runs = [
        method.fit(data, method.config(**QUICK, shortlist=shortlist), Run(seed=1))
        for shortlist in (None, "auto", 20)
    ]
    logits = [run.logits(data.plain(), data.class_set(), strength=1.0) for run in runs]
    assert torch.equal(logits[0], logits[1]) and torch.equal(logits[0], logits[2])


def saved(folder: Path) -> tuple[Classifier, torch.Tensor]:
    """Return a classifier that was saved and loaded, and the logits from before."""
    classifier = Classifier(None, "rada", config=EFTConfig(**QUICK, shortlist=3, strength=1.0))
    classifier.fit(data_of(), seed=1)
    classifier.save_pretrained(folder)
    answers = classifier.model_.logits(data_of().plain(), data_of().class_set())
    return Classifier.from_pretrained(folder), answers


def test_saved_and_loaded(tmp_path: Path) -> None:
    loaded, answers = saved(tmp_path)
    assert loaded.model_.config.shortlist == 3
    assert torch.equal(loaded.model_.logits(data_of().plain(), data_of().class_set()), answers)


def test_exported(tmp_path: Path) -> None:
    pytest.importorskip("onnx", reason="its extra brings a torch that can follow a head")
    loaded, answers = saved(tmp_path / "model")
    settings = ExportSettings(format="torch", source="features")
    export_model(loaded, tmp_path / "exported", settings)
    program = torch.export.load(tmp_path / "exported" / "model.pt2").module()
    found = program(data_of().plain())[1]
    torch.testing.assert_close(found, answers, rtol=0, atol=1e-3)
    with pytest.raises(ConfigError, match="shortlist"):
        export_model(loaded, tmp_path / "open", dataclasses.replace(settings, classes="input"))


def test_test_time_training_names_the_shortlist() -> None:
    from rada.test_time import get_test_time_method

    data, model = data_of(), fitted("rada")
    method = get_test_time_method("rada")
    with pytest.raises(ConfigError, match="shortlist"):
        method.predictor(model, data.class_set(), method.config())


def test_hard_classes_are_those_of_the_images(monkeypatch: pytest.MonkeyPatch) -> None:
    data, drawn = data_of(), []
    ordinary = feature_loop.draw_classes

    def watched(labels, count, size, generator, hard=None):  # type: ignore[no-untyped-def]
        found = ordinary(labels, count, size, generator, hard)
        drawn.append((set(labels.tolist()), set(hard.flatten().tolist()), set(found.tolist())))
        return found

    monkeypatch.setattr(feature_loop, "draw_classes", watched)
    method = get_method("rada")
    config = method.config(
        epochs=2,
        min_steps=0,
        batch_size=2,
        classes_per_step=4,
        shortlist=3,
        hard_classes=True,
        strength=1.0,
    )
    method.fit(data, config, Run(seed=1))
    assert len(drawn) == 2 * 16
    for labels, hard, found in drawn:
        assert labels <= found and len(found) == 4
        assert found <= labels | hard or labels | hard < found
        assert 3 <= len(hard) <= 6


def test_without_hard_classes_the_draw_is_what_it_was() -> None:
    labels = torch.tensor([3, 5])
    plain, empty = (
        draw_classes(labels, 9, 4, torch.Generator().manual_seed(0), hard)
        for hard in (None, torch.empty(0, dtype=torch.long))
    )
    assert plain is not None and empty is not None and torch.equal(plain, empty)


@pytest.mark.parametrize("bad", [0, 1, "some"])
def test_bad_configurations_are_refused(bad: object) -> None:
    with pytest.raises(ConfigError, match="shortlist"):
        EFTConfig(shortlist=bad)  # type: ignore[arg-type]
