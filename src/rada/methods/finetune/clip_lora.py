"""CLIP-LoRA: low-rank changes of queries, keys and values in all layers of both encoders.

The library peft makes them and adds them to the weights at the end, so that what is saved is a plain encoder,
which is read without peft.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rada.core.config import Config
from rada.core.extras import needed_for
from rada.core.randomness import seeded
from rada.features import Features
from rada.methods.base import AdaptedModel, Run
from rada.methods.finetune.base import EncoderConfig, EncoderMethod
from rada.methods.finetune.model import TunedModel
from rada.methods.registry import register_method

if TYPE_CHECKING:
    from rada.encoders import DualEncoder
    from rada.methods.base import Facts

__all__ = ["ClipLora", "ClipLoraConfig", "ClipLoraModel"]

_MOST_SHOTS = 16


@dataclass(frozen=True)
class ClipLoraConfig(EncoderConfig):
    """Configuration of CLIP-LoRA, as published.

    Attributes:
        epochs: Passes over the training images; 0 for `steps_per_shot` steps for each image of a class.
        steps_per_shot: Steps for each image of the largest class, of which 16 count at most, as many as
            were published.
        rank: Rank of the change of one matrix.
        alpha: The change is multiplied by `alpha / sqrt(rank)`.
        dropout: Dropout before the change.
    """

    epochs: int = 0
    learning_rate: float = 2e-4
    weight_decay: float = 0.01
    warmup: float = 0.0
    final_learning_rate: float = 1e-6
    max_grad_norm: float = 0.0
    crop_scale: tuple[float, ...] | None = None
    steps_per_shot: int = 500
    rank: int = 2
    alpha: float = 1.0
    dropout: float = 0.25

    least_epochs: ClassVar[int] = 0

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        for name in ("steps_per_shot", "rank"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        self.require(self.alpha > 0, "alpha", "above 0")
        self.require(0 <= self.dropout < 1, "dropout", "in [0, 1)")

    def steps(self, data: Features) -> int:
        """Return the steps of a run on some data."""
        if self.epochs:
            return self.epochs * -(-len(data) // self.batch_size)
        most = int(torch.bincount(data.labels.cpu()).max())
        return self.steps_per_shot * min(most, _MOST_SHOTS)


class ClipLoraModel(TunedModel):
    """An encoder of its own, with low-rank changes beside its weights while it learns."""

    config: ClipLoraConfig
    _adapters: Any = None
    _start: dict[str, Tensor]

    def _choose_parameters(self) -> None:
        self.encoder.freeze()

    def insert(self) -> None:
        """Put the low-rank changes, zero yet, into the encoder; they alone learn."""
        with needed_for("CLIP-LoRA"):
            from peft import LoraConfig, LoraModel

        config, encoder = self.config, self.encoder
        self._start = {
            f"encoder_module.{name}": weight.cpu().clone()
            for part in config.parts
            for name, weight in encoder.attention_weights(part).items()
        }
        lora = LoraConfig(
            r=config.rank,
            lora_alpha=config.alpha,  # type: ignore[arg-type]  # any number will do
            lora_dropout=config.dropout,
            target_modules=[name for part in config.parts for name in encoder.open_attention(part)],
            use_rslora=True,  # alpha / sqrt(rank), as in CLIP-LoRA's code
        )
        # Not a part of this module: its weights are in the encoder.
        adapters = LoraModel(self.encoder_module, lora, "default")
        object.__setattr__(self, "_adapters", adapters)

    def training_mode(self) -> None:
        """Set the modes of training: the dropout before the changes is active."""
        super().training_mode()
        for name, module in self.encoder_module.named_modules():
            if "lora_dropout" in name.split("."):
                module.train()

    def keep_average(self, alpha: float) -> None:
        """Add the changes to the weights, then average these with the pretrained ones (WiSE-FT)."""
        self.record["adapter_parameters"] = super().trainable_parameters()
        self._adapters.merge_and_unload()
        object.__setattr__(self, "_adapters", None)
        self.encoder.close_attention()
        self.encoder.freeze()
        self.pretrained = self._start
        super().keep_average(alpha)

    def trainable_parameters(self) -> int:
        """Return how many numbers were learned, before they became a part of the encoder's."""
        return int(self.record.get("adapter_parameters", super().trainable_parameters()))


@dataclass(frozen=True)
class ClipLora(EncoderMethod):
    """Starts as zero-shot: the second factor of every change is zero."""

    extra: ClassVar[str | None] = "finetune"  # peft
    config: ClassVar[type[Config]] = ClipLoraConfig
    trains: str = "low-rank changes of queries, keys and values of both encoders"

    def capabilities(self, config: Any) -> frozenset[str]:
        """Return what the encoder must offer: gradients and attention of the parts that learn."""
        attention = {f"{part}_attention" for part in config.parts}
        return super().capabilities(config) | attention

    def start(self, data: Features, config: Any, run: Run) -> TunedModel:
        """Return the zero-shot model, with an encoder of its own and changes that are zero."""
        model = super().start(data, config, run)
        assert isinstance(model, ClipLoraModel)
        with seeded(run.seed):
            model.insert()
        model.keep_pretrained()
        return model

    def train(
        self, model: AdaptedModel, data: Features, config: ClipLoraConfig, run: Run
    ) -> AdaptedModel:
        """Train the changes for the published number of steps, and add them to the weights."""
        assert isinstance(model, TunedModel)
        return self.tune(model, data, config, run, config.steps(data))

    def _tuned(self, facts: Facts, config: Any, encoder: DualEncoder, text: Tensor) -> TunedModel:
        """Return a model around an encoder, without changes yet or with those of a file in it."""
        return ClipLoraModel(self, facts, config, encoder, text)


register_method(
    ClipLora(
        "clip_lora",
        "CLIP-LoRA",
        "Zanella and Ben Ayed, Low-Rank Few-Shot Adaptation of Vision-Language Models, CVPR Workshops 2024",
    )
)
