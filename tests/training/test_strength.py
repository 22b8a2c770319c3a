"""The choice of the mask strength on the training shots."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from rada import ClassSet, EFTConfig, Features, get_method, train_head
from rada.core.errors import ConfigError
from rada.methods import Run
from rada.methods.rada import HeadModel
from rada.training import strength as strength_rule
from rada.training.schedule import warmup_cosine
from rada.training.strength import (
    STRENGTHS,
    Counts,
    Strength,
    StrengthChoice,
    best_choice,
    choose_strength,
    count_right,
)
from toy import SCALE, toy

CONFIG = EFTConfig(epochs=3, min_steps=0, batch_size=8)


def class_set(text: torch.Tensor) -> ClassSet:
    return ClassSet(tuple(map(str, range(len(text)))), text)


def features(classes: int = 6, shots: int = 4, seed: int = 0) -> Features:
    images, labels, text = toy(classes, shots, seed=seed)
    names = class_set(text).names
    return Features(images, labels, names, text_features=text, scale=SCALE)


def choice_of(model: HeadModel) -> StrengthChoice:
    return StrengthChoice(**model.record["strength_choice"])


def test_counts_are_those_of_the_head_at_every_strength() -> None:
    images, labels, text = toy()
    trained = train_head(images, labels, text, SCALE, CONFIG, 1)
    zero_shot = trained.zero_shot_logits(images, class_set(text))
    change = trained.adapted_logits(images, class_set(text)) - zero_shot
    counts = count_right(zero_shot, change, labels)
    assert counts.images == len(images)
    for strength, correct in zip(STRENGTHS, counts.correct.tolist(), strict=True):
        logits = trained.logits(images, class_set(text), strength=strength)
        assert int((logits.argmax(1) == labels).sum()) == correct


@pytest.mark.parametrize(
    ("classes", "shots", "method"),
    [(8, 4, "classes"), (4, 1, "classes"), (3, 4, "shots"), (2, 2, "shots"), (3, 1, "none")],
)
def test_method_by_classes_and_shots(classes: int, shots: int, method: str) -> None:
    trained = train_head(*toy(classes, shots), SCALE, CONFIG, 1)
    choice = choice_of(trained)
    assert choice.method == method
    assert trained.strength.value == choice.strength
    assert choice.strength in STRENGTHS


def test_never_below_zero_shot_on_pseudo_new_classes() -> None:
    for seed in range(3):
        trained = train_head(*toy(8, 4, seed=seed), SCALE, CONFIG, seed)
        choice = choice_of(trained)
        position = STRENGTHS.index(choice.strength)
        assert choice.new_accuracy[position] >= choice.new_accuracy[0]


def test_slack_is_for_one_strength_that_serves_both() -> None:
    """Where trained classes have a strength of their own, new ones lose nothing to chance."""
    zeros = torch.zeros(len(STRENGTHS), dtype=torch.long)
    rising = torch.arange(len(STRENGTHS)) + 10
    base = Counts(rising, zeros, 100)
    correct, changed = zeros + 60, zeros + 4
    correct[-1] = 59
    new = Counts(correct, changed, 100)
    both = best_choice(base, new, held_out=False)
    assert (both.strength, both.trained_strength) == (1.0, None)
    apart = best_choice(base, new, held_out=True)
    assert (apart.strength, apart.trained_strength) == (0.95, 1.0)


def test_one_standard_error_is_the_slack() -> None:
    correct, changed = torch.tensor([100, 97, 96, 90]), torch.tensor([0, 9, 9, 101])
    marks = Counts(correct, changed, 200).not_below_zero_shot()
    assert marks.tolist() == [True, True, False, True]


def test_trained_classes_have_a_strength_of_their_own() -> None:
    """The classes are known by their names: all trained, in any order and number, or not."""
    images, labels, text = toy(8, 4)
    known = labels < 5
    trained = train_head(images[known], labels[known], text[:5], SCALE, CONFIG, 1)
    choice = choice_of(trained)
    assert trained.strength.trained == choice.trained_strength is not None
    base = torch.tensor(choice.base_accuracy)
    assert base[STRENGTHS.index(choice.trained_strength or 0.0)] == base.max()
    trained.strength = Strength(1.0, trained=0.25, classes=trained.strength.classes)
    for rows, strength in (([0, 1, 2, 3, 4], 0.25), ([4, 1], 0.25), ([4, 5], 1.0), ([6, 7], 1.0)):
        asked = class_set(text).take(torch.tensor(rows))
        logits = trained.logits(images, asked, strength=strength)
        head = trained.head(images, text[rows], SCALE, strength).logits
        torch.testing.assert_close(head, logits, atol=1e-4, rtol=1e-5)
        assert torch.equal(trained.logits(images, asked), logits)
        assert trained.strength.for_classes(asked.names) == strength
    assert trained.strength.for_classes(["something else"]) == 1.0


def test_nothing_is_held_out_of_one_shot() -> None:
    """What was learned by heart says nothing: one strength then serves both."""
    trained = train_head(*toy(5, 1), SCALE, CONFIG, 1)
    assert trained.strength.trained is None
    assert trained.strength.for_classes(map(str, range(5))) == trained.strength.value


def test_given_strength_is_kept() -> None:
    trained = train_head(*toy(), SCALE, EFTConfig(epochs=1, min_steps=0, strength=0.25), 1)
    assert trained.strength.value == 0.25 and trained.strength.trained is None
    assert "strength_choice" not in trained.record
    for bad in (-0.1, 1.5, float("nan")):
        with pytest.raises(ConfigError, match=r"value"):
            Strength(bad)


@pytest.mark.parametrize(
    ("classes", "shots", "config"),
    [
        (8, 4, EFTConfig(epochs=1, min_steps=37, batch_size=8)),  # the least steps decide
        (8, 4, EFTConfig(epochs=9, min_steps=10, batch_size=5)),  # the epochs decide
        (3, 6, EFTConfig(epochs=2, min_steps=31, batch_size=4)),  # over shots
    ],
)
def test_heads_of_the_folds_make_the_steps_of_the_final_head(
    classes: int, shots: int, config: EFTConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted where an optimiser steps: what a run says of itself could be wrong for all alike."""
    counts: list[int] = []
    start, step = type(get_method("rada")).start, torch.optim.AdamW.step

    def watched_start(*args, **kwargs):  # type: ignore[no-untyped-def]
        counts.append(0)
        return start(*args, **kwargs)

    def watched_step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        counts[-1] += 1
        return step(self, *args, **kwargs)

    monkeypatch.setattr(type(get_method("rada")), "start", watched_start)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched_step)
    trained = train_head(*toy(classes, shots), SCALE, config, 1)
    folds = 3 if classes >= 4 else 2
    assert counts == [counts[0]] * (1 + folds)
    assert counts[0] >= config.min_steps
    history = trained.record["history"]
    assert trained.record["effective"] == {"epochs": len(history), "steps": counts[0]}


