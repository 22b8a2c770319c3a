"""The choice of the mask strength on the training shots."""

from __future__ import annotations

import dataclasses
import json
import math
from collections import Counter

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch.nn.functional import cross_entropy, normalize

from rada import ClassSet, EFTConfig, Features, get_method, train_head
from rada.core.errors import ConfigError
from rada.methods import Run
from rada.methods.rada import HeadModel
from rada.training import optimizers
from rada.training import strength as strength_rule
from rada.training.schedule import warmup_cosine
from rada.training.strength import (
    LARGEST_NEW,
    PLAIN_GRID,
    SHARE_OF_GAIN,
    STRENGTHS,
    Grid,
    Scores,
    Strength,
    StrengthChoice,
    cautious_strength,
    choose_strength,
    fitted_temperature,
    score,
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


def test_scores_are_those_of_the_head_at_every_strength() -> None:
    images, labels, text = toy()
    trained = train_head(images, labels, text, SCALE, CONFIG, 1)
    names = class_set(text)
    scores = score(trained.at_points(images, names, PLAIN_GRID.points), labels, prior=2.0)
    assert scores.images == len(images)
    middle = scores.loss.shape[1] // 2  # where the temperature is the prior
    for place, strength in enumerate(STRENGTHS):
        logits = trained.logits(images, names, strength=strength)
        assert int((logits.argmax(1) == labels).sum()) == scores.correct[place]
        entropy = cross_entropy(logits / 2.0, labels, reduction="sum")
        assert float(scores.loss[place, middle]) == pytest.approx(float(entropy), rel=1e-4)
    assert int(scores.changed[0]) == 0


def test_scores_survive_json() -> None:
    images, labels, text = toy()
    logits = SCALE * images @ text.T
    scores = score([logits, logits.flip(1)], labels)
    again = Scores.from_lists(json.loads(json.dumps(scores.to_lists())))
    assert torch.equal(again.loss, scores.loss) and torch.equal(again.correct, scores.correct)
    assert (scores + again).images == 2 * len(images)


def test_the_temperature_is_the_most_likely_one() -> None:
    """Against a fine search with scipy, on logits that are three times too large."""
    generator = torch.Generator().manual_seed(0)
    calm = torch.randn(4000, 5, generator=generator, dtype=torch.float64) * 2
    labels = torch.distributions.Categorical(logits=calm).sample()
    found = fitted_temperature(3 * calm, labels)
    best = minimize_scalar(
        lambda one: float(cross_entropy(3 * calm / math.exp(one), labels)),
        bounds=(-1, 4),
        method="bounded",
    )
    assert found == pytest.approx(math.exp(best.x), rel=0.06)
    assert fitted_temperature(3 * calm[:1], labels[:1]) < 30  # one image does not decide alone


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


def test_the_strength_for_new_classes_is_asked_of_pseudo_new_classes_alone() -> None:
    for seed in range(3):
        trained = train_head(*toy(8, 4, seed=seed), SCALE, CONFIG, seed)
        choice = choice_of(trained)
        assert choice.strength <= LARGEST_NEW
        likelihood = choice.new_likelihood
        position = STRENGTHS.index(choice.strength)
        gain = likelihood[position] - likelihood[0]
        assert gain >= 0
        if 0 < choice.strength < LARGEST_NEW:
            best = max(likelihood) - likelihood[0]
            assert gain >= SHARE_OF_GAIN * best > likelihood[position - 1] - likelihood[0]


def test_the_cautious_strength_is_the_smallest_with_most_of_the_gain() -> None:
    strengths = torch.tensor(STRENGTHS)
    peak = (strengths - 0.4).square()
    expected = next(
        float(one) for one in strengths if 0.16 - (one - 0.4) ** 2 >= SHARE_OF_GAIN * 0.16
    )
    assert cautious_strength(peak) == pytest.approx(expected)
    assert cautious_strength(-strengths) == LARGEST_NEW  # rising to the end: capped
    assert cautious_strength(strengths) == 0.0  # nothing is gained: change nothing
    assert cautious_strength(torch.zeros(len(STRENGTHS))) == 0.0


def test_the_penalty_draws_a_choice_of_few_images_to_the_prior() -> None:
    """A slight gain on a dozen images does not undo the prior, a clear one does."""
    data = features(3, 4)

    class Fixed:
        def __init__(self, other: float) -> None:
            self.other = other

        def features_of(self, part: Features) -> torch.Tensor:
            return part.plain()

        def at_points(self, images, classes, points):  # type: ignore[no-untyped-def]
            rows = data.plain()
            for point in points:
                place = (images[:, None] == rows[None]).all(-1).float().argmax(1)
                right = torch.nn.functional.one_hot(data.labels[place], len(classes)).float()
                yield right * (1.1 if point == (0.0,) else self.other)

    grid = Grid(((0.0,), (1.0,)), (1.0,), (4.0, 0.0))
    slight = choose_strength(lambda *_: Fixed(1.0), data, 1, grid=grid)
    clear = choose_strength(lambda *_: Fixed(0.0), data, 1, grid=grid)
    assert (slight.point, clear.point) == ((1.0,), (0.0,))


def test_what_learned_how_sure_to_be_is_not_held_to_zero_shot() -> None:
    """Zero-shot is forty times too sure; the adapted model is right more often, and calm by training."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(3).repeat(32)
    target = torch.nn.functional.one_hot(labels, 3).float()
    text = torch.eye(3)
    images = normalize(target + torch.randn(96, 3, generator=generator), dim=-1)
    calm = 3 * target + torch.randn(96, 3, generator=generator)
    data = Features(images, labels, ("a", "b", "c"), text_features=text, scale=100.0)

    class Calm:
        def features_of(self, part: Features) -> torch.Tensor:
            return part.plain()

        def at_points(self, rows, classes, points):  # type: ignore[no-untyped-def]
            place = (rows[:, None] == images[None]).all(-1).float().argmax(1)
            zero_shot = 100 * rows @ text.T
            for (strength,) in points:
                yield zero_shot + strength * (calm[place] - zero_shot)

    held = choose_strength(lambda *_: Calm(), data, 1)
    free = choose_strength(lambda *_: Calm(), data, 1, own_scale=True)
    assert (calm.argmax(1) == labels).sum() > (images.argmax(1) == labels).sum() + 10
    assert free.trained_strength == 1.0 and 0.5 < (free.trained_temperature or 0) < 2
    assert (held.trained_temperature or 0) > 10 and free.base_accuracy == held.base_accuracy
    assert max(free.base_likelihood) > max(held.base_likelihood) + 0.1
    # Where zero-shot is not too sure, nothing is free.
    data = Features(images, labels, data.classes, text_features=text, scale=1.0)
    found = [choose_strength(lambda *_: Calm(), data, 1, own_scale=own) for own in (False, True)]
    assert found[0] == found[1]


def test_probabilities_are_calibrated_on_held_out_shots() -> None:
    """A model whose zero-shot logits are far too sure of themselves is told so by its shots."""
    images, labels, text = toy(8, 6)
    noisy = normalize(
        images + 0.6 * torch.randn(images.shape, generator=torch.Generator().manual_seed(1)), dim=-1
    )
    sure = train_head(noisy, labels, text, 200.0, CONFIG, 1)
    strength = sure.strength
    assert strength.temperature > 2 and (strength.trained_temperature or 0) > 1
    names = class_set(text)
    raw = sure.logits(noisy, names, strength=strength.for_classes(names.names))
    torch.testing.assert_close(
        sure.logits(noisy, names), raw / strength.temperature_for(names.names)
    )
    new = ClassSet((*names.names[:2], "unheard of"), text[:3])
    raw = sure.logits(noisy, new, strength=strength.value)
    torch.testing.assert_close(sure.logits(noisy, new), raw / strength.temperature)


def test_trained_classes_have_a_strength_of_their_own() -> None:
    """The classes are known by their names: all trained, in any order and number, or not."""
    images, labels, text = toy(8, 4)
    known = labels < 5
    trained = train_head(images[known], labels[known], text[:5], SCALE, CONFIG, 1)
    choice = choice_of(trained)
    assert trained.strength.trained == choice.trained_strength is not None
    base = torch.tensor(choice.base_likelihood)
    assert list(choice.point or ()) == [choice.trained_strength]
    assert base[STRENGTHS.index(choice.trained_strength or 0.0)] == base.max()
    trained.strength = Strength(1.0, trained=0.25, classes=trained.strength.classes)
    for rows, strength in (([0, 1, 2, 3, 4], 0.25), ([4, 1], 0.25), ([4, 5], 1.0), ([6, 7], 1.0)):
        asked = class_set(text).take(torch.tensor(rows))
        logits = trained.logits(images, asked, strength=strength)
        head = trained.head(images, text[rows], SCALE, strength).logits
        torch.testing.assert_close(head, logits, atol=1e-4, rtol=1e-5)
        assert torch.equal(trained.logits(images, asked), logits)  # no temperature was given
        assert trained.strength.for_classes(asked.names) == strength
    assert trained.strength.for_classes(["something else"]) == 1.0


def test_nothing_is_held_out_of_one_shot() -> None:
    """What was learned by heart says nothing: the point of the prior is taken."""
    trained = train_head(*toy(5, 1), SCALE, CONFIG, 1)
    assert trained.strength.trained == PLAIN_GRID.prior[0] == 1.0
    choice = choice_of(trained)
    assert not choice.base_accuracy and choice.base_images == 0
    assert choice.new_accuracy  # whole classes can be held out all the same


def test_given_strength_is_kept() -> None:
    trained = train_head(*toy(), SCALE, EFTConfig(epochs=1, min_steps=0, strength=0.25), 1)
    assert trained.strength.value == 0.25 and trained.strength.trained is None
    assert trained.strength.temperature == 1.0
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
    counts: Counter[object] = Counter()
    step = optimizers.AdamW.step

    def watched_step(self, *args, **kwargs):  # type: ignore[no-untyped-def]
        counts[self] += 1
        return step(self, *args, **kwargs)

    monkeypatch.setattr(optimizers.AdamW, "step", watched_step)
    trained = train_head(*toy(classes, shots), SCALE, config, 1)
    steps = max(counts.values())
    assert list(counts.values()) == [steps] * (1 + 2)
    assert steps >= config.min_steps
    history = trained.record["history"]
    assert trained.record["effective"] == {"epochs": len(history), "steps": steps}


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
    asked = strength_rule._Folds._asked

    def fit_part(part: Features, _path: object) -> HeadModel:
        learned.append(part)
        return train_head(
            part.plain(), part.labels, part.class_set().text_features, SCALE,
            dataclasses.replace(CONFIG, strength=1.0), 1, classes=part.classes,
        )  # fmt: skip

    def watched(runs, model, part, points):  # type: ignore[no-untyped-def]
        evaluated.append(part)
        return asked(runs, model, part, points)

    monkeypatch.setattr(strength_rule._Folds, "_asked", watched)
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


def test_a_few_right_images_do_not_make_a_model_surer() -> None:
    def of(images: int, wrong: int = 0) -> float:
        labels = torch.arange(images) % 3
        logits = 2.0 * torch.eye(3)[labels]
        labels[:wrong] = (labels[:wrong] + 1) % 3
        return fitted_temperature(logits, labels)

    assert 0.8 < of(12) <= 1.0
    assert of(20_000) < 0.4  # that many show it
    assert of(12, wrong=6) > 2.0  # being too sure shows with few
