"""GDA: Gaussian discriminant analysis of the shots beside the zero-shot logits, in closed form.

All classes share one covariance, so that the logits are linear in the image. A class without shots takes
the images of others that are nearest to its class features.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run, Shapes
from rada.methods.class_layer import class_means
from rada.methods.registry import register_method
from rada.training.folds import Held, best_weight, shot_folds

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["Gda", "GdaConfig", "shrunk_precision"]

ALPHAS = tuple(10.0**power for power in range(-4, 5))
"""The weights of the discriminant that the paper compares."""

PAPER_ALPHA = 0.1
"""Where its search begins: the weight where nothing can be held out."""

_TEXT_COPIES = (
    16  # of the class features among the neighbours of a new class, as in the public code
)


@dataclass(frozen=True)
class GdaConfig(Config):
    """Configuration of GDA.

    Attributes:
        alpha: Weight of the discriminant; None chooses it on the shots.
        neighbours: Images that stand for a class without shots, those nearest to its class features.
        views: Views of each image, each of which counts as an image; the first is the plain one. The
            paper takes 10 random ones, 1 is the plain image that all methods see.
    """

    alpha: float | None = None
    neighbours: int = 64
    views: int = 1

    def validate(self) -> None:
        """Check that every field is in its range."""
        self.require(self.alpha is None or self.alpha > 0, "alpha", "None or above 0")
        self.require(self.neighbours >= 2, "neighbours", "at least 2")
        self.require(self.views >= 1, "views", "a positive integer")


@dataclass(frozen=True, eq=False, kw_only=True)
class Discriminant(ClassSet):
    """Classes with the whole linear layer in the place of `text_features`.

    Attributes:
        biases: Its biases `(K,)`.
    """

    biases: Tensor


def shrunk_precision(residuals: Tensor) -> Tensor:
    """Return `D * inverse((N - 1) S + trace(S) I)`, zero where all residuals are zero.

    S is their covariance around zero. The inverse goes over N x N or D x D, whichever is smaller.

    Args:
        residuals: `(N, D)`: images minus the mean of their class.

    Example:
        >>> shrunk_precision(torch.tensor([[1.0, 0.0], [-1.0, 0.0]], dtype=torch.float64))
        tensor([[0.5000, 0.0000],
                [0.0000, 1.0000]], dtype=torch.float64)
    """
    count, dim = residuals.shape
    trace = residuals.square().sum() / max(1, count - 1)
    eye = torch.eye(dim, dtype=residuals.dtype, device=residuals.device)
    if trace == 0:
        return torch.zeros_like(eye)
    if count >= dim:
        inverse: Tensor = torch.linalg.inv(residuals.T @ residuals + trace * eye)
    else:  # N x N, by the identity of Woodbury
        small = residuals @ residuals.T
        small.diagonal().add_(trace)
        inverse = (eye - residuals.T @ torch.linalg.solve(small, residuals)) / trace
    return dim * inverse


class GdaModel(AdaptedModel):
    """Zero-shot logits plus `alpha * (f @ w_k + b_k)`.

    Attributes:
        images: All shots, `(N, D)`.
        owners: Their classes, `(N,)`.
        precision: That of the shots around the mean of their class, `(D, D)`.
        alpha: Weight of the discriminant, `()`.
    """

    images: Tensor
    owners: Tensor
    precision: Tensor
    alpha: Tensor

    def __init__(self, method: Method, facts: Facts, config: GdaConfig, rows: int) -> None:
        super().__init__(method, facts, config)
        self.neighbours = config.neighbours
        self.register_buffer("images", torch.zeros(rows, facts.dim))
        self.register_buffer("owners", torch.zeros(rows, dtype=torch.long))
        self.register_buffer("precision", torch.zeros(facts.dim, facts.dim))
        self.register_buffer("alpha", torch.tensor(0.0))
        self._prepared: tuple[ClassSet, float, ClassSet] | None = None

    def keep(self, images: Tensor, labels: Tensor) -> None:
        """Take over the shots `(N, D)` and their labels."""
        means, _ = class_means(images.double(), labels, len(self.facts.classes))
        self.images.copy_(images)
        self.owners.copy_(labels)
        self.precision.copy_(shrunk_precision(images.double() - means[labels]))

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Return the classes with the layer that zero-shot and discriminants make together.

        That of the last classes is kept: of many new ones it takes seconds.
        """
        alpha = float(self.alpha)
        if self._prepared is not None:
            last, weight, found = self._prepared
            same = last.names == classes.names and weight == alpha
            same &= last.text_features.device == classes.text_features.device
            same &= found.text_features.device == self.images.device
            if same and torch.equal(last.text_features, classes.text_features):
                return found
        found = self._layer(classes, alpha)
        self._prepared = (classes, alpha, found)
        return found

    def _layer(self, classes: ClassSet, alpha: float) -> ClassSet:
        weights, biases = self.discriminants(classes)
        layer = self.facts.scale * classes.text_features.to(weights) + alpha * weights
        layer, biases = layer.to(self.images), (alpha * biases).to(self.images)
        return Discriminant(classes.names, layer, classes.templates, biases=biases)

    def discriminants(self, classes: ClassSet) -> tuple[Tensor, Tensor]:
        """Return the weights `(K, D)` and biases `(K,)` of the discriminants, in float64.

        A class without shots has the mean of its neighbours and of its class features, and the precision of
        these neighbours around its class features. The precision that all share is the mean over the
        classes: that of the shots where all have some, that of the neighbours where none has.
        """
        owned = self.images.double()
        means, counts = class_means(owned, self.owners, len(self.facts.classes))
        text = classes.text_features.to(owned)
        rows = classes.rows_among(self.facts.classes)
        learned = [row for row in rows if row is not None and counts[row] > 0]
        chosen, precision = torch.zeros_like(text), len(learned) * self.precision.double()
        for place, row in enumerate(rows):
            if row is not None and counts[row] > 0:
                chosen[place] = means[row]
            else:
                chosen[place], own = self._new(text[place])
                precision += own
        weights = chosen @ (precision / len(classes))
        return weights, -(weights * chosen).sum(-1) / 2

    def _new(self, text: Tensor) -> tuple[Tensor, Tensor]:
        """Return mean `(D,)` and precision `(D, D)` of a class that has its class features alone."""
        owned = self.images.to(text)
        near = owned[(owned @ text).topk(min(self.neighbours, len(owned))).indices]
        mean = torch.cat([near, text.expand(_TEXT_COPIES, -1)]).mean(0)
        return mean, shrunk_precision(near - text)

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the outputs of the layer of `prepare`."""
        assert isinstance(classes, Discriminant)
        return images @ classes.text_features.T + classes.biases


@dataclass(frozen=True)
class Gda(Method):
    """Nothing is trained; the weight of the discriminant is chosen on shots that are held out in turn."""

    config: ClassVar[type[Config]] = GdaConfig

    def build(
        self, facts: Facts, config: GdaConfig, shapes: Shapes, encoder: DualEncoder | None
    ) -> GdaModel:
        """Return a model of as many shots as the file has, or of none."""
        return GdaModel(self, facts, config, shapes["images"][0] if "images" in shapes else 0)

    def start(self, data: Features, config: GdaConfig, run: Run) -> GdaModel:
        """Return the discriminants of the shots, with the weight that the paper's search begins at."""
        rows = len(data) * data.num_views
        model = self.build(Facts.of(data), config, {"images": (rows, data.dim)}, None)
        labels = data.labels.repeat_interleave(data.num_views)
        model.keep(data.image_features.flatten(0, 1), labels)
        model.alpha.fill_(config.alpha or PAPER_ALPHA)
        return model

    def train(
        self, model: AdaptedModel, data: Features, config: GdaConfig, run: Run
    ) -> AdaptedModel:
        """Choose the weight; with one shot of every class the one of `start` stays."""
        assert isinstance(model, GdaModel)
        alpha = config.alpha or PAPER_ALPHA
        if config.alpha is None:
            parts = [
                self._held(learned, asked, config, run)
                for learned, asked in shot_folds(data, run.seed)
            ]
            if parts:
                alpha = best_weight(parts, ALPHAS)
        model.alpha.fill_(alpha)
        model.record["alpha"] = alpha
        return model

    def _held(self, learned: Features, asked: Features, config: GdaConfig, run: Run) -> Held:
        """Ask images of the discriminants of others."""
        model, classes, images = self.start(learned, config, run), asked.class_set(), asked.plain()
        weights, biases = model.discriminants(classes)
        added = images.to(weights) @ weights.T + biases
        return Held(model.zero_shot_logits(images, classes), added, asked.labels)


register_method(
    Gda(
        "gda",
        "GDA",
        "Wang et al., A Hard-to-Beat Baseline for Training-free CLIP-based Adaptation, ICLR 2024",
        trains="nothing; keeps the shots, and the covariance of their classes",
    )
)
