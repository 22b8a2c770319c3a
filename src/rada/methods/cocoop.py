"""CoCoOp: context vectors that every image shifts, by a small network of its features."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

import rada.methods.prompts as prompts
from rada.core.config import Config
from rada.features import ClassSet
from rada.methods.base import Cost, Facts, Method
from rada.methods.prompts import PromptConfig, PromptMethod, PromptModel
from rada.methods.registry import register_method
from rada.methods.terms import Terms

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["CoCoOp", "CoCoOpConfig", "CoCoOpModel"]


@dataclass(frozen=True)
class CoCoOpConfig(PromptConfig):
    """Configuration of CoCoOp, as published.

    Attributes:
        reduction: The network between image features and shift has D / reduction units.
    """

    epochs: int = 10
    batch_size: int = 1
    reduction: int = 16

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.reduction >= 1, "reduction", "a positive integer")


class CoCoOpModel(PromptModel):
    """Zero-shot with a context of its own for each image: the learned one plus a shift.

    The text encoder runs on every class for every image, in chunks.

    Attributes:
        meta_net: Turns image features `(B, D)` into shifts `(B, E)`, the same for all vectors.
    """

    def __init__(
        self,
        method: Method,
        facts: Facts,
        config: CoCoOpConfig,
        context: Tensor,
        encoder: DualEncoder,
    ) -> None:
        super().__init__(method, facts, config, context, encoder)
        hidden = max(1, facts.dim // config.reduction)
        self.meta_net = nn.Sequential(
            nn.Linear(facts.dim, hidden), nn.ReLU(), nn.Linear(hidden, context.shape[1])
        )

    def contexts(self, images: Tensor) -> Tensor:
        """Return the contexts of images `(B, D)`, `(B, n, E)`."""
        shift: Tensor = self.meta_net(images)
        return self.context + shift[:, None]

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Tokenize the names, once; the class set stays, since each image has its own class features."""
        self.texts(classes)
        return classes

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return `scale * cosine` with the class features that an image itself has made."""
        if torch.is_grad_enabled() or torch.compiler.is_compiling():
            return self._scored(images, classes)
        size = max(1, prompts.TEXT_CHUNK // len(classes.names))
        return torch.cat([self._scored(part, classes) for part in images.split(size)])

    def _scored(self, images: Tensor, classes: ClassSet) -> Tensor:
        return self.cosines(images, self.texts_of(images, classes))

    def terms(self, images: Tensor, classes: ClassSet) -> Terms:
        """Return the products of the image features and the class features that they made."""
        return Terms.of(images, self.facts.scale * self.texts_of(images, classes))

    def cosines(self, images: Tensor, text: Tensor) -> Tensor:
        """Return `scale * cosine` of images `(B, D)` and class features of their own `(B, K, D)`."""
        return self.facts.scale * (images[:, None] * text).sum(-1)

    def texts_of(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the class features of each image, `(B, K, D)`."""
        return self.texts(classes)(self.contexts(images)).to(images)


@dataclass(frozen=True)
class CoCoOp(PromptMethod):
    """Starts at the prompt "CONTEXT NAME.", shifted by a network whose weights are random."""

    config: ClassVar[type[Config]] = CoCoOpConfig
    model = CoCoOpModel
    trains: str = "context vectors of the prompt, and a network that shifts them by image"
    cost: Cost = "text encoder"


register_method(
    CoCoOp(
        "cocoop",
        "CoCoOp",
        "Zhou et al., Conditional Prompt Learning for Vision-Language Models, CVPR 2022",
    )
)
