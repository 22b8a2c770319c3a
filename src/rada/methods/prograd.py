"""ProGrad: CoOp that never steps against what zero-shot knows."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor

from rada.core.config import Config
from rada.core.errors import ConfigError
from rada.features import ClassSet
from rada.methods.prompts import PromptConfig, PromptMethod, PromptModel, context_vectors
from rada.methods.registry import register_method
from rada.training.feature_loop import Losses, class_logits_loss

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["ProGrad", "ProGradConfig", "without_conflict"]


@dataclass(frozen=True)
class ProGradConfig(PromptConfig):
    """Configuration of ProGrad, as published for its base-to-new experiments.

    Attributes:
        length: Context vectors; those before the words of `context` start at zero.
        strength: Part of the conflicting component that is taken out of the gradient.
        temperature: Temperature of both sides of the divergence from zero-shot.
    """

    epochs: int = 100
    length: int = 16
    strength: float = 1.0
    temperature: float = 1.0

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.length >= 1, "length", "a positive integer")
        self.require(0 <= self.strength <= 1, "strength", "in [0, 1]")
        self.require(self.temperature > 0, "temperature", "above 0")


def without_conflict(gradient: Tensor, general: Tensor, strength: float = 1.0) -> Tensor:
    """Return a gradient without its component against another one.

    Args:
        gradient: Of the cross-entropy.
        general: Of the divergence from zero-shot, of the same shape.
        strength: Part of the component that is taken out.

    Example:
        >>> without_conflict(torch.tensor([1.0, -1.0]), torch.tensor([0.0, 2.0]))
        tensor([1., 0.])
        >>> without_conflict(torch.tensor([1.0, 1.0]), torch.tensor([0.0, 2.0]))
        tensor([1., 1.])
    """
    product = (gradient * general).sum()
    if product >= 0:
        return gradient
    return gradient - strength * product / general.square().sum() * general


class ProGradModel(PromptModel):
    """A context that learns by gradients of which the conflicting part is taken out."""

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Losses:
        """Return the cross-entropy, whose gradient with respect to the context is the corrected one."""
        assert isinstance(self.config, ProGradConfig)
        logits = self(images, classes)
        found = class_logits_loss(logits, labels)
        heat = self.config.temperature
        teacher = (self.zero_shot_logits(images, classes) / heat).log_softmax(-1)
        learned = (logits / heat).log_softmax(-1)
        divergence = (teacher.exp() * (teacher - learned)).sum(-1).mean() * heat**2
        found["divergence"] = divergence.detach()
        if not torch.is_grad_enabled():
            return found
        entropy = found["loss"]
        (own,) = torch.autograd.grad(entropy, self.context, retain_graph=True)
        (general,) = torch.autograd.grad(divergence, self.context)
        step = without_conflict(own, general, self.config.strength)
        # The value of the cross-entropy, and the corrected gradient.
        carrier = (self.context * step).sum()
        return found | {"loss": entropy.detach() + carrier - carrier.detach()}


@dataclass(frozen=True)
class ProGrad(PromptMethod):
    """Starts as CoOp behind context vectors of zeros."""

    config: ClassVar[type[Config]] = ProGradConfig
    model = ProGradModel

    def first_context(self, config: ProGradConfig, encoder: DualEncoder) -> Tensor:
        """Return the words' token embeddings, behind zeros up to the length."""
        words = context_vectors(encoder, config.context)
        if len(words) > config.length:
            raise ConfigError(
                f"the context {config.context!r} is {len(words)} tokens, more than length={config.length}: "
                "raise the length or take fewer words"
            )
        zeros = torch.zeros(config.length - len(words), words.shape[1])
        return torch.cat([zeros, words])


register_method(
    ProGrad(
        "prograd",
        "ProGrad",
        "Zhu et al., Prompt-aligned Gradient for Prompt Tuning, ICCV 2023",
    )
)
