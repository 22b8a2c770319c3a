"""FLYP: fine-tune as the model was pretrained, by contrasting images with captions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor

from rada.core.config import Config
from rada.core.processes import gather_with_gradient, process_rank
from rada.data.prompts import DEFAULT_TEMPLATE
from rada.data.templates import IMAGENET_TEMPLATES
from rada.methods.finetune.base import EncoderConfig, EncoderMethod, weighted
from rada.methods.finetune.model import TunedModel
from rada.methods.registry import register_method
from rada.training.batches import Batch
from rada.training.feature_loop import Losses

__all__ = ["FLYP", "FLYPConfig", "contrast"]


@dataclass(frozen=True)
class FLYPConfig(EncoderConfig):
    """Configuration of FLYP; rate and decay are those of its code.

    Attributes:
        same_class: "negatives" counts other captions of the same class as wrong, as published;
            "positives" shares the target among them.
    """

    learning_rate: float = 1e-5
    same_class: Literal["negatives", "positives"] = "negatives"


def contrast(logits: Tensor, targets: Tensor, known: Tensor) -> Tensor:
    """Return the cross-entropy `(n,)` of rows against soft targets, over the known columns.

    Args:
        logits: `(n, m)`.
        targets: `(n, m)`, rows that sum to one.
        known: `(m,)`; columns that are False do not exist.

    Example:
        >>> targets, known = torch.tensor([[1.0, 0.0]]), torch.tensor([True, True])
        >>> round(contrast(torch.zeros(1, 2), targets, known).item(), 4)
        0.6931
    """
    chances = logits.masked_fill(~known, -torch.inf).log_softmax(-1)
    return -(targets * chances.masked_fill(~known, 0.0)).sum(-1)


@dataclass(frozen=True)
class FLYP(EncoderMethod):
    """Contrastive fine-tuning of encoder and scale; the classifier is the text encoder's."""

    config: ClassVar[type[Config]] = FLYPConfig
    shards: ClassVar[bool] = True
    trains: str = "the encoder and the scale"
    captions: bool = True
    learns_scale: bool = True

    def templates(self, found: tuple[str, ...]) -> tuple[str, ...]:
        """Return OpenAI's 80 templates, as published, unless the data set has templates of its own."""
        if found != (DEFAULT_TEMPLATE,):
            return found
        return IMAGENET_TEMPLATES

    def loss(self, model: TunedModel, batch: Batch) -> Losses:
        """Return the symmetric contrastive loss over the images of all processes."""
        assert isinstance(model.config, FLYPConfig)
        images = model.image_features(batch.pixels)
        texts = model.caption_features(batch.captions)
        scale = model.scale()
        all_images, all_texts = gather_with_gradient(images), gather_with_gradient(texts)
        labels = gather_with_gradient(batch.labels)
        known = gather_with_gradient(batch.weights) > 0
        own = torch.arange(len(images), device=labels.device) + process_rank() * len(images)
        targets = torch.zeros(len(images), len(labels), device=labels.device)
        targets[torch.arange(len(images)), own] = 1.0
        if model.config.same_class == "positives":
            same = (batch.labels[:, None] == labels) & known
            targets = same / same.sum(1, keepdim=True).clamp(min=1)
        logits = scale * images @ all_texts.T
        back = scale * texts @ all_images.T
        losses = (contrast(logits, targets, known) + contrast(back, targets, known)) / 2
        found = weighted(batch, contrastive=losses)
        best = labels[logits.detach().masked_fill(~known, -torch.inf).argmax(1)]
        hits = (best == batch.labels).to(batch.weights.dtype)
        return found | {"accuracy": (hits * batch.weights).sum() / batch.count}


register_method(
    FLYP(
        "flyp",
        "FLYP",
        "Goyal et al., Finetune like you pretrain, CVPR 2023: AdamW 1e-5, weight decay 0.1, captions "
        "from 80 templates; clipping and the warm-up's part are this library's",
    )
)
