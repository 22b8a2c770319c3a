"""The choice of the mask strength on the training shots."""

from __future__ import annotations

import pytest
import torch
from rada.training.eft import HeadTrainer, describe

from rada.core.config import EFTConfig
from rada.training import train_head
from rada.training.schedule import warmup_cosine
from rada.training.strength import (
    STRENGTHS,
    Counts,
    best_choice,
    choose_strength,
    count_correct,
)
from toy import SCALE, toy

CONFIG = EFTConfig(epochs=3, min_steps=0, batch_size=8)


def test_counts_are_those_of_the_head_at_every_strength() -> None:
    images, labels, text = toy()
    trained = train_head(images, labels, text, SCALE, CONFIG, 1)
    tester = HeadTrainer(images, labels, text, SCALE, CONFIG, 1)
    counts = count_correct(trained.head, tester)
    assert counts.images == len(images)
    for strength, correct in zip(STRENGTHS, counts.correct.tolist(), strict=True):
        logits = trained(images, text, SCALE, strength).logits
        assert int((logits.argmax(1) == labels).sum()) == correct


@pytest.mark.parametrize(
    ("classes", "shots", "method"),
    [(8, 4, "classes"), (4, 1, "classes"), (3, 4, "shots"), (2, 2, "shots"), (3, 1, "none")],
)
def test_method_by_classes_and_shots(classes: int, shots: int, method: str) -> None:
    trained = train_head(*toy(classes, shots), SCALE, CONFIG, 1)
    choice = trained.strength_choice
    assert choice is not None
    assert choice.method == method
    assert trained.strength == choice.strength
    assert choice.strength in STRENGTHS


def test_never_below_zero_shot_on_pseudo_new_classes() -> None:
    for seed in range(3):
        trained = train_head(*toy(8, 4, seed=seed), SCALE, CONFIG, seed)
        choice = trained.strength_choice
        assert choice is not None
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
    """The head is told apart by the class features: all trained, in any order and number, or not."""
    images, labels, text = toy(8, 4)
    known = labels < 5
    trained = train_head(images[known], labels[known], text[:5], SCALE, CONFIG, 1)
    choice = trained.strength_choice
    assert choice is not None and trained.trained_strength == choice.trained_strength
    base = torch.tensor(choice.base_accuracy)
    assert base[STRENGTHS.index(choice.trained_strength or 0.0)] == base.max()
    trained.strength, trained.trained_strength = 1.0, 0.25
    for rows, strength in (([0, 1, 2, 3, 4], 0.25), ([4, 1], 0.25), ([4, 5], 1.0), ([6, 7], 1.0)):
        logits = trained.head(images, text[rows], SCALE, strength).logits
        assert torch.equal(trained(images, text[rows], SCALE).logits, logits)
        assert trained.strength_for(text[rows]) == strength
    assert trained.strength_for(torch.eye(7)[:, :4]) == 1.0  # features of another width


def test_nothing_is_held_out_of_one_shot() -> None:
    """What was learned by heart says nothing: one strength then serves both."""
    trained = train_head(*toy(5, 1), SCALE, CONFIG, 1)
    assert trained.trained_strength is None
    assert trained.strength_for(toy(5, 1)[2]) == trained.strength


def test_given_strength_is_kept() -> None:
    trained = train_head(*toy(), SCALE, EFTConfig(epochs=1, min_steps=0, strength=0.25), 1)
    assert trained.strength == 0.25
    assert trained.strength_choice is None


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
    run, step = HeadTrainer.run, torch.optim.AdamW.step

    def watched_run(self: HeadTrainer, *args, **kwargs):  # type: ignore[no-untyped-def]
        counts.append(0)
        return run(self, *args, **kwargs)

    def watched_step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        counts[-1] += 1
        return step(self, *args, **kwargs)

    monkeypatch.setattr(HeadTrainer, "run", watched_run)
    monkeypatch.setattr(torch.optim.AdamW, "step", watched_step)
    trained = train_head(*toy(classes, shots), SCALE, config, 1)
    folds = 3 if classes >= 4 else 2
    assert counts == [counts[0]] * (1 + folds)
    assert counts[0] >= config.min_steps
    assert describe(trained)["effective"] == {"epochs": len(trained.history), "steps": counts[0]}


def test_a_run_of_so_many_steps_has_the_rates_of_so_many() -> None:
    images, labels, text = toy(6, 4)
    trainer = HeadTrainer(images, labels, text, SCALE, CONFIG, 1, steps=7)
    assert (trainer.epochs, trainer.steps_per_epoch) == (3, 3)
    _, history = trainer.run(progress=False)
    assert history[-1]["learning_rate"] == pytest.approx(
        warmup_cosine(CONFIG.learning_rate, 6, 7, CONFIG.warmup)
    )


def test_folds_see_neither_their_classes_nor_the_held_out_images(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    images, labels, text = toy(8, 4)
    trainer = HeadTrainer(images, labels, text, SCALE, CONFIG, 1)
    learned: list[torch.Tensor] = []
    judged: list[torch.Tensor] = []
    run, count = HeadTrainer.run, count_correct

    def watched_run(self: HeadTrainer, *args, **kwargs):  # type: ignore[no-untyped-def]
        learned.append(self.images[:, 0])
        return run(self, *args, **kwargs)

    def watched_count(head, tester):  # type: ignore[no-untyped-def]
        judged.append(tester.images[:, 0])
        return count(head, tester)

    monkeypatch.setattr(HeadTrainer, "run", watched_run)
    monkeypatch.setattr("rada.training.strength.count_correct", watched_count)
    choose_strength(trainer, None, progress=False)
    assert len(judged) == 2 * len(learned)
    for fold, seen in enumerate(learned):
        for tested in judged[2 * fold : 2 * fold + 2]:
            assert not (seen[:, None] == tested[None]).all(-1).any()
    new = torch.cat(judged[1::2])
    assert len(new) == len(images)  # every image is pseudo-new once
