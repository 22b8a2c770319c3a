"""Chinese-CLIP in transformers."""

from __future__ import annotations

from rada.encoders.families._transformers import TRAINABLE, TransformersEncoder
from rada.encoders.registry import register_family

__all__ = ["ChineseClipEncoder"]


@register_family
class ChineseClipEncoder(TransformersEncoder):
    """`ChineseCLIPModel` of transformers (Yang et al., 2022)."""

    family = "chinese_clip"
    summary = "Chinese-CLIP in transformers"
    model_type = "chinese_clip"
    model_class = "ChineseCLIPModel"
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
        "OFA-Sys/chinese-clip-vit-base-patch16": (512, 188_262_913),
    }
