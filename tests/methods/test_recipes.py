"""The recipes of the baselines against independent transcriptions of their public code."""

from __future__ import annotations

import pytest
import torch

from rada.methods import get_method
from rada.methods.training import Recipe, learning_rate


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
    recipe = get_method("rada_released").settings(learning_rate=1.0)
    assert recipe.epochs == 5 and recipe.schedule == "epochs"
    found = [round(learning_rate(recipe, step, 1), 3) for step in range(1, 5)]
    assert found == [1.0, 0.905, 0.655, 0.345]
