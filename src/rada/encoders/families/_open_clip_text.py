"""Texts of open_clip's models: tokenizers, and plain CLIP's text encoder as one module."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import nn

from rada.encoders.families._hf_text import ONE_THREAD, tokenizer_key
from rada.encoders.tokens import Tokens

__all__ = ["TextParts", "tokenize_open_clip", "tokenizer_state"]


class TextParts(nn.Module):
    """The pieces of the text encoder that open_clip's plain `CLIP` keeps beside the image encoder.

    The pieces are shared, not copied.
    """

    def __init__(self, model: Any) -> None:
        super().__init__()
        self.transformer = model.transformer
        self.token_embedding = model.token_embedding
        self.positional_embedding = model.positional_embedding
        self.ln_final = model.ln_final
        self.text_projection = model.text_projection


def tokenize_open_clip(tokenizer: Any, prompts: list[str]) -> tuple[Tokens, list[int]]:
    """Tokenize prompts to rows of the model's length and say which of them were cut."""
    with ONE_THREAD:
        ids = tokenizer(prompts)
        lengths = torch.tensor([_length(tokenizer, prompt) for prompt in prompts])
    width = ids.shape[1]
    cut = [index for index, length in enumerate(lengths.tolist()) if length > width]
    mask = (torch.arange(width) < lengths[:, None]).long()
    return {"input_ids": ids, "attention_mask": mask}, cut


def _length(tokenizer: Any, prompt: str) -> int:
    """Return how many tokens a prompt has before it is cut or padded, marks included."""
    inner = getattr(tokenizer, "tokenizer", None)
    if inner is None:
        return len(tokenizer.encode(prompt)) + 2
    cleaned = getattr(tokenizer, "clean_fn", str)(prompt)
    return len(inner(cleaned, truncation=False, verbose=False)["input_ids"])


def tokenizer_state(tokenizer: Any) -> str:
    """Return a text that changes with anything that changes the tokens."""
    inner = getattr(tokenizer, "tokenizer", None)
    length = int(tokenizer.context_length)
    clean = getattr(getattr(tokenizer, "clean_fn", None), "__qualname__", "")
    if inner is not None:
        return tokenizer_key(inner, length) + clean
    return json.dumps([sorted(tokenizer.encoder.items()), length, clean])
