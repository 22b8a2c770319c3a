"""DePT: a linear probe on shifted features beside learned prompts, so that the prompts stay general.

What only the trained classes need goes into the probe, which sees features of images and of the classes after
a scale and a shift for each dimension. Among trained classes probe and prompts are added up; any other
candidates get the prompts alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rada.core.config import Config
from rada.features import ClassSet
from rada.methods.base import Facts, Method
from rada.methods.cocoop import CoCoOpConfig, CoCoOpModel
from rada.methods.coop import CoOpConfig
from rada.methods.kgcoop import KgCoOpConfig, drift
from rada.methods.prior_probe import trained_rows
from rada.methods.prompts import PromptConfig, PromptMethod, PromptModel
from rada.methods.registry import register_method
from rada.methods.terms import Terms
from rada.training.feature_loop import Losses

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = [
    "DEPT_SOURCE",
    "DePTCoCoOpConfig",
    "DePTCoOpConfig",
    "DePTKgCoOpConfig",
    "DecoupledConfig",
    "DecoupledHead",
    "DecoupledModel",
]

DEPT_SOURCE = "Zhang et al., DePT: Decoupled Prompt Tuning, CVPR 2024"


@dataclass(frozen=True)
class DecoupledConfig(Config):
    """What DePT adds to the configuration of the method whose prompts it has.

    Attributes:
        probe_weight: Weight of the probe in loss and predictions, in [0, 1]; the rest is the prompts'.
        probe_rate: Peak learning rate of the probe in units of that of the prompts.
        feature_norm: Length of the features that the probe sees.
    """

    probe_weight: float = 0.7
    probe_rate: float = 6.5
    feature_norm: float = 10.0

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(0 <= self.probe_weight <= 1, "probe_weight", "in [0, 1]")
        for name in ("probe_rate", "feature_norm"):
            self.require(getattr(self, name) > 0, name, "above 0")


class DecoupledHead(nn.Module):
    """A scale and a shift for each dimension of both features, and a linear probe behind them.

    Args:
        dim: Width D of the features.
        classes: Classes K that it knows.
        config: Its weight and the length of its features.

    Example:
        >>> head = DecoupledHead(4, 3, DecoupledConfig())
        >>> head(torch.eye(4)[:2]).shape
        torch.Size([2, 3])
    """

    def __init__(self, dim: int, classes: int, config: DecoupledConfig) -> None:
        super().__init__()
        self.weight, self.norm = config.probe_weight, config.feature_norm
        self.rate = config.probe_rate
        self.image_scale, self.text_scale = (nn.Parameter(torch.ones(dim)) for _ in range(2))
        self.image_shift, self.text_shift = (nn.Parameter(torch.zeros(dim)) for _ in range(2))
        self.probe = nn.Linear(dim, classes)

    def forward(self, images: Tensor) -> Tensor:
        """Return the probe's logits `(B, K)` of unit-norm image features `(B, D)`."""
        shifted = self.image_scale * (self.norm * images.to(self.image_scale)) + self.image_shift
        logits: Tensor = self.probe(shifted)
        return logits

    def of_texts(self, text: Tensor) -> Tensor:
        """Return the probe's logits `(B, K)` of unit-norm class features `(B, D)`."""
        shifted = self.text_scale * (self.norm * text.to(self.text_scale)) + self.text_shift
        logits: Tensor = self.probe(shifted)
        return logits

    def parameter_groups(self, prompts: list[nn.Parameter], rate: float) -> list[dict[str, Any]]:
        """Return what learns, with peak rates: the prompts' `rate`, and the probe's in units of it."""
        return [
            {"params": prompts, "lr": rate},
            {"params": [*self.parameters()], "lr": self.rate * rate},
        ]

    def losses(self, images: Tensor, text: Tensor, labels: Tensor, rows: Tensor) -> Tensor:
        """Return the probe's cross-entropy of each image `(B,)`, its class features an example as it is.

        Args:
            images: `(B, D)`.
            text: Features of the step's classes, `(C, D)`, or of each image `(B, C, D)`.
            labels: Among these, `(B,)`.
            rows: Which of the probe's classes they are, `(C,)`.
        """
        places = torch.arange(len(labels), device=labels.device)
        own = text[labels] if text.ndim == 2 else text[places, labels]
        found = [self(images), self.of_texts(own)]
        entropies = [
            cross_entropy(logits[:, rows], labels, reduction="none").to(images) for logits in found
        ]
        return torch.stack(entropies).mean(0)

    def fused(self, images: Tensor, host: Tensor, rows: Tensor | None) -> Tensor:
        """Return the sum of both logits `(B, K)`; those of the prompts where the probe has no rows."""
        if rows is None:
            return host
        probe: Tensor = self(images)[:, rows].to(host)
        return self.weight * probe + (1 - self.weight) * host

    def fused_terms(self, images: Tensor, host: Terms, rows: Tensor | None) -> Terms:
        """Return the terms of `fused`, given those of the prompts."""
        if rows is None:
            return host
        weights, bias = self.probe.weight[rows], self.probe.bias[rows]
        rest = {"bias": (bias + weights @ self.image_shift).expand(len(images), -1)}
        probe = Terms.of(images, self.norm * self.image_scale * weights, rest)
        return self.weight * probe + (1 - self.weight) * host


@dataclass(frozen=True)
class DePTCoOpConfig(DecoupledConfig, CoOpConfig):
    """Configuration of DePT on CoOp, as published."""

    epochs: int = 10
    batch_size: int = 4
    learning_rate: float = 3.5e-3


