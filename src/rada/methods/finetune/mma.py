"""MMA: branches beside the last layers of both encoders, which meet in weights that both share."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rada.core.config import Config
from rada.encoders.inserts import Inserts, layer_width, residual_branches
from rada.methods.base import Shapes
from rada.methods.finetune.inserted import InsertConfig, InsertMethod
from rada.methods.registry import register_method

if TYPE_CHECKING:
    from rada.encoders import DualEncoder
    from rada.encoders.attention import Part

__all__ = ["MMA", "MMABranches", "MMAConfig"]


@dataclass(frozen=True)
class MMAConfig(InsertConfig):
    """Configuration of MMA, that of its base-to-new experiments.

    Attributes:
        layers: Layers with a branch, counted from the last: 8 are 5 to 12 of a ViT-B. Of encoders with
            fewer, all have one.
        width: Width of the branches.
        branch_scale: What a branch's output is multiplied by.
    """

    epochs: int = 5
    batch_size: int = 16
    learning_rate: float = 1.5e-3
    schedule: Literal["steps", "epochs", "cosine_epochs"] = "cosine_epochs"
    layers: int = 8
    width: int = 32
    branch_scale: float = 1e-3

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        for name in ("layers", "width"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        self.require(self.branch_scale > 0, "branch_scale", "above 0")


def _times(scale: float) -> Callable[[Tensor], Tensor]:
    return lambda gradient: gradient * scale


class Branch(nn.Module):
    """`scale * up(shared(relu(down(x))))`, whose own weights learn as if the scale were 1.

    The gradients that go on to x are those of the function; MMA's code has it so, without which its rate
    would be a thousand times too small.
    """

    def __init__(self, outer: nn.ModuleDict, shared: nn.Module, scale: float) -> None:
        super().__init__()
        self.outer, self.shared, self.scale = outer, shared, scale

    def forward(self, inputs: Tensor) -> Tensor:
        """Return `(B, L, W)` of the same."""
        hidden = inputs.to(next(self.outer.parameters()))
        if hidden.requires_grad:
            hidden = hidden.view_as(hidden)  # a hook of this use alone
            hidden.register_hook(_times(self.scale))
        hidden = torch.relu(self.outer["down"](hidden))
        found: Tensor = self.outer["up"](torch.relu(self.shared(hidden))) * self.scale
        if found.requires_grad:
            found.register_hook(_times(1 / self.scale))
        return found.to(inputs)


class MMABranches(Inserts):
    """The branches of both encoders.

    Args:
        widths: Of the layers of the image and of the text encoder.
        count: Layers with a branch, counted from the last.
        width: Width of the branches.
        scale: What their output is multiplied by.
    """

    def __init__(self, widths: tuple[int, int], count: int, width: int, scale: float) -> None:
        super().__init__()
        self.count, self.scale = count, scale
        self.image, self.text = (
            nn.ModuleList(
                nn.ModuleDict({"down": nn.Linear(outer, width), "up": nn.Linear(width, outer)})
                for _ in range(count)
            )
            for outer in widths
        )
        self.shared = nn.ModuleList(nn.Linear(width, width) for _ in range(count))
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                nn.init.zeros_(module.bias)

    def _within(self, encoder: DualEncoder, part: Part) -> AbstractContextManager[None]:
        layers = encoder.attention_layers(part)
        outer: Any = self.image if part == "image" else self.text
        pairs = zip(outer, self.shared, strict=True)
        branches = [Branch(own, shared, self.scale) for own, shared in pairs]
        return residual_branches(layers, [*[None] * (len(layers) - self.count), *branches])

    def in_images(self, encoder: DualEncoder) -> AbstractContextManager[None]:
        """Put the branches into the image encoder while the block runs."""
        return self._within(encoder, "image")

    def in_texts(self, encoder: DualEncoder) -> AbstractContextManager[None]:
        """Put the branches into the text encoder while the block runs."""
        return self._within(encoder, "text")


@dataclass(frozen=True)
class MMA(InsertMethod):
    """Starts near zero-shot: the branches are random, and a thousandth of them is added."""

    config: ClassVar[type[Config]] = MMAConfig
    trains: str = "branches beside the last layers of both encoders"
    needs: frozenset[str] = frozenset({"encoder", "images", "residual_branches"})

    def inserts(self, config: Any, encoder: DualEncoder, shapes: Shapes) -> Inserts:
        """Return the branches before training."""
        image, text = encoder.attention_layers("image"), encoder.attention_layers("text")
        count = min(config.layers, len(image), len(text))
        widths = (layer_width(image[0]), layer_width(text[0]))
        return MMABranches(widths, count, config.width, config.branch_scale)


register_method(
    MMA("mma", "MMA", "Yang et al., MMA: Multi-Modal Adapter for Vision-Language Models, CVPR 2024")
)
