"""The online mode: the head goes on from image to image, with safeguards against drift.

Four of them, in the order of what they cost:

- *decay*: after every image the head goes back a part of its way from the start, so that no weight
  can leave a ball around it, whatever the images;
- *collapse*: when the adapted predictions say much less about the class than the unadapted ones on the
  same images, in mutual information (entropy of the mean prediction minus mean entropy of the
  predictions), the head names one class for everything, or none; when they agree with the unadapted
  ones too little, it has swapped classes: it starts anew;
- *restart*: it starts anew every `online_restart` images in any case ("RDumb", NeurIPS 2023, found
  this to beat all adaptation without it on long streams);
- numbers that are not finite: it starts anew.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rada.head import RAdaHead
from rada.test_time.base import check_views
from rada.test_time.config import TTTConfig
from rada.test_time.out_layers import OutLayers
from rada.test_time.selection import entropy
from rada.test_time.start import Adaptation, make_start

__all__ = ["OnlineAdapter"]

_NEWEST = 0.02
"""Weight of the newest image in the running means: they tell of the last 50 or so."""


class OnlineAdapter:
    """Adapts to a stream of images, on their views' features.

    Args:
        text_features: Unit-norm class features `(K, D)`.
        scale: The exponentiated logit scale.
        head: The head to start from; None for the untrained one.
        config: How to adapt; `episodic` is not looked at.
        streams: Streams that run side by side, each with its own head, such as several cameras.

    Attributes:
        seen: Images of each stream so far.
        restores: How often a head was put back to the start, by reason.

    Raises:
        FeatureError: If the class features cannot be used.

    Example:
        >>> from torch.nn.functional import normalize
        >>> views = normalize(torch.randn(5, 20, 16), dim=-1)
        >>> online = OnlineAdapter(torch.eye(16)[:3], 20.0, config=TTTConfig(selection=0.2))
        >>> online.predict(views).shape, online.seen
        (torch.Size([5, 3]), 5)
    """

    def __init__(
        self,
        text_features: Any,
        scale: float,
        head: RAdaHead | None = None,
        config: TTTConfig | None = None,
        *,
        streams: int = 1,
    ) -> None:
        config = config or TTTConfig()
        dtype = text_features.dtype if torch.is_tensor(text_features) else torch.float32
        dtype = torch.promote_types(dtype, torch.float32)
        self.start = make_start(text_features, scale, head, config, dtype)
        self.streams = streams
        self.reset()

    def reset(self) -> None:
        """Forget the stream: begin again with the head of the start."""
        self.seen = 0
        self.restores = {"collapse": 0, "restart": 0, "not finite": 0}
        self._begin()

    def _begin(self) -> None:
        self.heads = OutLayers(self.start, self.streams)
        classes = len(self.start.text)
        # Running means of the probabilities and, in the last column, of their entropy; and of the
        # part of the probability that both heads give to the same class.
        self._agreement = self.start.text.new_ones(self.streams)
        means = self.start.text.new_full((self.streams, classes + 1), 1 / classes)
        means[:, -1] = 0
        self._own, self._unadapted = means, means

    def predict(self, view_features: Any) -> Tensor:
        """Adapt to the images of one stream, in order.

        Args:
            view_features: `(N, V, D)`, view 0 the original.

        Returns:
            Logits `(N, K)`, each by the head as it was after its image.

        Raises:
            FeatureError: If the views cannot be used.
        """
        views = check_views(view_features, self.start.text.shape[1]).to(self.start.text.dtype)
        return torch.cat([self.step(image[None]) for image in views])

    def step(self, views: Tensor) -> Tensor:
        """Adapt to the next image of every stream, `(streams, V, D)`, and return `(streams, K)`."""
        return self.step_in_detail(views).logits

    def step_in_detail(self, views: Tensor) -> Adaptation:
        """Do what `step` does and tell all about it."""
        config = self.start.config
        if config.online_restart and self.seen and self.seen % config.online_restart == 0:
            self.restores["restart"] += self.streams
            self._begin()
        self.seen += 1
        # By the start, as is the agreement of the views: a head that drifts has no part in either.
        chosen = self.start.choose(views)
        rows = self.start.rows(chosen.views)
        for _ in range(config.steps):
            self.heads.step(rows, chosen.active)
        self.heads.pull(config.online_decay)
        logits, deviation = self.heads.predict(rows)
        answer = self.start.answer(logits)
        adapted = chosen.active & ~self._guard(answer, chosen.logits)
        return Adaptation(
            torch.where(adapted[:, None], answer, chosen.logits),
            chosen.logits,
            chosen.kept,
            chosen.entropies,
            chosen.mean_entropy,
            torch.where(adapted, deviation.amax(-1), 0),
            adapted,
        )

    def _guard(self, answer: Tensor, unadapted: Tensor) -> Tensor:
        """Update the running means, restore heads that are lost, and return which."""
        broken = ~(answer.isfinite().all(-1) & self.heads.finite())
        self._unadapted = torch.lerp(self._unadapted, _described(unadapted), _NEWEST)
        valid = torch.where(broken[:, None], unadapted, answer)
        self._own = torch.lerp(self._own, _described(valid), _NEWEST)
        shared = torch.minimum(valid.softmax(-1), unadapted.softmax(-1)).sum(-1)
        self._agreement = torch.lerp(self._agreement, shared, _NEWEST)
        least = self.start.config.online_collapse
        uninformed = _information(self._own) < least * _information(self._unadapted)
        collapsed = (uninformed | (self._agreement < least)) & ~broken
        self._restore(broken, "not finite")
        self._restore(collapsed, "collapse")
        return broken | collapsed

    def _restore(self, rows: Tensor, reason: str) -> None:
        count = int(rows.sum())
        if count:
            self.restores[reason] += count
            self.heads.restore(rows)
            self._own = torch.where(rows[:, None], self._unadapted, self._own)
            self._agreement[rows] = 1


def _described(logits: Tensor) -> Tensor:
    """Return probabilities and their entropy, `(n, K)` to `(n, K + 1)`."""
    log_probabilities = logits.log_softmax(-1)
    return torch.cat([log_probabilities.exp(), entropy(log_probabilities)[:, None]], -1)


def _information(means: Tensor) -> Tensor:
    """Return how much predictions with these means say about the class, in nats, `(n,)`."""
    return entropy(means[:, :-1].log()) - means[:, -1]
