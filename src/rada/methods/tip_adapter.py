"""Tip-Adapter: a cache of the shots, asked by similarity, beside the zero-shot logits."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize, one_hot

from rada.core.config import Config
from rada.methods.base import ClassSet, Method, Predictor, Task
from rada.methods.registry import register_method

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["CachePredictor", "TipAdapter", "TipSettings", "choose_mixture"]

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
        self.register_buffer("mixture", torch.tensor([1.0, 5.5]))

    mixture: Tensor

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the mixed logits."""
        alpha, beta = self.mixture
        affinity = (beta * (images @ self.keys.T - 1)).exp()
        rows = torch.full((len(self.names),), len(classes))
        for column, row in enumerate(classes.rows_among(self.names)):
            if row is not None:
                rows[row] = column
        votes = affinity @ one_hot(rows[self.owners], len(classes) + 1)[:, :-1].to(images.dtype)
        logits: Tensor = self.scale * images @ classes.text_features.T + alpha * votes
        return logits


def choose_mixture(task: Task, keys: Tensor, config: TipSettings) -> tuple[float, float]:
    """Choose alpha and beta on the shots: each shot is asked of the cache without itself.

    Of equally many right answers, the lower cross-entropy decides. With one shot of some class there
    is nothing left of that class in the cache; alpha = 1 and beta = 5.5, the paper's, are taken.

    Returns:
        alpha and beta.
    """
    counts = torch.bincount(task.labels, minlength=len(task.classes))
    alphas = ALPHAS if config.alpha is None else (config.alpha,)
    betas = BETAS if config.beta is None else (config.beta,)
    if int(counts[counts > 0].min()) < 2:
        return config.alpha or 1.0, config.beta or 5.5
    images = task.examples.plain()
    base = task.scale * images @ task.classes.text_features.T
    cosine = images @ keys.T
    values = one_hot(task.labels, len(task.classes)).to(images.dtype)
    best = (-1, float("-inf"), -1.0, -5.5)
    for beta in betas:
        votes = (beta * (cosine - 1)).exp().fill_diagonal_(0) @ values
        for alpha in alphas:
            logits = base + alpha * votes
            right = int((logits.argmax(1) == task.labels).sum())
            likelihood = float(logits.log_softmax(-1)[range(len(images)), task.labels].mean())
            best = max(best, (right, likelihood, -alpha, -beta))  # of equals the gentler
    return -best[2], -best[3]


@dataclass(frozen=True)
class TipAdapter(Method):
    """Training-free: starts, and ends, as the cache of the shots."""

    settings: ClassVar[type[Config]] = TipSettings

    def start(self, task: Task, config: TipSettings) -> Predictor:
        """Return the cache with the alpha and beta chosen on the shots."""
        features = task.examples.image_features
        if features.shape[1] > 1:
            features = features[:, 1:]  # the random views; view 0 is what is asked about
        keys = normalize(features.mean(1), dim=-1)
        names = list(task.classes.names)
        learn = self.name == "tip_adapter_f"
        predictor = CachePredictor(self.name, names, keys, task.labels, task.scale, learn)
        alpha, beta = choose_mixture(task, keys, config)
        predictor.mixture.copy_(torch.tensor([alpha, beta]))
        predictor.record |= {"alpha": alpha, "beta": beta}
        return predictor

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
        """Leave the cache as it is."""
        return predictor


_SOURCE = "Zhang et al., Tip-Adapter: Training-free Adaption of CLIP for Few-shot Classification, ECCV 2022"
register_method(TipAdapter("tip_adapter", "Tip-Adapter", _SOURCE))
