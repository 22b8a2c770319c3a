"""MMRL: tokens of one shared space in the upper layers of both encoders, and a second image feature of them.

The class token keeps its frozen projection, and its feature serves every class. What the last layer makes of
the tokens of an image gets a projection that learns; this second feature serves the trained classes alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from rada.core.config import Config
from rada.encoders.inserts import Inserts, layer_width
from rada.features import ClassSet
from rada.methods.base import Shapes
from rada.methods.finetune.base import Scored
from rada.methods.finetune.inserted import InsertConfig, InsertedModel, InsertMethod, copies
from rada.methods.finetune.model import TunedModel
from rada.methods.prior_probe import trained_rows
from rada.methods.registry import register_method
from rada.training.batches import Batch

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["MMRL", "MMRLConfig", "MMRLModel", "RepresentationTokens"]


@dataclass(frozen=True)
class MMRLConfig(InsertConfig):
    """Configuration of MMRL, that of its base-to-new experiments.

    Attributes:
        layers: Layers with tokens, counted from the last: 7 are 6 to 12 of a ViT-B. Of encoders with
            fewer, all have them.
        length: Tokens in each layer.
        space: Width of the shared space that they come from.
        class_share: Weight of the class token's feature in loss and predictions, in [0, 1]; the rest is
            that of the tokens' feature.
        pull: Weight of the distances, one minus the cosine, to the frozen features of images and classes.
    """

    epochs: int = 10
    batch_size: int = 4
    learning_rate: float = 1e-3
    optimizer: Literal["adamw", "sgd"] = "adamw"
    layers: int = 7
    length: int = 5
    space: int = 512
    class_share: float = 0.7
    pull: float = 1.0

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        for name in ("layers", "length", "space"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        self.require(0 <= self.class_share <= 1, "class_share", "in [0, 1]")
        self.require(self.pull >= 0, "pull", "0 or more")


class RepresentationTokens(Inserts):
    """Tokens of a shared space, mapped into the last layers of both encoders.

    With them an image has two features side by side, the class token's and the tokens' own, and a class its
    one beside zeros; both pairs have unit norm.

    Args:
        config: Number and width of the tokens.
        count: Layers with tokens, counted from the last.
        widths: Of the layers of the image and of the text encoder.
        dim: Width D of the features.
    """

    def __init__(self, config: MMRLConfig, count: int, widths: tuple[int, int], dim: int) -> None:
        super().__init__()
        self.tokens = nn.Parameter(torch.empty(config.length, config.space))
        nn.init.normal_(self.tokens, std=0.02)
        self.image, self.text = (copies(nn.Linear(config.space, w), count) for w in widths)
        self.projection = nn.Parameter(torch.empty(widths[0], dim))
        nn.init.normal_(self.projection, std=1 / math.sqrt(widths[0]))
        self._seen: list[Tensor] = []

    @contextmanager
    def in_images(self, encoder: DualEncoder) -> Iterator[None]:
        """Put the tokens behind the class token while the block runs."""
        mapped = [layer(self.tokens) for layer in self.image]
        try:
            with encoder.inserted_tokens("image", mapped) as self._seen:
                yield
        finally:
            self._seen = []

    @contextmanager
    def in_texts(self, encoder: DualEncoder) -> Iterator[None]:
        """Put the tokens behind the start mark while the block runs."""
        mapped = [layer(self.tokens) for layer in self.text]
        with encoder.inserted_tokens("text", mapped):
            yield

    def width(self, dim: int) -> int:
        """Return the width of two features side by side."""
        return 2 * dim

    def image_features(self, encoder: DualEncoder, features: Tensor) -> Tensor:
        """Return `(B, 2 D)`: features of class token and tokens, side by side, of unit norm together."""
        found = encoder.image_output_norm()(self._seen[-1]).mean(1)
        own = normalize(found.to(self.projection) @ self.projection, dim=-1)
        return torch.cat([features, own.to(features)], -1) / math.sqrt(2)

    def text_features(self, encoder: DualEncoder, features: Tensor) -> Tensor:
        """Return `(K, 2 D)`: the features beside zeros."""
        return torch.cat([features, torch.zeros_like(features)], -1)


class MMRLModel(InsertedModel):
    """Frozen encoders with tokens in their upper layers, and two features of an image."""

    config: MMRLConfig

    def halves(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Return the class token's features and those of the tokens, `(B, D)` both, unit-norm."""
        first, second = (math.sqrt(2) * images).chunk(2, dim=-1)
        return first, second

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the logits of both features among trained classes, else of the class token's alone."""
        logits = self._cosines(images, classes)
        if trained_rows(classes, self.facts, images.device) is None:
            return logits
        share = self.config.class_share
        return share * logits + (1 - share) * self._by_half(images, classes, 1)

    def _cosines(self, images: Tensor, classes: ClassSet) -> Tensor:
        return self._by_half(images, classes, 0)

    def _by_half(self, images: Tensor, classes: ClassSet, half: int) -> Tensor:
        rows = self.halves(images.to(self.text.device))[half]
        text = classes.text_features.to(rows)[:, : rows.shape[1]]
        return (self.scale() * rows @ text.T).float().to(images.device)


@dataclass(frozen=True)
class MMRL(InsertMethod):
    """Starts at the class set's own prompts, with random tokens and a random projection."""

    config: ClassVar[type[Config]] = MMRLConfig
    trains: str = "tokens in the upper layers of both encoders, and a projection of theirs"
    needs: frozenset[str] = frozenset(
        {"encoder", "images", "deep_text_prompts", "deep_image_prompts", "image_projection"}
    )
    tuned_model: ClassVar[type[InsertedModel]] = MMRLModel

    def inserts(self, config: Any, encoder: DualEncoder, shapes: Shapes) -> Inserts:
        """Return the tokens before training."""
        image, text = encoder.image_layers(), encoder.text_layers()
        widths = (layer_width(image[0]), layer_width(text[0]))
        count = min(config.layers, len(image), len(text))
        return RepresentationTokens(config, count, widths, encoder.dim)

    def scored(self, model: TunedModel, batch: Batch) -> Scored:
        """Return cross-entropies of both features, and the distances to the frozen features."""
        assert isinstance(model, MMRLModel)
        config, wide = model.config, model.image_features(batch.pixels)
        images, own = model.halves(wide)
        text = model.class_features(batch.classes, batch.template)[:, : images.shape[1]]
        written = model.text if batch.classes is None else model.text[batch.classes]
        with torch.no_grad(), model.plain_encoder() as frozen:
            plain = frozen.forward_images(batch.pixels)
        logits, of_tokens = (model.scale() * rows @ text.T for rows in (images, own))
        share = config.class_share
        entropies = [cross_entropy(x, batch.labels, reduction="none") for x in (logits, of_tokens)]
        far = (1 - (text * written).sum(-1)).mean().expand(len(images))
        losses = {
            "cross_entropy": share * entropies[0],
            "token_cross_entropy": (1 - share) * entropies[1],
            "image_distance": config.pull * (1 - (images * plain).sum(-1)),
            "text_distance": config.pull * far,
        }
        return Scored(wide, text, share * logits + (1 - share) * of_tokens, losses)


register_method(
    MMRL(
        "mmrl",
        "MMRL",
        "Guo and Gu, MMRL: Multi-Modal Representation Learning for Vision-Language Models, CVPR 2025",
    )
)
