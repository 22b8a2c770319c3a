"""Any vision model with any text model, joined by `VisionTextDualEncoderModel`."""

from __future__ import annotations

from typing import Any

from rada.encoders.attention import Part, has_projections
from rada.encoders.families._transformers import TRAINABLE, TransformersEncoder
from rada.encoders.registry import register_family

__all__ = ["VisionTextEncoder"]

_PARTS: tuple[Part, ...] = ("image", "text")


@register_family
class VisionTextEncoder(TransformersEncoder):
    """`VisionTextDualEncoderModel` of transformers.

    Deep prompts for images are not offered: the image encoder may be of any kind.
    """

    family = "vision_text"
    summary = "any vision model with any text model, in transformers"
    model_type = "vision-text-dual-encoder"
    model_class = "VisionTextDualEncoderModel"
    capabilities = TRAINABLE | {
        "learned_scale",
        "token_embeddings",
        "deep_text_prompts",
        "residual_branches",
        "image_attention",
        "image_projection",
    }
    conditional = frozenset({"residual_branches", "image_attention", "text_attention"})
    hub_models = {"clip-italian/clip-italian": (512, None)}  # noqa: RUF012

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        found = {part: has_projections(self.attention_layers(part)) for part in _PARTS}
        lacking = {f"{part}_attention" for part in _PARTS if not found[part]}
        if not all(self.attention_layers(part) for part in _PARTS):
            lacking.add("residual_branches")
        self.capabilities = self.capabilities - lacking
