"""DePT on prompts in the layers of both encoders: those of MaPLe, and those of PromptSRC."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from rada.core.config import Config
from rada.features import ClassSet
from rada.methods.dept import DEPT_SOURCE, DecoupledConfig, DecoupledHead
from rada.methods.finetune.base import EncoderMethod, Scored
from rada.methods.finetune.inserted import InsertedModel, PromptedModel
from rada.methods.finetune.maple import MaPLe, MaPLeConfig
from rada.methods.finetune.model import TunedModel
from rada.methods.finetune.promptsrc import PromptSRC, PromptSRCConfig, PromptSRCModel
from rada.methods.prior_probe import trained_rows
from rada.methods.registry import register_method
from rada.training.batches import Batch

__all__ = ["DePTMaPLe", "DePTMaPLeConfig", "DePTPromptSRC", "DePTPromptSRCConfig"]


@dataclass(frozen=True)
class DePTMaPLeConfig(DecoupledConfig, MaPLeConfig):
    """Configuration of DePT on MaPLe, as published."""

    epochs: int = 10


@dataclass(frozen=True)
class DePTPromptSRCConfig(DecoupledConfig, PromptSRCConfig):
    """Configuration of DePT on PromptSRC: PromptSRC's own, and DePT's probe."""


class DecoupledPromptedModel(PromptedModel):
    """Tokens in the layers of both encoders, and a probe beside them for the trained classes.

    Attributes:
        decoupled: The probe.
    """

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        assert isinstance(self.config, DecoupledConfig)
        self.decoupled = DecoupledHead(self.facts.dim, len(self.facts.classes), self.config)

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return what learns, with peak rates: the tokens', and the probe's."""
        assert isinstance(self.config, DecoupledConfig)
        tokens = [*self.inserts.parameters()]
        return self.decoupled.parameter_groups(tokens, self.config.learning_rate)

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return probe plus prompts among trained classes, else the prompts' `scale * cosine`."""
        host = self._cosines(images, classes)
        return self.decoupled.fused(images, host, trained_rows(classes, self.facts, images.device))


class DecoupledPromptSRCModel(DecoupledPromptedModel, PromptSRCModel):
    """The same with PromptSRC's average of the tokens over the epochs; the probe is not averaged."""


def _with_probe(model: TunedModel, batch: Batch, found: Scored) -> Scored:
    """Return what a step computes, its cross-entropy shared with the probe's."""
    assert isinstance(model, DecoupledPromptedModel)
    head, rows = model.decoupled, batch.classes
    if rows is None:
        rows = torch.arange(len(found.text), device=batch.labels.device)
    probe = head.losses(found.images, found.text, batch.labels, rows)
    entropy = (1 - head.weight) * found.losses["cross_entropy"]
    losses = found.losses | {"cross_entropy": entropy, "probe": head.weight * probe}
    return found._replace(losses=losses)


@dataclass(frozen=True)
class DePTMaPLe(MaPLe):
    """Starts as MaPLe, beside a probe of random weights."""

    config: ClassVar[type[Config]] = DePTMaPLeConfig
    trains: str = "tokens in the layers of both encoders, and a probe of both features"
    tuned_model: ClassVar[type[InsertedModel]] = DecoupledPromptedModel

    def scored(self, model: TunedModel, batch: Batch) -> Scored:
        """Return MaPLe's logits and losses, the probe's among them."""
        return _with_probe(model, batch, EncoderMethod.scored(self, model, batch))


@dataclass(frozen=True)
class DePTPromptSRC(PromptSRC):
    """Starts as PromptSRC, beside a probe of random weights."""

    config: ClassVar[type[Config]] = DePTPromptSRCConfig
    trains: str = "tokens in the layers of both encoders, and a probe of both features"
    tuned_model: ClassVar[type[InsertedModel]] = DecoupledPromptSRCModel

    def scored(self, model: TunedModel, batch: Batch) -> Scored:
        """Return PromptSRC's logits and losses, the probe's among them."""
        return _with_probe(model, batch, PromptSRC.scored(self, model, batch))


register_method(DePTMaPLe("dept_maple", "DePT + MaPLe", DEPT_SOURCE))
register_method(
    DePTPromptSRC(
        "dept_promptsrc",
        "DePT + PromptSRC",
        f"{DEPT_SOURCE}; epochs and rate are those of PromptSRC",
    )
)
