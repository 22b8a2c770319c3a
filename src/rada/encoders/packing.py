"""Weights in bfloat16, laid out once for the products of a CPU.

oneDNN multiplies by weights in blocks of its own, and `torch.nn.functional.linear` lays them out so at
every call: half of its time for one image, a tenth for a batch. Here they are laid out at the first call
and kept. The products are the same to the bit. The operator in which `nn.MultiheadAttention` computes all of
its attention takes weights as they are, so its steps are made here, which rounds as it does.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from rada.encoders.fingerprint import tensor_version

__all__ = ["packed_weights"]

_kept: WeakTensorKeyDictionary = WeakTensorKeyDictionary()
"""Weights as they are laid out, with what tells whether the weights have changed since."""


@contextlib.contextmanager
def packed_weights(dtype: torch.dtype, device: torch.device) -> Iterator[None]:
    """Run a block in which linear layers in bfloat16 on a CPU use weights that are laid out once.

    Does nothing for another precision or device, where gradients are on, or where oneDNN does not
    multiply in bfloat16. The copies take as much memory as the weights and are freed with them. A weight
    that changes is laid out again, as `weights_version` sees it.

    Args:
        dtype: Precision of the weights.
        device: Where they are.

    Example:
        >>> layer, rows = nn.Linear(8, 4).bfloat16(), torch.randn(2, 8).bfloat16()
        >>> with torch.no_grad(), packed_weights(torch.bfloat16, torch.device("cpu")):
        ...     found = layer(rows)
        >>> torch.equal(found, layer(rows))
        True
    """
    suits = dtype == torch.bfloat16 and device.type == "cpu" and _is_possible()
    if not suits or torch.is_grad_enabled() or torch.is_autocast_enabled("cpu"):
        yield
        return
    with _Packing():
        yield


@cache
def _is_possible() -> bool:
    """Whether oneDNN is there and multiplies in bfloat16 on this processor."""
    known = torch.backends.mkldnn.is_available()
    return known and bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())


class _Packing(TorchFunctionMode):
    """Takes the place of two functions of `torch.nn.functional` in its block and thread."""

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Sequence[type],
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if func is functional.linear:
            return _linear(*args, **kwargs)
        if func is functional.multi_head_attention_forward:
            found = _attention(*args, **kwargs)
            if found is not None:
                return found, None
        return func(*args, **kwargs)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    suits = (
        isinstance(weight, nn.Parameter)  # what is made anew for each call is not worth the layout
        and input.dtype == weight.dtype == torch.bfloat16
        and input.device == weight.device
        and input.numel() > 0
        and (bias is None or bias.dtype == weight.dtype)
    )
    if not suits or torch.compiler.is_compiling():
        return functional.linear(input, weight, bias)
    found: Tensor = torch.ops.mkldnn._linear_pointwise(input, _packed(weight), bias, "none", [], "")
    return found


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    width: int,
    heads: int,
    weight: Tensor | None,
    bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout: float,
    out_weight: Tensor,
    out_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
    **rare: Any,
) -> Tensor | None:
    """Return the attention of tokens `(L, B, W)` to each other, or None for rare forms of it.

    The arguments are those of `functional.multi_head_attention_forward`.
    """
    odd = (bias_k, bias_v, add_zero_attn, key_padding_mask, is_causal, *rare.values())
    if training or need_weights or any(value is not None and value is not False for value in odd):
        return None
    if weight is None or query is not key or key is not value or query.ndim != 3:
        return None
    if attn_mask is not None and (attn_mask.ndim != 2 or not attn_mask.is_floating_point()):
        return None
    length, count, _ = query.shape
    parts = _linear(query, weight, bias).unflatten(-1, (3, heads, width // heads))
    queries, keys, values = parts.permute(2, 1, 3, 0, 4).flatten(1, 2)
    mask = queries.new_zeros(1, 1, 1) if attn_mask is None else attn_mask.to(query.dtype)
    scale = (width // heads) ** -0.5
    # For the lengths of images and prompts two products take 0.65 of the time of the fused operator.
    maps = torch.baddbmm(mask, queries, keys.transpose(1, 2), alpha=scale).softmax(-1)
    found = torch.bmm(maps, values).unflatten(0, (count, heads))
    return _linear(found.permute(2, 0, 1, 3).reshape(length, count, width), out_weight, out_bias)


def _packed(weight: Tensor) -> Tensor:
    version, known = tensor_version(weight), _kept.get(weight)
    if known is None or known[0] != version:
        known = version, torch.ops.mkldnn._reorder_linear_weight(weight.detach())
        _kept[weight] = known
    packed: Tensor = known[1]
    return packed
