"""Tip-Adapter: a cache of the shots, asked by similarity, beside the zero-shot logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run, Shapes
from rada.methods.registry import register_method
from rada.methods.terms import Terms
from rada.training.feature_loop import Losses, Step, class_logits_loss

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["CacheModel", "TipAdapter", "TipConfig", "choose_mixture"]

PAPER_MIXTURE = (1.0, 5.5)
"""The paper's alpha and beta."""

# Wider than the paper's grid: encoders other than CLIP crowd their features more.
ALPHAS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0)
BETAS = (1.0, 2.0, 3.5, 5.5, 8.0, 12.0, 20.0, 40.0, 80.0)


@dataclass(frozen=True)
class TipConfig(Config):
    """Configuration of Tip-Adapter.

    Attributes:
        alpha: Weight of the cache; None chooses it on the shots.
        beta: Sharpness of the similarity; None chooses it on the shots.
        views: Random views of each shot whose mean is its key; the paper takes 10, 1 is the plain
            image that all methods see.
    """

    alpha: float | None = None
    beta: float | None = None
    views: int = 1

    def validate(self) -> None:
        """Check that every field is in its range."""
        self.require(self.views >= 1, "views", "a positive integer")
        for name in ("alpha", "beta"):
            value = getattr(self, name)
            self.require(value is None or value > 0, name, "None or above 0")


