"""RAda + Adapter: residual bottlenecks on both features, before the head.

The paper names the combination; its published form has a last layer of zeros followed by a ReLU,
which never learns. Here the last layer starts at zero and nothing follows it, so that the start is
zero-shot exactly and every weight learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor, nn
from torch.nn.functional import normalize

from rada.core.config import Config
from rada.methods.base import Facts, Method
from rada.methods.rada import SOURCE, EFTConfig, HeadModel, RAda
from rada.methods.registry import register_method

__all__ = ["AdaptedHeadModel", "RAdaAdapter", "RAdaAdapterConfig"]


@dataclass(frozen=True)
class RAdaAdapterConfig(EFTConfig):
    """Configuration of RAda + Adapter: that of the head, and the bottleneck.

    Attributes:
        hidden: Units of each bottleneck.
    """

    hidden: int = 32

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.hidden >= 1, "hidden", "a positive integer")


class Bottleneck(nn.Module):
    """`normalise(x + W2 gelu(W1 x))` with W2 = 0 at the start."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return adapted unit-norm features."""
        return normalize(features + self.up(nn.functional.gelu(self.down(features))), dim=-1)


class AdaptedHeadModel(HeadModel):
    """Two bottlenecks and a head; the strength mixes its logits with the zero-shot ones."""

    def __init__(self, method: Method, facts: Facts, config: RAdaAdapterConfig, *_: object) -> None:
        super().__init__(method, facts, config)
        self.image_adapter = Bottleneck(facts.dim, config.hidden)
        self.text_adapter = Bottleneck(facts.dim, config.hidden)


@dataclass(frozen=True)
class RAdaAdapter(RAda):
    """Starts as zero-shot; trained, and its strength chosen, as the head alone."""

    config: ClassVar[type[Config]] = RAdaAdapterConfig
    model = AdaptedHeadModel


register_method(
    RAdaAdapter(
        "rada_adapter",
        "RAda + Adapter",
        f"{SOURCE}; adapters ours",
        trains="the head and a bottleneck on both features",
    )
)
