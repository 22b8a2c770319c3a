"""SigLIP in transformers, whose score has a bias; also the fixed-size checkpoints of SigLIP 2."""

from __future__ import annotations

import string
from functools import cached_property
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from rada.core.errors import EncoderError
from rada.core.storage import read_json
from rada.encoders.families._hf_text import ONE_THREAD
from rada.encoders.families._transformers import TRAINABLE, TransformersEncoder
from rada.encoders.registry import LoadOptions, register_family
from rada.encoders.spec import ModelSpec
from rada.encoders.tokens import Tokens

__all__ = ["SiglipEncoder"]

_LETTERS = (string.ascii_uppercase, string.ascii_lowercase)


@register_family
class SiglipEncoder(TransformersEncoder):
    """`SiglipModel` of transformers (Zhai et al., 2023)."""

    family = "siglip"
    summary = "SigLIP in transformers, and SigLIP 2 of fixed size"
    model_type = "siglip"
    model_class = "SiglipModel"
    padding = "max_length"
    # The image encoder pools over all tokens by attention, so prompts behind the patches would leak in.
    capabilities = TRAINABLE | {
        "learned_scale",
        "logit_bias",
        "token_embeddings",
        "deep_text_prompts",
        "residual_branches",
        "image_attention",
    }
    hub_models = {  # noqa: RUF012
        "google/siglip-base-patch16-224": (768, 203_155_970),
        "google/siglip-so400m-patch14-384": (1152, 877_960_498),
        "google/siglip2-base-patch16-224": (768, 375_187_970),
    }

    @classmethod
    def read_dim(cls, config: dict[str, Any]) -> int:
        """Read the width of the text encoder's projection."""
        text = config.get("text_config") or {}
        return int(text.get("projection_size") or text.get("hidden_size") or 768)

    @classmethod
    def load(cls, spec: ModelSpec, options: LoadOptions) -> TransformersEncoder:
        """Load from a directory, and note where its tokenizer is Gemma's.

        Some versions of transformers open it as the class of all tokenizers, and save it so.
        """
        encoder = super().load(spec, options)
        path = Path(spec.directory or "") / "tokenizer_config.json"
        if path.exists():
            config = read_json(path, error=EncoderError, what="the tokenizer's configuration")
            if str(config.get("tokenizer_class")).startswith("Gemma"):
                encoder.tokenizer.init_kwargs.setdefault("do_lower_case", True)
        return encoder

    @cached_property
    def lower_case(self) -> bool:
        """Whether prompts are put in lower case here, since their tokenizer should but does not.

        SigLIP was trained on lower-case text, and its tokenizers say so (`do_lower_case`); Gemma's
        tokenizer, which SigLIP 2 uses, ignores the word, and older checkpoints lack it.
        """
        usual = type(self.tokenizer).__name__.startswith("Gemma")
        if not self.tokenizer.init_kwargs.get("do_lower_case", usual):
            return False
        with ONE_THREAD:
            ids = [self.tokenizer(text, verbose=False)["input_ids"] for text in _LETTERS]
        return bool(ids[0] != ids[1])

    def tokenize_checked(self, prompts: list[str]) -> tuple[Tokens, list[int]]:
        """Tokenize with the checkpoint's own tokenizer, in lower case where it was trained so."""
        given = [prompt.lower() for prompt in prompts] if self.lower_case else prompts
        return super().tokenize_checked(given)

    def tokenizer_key(self) -> str:
        """Return the tokenizer's own description, and whether prompts are lower-cased before it."""
        return super().tokenizer_key() + ("|lower case" if self.lower_case else "")

    def text_embeddings(self, tokens: Tokens) -> Tensor:
        """Embed tokens; the encoder reads the padding too, as it did in training."""
        outputs = self.model.get_text_features(input_ids=tokens["input_ids"])
        embeddings: Tensor = outputs.pooler_output
        return embeddings

    def learned_bias(self) -> Tensor | None:
        """The bias of the sigmoid."""
        bias: Tensor = self.model.logit_bias
        return bias

    def scale_parameters(self) -> list[nn.Parameter]:
        """The logarithm of the scale, and the bias."""
        return [self.model.logit_scale, self.model.logit_bias]

    def image_parts(self) -> list[nn.Module]:
        """The image encoder; there is no projection."""
        return [self.model.vision_model]

    def text_parts(self) -> list[nn.Module]:
        """The text encoder, its projection inside."""
        return [self.model.text_model]