def test_a_run_of_so_many_steps_has_the_rates_of_so_many() -> None:
    data, method = features(), get_method("rada")
    run = Run(seed=1)
    model = method.learn(method.start(data, CONFIG, run), data, CONFIG.recipe(), run, steps=7)
    history = model.record["history"]
    assert model.record["effective"] == {"epochs": 3, "steps": 7} and len(history) == 3
    assert history[-1]["learning_rate"] == pytest.approx(
        warmup_cosine(CONFIG.learning_rate, 6, 7, CONFIG.warmup)
    )


def test_folds_see_neither_their_classes_nor_the_held_out_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    data = features(8, 4)
    learned: list[Features] = []
    evaluated: list[Features] = []
    count = strength_rule._counted

    def fit_part(part: Features, _path: object) -> HeadModel:
        learned.append(part)
        return train_head(
            part.plain(), part.labels, part.class_set().text_features, SCALE,
            dataclasses.replace(CONFIG, strength=1.0), 1, classes=part.classes,
        )  # fmt: skip

    def watched_count(model, part):  # type: ignore[no-untyped-def]
        evaluated.append(part)
        return count(model, part)

    monkeypatch.setattr(strength_rule, "_counted", watched_count)
    choose_strength(fit_part, data, 1)
    assert len(evaluated) == 2 * len(learned)
    for fold, seen in enumerate(learned):
        base, new = evaluated[2 * fold : 2 * fold + 2]
        assert set(seen.classes) == set(base.classes)
        assert set(seen.classes) | set(new.classes) == set(data.classes)
        assert not set(seen.classes) & set(new.classes)
        for tested in (base, new):
            assert not (seen.plain()[:, None] == tested.plain()[None]).all(-1).any()
    new = torch.cat([part.plain() for part in evaluated[1::2]])
    assert len(new) == len(data)  # every image is pseudo-new once
