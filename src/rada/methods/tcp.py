"""TCP: tokens made of each class's own features, put into a deep layer of the text encoder."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rada.core.config import Config
from rada.features import ClassSet
from rada.methods.base import Facts, Method
from rada.methods.deep_text import deep_prompted_text
from rada.methods.kgcoop import KgCoOpConfig, KgCoOpModel
from rada.methods.prompts import PromptMethod
from rada.methods.registry import register_method

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["TCP", "TCPConfig", "TCPModel"]


@dataclass(frozen=True)
class TCPConfig(KgCoOpConfig):
    """Configuration of TCP, as published.

    Attributes:
        layer: The layer, counted from 0, whose input gets the class tokens; the last of an encoder with
            fewer.
        reduction: The hidden layer is as many times narrower than the features.
    """

    epochs: int = 50
    batch_size: int = 32
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    layer: int = 8
    reduction: int = 4

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.layer >= 1, "layer", "a positive integer")
        self.require(self.reduction >= 1, "reduction", "a positive integer")


class QuickGELU(nn.Module):
    """`x * sigmoid(1.702 x)`, CLIP's own activation."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Return the same shape."""
        return inputs * torch.sigmoid(1.702 * inputs)


class TCPModel(KgCoOpModel):
    """A context for all classes, and in a deep layer tokens of each class in its places."""

    config: TCPConfig

    def __init__(
        self, method: Method, facts: Facts, config: Any, context: Tensor, encoder: DualEncoder
    ) -> None:
        super().__init__(method, facts, config, context, encoder)
        hidden = max(1, facts.dim // config.reduction)
        self.class_tokens = nn.Sequential(
            nn.Linear(facts.dim, hidden), QuickGELU(), nn.Linear(hidden, context.numel())
        )

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Run the text encoder on context and class tokens, which come from the hand-written prompts."""
        assert self.encoder is not None
        written = classes.text_features
        tokens = self.class_tokens(written.to(self.context.device))
        tokens = tokens.unflatten(1, tuple(self.context.shape))
        layer = min(self.config.layer, len(self.encoder.text_layers()) - 1)
        vectors = [self.context, *[None] * (layer - 1), tokens]
        text = deep_prompted_text(self.encoder, classes.names, self.config.context, vectors)
        return replace(classes, text_features=text.to(written.device))


@dataclass(frozen=True)
class TCP(PromptMethod):
    """Starts at "CONTEXT NAME." with random class tokens in a deep layer."""

    config: ClassVar[type[Config]] = TCPConfig
    model = TCPModel
    trains: str = "context vectors of the prompt, and a map from class features to tokens"
    needs: frozenset[str] = frozenset({"encoder", "token_embeddings", "deep_text_prompts"})


register_method(
    TCP(
        "tcp",
        "TCP",
        "Yao et al., TCP: Textual-based Class-aware Prompt Tuning for Visual-Language Model, CVPR 2024",
    )
)
