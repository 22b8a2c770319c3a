"""ProLIP: the last projection of the image encoder, pulled to its pretrained weights.

What the projection gets of the training images is computed once; a step multiplies it by the weights that
learn, so that training costs what methods on features cost.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rada.core.config import Config
from rada.core.errors import ConfigError
from rada.encoders.projection import ImageProjection
from rada.features import Features, extract_features
from rada.methods.base import AdaptedModel, Cost, Facts, Run
from rada.methods.finetune.base import EncoderMethod
from rada.methods.finetune.model import TunedModel
from rada.methods.registry import register_method
from rada.methods.rla import PROLIP_SOURCE, MatrixConfig
from rada.training.feature_loop import Losses, Step, class_logits_loss, train

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["ProLip", "ProLipConfig", "ProLipModel"]


@dataclass(frozen=True)
class ProLipConfig(MatrixConfig):
    """Configuration of ProLIP, as published for work without validation images.

    Attributes:
        wise_alpha: Weight of the tuned projection in the result; below 1 it is averaged with the
            pretrained one (WiSE-FT).
    """

    wise_alpha: float = 1.0
    # What a tuned encoder is asked: neither part of it learns as a whole.
    parts: ClassVar[tuple[str, ...]] = ()
    train_mode: ClassVar[bool] = False

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(0 <= self.wise_alpha <= 1, "wise_alpha", "in [0, 1]")


class Projection(nn.Module):
    """The weights that learn, on what the projection gets of the training images.

    Args:
        start: The pretrained weights.
        before: `(N, V, W)`, as of an encoder's `before_image_projection`.
        scale: The logit scale.
        pull: Weight of the squared distance to the pretrained weights.
    """

    def __init__(self, start: ImageProjection, before: Tensor, scale: float, pull: float) -> None:
        super().__init__()
        self.start, self.before = start, before
        self.scale, self.pull = scale, pull
        self.weight = nn.Parameter(start.weight.float().clone())

    def images(self, before: Tensor) -> Tensor:
        """Return unit-norm features `(..., D)`."""
        width = self.weight.shape[1]
        embeddings = before[..., :width] @ self.weight.T
        if self.start.bias is not None:
            embeddings = embeddings + before[..., width:] * self.start.bias.float()
        return normalize(embeddings, dim=-1)

    def step_loss(self, step: Step) -> Losses:
        """Return cross-entropy plus `pull * |W - W0|^2`."""
        images = self.images(self.before[step.rows, step.views])
        logits = self.scale * images @ step.classes.text_features.T
        distance = (self.weight - self.start.weight.float()).square().sum()
        return class_logits_loss(logits, step.labels, pull=self.pull * distance)


class ProLipModel(TunedModel):
    """An encoder of its own, whose projection of images is the one thing that changes."""

    def __init__(
        self, method: ProLip, facts: Facts, config: Any, encoder: DualEncoder, text: Tensor
    ) -> None:
        super().__init__(method, facts, config, encoder, text)
        self.weight = nn.Parameter(encoder.image_projection().weight.float().clone())

    def load_tuned(self, weights: Mapping[str, Tensor]) -> None:
        """Put the weights of the projection here and into the encoder."""
        super().load_tuned(weights)
        self.encoder.set_image_projection(self.weight)


@dataclass(frozen=True)
class ProLip(EncoderMethod):
    """Starts as zero-shot."""

    config: ClassVar[type[Config]] = ProLipConfig
    trains: str = "the last projection of the image encoder"
    needs: frozenset[str] = frozenset({"encoder", "images", "image_projection"})
    cost: Cost = "features"

    def capabilities(self, config: Any) -> frozenset[str]:
        """Return what the encoder must offer: a projection."""
        return frozenset({"image_projection"})

    def check(self, data: Features, config: Any, run: Run) -> None:
        """Check that there are images: features alone are behind the projection."""
        if data.images is None:
            raise ConfigError(
                f"{self.name} trains the projection inside the image encoder, but there are features "
                "alone: give an encoder and images as data, or take the method 'rla', which learns the "
                "same as a matrix on features"
            )
        super().check(data, config, run)

    def train(
        self, model: AdaptedModel, data: Features, config: ProLipConfig, run: Run
    ) -> AdaptedModel:
        """Train the projection, and put it into the model's encoder."""
        assert isinstance(model, ProLipModel)
        start = model.encoder.image_projection()
        start = ImageProjection(start.weight.clone(), start.bias)
        before = extract_features(
            model.encoder.before_image_projection(),
            data.labelled_images(),
            views=config.views,
            seed=run.seed,
            workers=run.workers,
            cache=False,
            progress=run.progress,
        ).image_features.to(start.weight.device)
        projection = Projection(start, before, model.facts.scale, config.pull_for(data))
        # The loop draws views of what it trains on, so they are the same images.
        with torch.no_grad():
            learned = dataclasses.replace(data, image_features=projection.images(before).cpu())
        recipe = config.recipe(len(data))
        history = train(
            projection,
            projection.step_loss,
            learned,
            recipe,
            run.seed,
            key=[self.name, model.facts.to_dict(), config.to_dict()],
            state_path=run.state_file("state.safetensors"),
            progress=run.progress,
            description=f"Training ({self.title})",
        )
        effective = {"epochs": len(history), "steps": recipe.epochs}
        model.record |= {"history": history, "effective": effective}
        model.load_tuned({"weight": projection.weight.detach()})
        model.keep_average(config.wise_alpha)
        return model

    def _tuned(self, facts: Facts, config: Any, encoder: DualEncoder, text: Tensor) -> TunedModel:
        """Return the model whose projection learns."""
        return ProLipModel(self, facts, config, encoder, text)


register_method(ProLip("prolip", "ProLIP", PROLIP_SOURCE))
