"""PromptSRC: tokens in the layers of both encoders, held near what the frozen encoders say."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, kl_div

from rada.core.config import Config
from rada.data.templates import PROMPTSRC_TEMPLATES
from rada.encoders.inserts import Inserts, layer_width
from rada.features import Features
from rada.methods.base import Run, Shapes
from rada.methods.finetune.base import Scored
from rada.methods.finetune.inserted import (
    DeepPromptConfig,
    DeepPromptMethod,
    DeepPrompts,
    InsertedModel,
    PromptedModel,
    first_vectors,
    prompt_depth,
)
from rada.methods.finetune.model import TunedModel
from rada.methods.registry import register_method
from rada.training.batches import Batch

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["PROMPTSRC", "PromptSRC", "PromptSRCConfig", "PromptSRCModel", "epoch_weights"]

_AVERAGE = "average."


@dataclass(frozen=True)
class PromptSRCConfig(DeepPromptConfig):
    """Configuration of PromptSRC, that of its base-to-new experiments.

    Attributes:
        text_length: Tokens in each layer of the text encoder.
        image_length: Tokens in each layer of the image encoder.
        text_weight: Weight of the distance to the frozen class features.
        image_weight: Weight of the distance to the frozen image features.
        average_mean: The epoch, from 1, at which the average of the tokens over the epochs has its largest
            weight.
        average_deviation: Standard deviation of that Gaussian, in epochs.
    """

    epochs: int = 20
    learning_rate: float = 2.5e-3
    text_length: int = 4
    image_length: int = 4
    text_weight: float = 25.0
    image_weight: float = 10.0
    average_mean: float = 15.0
    average_deviation: float = 1.0

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        for name in ("text_length", "image_length"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        for name in ("text_weight", "image_weight"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        self.require(self.average_deviation > 0, "average_deviation", "above 0")


def epoch_weights(config: PromptSRCConfig, epochs: int) -> list[float]:
    """Return the weight of each epoch in the average, which sum to one.

    Example:
        >>> [round(w, 3) for w in epoch_weights(PromptSRCConfig(average_mean=2.0), 3)]
        [0.274, 0.452, 0.274]
    """
    mean, deviation = config.average_mean, config.average_deviation
    found = [-0.5 * ((epoch - mean) / deviation) ** 2 for epoch in range(1, epochs + 1)]
    parts = [math.exp(value - max(found)) for value in found]  # far from the mean all would be zero
    return [part / sum(parts) for part in parts]


class IndependentPrompts(DeepPrompts):
    """Tokens of each encoder by themselves.

    Args:
        context: `(n, E)`, the tokens of the text encoder's first layer.
        image_shape: `(m, W)` of those of the image encoder.
        depth: Layers with tokens.
    """

    def __init__(self, context: Tensor, image_shape: tuple[int, int], depth: int) -> None:
        super().__init__()
        self.context = nn.Parameter(context)
        self.text = nn.ParameterList(torch.empty_like(context) for _ in range(depth - 1))
        self.image = nn.ParameterList(torch.empty(image_shape) for _ in range(depth))
        for tokens in (*self.text, *self.image):
            nn.init.normal_(tokens, std=0.02)

    def text_vectors(self) -> list[Tensor]:
        """Return the tokens of the text encoder's layers."""
        return [self.context, *self.text]

    def image_vectors(self) -> list[Tensor]:
        """Return the tokens of the image encoder's layers."""
        return list(self.image)


