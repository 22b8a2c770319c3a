"""CLIP in transformers."""

from __future__ import annotations

from rada.encoders.families._transformers import TRAINABLE, TransformersEncoder
from rada.encoders.registry import register_family

__all__ = ["ClipEncoder"]


@register_family
class ClipEncoder(TransformersEncoder):
    """`CLIPModel` of transformers (Radford et al., 2021)."""

    family = "clip"
    summary = "CLIP in transformers"
    model_type = "clip"
    model_class = "CLIPModel"
    capabilities = TRAINABLE | {
        "learned_scale",
        "token_embeddings",
        "deep_text_prompts",
        "deep_image_prompts",
        "residual_branches",
        "image_attention",
        "image_projection",
    }
    hub_models = {  # noqa: RUF012
        "openai/clip-vit-base-patch32": (512, 151_277_313),
        "openai/clip-vit-base-patch16": (512, 149_620_737),
        "openai/clip-vit-large-patch14": (768, 427_616_513),
        "openai/clip-vit-large-patch14-336": (768, 427_944_193),
    }
