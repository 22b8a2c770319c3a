"""RAda-FT: encoders and head together."""

from __future__ import annotations

from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from rada.methods.finetune.base import FFTMethod, FirstStage, Losses, weighted
from rada.methods.finetune.model import Batch, TunedModel
from rada.methods.finetune.rada import SOURCE, train_first_head
from rada.methods.finetune.registry import register_fft_method

__all__ = ["HeadAndTowers"]


@dataclass(frozen=True)
class HeadAndTowers(FFTMethod):
    """The head first, on frozen encoders (`head_first`), then head and towers together."""

    def first(self, model: TunedModel, stage: FirstStage) -> None:
        """Train the head, unless everything is to learn together from the start."""
        if model.config.head_first:
            train_first_head(
                model, stage, 1.0
            )  # its strength is chosen once the towers have learned

    def loss(self, model: TunedModel, batch: Batch) -> Losses:
        """Return cross-entropy plus `alpha * mean_b max |M - 1|`."""
        assert model.head is not None
        images = model.image_features(batch.pixels)
        text = model.class_features(batch.classes, batch.template)
        output = model.head(images, text, model.scale())
        return weighted(
            batch,
            output.logits,
            cross_entropy=cross_entropy(output.logits, batch.labels, reduction="none"),
            smoothness=model.config.alpha * output.max_deviation,
        )


register_fft_method(HeadAndTowers("rada_ft", "RAda-FT", SOURCE, has_head=True))
