"""What every image starts from: the head, the classes and what they predict before adaptation."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from rada.core.errors import FeatureError
from rada.core.randomness import seeded
from rada.core.values import check_scale
from rada.features.checks import check_rows
from rada.head import RAdaHead
from rada.head.mixed import mixed_values
from rada.test_time.config import TTTConfig
from rada.test_time.pair_head import PairHead, halves
from rada.test_time.selection import (
    entropy,
    gather_views,
    keep_confident,
    mean_log_probability,
    view_entropies,
)

__all__ = ["Adaptation", "Chosen", "Rows", "Start", "make_start", "untrained_head"]


class Chosen(NamedTuple):
    """The views of n images that adaptation uses.

    Attributes:
        views: The kept views and behind them the original one, `(n, m + 1, D)`.
        kept: Their numbers, lowest entropy first, `(n, m)`.
        entropies: Entropy of every view's prediction in nats, `(n, V)`.
        logits: What the start predicts: the original view, or the mean of the kept ones if it is adapted to.
        mean_entropy: Entropy of the mean prediction of the kept views, `(n,)`.
        active: Whether the image is adapted to, `(n,)`.
    """

    views: Tensor
    kept: Tensor
    entropies: Tensor
    logits: Tensor
    mean_entropy: Tensor
    active: Tensor


class Rows(NamedTuple):
    """What the masks of m views of n images are made of, whatever the layer `out` is.

    Attributes:
        tokens: The rational matrices times the scale, `(n, m, K, D)`.
        mixed: What the layer `out` reads, `(n, m, K, D)`.
        base: Logits where the mask is one, `(n, m, K)`.
    """

    tokens: Tensor
    mixed: Tensor
    base: Tensor


@dataclass(frozen=True)
class Adaptation:
    """What adaptation did to N images.

    Attributes:
        logits: Adapted prediction, `(N, K)`.
        before: The same before adaptation, `(N, K)`.
        kept: Numbers of the kept views, lowest entropy first, `(N, m)`.
        entropies: Entropy of each view's prediction before adaptation, in nats, `(N, V)`.
        mean_entropy: Entropy of the kept views' mean prediction before adaptation, `(N,)`.
        max_deviation: Largest `|M - 1|` of the adapted mask, `(N,)`; 0 where nothing was adapted.
        adapted: Whether the image was adapted to, `(N,)`.
    """

    logits: Tensor
    before: Tensor
    kept: Tensor
    entropies: Tensor
    mean_entropy: Tensor
    max_deviation: Tensor
    adapted: Tensor


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
    def logits(self, views: Tensor) -> Tensor:
        """Return the start's logits of views, `(n, V, D)` to `(n, V, K)`."""
        if self.untrained:
            return self.scale * views @ self.text.T
        flat: Tensor = self.head(views.flatten(0, 1), self.text, self.scale, self.strength).logits
        logits: Tensor = flat.unflatten(0, views.shape[:2])
        return logits

    @torch.no_grad()
    def rows(self, views: Tensor) -> Rows:
        """Return what the masks of views `(n, m, D)` are made of."""
        images, text = views.flatten(0, 1), self.text
        base = self.scale * images @ text.T
        if isinstance(self.head, PairHead):
            (images, plain), (text, names) = halves(images), halves(text)
            zero_shot = self.scale * plain @ names.T
            base = zero_shot + self.strength * (self.scale * images @ text.T - zero_shot)
        found = Rows(*mixed_values(self.head, images, text, self.scale), base)
        return Rows(*(part.unflatten(0, views.shape[:2]) for part in found))

    def masked(self, rows: Rows, change: Tensor) -> tuple[Tensor, Tensor]:
        """Return logits `(n, m, K)` and largest deviations `(n, m)` of the masks `relu(1 + change)`."""
        deviation = change.clamp(min=-1)
        logits = rows.base + self.strength * (deviation * rows.tokens).sum(-1)
        return logits, self.strength * deviation.abs().amax((2, 3))

    def choose(self, views: Tensor) -> Chosen:
        """Keep the confident views of images `(n, V, D)`."""
        logits = self.logits(views)
        if self.untrained:
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
        named = logits.argmax(-1) == mean.argmax(-1, keepdim=True)
        # In whole views, since 0.7 * 10 is 7.000000000000001 in some orders of arithmetic.
        active = named.sum(-1) + 1e-9 >= self.config.agreement * logits.shape[1]
        if self.config.max_entropy < 1:
            active &= uncertain <= self.config.max_entropy * math.log(logits.shape[-1])
        answer = logits[:, 0]
        if self.config.predict_with == "kept":
            answer = torch.where(active[:, None], mean, answer)
        views = torch.cat([gather_views(views, kept), views[:, :1]], 1)
        return Chosen(views, kept, entropies, answer, uncertain, active)

    def loss(self, logits: Tensor, deviation: Tensor) -> Tensor:
        """Return the loss of each image from its kept views' logits and largest deviations."""
        loss = entropy(mean_log_probability(logits))
        if self.config.alpha > 0:
            loss = loss + self.config.alpha * deviation.mean(-1)
        return loss

    def answer(self, logits: Tensor) -> Tensor:
        """Return the prediction from the logits of the kept views and, last, the original one."""
        if self.config.predict_with == "kept":
            return mean_log_probability(logits[:, :-1])
        return logits[:, -1]


@functools.lru_cache(maxsize=4)
def untrained_head(
    dim: int, num_heads: int, temperature: float, seed: int, dtype: torch.dtype
) -> RAdaHead:
    """Return the untrained head of a seed; it is shared, so copy it before changing it."""
    with seeded(seed):
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