class PromptSRCModel(PromptedModel):
    """Tokens that learn, their average over the epochs, and what the frozen encoder says of the classes.

    Attributes:
        average: The weighted sum of the tokens over the epochs so far; None in a model that only predicts.
        written: `(K, D)`, the mean of many hand-written prompts by the frozen encoder.
    """

    config: PromptSRCConfig
    written: Tensor

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.average: nn.Module | None = None

    def prepare_training(self) -> None:
        """Make what training needs: the frozen class features and the average."""
        with self.plain_encoder() as frozen:
            written = frozen.encode_classes(self.facts.classes, PROMPTSRC_TEMPLATES)
        self.register_buffer("written", written.to(self.text), persistent=False)
        self.average = copy.deepcopy(self.inserts).requires_grad_(False)
        for total in self.average.parameters():
            total.zero_()

    @torch.no_grad()
    def end_epoch(self, weight: float) -> None:
        """Add the tokens to the average."""
        assert self.average is not None
        for total, tokens in zip(self.average.parameters(), self.inserts.parameters(), strict=True):
            total.add_(tokens, alpha=weight)

    def keep_average(self, alpha: float) -> None:
        """Take the average over the epochs, unless the best epoch was chosen; then WiSE-FT's."""
        if self.average is not None and self.config.select == "last":
            self.inserts.load_state_dict(self.average.state_dict())
        super().keep_average(alpha)

    def own_state(self) -> dict[str, Tensor]:
        """Return the weights to save: not the sum that training needed."""
        state = super().own_state()
        return {name: value for name, value in state.items() if not name.startswith(_AVERAGE)}

    def frozen_features(self, pixels: Tensor) -> Tensor:
        """Return features `(n, D)` of images by the encoder without tokens."""
        with torch.no_grad(), self.plain_encoder() as frozen:
            return frozen.forward_images(pixels)


@dataclass(frozen=True)
class PromptSRC(DeepPromptMethod):
    """Starts at "a photo of a NAME." with random tokens in the deeper layers and beside the patches."""

    config: ClassVar[type[Config]] = PromptSRCConfig
    trains: str = "tokens in the layers of both encoders"
    tuned_model: ClassVar[type[InsertedModel]] = PromptSRCModel

    def inserts(self, config: Any, encoder: DualEncoder, shapes: Shapes) -> Inserts:
        """Return the tokens before training."""
        context = first_vectors(config, config.text_length, encoder, shapes, "inserts.context")
        width = layer_width(encoder.image_layers()[0])
        shape = (config.image_length, width)
        return IndependentPrompts(context, shape, prompt_depth(config, encoder))

    def start(self, data: Features, config: Any, run: Run) -> TunedModel:
        """Return the model before training, with what training needs."""
        model = super().start(data, config, run)
        assert isinstance(model, PromptSRCModel)
        model.prepare_training()
        model.keep_pretrained()
        return model

    def end_epoch(self, model: TunedModel, done: int, epochs: int) -> None:
        """Add the tokens of an epoch to their average."""
        assert isinstance(model, PromptSRCModel)
        model.end_epoch(epoch_weights(model.config, epochs)[done - 1])

    def scored(self, model: TunedModel, batch: Batch) -> Scored:
        """Return cross-entropy, the distances to the frozen features, and the divergence of the logits."""
        assert isinstance(model, PromptSRCModel)
        config = model.config
        images, frozen = model.image_features(batch.pixels), model.frozen_features(batch.pixels)
        text, written = model.class_features(batch.classes), model.written
        if batch.classes is not None:
            written = written[batch.classes]
        logits = model.scale() * images @ text.T
        teacher = model.scale() * frozen @ written.T
        far = (text - written).abs().mean().expand(len(images))
        divergence = kl_div(
            logits.log_softmax(1), teacher.log_softmax(1), reduction="none", log_target=True
        )
        losses = {
            "cross_entropy": cross_entropy(logits, batch.labels, reduction="none"),
            "text_distance": config.text_weight * far,
            "image_distance": config.image_weight * (images - frozen).abs().mean(1),
            "divergence": divergence.mean(1),
        }
        return Scored(images, text, logits, losses)


PROMPTSRC = PromptSRC(
    "promptsrc",
    "PromptSRC",
    "Khattak et al., Self-regulating Prompts: Foundational Model Adaptation without Forgetting, ICCV 2023",
)
register_method(PROMPTSRC)
