"""Prompts as tokens: a dict of tensors whose first axis counts the prompts."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

from rada.core.errors import DataError

__all__ = ["Tokens", "check_prompts", "token_count", "token_slice"]

Tokens = dict[str, Tensor]


def check_prompts(prompts: Sequence[str]) -> list[str]:
    """Return the prompts as a list.

    Raises:
        DataError: If there is none, or one is not a text or is blank.

    Example:
        >>> check_prompts(["a photo of a dog."])
        ['a photo of a dog.']
    """
    if isinstance(prompts, str):
        raise DataError(f"prompts should be a list of texts; give [{prompts!r}] for one prompt")
    texts = list(prompts)
    if not texts:
        raise DataError("there is no prompt to encode; give at least one")
    for index, text in enumerate(texts):
        if not isinstance(text, str):
            raise DataError(f"prompt {index} is {text!r}, a {type(text).__name__}, not a text")
        if not text.strip():
            raise DataError(f"prompt {index} is empty: {text!r}; name a class or drop it")
    return texts


def token_count(tokens: Tokens) -> int:
    """Return the number of prompts in `tokens`."""
    return len(next(iter(tokens.values())))


def token_slice(tokens: Tokens, rows: slice) -> Tokens:
    """Return some of the prompts.

    Example:
        >>> import torch
        >>> token_slice({"input_ids": torch.arange(6).view(3, 2)}, slice(2, 3))
        {'input_ids': tensor([[4, 5]])}
    """
    return {name: tensor[rows] for name, tensor in tokens.items()}
