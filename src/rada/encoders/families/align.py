"""ALIGN in transformers: EfficientNet and BERT, with a learned temperature."""

from __future__ import annotations

from torch import Tensor, nn

from rada.encoders.families._transformers import TRAINABLE, TransformersEncoder
from rada.encoders.registry import register_family

__all__ = ["AlignEncoder"]


@register_family
class AlignEncoder(TransformersEncoder):
    """`AlignModel` of transformers (Jia et al., 2021)."""

    family = "align"
    summary = "ALIGN in transformers"
    model_type = "align"
    model_class = "AlignModel"
    capabilities = TRAINABLE | {"learned_scale", "token_embeddings", "deep_text_prompts"}
    hub_models = {"kakaobrain/align-base": (640, 172_117_841)}  # noqa: RUF012

    def learned_scale(self) -> Tensor | None:
        """One over the learned temperature, which the model divides by."""
        scale: Tensor = 1.0 / self.model.temperature
        return scale

    def scale_parameters(self) -> list[nn.Parameter]:
        """The temperature."""
        return [self.model.temperature]

    def image_parts(self) -> list[nn.Module]:
        """The EfficientNet; there is no projection."""
        return [self.model.vision_model]

    def image_layers(self) -> list[nn.Module]:
        """Return none: a convolutional network has no tokens."""
        return []