class CacheModel(AdaptedModel):
    """Zero-shot logits plus `alpha * exp(-beta (1 - f keys)) @ values`.

    A class that the cache does not hold keeps its zero-shot logit.
    """

    keys: Tensor
    owners: Tensor
    mixture: Tensor

    def __init__(
        self, method: Method, facts: Facts, config: TipConfig, rows: int, learn: bool
    ) -> None:
        super().__init__(method, facts, config)
        keys = torch.zeros(rows, facts.dim)
        if learn:
            self.keys = nn.Parameter(keys)
        else:
            self.register_buffer("keys", keys)
        self.register_buffer("owners", torch.zeros(rows, dtype=torch.long))
        self.register_buffer("mixture", torch.tensor(PAPER_MIXTURE))

    def mix(self, alpha: float, beta: float) -> None:
        """Set alpha and beta."""
        with torch.no_grad():
            self.mixture.copy_(torch.tensor([alpha, beta]))

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the mixed logits."""
        return self._logits(images, classes)

    def score_from(self, images: Tensor, classes: ClassSet, zero_shot: Tensor) -> Tensor:
        """Return the mixed logits, given those of zero-shot."""
        return self._logits(images, classes, zero_shot=zero_shot)

    def terms(self, images: Tensor, classes: ClassSet) -> Terms:
        """Return the terms of the zero-shot logits; what the shots add is no sum over dimensions."""
        zero_shot = self.zero_shot_logits(images, classes)
        votes = self.score_from(images, classes, zero_shot) - zero_shot
        weights = self.facts.scale * classes.text_features
        return Terms.of(images, weights, {"similar training images": votes})

    def step_loss(self, step: Step) -> Losses:
        """Return the cross-entropy of shots, each without its own key.

        Its own key answers right whatever the others say: with it the loss is zero before anything
        is learned.
        """
        others = step.rows[:, None] != torch.arange(len(self.keys))
        return class_logits_loss(self._logits(step.images, step.classes, others), step.labels)

    def _logits(
        self,
        images: Tensor,
        classes: ClassSet,
        asked: Tensor | None = None,
        zero_shot: Tensor | None = None,
    ) -> Tensor:
        """Return logits; `asked` `(B, N)` says which keys count, all where it is None."""
        alpha, beta = self.mixture
        affinity = (beta * (images @ self.keys.T - 1)).exp()
        if asked is not None:
            affinity = affinity * asked
        known = self.facts.classes
        rows = torch.full((len(known),), len(classes))
        for column, row in enumerate(classes.rows_among(known)):
            if row is not None:
                rows[row] = column
        votes = affinity @ one_hot(rows[self.owners], len(classes) + 1)[:, :-1].to(images.dtype)
        if zero_shot is None:
            zero_shot = self.zero_shot_logits(images, classes)
        logits: Tensor = zero_shot + alpha * votes
        return logits


class Held(NamedTuple):
    """Shots asked of a cache that does not hold them.

    Attributes:
        base: Their zero-shot logits `(Q, K)`.
        cosine: Their products with the keys, `(Q, N)`; minus infinity where a key does not count.
        values: The classes of the keys, one-hot `(N, K)`.
        labels: `(Q,)`.
    """

    base: Tensor
    cosine: Tensor
    values: Tensor
    labels: Tensor


def held(model: CacheModel, learned: Features, asked: Features) -> Held:
    """Return some shots asked of the cache of others."""
    images = asked.plain()
    return Held(
        model.zero_shot_logits(images, asked.class_set()),
        images @ model.keys.detach().T,
        one_hot(learned.labels, len(learned.classes)).to(images.dtype),
        asked.labels,
    )


def choose_mixture(parts: Sequence[Held], config: TipConfig) -> tuple[float, float]:
    """Return the alpha and beta with the most right predictions over all parts.

    Of equally many, the lower cross-entropy decides, then the gentler mixture.
    """
    alphas = ALPHAS if config.alpha is None else (config.alpha,)
    betas = BETAS if config.beta is None else (config.beta,)
    best = (-1, float("-inf"), 0.0, 0.0)
    for beta in betas:
        votes = [(beta * (part.cosine - 1)).exp() @ part.values for part in parts]
        for alpha in alphas:
            right, likelihood = 0, 0.0
            for part, vote in zip(parts, votes, strict=True):
                logits = part.base + alpha * vote
                right += int((logits.argmax(1) == part.labels).sum())
                likelihood -= float(cross_entropy(logits, part.labels, reduction="sum"))
            best = max(best, (right, likelihood, -alpha, -beta))
    return -best[2], -best[3]


def fewest_shots(data: Features) -> int:
    """Return how many images the class with the fewest has, of those that have any."""
    counts = torch.bincount(data.labels, minlength=len(data.classes))
    return int(counts[counts > 0].min())


@dataclass(frozen=True)
class TipAdapter(Method):
    """Training-free: the cache of the shots, with alpha and beta chosen on them."""

    config: ClassVar[type[Config]] = TipConfig

    def build(
        self, facts: Facts, config: TipConfig, shapes: Shapes, encoder: DualEncoder | None
    ) -> AdaptedModel:
        """Return a cache of as many rows as the file has, or of none."""
        rows = shapes["keys"][0] if "keys" in shapes else 0
        return CacheModel(self, facts, config, rows, learn=self.name == "tip_adapter_f")

    def start(self, data: Features, config: TipConfig, run: Run) -> AdaptedModel:
        """Return the cache with the paper's alpha and beta."""
        features = data.image_features
        if features.shape[1] > 1:
            features = features[:, 1:]  # the random views; view 0 is what is asked about
        keys = normalize(features.mean(1), dim=-1)
        model = self.build(Facts.of(data), config, {"keys": tuple(keys.shape)}, None)
        assert isinstance(model, CacheModel)
        with torch.no_grad():
            model.keys.copy_(keys)
            model.owners.copy_(data.labels)
        return model

    def train(self, model: AdaptedModel, data: Features, config: Any, run: Run) -> AdaptedModel:
        """Choose alpha and beta: each shot is asked of the cache without itself.

        With one shot of some class nothing would be left of that class; the paper's values stay then.
        """
        assert isinstance(model, CacheModel)
        paper_alpha, paper_beta = PAPER_MIXTURE
        alpha, beta = config.alpha or paper_alpha, config.beta or paper_beta
        if fewest_shots(data) >= 2:
            part = held(model, data, data)
            part.cosine.fill_diagonal_(-torch.inf)
            alpha, beta = choose_mixture([part], config)
        model.mix(alpha, beta)
        model.record |= {"alpha": alpha, "beta": beta}
        return model

    def views(self, config: TipConfig) -> int:
        """Return the plain view and the random ones, if there are to be any."""
        return config.views if config.views == 1 else config.views + 1


_SOURCE = "Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022"
register_method(
    TipAdapter("tip_adapter", "Tip-Adapter", _SOURCE, trains="nothing; keeps a cache of the shots")
)
