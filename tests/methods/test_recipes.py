"""The recipes of the baselines against independent transcriptions of their public code."""

from __future__ import annotations

import math
from itertools import product

import pytest
import torch
from torch.nn.functional import cross_entropy, normalize, one_hot

from rada.features import Features
from rada.methods import Run, get_method
from rada.training.feature_loop import Recipe, learning_rate
from toy import SCALE


def coop_rates(epochs: int, base: float) -> list[float]:
    """One rate an epoch, by torch's own scheduler behind CoOp's constant warm-up of one epoch."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=base)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, epochs)
    rates = [1e-5]
    for _ in range(epochs - 1):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cosine.step()
    return rates


@pytest.mark.parametrize("epochs", [1, 2, 5, 50])
def test_schedule_by_epochs_is_coops(epochs):
    recipe = Recipe(epochs=epochs, learning_rate=0.002)
    found = [learning_rate(recipe, step, 3) for step in range(3 * epochs)]
    expected = [rate for rate in coop_rates(epochs, 0.002) for _ in range(3)]
    assert found == pytest.approx(expected)


def test_the_second_of_five_epochs_has_the_full_rate():
    recipe = get_method("rada_released").config(learning_rate=1.0)
    assert recipe.epochs == 5 and recipe.schedule == "epochs"
    found = [round(learning_rate(recipe, step, 1), 3) for step in range(1, 5)]
    assert found == [1.0, 0.905, 0.655, 0.345]


NAMES = ("cat", "dog", "eel", "fox", "gnu", "hen")
RUN = Run(seed=1)


def crowded(shots: int, seed: int = 0) -> tuple[Features, torch.Tensor, torch.Tensor]:
    """Features whose classes overlap, and 600 further images of them with their labels."""
    generator = torch.Generator().manual_seed(seed)
    centres = normalize(torch.randn(6, 16, generator=generator), dim=-1)
    text = normalize(centres + torch.randn(6, 16, generator=generator) / 4, dim=-1)
    labels = torch.arange(6).repeat(shots + 100)
    noise = torch.randn(len(labels), 16, generator=generator) * torch.linspace(0.1, 0.9, 16)
    images = normalize(centres[labels] + noise, dim=-1)
    own = 6 * shots
    data = Features(images[:own], labels[:own], NAMES, text_features=text, scale=SCALE)
    return data, images[own:], labels[own:]


def tip_logits(images, keys, values, text, alpha, beta, others=None):
    """The cache model as its paper writes it; `others` (1 or 0) takes keys out."""
    affinity = torch.exp(-beta * (1 - images @ keys.T))
    if others is not None:
        affinity = affinity * others
    return SCALE * images @ text.T + alpha * (affinity @ values)


def train_keys(images, labels, text):
    """Tip-Adapter-F's training, one batch an epoch, an image never being asked of its own key."""
    keys = torch.nn.Parameter(images.clone())
    values = one_hot(labels, len(text)).float()
    others = 1 - torch.eye(len(images))
    optimizer = torch.optim.AdamW([keys], lr=1e-3, eps=1e-4)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 20)
    for _ in range(20):
        loss = cross_entropy(tip_logits(images, keys, values, text, 4.0, 8.0, others), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
    return keys.detach()


def test_tip_adapter_f_is_its_public_code_without_the_own_key():
    data, _, _ = crowded(shots=8)
    model = get_method("tip_adapter_f").fit(data, run=RUN)
    images, text = data.plain(), data.text_features
    expected = train_keys(images, data.labels, text)
    torch.testing.assert_close(model.keys.detach(), expected, atol=1e-5, rtol=1e-4)
    assert (expected - images).norm() > 0.1  # the keys have moved
    found = model.logits(images, data.class_set())
    values = one_hot(data.labels, 6).float()
    alpha, beta = model.record["alpha"], model.record["beta"]
    wanted = tip_logits(images, expected, values, text, alpha, beta)
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-4)


def test_tip_adapter_f_searches_alpha_and_beta_afterwards_on_shots_held_out(monkeypatch):
    import rada.methods.tip_adapter_f as module
    from rada.methods.tip_adapter import ALPHAS, BETAS

    parts = torch.arange(48) // 6 % 4  # by number in class: what the seed would shuffle
    monkeypatch.setattr(module, "position_in_class", lambda data, seed: parts)
    data, _, _ = crowded(shots=8)
    images, labels, text = data.plain(), data.labels, data.text_features
    held = []
    for part in range(4):
        rest = parts != part
        keys = train_keys(images[rest], labels[rest], text)
        held.append((images[~rest], keys, one_hot(labels[rest], 6).float(), labels[~rest]))

    def quality(alpha, beta):
        pairs = [(tip_logits(q, k, v, text, alpha, beta), y) for q, k, v, y in held]
        right = sum(int((logits.argmax(1) == y).sum()) for logits, y in pairs)
        return right, -sum(float(cross_entropy(logits, y, reduction="sum")) for logits, y in pairs)

    best = max(product(ALPHAS, BETAS), key=lambda pair: quality(*pair))
    record = get_method("tip_adapter_f").fit(data, run=RUN).record
    assert (record["alpha"], record["beta"]) == best


def test_tip_adapter_f_learns_more_than_its_cache_holds():
    gains = []
    for seed in range(3):
        data, images, labels = crowded(shots=8, seed=seed)
        accuracy = []
        for name in ("tip_adapter", "tip_adapter_f"):
            model = get_method(name).fit(data, run=RUN)
            found = model.logits(images, data.class_set()).argmax(1)
            accuracy.append(float((found == labels).float().mean()))
        gains.append(accuracy[1] - accuracy[0])
    assert math.fsum(gains) / 3 > 0.01
