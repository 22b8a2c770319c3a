"""Texts of open_clip's models: tokenizers, and plain CLIP's text encoder as one module."""

from __future__ import annotations

import json
from typing import Any

import torch
from torch import Tensor, nn

from rada.core.extras import needed_for
from rada.encoders.families._hf_text import ONE_THREAD, tokenizer_key
from rada.encoders.tokens import Tokens

__all__ = [
    "TextParts",
    "embed_rows",
    "read_places",
    "stops_at_end_mark",
    "tokenize_open_clip",
    "tokenizer_state",
]


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


def _text_owner(model: Any) -> Any:
    """Return what holds the pieces of the text transformer: the model itself where it is plain CLIP."""
    return model if hasattr(model, "text_pool_type") else getattr(model, "text", None)


def stops_at_end_mark(model: Any) -> bool:
    """Whether no token behind a prompt's end mark can change its embedding.

    That is so where no token looks ahead and the result is read from the end mark, as in CLIP: padding,
    most of the 77 tokens of a usual prompt, need not be computed. SigLIP reads the last token, CoCa adds
    one.
    """
    with needed_for("a model of open_clip"):
        from open_clip.transformer import TextTransformer

    owner = _text_owner(model)
    if owner is not model and not isinstance(owner, TextTransformer):
        return False
    alone = getattr(owner, "cls_emb", None) is None and not getattr(owner, "output_tokens", False)
    return alone and owner.attn_mask is not None and _pooling(owner) in ("argmax", "eos")


def _pooling(owner: Any) -> str:
    found: str = owner.text_pool_type if hasattr(owner, "text_pool_type") else owner.pool_type
    return found


def read_places(model: Any, ids: Tensor) -> Tensor:
    """Return where the embedding of each row `(K, L)` is read: at the first end mark."""
    owner = _text_owner(model)
    marks = ids if _pooling(owner) == "argmax" else (ids == _end_mark(owner)).int()
    return marks.argmax(1)


def _end_mark(owner: Any) -> Any:
    return owner.text_eos_id if hasattr(owner, "text_eos_id") else owner.eos_id


def embed_rows(model: Any, ids: Tensor) -> Tensor:
    """Do what `encode_text` does for a model that stops at the end mark, on rows `(K, L)` of any length."""
    owner, width = _text_owner(model), ids.shape[1]
    dtype = owner.transformer.get_cast_dtype()
    x = owner.token_embedding(ids).to(dtype) + owner.positional_embedding[:width].to(dtype)
    x = owner.ln_final(owner.transformer(x, attn_mask=owner.attn_mask[:width, :width]))
    pooled: Tensor = x[torch.arange(len(ids), device=ids.device), read_places(model, ids)]
    last = owner.text_projection
    if last is None:
        return pooled
    found: Tensor = last(pooled) if isinstance(last, nn.Linear) else pooled @ last
    return found


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
