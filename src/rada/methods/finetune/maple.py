"""MaPLe: tokens in the layers of the text encoder, and those of the image encoder as their projections."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from rada.core.config import Config
from rada.encoders.inserts import Inserts, layer_width
from rada.methods.base import Shapes
from rada.methods.finetune.inserted import (
    DeepPromptConfig,
    DeepPromptMethod,
    DeepPrompts,
    copies,
    first_vectors,
    prompt_depth,
)
from rada.methods.registry import register_method

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["MaPLe", "MaPLeConfig", "MaPLePrompts"]


@dataclass(frozen=True)
class MaPLeConfig(DeepPromptConfig):
    """Configuration of MaPLe, that of its base-to-new experiments.

    Attributes:
        length: Tokens in each layer.
    """

    epochs: int = 5
    learning_rate: float = 3.5e-3
    length: int = 2

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.length >= 1, "length", "a positive integer")


class MaPLePrompts(DeepPrompts):
    """Tokens of the text, and a linear map to images' tokens for each layer.

    Args:
        context: `(n, E)`, the tokens of the first layer.
        width: Width W of the image encoder's tokens.
        depth: Layers with tokens.
    """

    def __init__(self, context: Tensor, width: int, depth: int) -> None:
        super().__init__()
        self.context = nn.Parameter(context)
        self.deeper = nn.ParameterList(torch.empty_like(context) for _ in range(depth - 1))
        for tokens in self.deeper:
            nn.init.normal_(tokens, std=0.02)
        self.projection = nn.Linear(context.shape[1], width)
        self.projections = copies(nn.Linear(context.shape[1], width), depth - 1)

    def text_vectors(self) -> list[Tensor]:
        """Return the tokens of the text encoder's layers."""
        return [self.context, *self.deeper]

    def image_vectors(self) -> list[Tensor]:
        """Return the projected tokens."""
        maps = [self.projection, *self.projections]
        return [layer(tokens) for layer, tokens in zip(maps, self.text_vectors(), strict=True)]


@dataclass(frozen=True)
class MaPLe(DeepPromptMethod):
    """Starts at "a photo of a NAME." with random tokens in the deeper layers and beside the patches."""

    config: ClassVar[type[Config]] = MaPLeConfig
    trains: str = "tokens in the layers of both encoders"

    def inserts(self, config: Any, encoder: DualEncoder, shapes: Shapes) -> Inserts:
        """Return the tokens before training."""
        context = first_vectors(config, config.length, encoder, shapes, "inserts.context")
        width = layer_width(encoder.image_layers()[0])
        return MaPLePrompts(context, width, prompt_depth(config, encoder))


MAPLE = MaPLe("maple", "MaPLe", "Khattak et al., MaPLe: Multi-modal Prompt Learning, CVPR 2023")
register_method(MAPLE)
