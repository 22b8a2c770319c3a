"""LP++: a linear probe with a learned weight for the text of each class, and step sizes from the data.

Its loss is convex in the two blocks (the class vectors, and the weights of the text), each of which has a
bound on its curvature; the bounds give the step sizes, so that no rate is searched.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run
from rada.methods.class_layer import class_means
from rada.methods.registry import register_method
from rada.training.feature_loop import Recipe

__all__ = ["BlockDescent", "LPConfig", "LPPlusPlus"]


class BlockDescent(torch.optim.Optimizer):
    """Steps of two blocks: the vectors by momentum in every step, the weights of the text now and then.

    Args:
        vectors: The parameter `(K, D)`.
        blend: The parameter `(K,)`.
        rate: Factor of both step sizes.
        steps: Step size of each block.
        momentum: Momentum of each block.
        every: Steps between two steps of the weights of the text.
    """

    def __init__(
        self,
        vectors: nn.Parameter,
        blend: nn.Parameter,
        rate: float,
        steps: tuple[float, float],
        momentum: tuple[float, float],
        every: int,
    ) -> None:
        groups = [
            {"params": [vectors], "size": steps[0], "momentum": momentum[0], "every": 1},
            {"params": [blend], "size": steps[1], "momentum": momentum[1], "every": every},
        ]
        super().__init__(groups, {"lr": rate})

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        """Take a step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                assert parameter.grad is not None
                state = self.state[parameter]
                if not state:
                    state["step"] = torch.zeros(())
                    state["momentum"] = torch.zeros_like(parameter)
                state["step"] += 1
                state["momentum"].mul_(group["momentum"]).add_(parameter.grad)
                if int(state["step"]) % group["every"] == 0:
                    parameter.sub_(group["lr"] * group["size"] * state["momentum"])


@dataclass(frozen=True)
class LPConfig(Config):
    """Configuration of LP++, as in its public code; there is no rate.

    Attributes:
        iterations: Steps, each on all images.
        momentum: Momentum of the class vectors.
        blend_every: Steps between two steps of the weights of the text.
        blend_gradient: What these steps follow: the "last" gradient, as in the paper, or the "sum" of all so
            far, as in the public code, which never resets it.
        blend_scale: The weights of the text start at so many times the mean cosine of an image and the text
            of its class.
    """

    iterations: int = 300
    momentum: float = 0.9
    blend_every: int = 10
    blend_gradient: Literal["last", "sum"] = "last"
    blend_scale: float = 250.0

    def validate(self) -> None:
        """Check that every field is in its range."""
        for name in ("iterations", "blend_every"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        self.require(0 <= self.momentum < 1, "momentum", "in [0, 1)")
        self.require(self.blend_scale > 0, "blend_scale", "above 0")


@dataclass(frozen=True)
class _Descent(Recipe):
    """The recipe of a run: `LPConfig`, and the step sizes of its data."""

    sizes: tuple[float, ...] = (1.0, 1.0)
    momenta: tuple[float, ...] = (0.9, 0.0)
    blend_every: int = 10

    def optimizer_for(self, parameters: list[nn.Parameter]) -> torch.optim.Optimizer:
        """Return the descent over the two blocks."""
        vectors, blend = parameters
        first, second = self.sizes
        own, other = self.momenta
        rate, every = self.learning_rate, self.blend_every
        return BlockDescent(vectors, blend, rate, (first, second), (own, other), every)


class LPModel(AdaptedModel):
    """`f @ w_k + blend_k * f @ h_k`."""

    def __init__(self, method: Method, facts: Facts, config: Any, *_: object) -> None:
        super().__init__(method, facts, config)
        self.vectors = nn.Parameter(torch.zeros(len(facts.classes), facts.dim))
        self.blend = nn.Parameter(torch.zeros(len(facts.classes)))

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Check that every class was trained, and put vectors and text together."""
        self.refuse_unknown(classes.names)
        rows = [row for row in classes.rows_among(self.facts.classes) if row is not None]
        text = classes.text_features.to(self.vectors)
        joined = self.vectors[rows] + self.blend[rows, None] * text
        return replace(classes, text_features=joined)

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the products with the vectors of `prepare`."""
        return images @ classes.text_features.T


@dataclass(frozen=True)
class LPPlusPlus(Method):
    """Starts from the sums of the images of each class, and text of one weight for all."""

    config: ClassVar[type[Config]] = LPConfig
    model = LPModel

    def start(self, data: Features, config: LPConfig, run: Run) -> AdaptedModel:
        """Return the model that the paper starts from, an approximate minimum of each block alone."""
        model = super().start(data, config, run)
        assert isinstance(model, LPModel)
        images, text = data.plain(), data.class_set().text_features
        means, counts = class_means(images, data.labels, len(data.classes))
        own = (means * text).sum(-1)[counts > 0].mean()
        with torch.no_grad():
            model.vectors.copy_(means * counts[:, None])
            model.blend.fill_(config.blend_scale * float(own))
        return model

    def train(
        self, model: AdaptedModel, data: Features, config: LPConfig, run: Run
    ) -> AdaptedModel:
        """Descend by steps of the sizes that the data give."""
        sizes = step_sizes(data.plain(), data.class_set().text_features)
        model.record["step_sizes"] = list(sizes)
        recipe = _Descent(
            epochs=config.iterations,
            batch_size=len(data),
            learning_rate=1.0,
            schedule="constant",
            sizes=sizes,
            momenta=(config.momentum, 1.0 if config.blend_gradient == "sum" else 0.0),
            blend_every=config.blend_every,
        )
        # The step sizes are those of these very rows, so a step sees no random view.
        return self.learn(model, replace(data, image_features=data.plain()), recipe, run)


def step_sizes(images: Tensor, text: Tensor) -> tuple[float, float]:
    """Return the step sizes of the vectors and of the weights of the text, as published.

    The first is `4 N / largest eigenvalue of F^T F`, the second `N / (4 max_k sum_i (f_i . h_k)^2)`.

    Args:
        images: `(N, D)`.
        text: `(K, D)`.

    Example:
        >>> step_sizes(torch.eye(2), torch.eye(2))
        (8.0, 0.5)
    """
    largest = torch.linalg.matrix_norm(images.double(), ord=2).square()
    scores = (images @ text.T).double().square().sum(0).max()
    return float(4 * len(images) / largest), float(len(images) / (4 * scores))


register_method(
    LPPlusPlus(
        "lp_plus_plus",
        "LP++",
        "Huang et al., LP++: A Surprisingly Strong Linear Probe for Few-Shot CLIP, CVPR 2024",
        trains="one vector for each class, and one weight of its text",
        new_classes=False,
    )
)
