"""Tokenizers of transformers, with truncation made visible."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from rada.encoders.tokens import Tokens

__all__ = ["ONE_THREAD", "slow_settings", "tokenize", "tokenizer_key"]

# A call sets truncation and padding in the tokenizer itself. With tokenizers 0.22 it fails while another
# thread reads them ("Already borrowed").
ONE_THREAD = threading.Lock()


def tokenize(
    tokenizer: Any, prompts: list[str], max_tokens: int, *, padding: str = "longest"
) -> tuple[Tokens, list[int]]:
    """Tokenize prompts and say which of them were cut.

    Args:
        tokenizer: Of transformers.
        prompts: None of them empty.
        max_tokens: Longest row.
        padding: "longest", or "max_length" for encoders that were trained on full rows.

    Returns:
        `input_ids` and `attention_mask`, both `(K, L)`, and the indices of the cut prompts.
    """
    with ONE_THREAD:
        whole = tokenizer(prompts, truncation=False, padding=False, verbose=False)["input_ids"]
        batch = tokenizer(
            prompts,
            truncation=True,
            max_length=max_tokens,
            padding=padding,
            return_attention_mask=True,
            return_tensors="pt",
        )
    cut = [index for index, row in enumerate(whole) if len(row) > max_tokens]
    names = ("input_ids", "attention_mask")
    return {name: batch[name] for name in names}, cut


def tokenizer_key(tokenizer: Any, max_tokens: int) -> str:
    """Return a text that changes with anything that changes the tokens."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        state: Any = sorted(tokenizer.get_vocab().items())
    else:
        state = json.loads(backend.to_str())
        for volatile in ("truncation", "padding"):  # set by the last call
            state.pop(volatile, None)
        if state["model"].get("type") == "Unigram":
            pieces, scores = zip(*state["model"]["vocab"], strict=True)
            state["model"]["vocab"] = list(zip(pieces, _exact(scores), strict=True))
    side = (tokenizer.padding_side, tokenizer.truncation_side, tokenizer.pad_token_id)
    return json.dumps([state, side, max_tokens], sort_keys=True)


def _exact(scores: Sequence[float]) -> list[float]:
    """Return scores of sentencepiece as the float32 numbers that they are.

    Versions of `tokenizers` below 0.23 read the last digit of some numbers wrongly, so that a tokenizer would
    be another one after it was saved and loaded.

    Example:
        >>> _exact([-3.663918018341065, -3.6639])  # the second is no float32
        [-3.6639180183410645, -3.6639]
    """
    given = np.asarray(scores, dtype=np.float64)
    with np.errstate(over="ignore"):
        single = given.astype(np.float32).astype(np.float64)
    exact: list[float] = np.where(
        np.isclose(given, single, rtol=1e-14, atol=0), single, given
    ).tolist()
    return exact


def slow_settings(tokenizer: Any) -> list[Any]:
    """Return what decides the tokens of a tokenizer in pure Python beside its vocabulary.

    Those of the `tokenizers` library hold it in their own description, which `tokenizer_key` returns.
    """
    if getattr(tokenizer, "backend_tokenizer", None) is not None:
        return []
    pieces = getattr(tokenizer, "sp_model", None)
    model = b"" if pieces is None else pieces.serialized_model_proto()
    lower = getattr(tokenizer, "do_lower_case", None)
    return [type(tokenizer).__name__, lower, hashlib.blake2b(model, digest_size=16).hexdigest()]
