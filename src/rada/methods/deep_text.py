"""The text encoder with learned tokens in the inputs of its layers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from rada.encoders.tokens import Tokens, token_count, token_slice
from rada.methods.prompts import TEXT_CHUNK, frozen

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["deep_prompted_text"]


def deep_prompted_text(
    encoder: DualEncoder, names: Sequence[str], words: str, vectors: Sequence[Tensor | None]
) -> Tensor:
    """Run the text encoder on "WORDS NAME." with learned tokens in the places of the first words.

    Of more than `TEXT_CHUNK` classes no activations are kept, so that memory does not grow with them.

    Args:
        encoder: Its own weights take no gradients here.
        names: K class names.
        words: What the prompts begin with.
        vectors: For each layer, from the first on, `(n, E)` for all classes or `(K, n, E)`; None leaves a
            layer alone, but not the first.

    Returns:
        Unit-norm `(K, D)`, differentiable in the vectors.
    """
    tokens = encoder.tokenize([f"{words} {name}." for name in names])
    start = encoder.context_start

    def encoded(tokens: Tokens, *vectors: Tensor | None) -> Tensor:
        first, *deeper = vectors
        assert first is not None
        with frozen(encoder.model), encoder.deep_text_prompts([None, *deeper]):
            embeddings = encoder.embed_tokens(tokens).detach()
            place = first.to(embeddings).expand(len(embeddings), -1, -1)
            parts = [embeddings[:, :start], place, embeddings[:, start + place.shape[1] :]]
            return encoder.encode_texts_from_embeddings(torch.cat(parts, dim=1), tokens)

    count = token_count(tokens)
    parts: list[tuple[Tokens, list[Tensor | None]]] = []
    for begin in range(0, count, TEXT_CHUNK):
        rows = slice(begin, begin + TEXT_CHUNK)
        own = [v[rows] if v is not None and v.ndim == 3 else v for v in vectors]
        parts.append((token_slice(tokens, rows), own))
    if count <= TEXT_CHUNK or not torch.is_grad_enabled():
        return torch.cat([encoded(part, *own) for part, own in parts])
    from torch.utils.checkpoint import checkpoint  # torch 2.6 imports sympy for it

    found = [checkpoint(encoded, part, *own, use_reentrant=False) for part, own in parts]
    return torch.cat(found)
