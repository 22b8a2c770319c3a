"""Prior probe: class weights learned as a correction to zero-shot, trusted near the training images.

Logistic regression whose logits begin at the zero-shot ones, `s x h_k / T + (x - m) A w_k + b_k`, with a
Gaussian prior on `w` and `b` at zero: the maximum a posteriori, found by L-BFGS in a second. Residual
class weights that start at zero-shot are TaskRes' idea (Yu et al., CVPR 2023), a prior there is CLAP's
(Silva-Rodriguez et al., CVPR 2024), a covariance that all classes share is GDA's (Wang et al., ICLR 2024).
Ours are the temperature T, fitted on the shots first (an overconfident zero-shot model leaves the correction
nothing to say), the scale of the prior, which is that of the spread of the images, so that one value serves
every encoder, the matrix A, and the gate.

A shrinks the directions in which images of one class differ, since there a class weight would learn
accidents of the shots: `A = (I + S / t)^(-1/2)`, with S the scatter of the images around the means of their
classes and t what one degree of freedom has of its trace. With one image of every class it is I.

The gate: a linear correction grows without bound away from the images that it was learned from, where it
knows nothing. So it is weighted by `exp(-max(0, d / r - 1))`, where `d` is the image's cosine distance to the
nearest training image, and `r` how far nine of ten training images are from their nearest other. With one
image of some class that distance is one between classes, and half of them must do. An image from
another domain so keeps the zero-shot answer, and so does an image among classes that were never seen.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, one_hot

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run, Shapes
from rada.methods.class_layer import class_means
from rada.methods.registry import register_method
from rada.methods.terms import Terms
from rada.training.optimizers import LBFGS
from rada.training.strength import (
    OF_ZERO_SHOT,
    Strength,
    TemperaturePrior,
    fitted_temperature,
)

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["Correction", "PriorProbe", "PriorProbeConfig"]

_MOST_SUPPORT = 16_384  # training images that the gate remembers
_MOST_ASKED = (
    4096  # of them are asked how far their nearest is: a quantile of so many is sure to a hundredth
)
_CHUNK = 1 << 24  # logits that are held at once while the weights are fitted


@dataclass(frozen=True)
class PriorProbeConfig(Config):
    """Configuration of the prior probe.

    Attributes:
        variance: Variance of the prior of the class weights, in units where the mean squared distance
            of the images from their mean is one. Large values trust the shots, 0 would be zero-shot.
        iterations: Most steps of L-BFGS.
        reach: How far from the training images the gate trusts the correction whole, in units of the
            distance between neighbours among them. Less keeps more of zero-shot on images of another kind.
    """

    variance: float = 10.0
    iterations: int = 100
    reach: float = 1.0

    def validate(self) -> None:
        """Check that every field is in its range."""
        self.require(self.variance > 0, "variance", "above 0")
        self.require(self.iterations >= 1, "iterations", "a positive integer")
        self.require(self.reach > 0, "reach", "above 0")


class Correction(nn.Module):
    """What images say against the zero-shot logits of the classes that they were labelled with.

    Args:
        classes: K.
        dim: D.
        support: Training images that are remembered for the gate.
    """

    weight: Tensor
    bias: Tensor
    mean: Tensor
    support: Tensor
    radius: Tensor
    temperature: Tensor

    def __init__(self, classes: int, dim: int, support: int) -> None:
        super().__init__()
        # buffers: they are solved for, and no optimiser of a head beside them may touch them
        self.register_buffer("weight", torch.zeros(classes, dim))
        self.register_buffer("bias", torch.zeros(classes))
        self.register_buffer("mean", torch.zeros(dim))
        self.register_buffer("support", torch.zeros(support, dim))
        self.register_buffer("radius", torch.ones(()))
        self.register_buffer("temperature", torch.ones(()))

    def numbers(self) -> int:
        """Return how many numbers it learns."""
        return self.weight.numel() + self.bias.numel()

    def fit(
        self,
        data: Features,
        config: PriorProbeConfig,
        of_zero_shot: TemperaturePrior = OF_ZERO_SHOT,
    ) -> None:
        """Learn from labelled features.

        Args:
            data: Labelled features with class features and scale.
            config: The configuration of the probe.
            of_zero_shot: Prior of the temperature.
        """
        assert data.scale is not None
        images, labels = data.plain(), data.labels
        zero_shot = data.class_set().zero_shot_logits(images, data.scale)
        temperature = fitted_temperature(zero_shot, labels, of_zero_shot)
        mean = images.mean(0)
        shrink = _shrinking(images, labels, len(data.classes))
        apart = (images - mean).to(shrink) @ shrink
        spread = apart.norm(dim=1).square().mean().sqrt().clamp(min=1e-6)
        apart /= spread
        weight, bias = _solved(
            apart, labels, zero_shot / temperature, config.variance, config.iterations
        )
        support = images
        if len(images) > _MOST_SUPPORT:
            support = images[torch.linspace(0, len(images) - 1, _MOST_SUPPORT).long()]
        self.weight, self.bias = (weight @ shrink / spread).to(images), bias.to(images)
        self.mean, self.support = mean, support.clone()
        self.temperature = images.new_tensor(temperature)
        counts = torch.bincount(labels, minlength=len(data.classes))
        self.radius = config.reach * _radius(support, counts)

    def forward(self, images: Tensor, rows: Tensor) -> Tensor:
        """Return what is added to zero-shot logits near the training images; `gate` says how near.

        Args:
            images: Unit-norm features `(N, D)`.
            rows: Of the classes that are asked about, `(K,)`.

        Returns:
            `(N, K)`, in the units of the zero-shot logits before any temperature.
        """
        found = (images - self.mean) @ self.weight[rows].T + self.bias[rows]
        return self.temperature * found

    def terms(self, images: Tensor, rows: Tensor) -> Terms:
        """Return the sum behind `forward`; its weights come on top of those of zero-shot."""
        weights = self.temperature * self.weight[rows]
        rest = self.temperature * self.bias[rows] - weights @ self.mean
        found = Terms.of(images, weights, {"bias": rest.expand(len(images), -1)})
        return replace(found, images=torch.zeros_like(images))

    def gate(self, images: Tensor) -> Tensor:
        """Return how far the correction is trusted, `(N, 1)` in (0, 1]."""
        if not len(self.support):  # nothing is learned yet
            return images.new_ones(len(images), 1)
        distance = 1 - (images @ self.support.T.to(images)).amax(1, keepdim=True)
        near: Tensor = torch.exp(-(distance / self.radius - 1).clamp(min=0))
        return near


def _shrinking(images: Tensor, labels: Tensor, classes: int) -> Tensor:
    """Return the symmetric matrix A of the module's text, `(D, D)`, in float64 where the device has it."""
    precise = torch.float32 if images.device.type == "mps" else torch.float64
    dim, (means, counts) = images.shape[1], class_means(images, labels, classes)
    means = means.to(precise)
    eye = torch.eye(dim, dtype=precise, device=images.device)

    def residuals(rows: Tensor, own: Tensor) -> Tensor:
        return rows.to(precise) - means[own]

    if len(images) <= dim:
        _, roots, directions = torch.linalg.svd(residuals(images, labels), full_matrices=False)
        scatter = roots.square()
    else:
        size = max(1, _CHUNK // dim)
        gram = torch.zeros_like(eye)
        for rows, own in zip(images.split(size), labels.split(size), strict=True):
            away = residuals(rows, own)
            gram += away.T @ away
        scatter, columns = torch.linalg.eigh(gram)
        scatter, directions = scatter.clamp(min=0), columns.T
    total, freedom = scatter.sum(), (counts - 1).clamp(min=0).sum()
    if total <= 1e-12 * images.square().sum():  # one image of each class, or copies of it
        return eye
    less = 1 - (1 + scatter * freedom / total).rsqrt()
    shrunk: Tensor = directions.T @ (less[:, None] * directions)
    return eye - shrunk


def _radius(images: Tensor, counts: Tensor) -> Tensor:
    """Return how far training images are from their nearest other, `()`; of many, some are asked."""
    nearest = []
    asked = torch.linspace(0, len(images) - 1, min(len(images), _MOST_ASKED)).long()
    for rows in asked.split(1024):
        cosine = images[rows] @ images.T
        cosine[torch.arange(len(rows)), rows] = -1.0
        nearest.append(1 - cosine.amax(1))
    part = 0.9 if int(counts[counts > 0].min()) >= 2 else 0.5
    return torch.cat(nearest).quantile(part).clamp(min=1e-3)


def _solved(
    images: Tensor, labels: Tensor, start: Tensor, variance: float, iterations: int
) -> tuple[Tensor, Tensor]:
    """Return the most likely weights `(K, D)` and biases `(K,)` given the prior, as precise as the images."""
    start = start.to(images)
    targets = one_hot(labels, start.shape[1]).to(images)
    weight = images.new_zeros(start.shape[1], images.shape[1])
    bias = images.new_zeros(start.shape[1])
    weight.requires_grad_(), bias.requires_grad_()
    optimizer = LBFGS(
        [weight, bias],
        max_iter=iterations,
        history_size=10,
        tolerance_grad=1e-6,
        line_search_fn="strong_wolfe",
    )
    rows = max(1, _CHUNK // start.shape[1])

    def closure() -> Tensor:
        # the gradient of a softmax regression is known: no graph is kept, and chunks bound the memory
        with torch.no_grad():
            loss = (weight.square().sum() + bias.square().sum()) / (2 * variance)
            slope, shift = weight / variance, bias / variance
            for part, first, wanted in zip(
                images.split(rows), start.split(rows), targets.split(rows), strict=True
            ):
                logits = first + part @ weight.T + bias
                loss = loss + cross_entropy(logits, wanted, reduction="sum")
                error = logits.softmax(1) - wanted
                slope, shift = slope + error.T @ part, shift + error.sum(0)
            weight.grad, bias.grad = slope / len(images), shift / len(images)
            return loss / len(images)

    optimizer.step(closure)  # type: ignore[no-untyped-call,unused-ignore]
    return weight.detach(), bias.detach()


def remembered(shapes: Shapes) -> int:
    """Return how many images the correction in a file remembers; 0 before it has learned."""
    return shapes["correction.support"][0] if "correction.support" in shapes else 0


def trained_rows(classes: ClassSet, facts: Facts, device: torch.device) -> Tensor | None:
    """Return the rows of candidates among the trained classes, `(K,)`; None if one is new."""
    found = classes.rows_among(facts.classes)
    rows = [row for row in found if row is not None]
    return torch.tensor(rows, device=device) if len(rows) == len(found) else None


class PriorProbeModel(AdaptedModel):
    """Zero-shot logits and a correction, where all candidates were trained on."""

    def __init__(
        self, method: Method, facts: Facts, config: Config, encoder: object, support: int
    ) -> None:
        super().__init__(method, facts, config)
        self.correction = Correction(len(facts.classes), facts.dim, support)

    def rows(self, classes: ClassSet) -> Tensor | None:
        """Return the rows of the candidates among the trained classes; None if one is new."""
        return trained_rows(classes, self.facts, self.correction.weight.device)

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return corrected logits; zero-shot where a candidate is new."""
        return self.score_from(images, classes, self.zero_shot_logits(images, classes))

    def score_from(self, images: Tensor, classes: ClassSet, zero_shot: Tensor) -> Tensor:
        """Return the same of zero-shot logits that are known."""
        rows = self.rows(classes)
        if rows is None:
            return zero_shot
        added: Tensor = self.correction(images, rows)
        return zero_shot + self.correction.gate(images) * added

    def terms(self, images: Tensor, classes: ClassSet) -> Terms:
        """Return the terms of zero-shot and of the correction."""
        zero_shot = Terms.of(images, self.facts.scale * classes.text_features.to(images))
        rows = self.rows(classes)
        if rows is None:
            return zero_shot
        return zero_shot + self.correction.terms(images, rows) * self.correction.gate(images)

    def trainable_parameters(self) -> int:
        """Return how many numbers the method learned."""
        return self.correction.numbers()


@dataclass(frozen=True)
class PriorProbe(Method):
    """Starts as zero-shot; solved for, not trained step by step."""

    config: ClassVar[type[Config]] = PriorProbeConfig

    def build(
        self, facts: Facts, config: Any, shapes: Shapes, encoder: DualEncoder | None
    ) -> AdaptedModel:
        """Return a model that remembers as many images as the file has."""
        return PriorProbeModel(self, facts, config, encoder, remembered(shapes))

    def train(
        self, model: AdaptedModel, data: Features, config: PriorProbeConfig, run: Run
    ) -> AdaptedModel:
        """Solve for the correction; its temperature is that of the zero-shot logits."""
        assert isinstance(model, PriorProbeModel)
        model.correction.fit(data, config)
        temperature = float(model.correction.temperature)
        model.strength = Strength(1.0, classes=data.classes, temperature=temperature)
        model.record["temperature"] = temperature
        return model


register_method(
    PriorProbe(
        "prior_probe",
        "Prior probe",
        "ours; residual class weights: TaskRes, Yu et al., CVPR 2023; a prior at zero-shot: CLAP, "
        "Silva-Rodriguez et al., CVPR 2024; a shared covariance: GDA, Wang et al., ICLR 2024",
        trains="one vector for each class, as a correction to zero-shot",
    )
)
