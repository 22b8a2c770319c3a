"""Learned prompts: free places among the tokens, and vectors put into the layers of an encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from rada.core.errors import EncoderError
from rada.encoders.hooks import hooked
from rada.encoders.tokens import Tokens

__all__ = ["deep_prompts", "insert_context", "inserted_tokens", "output_replaced"]


def insert_context(tokens: Tokens, length: int, limit: int, *, start: int = 1) -> Tokens:
    """Insert `length` free places into every row.

    The places hold copies of the first real token, so that nothing takes them for an end mark or
    for padding. Rows of fixed length lose as much padding at their end.

    Args:
        tokens: With `input_ids (K, L)` and `attention_mask (K, L)`, padded at the end.
        length: Places per row.
        limit: Longest row that the encoder reads.
        start: Where they go: behind the start mark, or 0 where the tokenizer sets none.

    Raises:
        EncoderError: If a row has no room for them, or is padded at its front.

    Example:
        >>> rows = {"input_ids": torch.tensor([[1, 7, 2, 0]]),
        ...         "attention_mask": torch.tensor([[1, 1, 1, 0]])}
        >>> insert_context(rows, 1, limit=4)["input_ids"]
        tensor([[1, 7, 7, 2]])
    """
    if length < 1:
        raise EncoderError(f"the context should have at least 1 place, not {length!r}")
    ids, mask = tokens["input_ids"], tokens["attention_mask"]
    if int(mask.sum(1).max()) + length > limit:
        raise EncoderError(
            f"{length} context vectors and the longest prompt do not fit into the {limit} tokens "
            "that the text encoder reads; use fewer vectors or shorter class names"
        )
    if not bool(mask[:, 0].all()):
        raise EncoderError(
            "the tokenizer pads at the front; learned context needs padding at the end"
        )
    width = min(ids.shape[1] + length, limit)

    def widen(rows: Tensor) -> Tensor:
        places = rows[:, start : start + 1].expand(-1, length)
        return torch.cat([rows[:, :start], places, rows[:, start:]], 1)[:, :width]

    return {name: widen(rows) for name, rows in tokens.items()}


def _place(hidden: Tensor, prompt: Tensor, *, start: int | None, append: bool) -> Tensor:
    """Return `hidden (B, L, W)` with the prompt `(n, W)` or `(B, n, W)` in its place."""
    prompt = prompt.to(hidden.device, hidden.dtype)
    if prompt.ndim == 2:
        prompt = prompt.expand(hidden.shape[0], -1, -1)  # len() would fix it in a graph
    if prompt.ndim != 3 or prompt.shape[0] != hidden.shape[0] or prompt.shape[2] != hidden.shape[2]:
        raise EncoderError(
            f"a deep prompt of shape {tuple(prompt.shape)} does not fit a layer whose input is "
            f"{tuple(hidden.shape)}; expected (n, {hidden.shape[2]})"
        )
    length = prompt.shape[1]
    if start is not None:
        return torch.cat([hidden[:, :start], prompt, hidden[:, start + length :]], 1)
    return torch.cat([hidden if append else hidden[:, :-length], prompt], 1)


@contextlib.contextmanager
def output_replaced(module: nn.Module, output: Tensor) -> Iterator[None]:
    """Let a module return `output` while the block runs, whatever it is called with.

    Example:
        >>> layer = nn.Embedding(5, 2)
        >>> with output_replaced(layer, torch.ones(1, 2)):
        ...     layer(torch.tensor([3]))
        tensor([[1., 1.]])
    """
    with hooked(lambda: [module.register_forward_hook(lambda *_: output)]):
        yield


@contextlib.contextmanager
def deep_prompts(
    layers: Sequence[nn.Module], prompts: Sequence[Tensor | None], *, start: int | None
) -> Iterator[None]:
    """Put prompts into the inputs `(B, L, W)` of layers while the block runs.

    Args:
        layers: Transformer layers in order, whose first argument is the hidden states.
        prompts: One `(n, W)` a layer, from the first on; None leaves a layer alone.
        start: First row to replace; None appends at the first prompt and replaces these rows later.

    Raises:
        EncoderError: If there are more prompts than layers, or their lengths differ.
    """
    lengths = {prompt.shape[-2] for prompt in prompts if prompt is not None}
    if len(prompts) > len(layers) or len(lengths) > 1:
        raise EncoderError(
            f"{len(prompts)} deep prompts of lengths {sorted(lengths)} for {len(layers)} layers; "
            "give at most one a layer, all of one length"
        )
    first = next((i for i, prompt in enumerate(prompts) if prompt is not None), 0)

    def hook(index: int, prompt: Tensor) -> Any:
        def change(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            keyword = "hidden_states" if not args else None
            hidden = kwargs[keyword] if keyword else args[0]
            hidden = _place(hidden, prompt, start=start, append=index == first)
            if keyword:
                return args, {**kwargs, keyword: hidden}
            return (hidden, *args[1:]), kwargs

        return change

    with hooked(
        lambda: [
            layer.register_forward_pre_hook(hook(index, prompt), with_kwargs=True)
            for index, (layer, prompt) in enumerate(zip(layers, prompts, strict=False))
            if prompt is not None
        ]
    ):
        yield


@contextlib.contextmanager
def inserted_tokens(
    layers: Sequence[nn.Module], tokens: Sequence[Tensor], *, start: int
) -> Iterator[list[Tensor]]:
    """Put further tokens into the last layers while the block runs, and take them out behind the last.

    The layers before see rows `(B, L, W)` as they are, the last ones rows of L + n, whose masks are widened
    to match. What reads the rows behind the last layer finds each where it was.

    Args:
        layers: Transformer layers in order, whose first argument is the hidden states.
        tokens: `(n, W)` for each of the last layers; each takes the place of what the layer before made of
            its own.
        start: Place of the first of them.

    Yields:
        A list to which every run adds what the last layer made of its tokens, `(B, n, W)`.

    Raises:
        EncoderError: If there are more tokens than layers, or their numbers differ.
    """
    counts = {len(rows) for rows in tokens}
    if not 1 <= len(tokens) <= len(layers) or len(counts) != 1:
        raise EncoderError(
            f"{len(tokens)} groups of {sorted(counts)} tokens for {len(layers)} layers; give at most one "
            "group a layer, all of one size"
        )
    (count,) = counts
    own = layers[len(layers) - len(tokens) :]
    seen: list[Tensor] = []

    def put(index: int) -> Any:
        def change(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            length = hidden.shape[1] - (0 if index == 0 else count)
            rows = tokens[index].to(hidden.device, hidden.dtype).expand(hidden.shape[0], -1, -1)
            after = start if index == 0 else start + count
            hidden = torch.cat([hidden[:, :start], rows, hidden[:, after:]], 1)

            def wider(value: Any) -> Any:
                masks = isinstance(value, Tensor) and value.ndim >= 2 and value.shape[-1] == length
                return _wider(value, start, count) if masks else value

            if not args:
                others = {name: wider(value) for name, value in kwargs.items()}
                return args, others | {"hidden_states": hidden}
            found = {name: wider(value) for name, value in kwargs.items()}
            return (hidden, *(wider(value) for value in args[1:])), found

        return change

    def take(_: nn.Module, args: tuple[Any, ...], output: Any) -> Any:
        hidden: Tensor = output[0] if isinstance(output, tuple) else output
        seen.append(hidden[:, start : start + count])
        rest = torch.cat([hidden[:, :start], hidden[:, start + count :]], 1)
        return (rest, *output[1:]) if isinstance(output, tuple) else rest

    def hooks() -> Iterator[RemovableHandle]:
        for index, layer in enumerate(own):
            yield layer.register_forward_pre_hook(put(index), with_kwargs=True)
        yield own[-1].register_forward_hook(take)

    with hooked(hooks):
        yield seen


def _wider(mask: Tensor, start: int, count: int) -> Tensor:
    """Return an attention mask `(..., L, L)` or `(..., 1, L)` with `count` rows more from `start` on.

    They see, and are seen, as the row before them (the first one where there is none); where rows do not look
    ahead, they do not either.

    Example:
        >>> causal = torch.ones(3, 3).triu(1).bool()  # True: is not seen
        >>> torch.equal(_wider(causal, 1, 2), torch.ones(5, 5).triu(1).bool())
        True
    """
    length, like = mask.shape[-1], max(start - 1, 0)
    rows = torch.arange(length, device=mask.device)
    index = torch.cat([rows[:start], rows.new_full((count,), like), rows[start:]])
    wide = mask.index_select(-1, index)
    if mask.shape[-2] != length:
        return wide
    wide = wide.index_select(-2, index)
    own = slice(like, start + count + (0 if start else 1))
    ahead = torch.ones_like(wide[..., own, own], dtype=torch.bool).triu(1)
    wide[..., own, own] = torch.where(
        ahead, mask[..., like, like + 1, None, None], wide[..., own, own]
    )
    return wide
