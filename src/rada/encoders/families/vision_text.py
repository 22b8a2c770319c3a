"""Any vision model with any text model, joined by `VisionTextDualEncoderModel`."""

from __future__ import annotations

from rada.encoders.families._transformers import TRAINABLE, TransformersEncoder
from rada.encoders.registry import register_family

__all__ = ["VisionTextEncoder"]


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
        "image_projection",
    }
    hub_models = {"clip-italian/clip-italian": (512, None)}  # noqa: RUF012
