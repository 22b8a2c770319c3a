"""AltCLIP in transformers: CLIP's image encoder with a multilingual text encoder."""

from __future__ import annotations

from rada.encoders.families._transformers import TRAINABLE, TransformersEncoder
from rada.encoders.registry import register_family

__all__ = ["AltClipEncoder"]


@register_family
class AltClipEncoder(TransformersEncoder):
    """`AltCLIPModel` of transformers (Chen et al., 2022)."""

    family = "altclip"
    summary = "AltCLIP (multilingual) in transformers"
    model_type = "altclip"
    model_class = "AltCLIPModel"
    capabilities = TRAINABLE | {
        "learned_scale",
        "token_embeddings",
        "deep_text_prompts",
        "deep_image_prompts",
        "residual_branches",
        "image_attention",
        "image_projection",
    }
    hub_models = {"BAAI/AltCLIP": (768, 864_186_113)}  # noqa: RUF012
