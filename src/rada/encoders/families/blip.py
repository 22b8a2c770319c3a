"""BLIP's retrieval model in transformers: the two encoders before their fusion."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor, nn

from rada.encoders.families._transformers import TRAINABLE, TransformersEncoder
from rada.encoders.registry import register_family
from rada.encoders.tokens import Tokens

__all__ = ["BlipEncoder"]


@register_family
class BlipEncoder(TransformersEncoder):
    """`BlipForImageTextRetrieval` of transformers (Li et al., 2022), by its contrastive projections.

    The checkpoints hold no temperature; the default scale is that which BLIP's training started
    from, 1 / 0.07.
    """

    family = "blip"
    summary = "BLIP's retrieval model in transformers (contrastive projections)"
    model_type = "blip"
    model_class = "BlipForImageTextRetrieval"
    default_scale: ClassVar[float] = 1 / 0.07
    capabilities = TRAINABLE | {
        "token_embeddings",
        "deep_text_prompts",
        "deep_image_prompts",
        "residual_branches",
        "image_attention",
        "image_projection",
    }
    hub_models = {"Salesforce/blip-itm-base-coco": (256, 223_744_258)}  # noqa: RUF012

    @classmethod
    def read_dim(cls, config: dict[str, Any]) -> int:
        """Read the width of the contrastive projections."""
        return int(config["image_text_hidden_size"])

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Project the image encoder's first token."""
        hidden = self.model.vision_model(pixel_values=pixels).last_hidden_state
        embeddings: Tensor = self.model.vision_proj(hidden[:, 0])
        return embeddings

    def text_embeddings(self, tokens: Tokens) -> Tensor:
        """Project the text encoder's first token; no image is attended to."""
        hidden = self.model.text_encoder(**tokens).last_hidden_state
        embeddings: Tensor = self.model.text_proj(hidden[:, 0])
        return embeddings

    def learned_scale(self) -> Tensor | None:
        """Return none: the checkpoints hold no scale."""
        return None

    def scale_parameters(self) -> list[nn.Parameter]:
        """Return none: the checkpoints hold no scale."""
        return []

    def image_parts(self) -> list[nn.Module]:
        """Encoder and contrastive projection."""
        return [self.model.vision_model, self.model.vision_proj]

    def image_projection_slot(self) -> tuple[nn.Module, str]:
        """The contrastive projection."""
        return self.model, "vision_proj"

    def text_parts(self) -> list[nn.Module]:
        """Encoder and contrastive projection."""
        return [self.model.text_encoder, self.model.text_proj]
