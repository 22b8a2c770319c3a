"""One image after the other, with ordinary autograd and optimiser: the reference of the others."""

from __future__ import annotations

import copy

import torch
from torch import Tensor

from rada.test_time.start import Chosen, Start

__all__ = ["adapt_by_loop"]


def adapt_by_loop(start: Start, original: Tensor, chosen: Chosen) -> tuple[Tensor, Tensor]:
    """Adapt to each image on its own.

    Args:
        start: What every image starts from.
        original: Original views, `(n, D)`.
        chosen: The kept views.

    Returns:
        Logits `(n, K)` and largest `|M - 1|` of the predicted views, `(n,)`.
    """
    head = copy.deepcopy(start.head).requires_grad_(True)
    weights = copy.deepcopy(start.head.state_dict())
    targets = start.targets(original, chosen.views)
    logits = torch.empty_like(chosen.logits)
    peaks = logits.new_empty(len(logits))
    for index, views in enumerate(chosen.views):
        head.load_state_dict(weights)
        optimizer = torch.optim.AdamW(
            head.parameters(),
            lr=start.config.learning_rate,
            weight_decay=start.config.weight_decay,
        )
        for _ in range(start.config.steps):
            output = head(views, start.text, start.scale, start.strength)
            loss = start.loss(output.logits, output.max_deviation)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        with torch.no_grad():
            output = head(targets[index], start.text, start.scale, start.strength)
        logits[index] = start.answer(output.logits[None])[0]
        peaks[index] = output.max_deviation.amax()
    return logits, peaks