@dataclass(frozen=True)
class DePTKgCoOpConfig(DecoupledConfig, KgCoOpConfig):
    """Configuration of DePT on KgCoOp, as published; `weight` is 2 there, 8 in KgCoOp alone."""

    epochs: int = 10
    batch_size: int = 4
    learning_rate: float = 3.5e-3
    weight: float = 2.0


@dataclass(frozen=True)
class DePTCoCoOpConfig(DecoupledConfig, CoCoOpConfig):
    """Configuration of DePT on CoCoOp; none is published, so epochs, batch and rate are those on CoOp."""

    batch_size: int = 4
    learning_rate: float = 3.5e-3


class DecoupledModel(PromptModel):
    """Learned prompts, and a probe beside them for the trained classes.

    Attributes:
        decoupled: The probe.
    """

    def __init__(
        self, method: Method, facts: Facts, config: Any, context: Tensor, encoder: DualEncoder
    ) -> None:
        super().__init__(method, facts, config, context, encoder)
        self.decoupled = DecoupledHead(facts.dim, len(facts.classes), config)

    def prompt_parameters(self) -> list[nn.Parameter]:
        """Return what makes the prompts."""
        return [self.context]

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what learns, with peak rates: the prompts', and the probe's."""
        assert isinstance(self.config, PromptConfig)
        return self.decoupled.parameter_groups(self.prompt_parameters(), self.config.learning_rate)

    def prompted(self, images: Tensor, classes: ClassSet) -> tuple[Tensor, Tensor]:
        """Return the prompts' logits `(B, K)` and class features, `(K, D)` or of each image `(B, K, D)`."""
        learned = self.prepare(classes)
        return self.zero_shot_logits(images, learned), learned.text_features

    def pull(self, text: Tensor, written: ClassSet) -> dict[str, Tensor]:
        """Return what the method of the prompts adds to cross-entropy, with its weight."""
        return {}

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Losses:
        """Return the weighted sum of the cross-entropies of probe and prompts, and the prompts' pull."""
        head, (logits, text) = self.decoupled, self.prompted(images, classes)
        rows = trained_rows(classes, self.facts, labels.device)
        assert rows is not None  # a step has trained classes alone
        terms = {
            "cross_entropy": (1 - head.weight) * cross_entropy(logits, labels),
            "probe": head.weight * head.losses(images, text, labels, rows).mean(),
            **self.pull(text, classes),
        }
        with torch.no_grad():
            right = head.fused(images, logits, rows).argmax(1) == labels
        reported = {name: term.detach() for name, term in terms.items()}
        total = torch.stack(list(terms.values())).sum()
        return {"loss": total, **reported, "accuracy": right.to(logits.dtype).mean()}

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return probe plus prompts among trained classes, else the prompts' `scale * cosine`."""
        host = super().score(images, classes)
        return self.decoupled.fused(images, host, trained_rows(classes, self.facts, images.device))


class DecoupledCoCoOpModel(DecoupledModel, CoCoOpModel):
    """The same with a context that every image shifts."""

    def prompt_parameters(self) -> list[nn.Parameter]:
        """Return what makes the prompts: the context, and the network that shifts it."""
        return [self.context, *self.meta_net.parameters()]

    def prompted(self, images: Tensor, classes: ClassSet) -> tuple[Tensor, Tensor]:
        """Return the prompts' logits `(B, K)` and the class features of each image `(B, K, D)`."""
        text = self.texts_of(images, classes)
        return self.cosines(images, text), text

    def terms(self, images: Tensor, classes: ClassSet) -> Terms:
        """Return the terms of probe and prompts, the class features those that each image made."""
        rows = trained_rows(classes, self.facts, images.device)
        return self.decoupled.fused_terms(images, super().terms(images, classes), rows)


class DecoupledKgCoOpModel(DecoupledModel):
    """The same with class features that are held near those of the data set's own prompts."""

    def pull(self, text: Tensor, written: ClassSet) -> dict[str, Tensor]:
        """Return the weighted distance to the hand-written prompts."""
        assert isinstance(self.config, KgCoOpConfig)
        return {"drift": self.config.weight * drift(text, written.text_features)}


@dataclass(frozen=True)
class DePTCoOp(PromptMethod):
    """Starts at the prompt "CONTEXT NAME." beside a probe of random weights."""

    config: ClassVar[type[Config]] = DePTCoOpConfig
    model = DecoupledModel
    trains: str = "context vectors of the prompt, and a probe of both features beside it"


@dataclass(frozen=True)
class DePTKgCoOp(DePTCoOp):
    """Starts at the prompt "CONTEXT NAME." beside a probe of random weights."""

    config: ClassVar[type[Config]] = DePTKgCoOpConfig
    model = DecoupledKgCoOpModel


@dataclass(frozen=True)
class DePTCoCoOp(DePTCoOp):
    """Starts as CoCoOp, beside a probe of random weights."""

    config: ClassVar[type[Config]] = DePTCoCoOpConfig
    model = DecoupledCoCoOpModel
    trains: str = (
        "context vectors of the prompt, a network that shifts them by image, and a probe of both "
        "features beside it"
    )


register_method(DePTCoOp("dept_coop", "DePT + CoOp", DEPT_SOURCE))
register_method(DePTCoCoOp("dept_cocoop", "DePT + CoCoOp", DEPT_SOURCE))
register_method(DePTKgCoOp("dept_kgcoop", "DePT + KgCoOp", DEPT_SOURCE))
