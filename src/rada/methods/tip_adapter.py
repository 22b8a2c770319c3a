"""Tip-Adapter: a cache of the shots, asked by similarity, beside the zero-shot logits."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize, one_hot

from rada.core.config import Config
from rada.methods.base import ClassSet, Method, Predictor, Task
from rada.methods.registry import register_method

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = [
    "CachePredictor",
    "Held",
    "TipAdapter",
    "TipSettings",
    "choose_mixture",
    "fewest_shots",
]

PAPER_MIXTURE = (1.0, 5.5)
"""The paper's alpha and beta."""

# Wider than the paper's grid: encoders other than CLIP crowd their features more.
ALPHAS = (0.1, 0.25, 0.5, 1.0, 1.5, 2.0, 3.0, 5.0, 8.0, 12.0, 20.0, 40.0)
BETAS = (1.0, 2.0, 3.5, 5.5, 8.0, 12.0, 20.0, 40.0, 80.0)


@dataclass(frozen=True)
class TipSettings(Config):
    """Settings of Tip-Adapter.

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


class CachePredictor(Predictor):
    """Zero-shot logits plus `alpha * exp(-beta (1 - f keys)) @ values`.

    A class that the cache does not hold keeps its zero-shot logit.
    """

    keys: Tensor
    owners: Tensor

    def __init__(
        self, method: str, names: list[str], keys: Tensor, owners: Tensor, scale: float, learn: bool
    ) -> None:
        facts = {"names": names, "shape": list(keys.shape), "scale": scale}
        super().__init__(method, facts)
        self.names, self.scale = names, scale
        if learn:
            self.keys = nn.Parameter(keys.clone())
        else:
            self.register_buffer("keys", keys.clone())
        self.register_buffer("owners", owners.clone())
        self.register_buffer("mixture", torch.tensor(PAPER_MIXTURE))

    mixture: Tensor

    def mix(self, alpha: float, beta: float) -> None:
        """Set alpha and beta."""
        self.mixture.copy_(torch.tensor([alpha, beta]))

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the mixed logits."""
        return self._logits(images, classes, None)

    def step_loss(self, rows: Tensor, images: Tensor, labels: Tensor, classes: ClassSet) -> Tensor:
        """Return the cross-entropy of shots, each without its own key.

        Its own key answers right whatever the others say: with it the loss is zero before anything
        is learned.
        """
        others = rows[:, None] != torch.arange(len(self.keys))
        return cross_entropy(self._logits(images, classes, others), labels)

    def _logits(self, images: Tensor, classes: ClassSet, asked: Tensor | None) -> Tensor:
        """Return logits; `asked` `(B, N)` says which keys count, all where it is None."""
        alpha, beta = self.mixture
        affinity = (beta * (images @ self.keys.T - 1)).exp()
        if asked is not None:
            affinity = affinity * asked
        rows = torch.full((len(self.names),), len(classes))
        for column, row in enumerate(classes.rows_among(self.names)):
            if row is not None:
                rows[row] = column
        votes = affinity @ one_hot(rows[self.owners], len(classes) + 1)[:, :-1].to(images.dtype)
        logits: Tensor = self.scale * images @ classes.text_features.T + alpha * votes
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


def choose_mixture(parts: Sequence[Held], config: TipSettings) -> tuple[float, float]:
    """Return the alpha and beta with the most right answers over all parts.

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


def fewest_shots(task: Task) -> int:
    """Return how many examples the class with the fewest has, of those that have any."""
    counts = torch.bincount(task.labels, minlength=len(task.classes))
    return int(counts[counts > 0].min())


@dataclass(frozen=True)
class TipAdapter(Method):
    """Training-free: the cache of the shots, with alpha and beta chosen on them."""

    settings: ClassVar[type[Config]] = TipSettings

    def start(self, task: Task, config: TipSettings) -> CachePredictor:
        """Return the cache with the paper's alpha and beta."""
        features = task.examples.image_features
        if features.shape[1] > 1:
            features = features[:, 1:]  # the random views; view 0 is what is asked about
        keys = normalize(features.mean(1), dim=-1)
        names = list(task.classes.names)
        learn = self.name == "tip_adapter_f"
        return CachePredictor(self.name, names, keys, task.labels, task.scale, learn)

    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return a predictor of the right shapes."""
        rows, dim = map(int, facts["shape"])
        keys, owners = torch.zeros(rows, dim), torch.zeros(rows, dtype=torch.long)
        names = list(map(str, facts["names"]))
        learn = self.name == "tip_adapter_f"
        return CachePredictor(self.name, names, keys, owners, float(facts["scale"]), learn)

    def views(self, config: TipSettings) -> int:
        """Return the plain view and the random ones, if there are to be any."""
        return config.views if config.views == 1 else config.views + 1

    def train(
        self,
        predictor: Predictor,
        task: Task,
        config: Any,
        *,
        state_path: Path | None,
        progress: bool | None,
    ) -> Predictor:
        """Choose alpha and beta: each shot is asked of the cache without itself.

        With one shot of some class nothing would be left of that class; the paper's values stay then.
        """
        assert isinstance(predictor, CachePredictor)
        paper_alpha, paper_beta = PAPER_MIXTURE
        alpha, beta = config.alpha or paper_alpha, config.beta or paper_beta
        if fewest_shots(task) >= 2:
            images = task.examples.plain()
            base = task.scale * images @ task.classes.text_features.T
            cosine = (images @ predictor.keys.T).fill_diagonal_(-torch.inf)
            values = one_hot(task.labels, len(task.classes)).to(images.dtype)
            alpha, beta = choose_mixture([Held(base, cosine, values, task.labels)], config)
        predictor.mix(alpha, beta)
        predictor.record |= {"alpha": alpha, "beta": beta}
        return predictor


_SOURCE = "Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022"
register_method(TipAdapter("tip_adapter", "Tip-Adapter", _SOURCE))
