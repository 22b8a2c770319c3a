"""Tip-Adapter: a cache of the shots, asked by similarity, beside the zero-shot logits."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run, Shapes
from rada.methods.registry import register_method

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["CacheModel", "TipAdapter", "TipConfig", "choose_mixture"]

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
            picture that all methods see.
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
        self.register_buffer("mixture", torch.tensor([1.0, 5.5]))

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the mixed logits."""
        alpha, beta = self.mixture
        affinity = (beta * (images @ self.keys.T - 1)).exp()
        known = self.facts.classes
        rows = torch.full((len(known),), len(classes))
        for column, row in enumerate(classes.rows_among(known)):
            if row is not None:
                rows[row] = column
        votes = affinity @ one_hot(rows[self.owners], len(classes) + 1)[:, :-1].to(images.dtype)
        return self.zero_shot_logits(images, classes) + alpha * votes


def choose_mixture(data: Features, keys: Tensor, config: TipConfig) -> tuple[float, float]:
    """Choose alpha and beta on the shots: each shot is asked of the cache without itself.

    Of equally many right answers, the lower cross-entropy decides. With one shot of some class there
    is nothing left of that class in the cache; alpha = 1 and beta = 5.5, the paper's, are taken.

    Returns:
        alpha and beta.
    """
    counts = torch.bincount(data.labels, minlength=len(data.classes))
    alphas = ALPHAS if config.alpha is None else (config.alpha,)
    betas = BETAS if config.beta is None else (config.beta,)
    if int(counts[counts > 0].min()) < 2:
        return config.alpha or 1.0, config.beta or 5.5
    images = data.plain()
    base = float(data.scale or 1.0) * images @ data.class_set().text_features.T
    cosine = images @ keys.T
    values = one_hot(data.labels, len(data.classes)).to(images.dtype)
    best = (-1, float("-inf"), -1.0, -5.5)
    for beta in betas:
        votes = (beta * (cosine - 1)).exp().fill_diagonal_(0) @ values
        for alpha in alphas:
            logits = base + alpha * votes
            right = int((logits.argmax(1) == data.labels).sum())
            likelihood = float(logits.log_softmax(-1)[range(len(images)), data.labels].mean())
            best = max(best, (right, likelihood, -alpha, -beta))  # of equals the gentler
    return -best[2], -best[3]


@dataclass(frozen=True)
class TipAdapter(Method):
    """Training-free: starts, and ends, as the cache of the shots."""

    config: ClassVar[type[Config]] = TipConfig

    def build(
        self, facts: Facts, config: TipConfig, shapes: Shapes, encoder: DualEncoder | None
    ) -> AdaptedModel:
        """Return a cache of as many rows as the file has, or of none."""
        rows = shapes["keys"][0] if "keys" in shapes else 0
        return CacheModel(self, facts, config, rows, learn=self.name == "tip_adapter_f")

    def start(self, data: Features, config: TipConfig, run: Run) -> AdaptedModel:
        """Return the cache with the alpha and beta chosen on the shots."""
        features = data.image_features
        if features.shape[1] > 1:
            features = features[:, 1:]  # the random views; view 0 is what is asked about
        keys = normalize(features.mean(1), dim=-1)
        model = self.build(Facts.of(data), config, {"keys": tuple(keys.shape)}, None)
        assert isinstance(model, CacheModel)
        alpha, beta = choose_mixture(data, keys, config)
        with torch.no_grad():
            model.keys.copy_(keys)
            model.owners.copy_(data.labels)
            model.mixture.copy_(torch.tensor([alpha, beta]))
        model.record |= {"alpha": alpha, "beta": beta}
        return model

    def views(self, config: TipConfig) -> int:
        """Return the plain view and the random ones, if there are to be any."""
        return config.views if config.views == 1 else config.views + 1


_SOURCE = "Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022"
register_method(
    TipAdapter("tip_adapter", "Tip-Adapter", _SOURCE, trains="nothing; keeps a cache of the shots")
)
