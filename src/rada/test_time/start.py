"""What every image starts from: the head, the classes and what they predict before adaptation."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rada.core.errors import FeatureError
from rada.core.values import check_scale
from rada.features.checks import check_rows
from rada.head import RAdaHead
from rada.test_time.config import TTTConfig
from rada.test_time.selection import (
    entropy,
    gather_views,
    keep_confident,
    mean_log_probability,
    view_entropies,
)

__all__ = ["Chosen", "Start", "make_start", "untrained_head"]


class Chosen(NamedTuple):
    """The views of n images that adaptation uses.

    Attributes:
        views: The kept views, `(n, m, D)`.
        kept: Their numbers, lowest entropy first, `(n, m)`.
        entropies: Entropy of every view's prediction in nats, `(n, V)`.
        logits: What the start predicts for the original view, or for the mean of the kept ones.
        mean_entropy: Entropy of the mean prediction of the kept views, `(n,)`.
        active: Whether the image is adapted to, `(n,)`.
    """

    views: Tensor
    kept: Tensor
    entropies: Tensor
    logits: Tensor
    mean_entropy: Tensor
    active: Tensor


@dataclass(frozen=True)
class Start:
    """The head that every image starts from, on one class set.

    Attributes:
        head: The head, in evaluation mode; never changed.
        text: Class features, `(K, D)`.
        scale: The exponentiated logit scale.
        strength: Mask strength.
        config: How to adapt.
        untrained: Whether the head is the zero-shot model, whatever the image.
    """

    head: RAdaHead
    text: Tensor
    scale: float
    strength: float
    config: TTTConfig
    untrained: bool

    @torch.no_grad()
    def logits(self, views: Tensor, *, plainly: bool = False) -> Tensor:
        """Return the start's logits of views, `(n, V, D)` to `(n, V, K)`.

        `plainly` runs the head even where its mask is known to be one.
        """
        if self.untrained and not plainly:
            return self.scale * views @ self.text.T
        flat: Tensor = self.head(views.flatten(0, 1), self.text, self.scale, self.strength).logits
        logits: Tensor = flat.unflatten(0, views.shape[:2])
        return logits

    def choose(self, views: Tensor, *, plainly: bool = False) -> Chosen:
        """Keep the confident views of images `(n, V, D)`."""
        logits = self.logits(views, plainly=plainly)
        if self.untrained and not plainly:
            # Its own float64 product: rounding must not choose other views for another batch.
            return self.choose_by(
                views, logits, view_entropies(self.scale * views.double() @ self.text.double().T)
            )
        return self.choose_by(views, logits, view_entropies(logits))

    def choose_by(self, views: Tensor, logits: Tensor, entropies: Tensor) -> Chosen:
        """Do the same with logits and entropies from elsewhere."""
        kept = keep_confident(entropies, self.config.kept(views.shape[1]))
        kept_logits = gather_views(logits, kept)
        mean = mean_log_probability(kept_logits)
        uncertain = entropy(mean)
        active = torch.ones_like(uncertain, dtype=torch.bool)
        if self.config.max_entropy < 1:
            active = uncertain <= self.config.max_entropy * math.log(logits.shape[-1])
        answer = mean if self.config.predict_with == "kept" else logits[:, 0]
        return Chosen(gather_views(views, kept), kept, entropies, answer, uncertain, active)

    def loss(self, logits: Tensor, deviation: Tensor) -> Tensor:
        """Return the loss of each image from its kept views' logits and largest deviations."""
        loss = entropy(mean_log_probability(logits))
        if self.config.alpha > 0:
            loss = loss + self.config.alpha * deviation.mean(-1)
        return loss

    def targets(self, original: Tensor, kept: Tensor) -> Tensor:
        """Return the views that the prediction is made on: `(n, 1, D)` or `(n, m, D)`."""
        return kept if self.config.predict_with == "kept" else original[:, None]

    def answer(self, logits: Tensor) -> Tensor:
        """Return the prediction from the targets' logits, `(n, m, K)` to `(n, K)`."""
        if self.config.predict_with == "kept":
            return mean_log_probability(logits)
        return logits[:, 0]


@functools.lru_cache(maxsize=4)
def untrained_head(
    dim: int, num_heads: int, temperature: float, seed: int, dtype: torch.dtype
) -> RAdaHead:
    """Return the untrained head of a seed; it is shared, so copy it before changing it."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return RAdaHead(dim, num_heads, temperature).to(dtype).eval()


def make_start(
    text_features: Any,
    scale: float,
    head: RAdaHead | None,
    config: TTTConfig,
    dtype: torch.dtype,
) -> Start:
    """Check the parts and put the start together.

    Raises:
        FeatureError: If class features cannot be used or do not fit the head.
        ConfigError: If the scale is not a finite number above 0.
    """
    text = check_rows(text_features, "text_features").to(dtype)
    scale = check_scale(scale)
    dim = text.shape[1]
    strength = config.strength
    if head is None:
        head = untrained_head(dim, config.num_heads, config.temperature, config.head_seed, dtype)
        head = head.to(text.device)
    elif head.dim != dim:
        raise FeatureError(
            f"text_features have {dim} dimensions, but the head was built for {head.dim}: "
            "both must come from the same encoder"
        )
    else:
        head = _frozen_copy(head, text)
    # Only on plain features a mask of one is the zero-shot model.
    untrained = type(head) is RAdaHead and not (head.out.weight.any() or head.out.bias.any())
    return Start(head, text, scale, 1.0 if strength is None else strength, config, untrained)


def _frozen_copy(head: RAdaHead, like: Tensor) -> RAdaHead:
    copy = type(head)(head.dim, head.num_heads, head.temperature, memory_budget=head.memory_budget)
    copy.load_state_dict(head.state_dict())
    return copy.to(device=like.device, dtype=like.dtype).eval().requires_grad_(False)
