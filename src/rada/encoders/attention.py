"""The queries, keys and values of an encoder's layers, as linear layers that a method can change.

Libraries keep them in three ways: three linear layers, one linear layer for all, or the packed matrix of
`nn.MultiheadAttention`. The last two are taken apart while a method learns, and put together afterwards.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import scaled_dot_product_attention

from rada.core.errors import EncoderError
from rada.encoders.protocol import EncoderProtocol

__all__ = ["AttentionAccess", "Part", "SplitAttention", "SplitLinear", "has_projections"]

Part = Literal["image", "text"]

_TRIPLES = (("q_proj", "k_proj", "v_proj"), ("query", "key", "value"))
_OWN = _TRIPLES[0]


class SplitLinear(nn.Module):
    """One linear layer to queries, keys and values, `(..., W)` to `(..., 3 E)`, as three.

    Args:
        packed: The layer; its weights are copied.

    Example:
        >>> packed, rows = nn.Linear(4, 12), torch.randn(2, 4)
        >>> torch.allclose(SplitLinear(packed)(rows), packed(rows), atol=1e-6)
        True
    """

    def __init__(self, packed: nn.Linear) -> None:
        super().__init__()
        for name, layer in zip(_OWN, _thirds(packed.weight, packed.bias), strict=True):
            self.add_module(name, layer)

    def forward(self, inputs: Tensor) -> Tensor:
        """Return queries, keys and values behind each other."""
        return torch.cat([getattr(self, name)(inputs) for name in _OWN], dim=-1)

    def give_back(self, packed: nn.Linear) -> None:
        """Write the weights into the layer that they came from."""
        _write_thirds(self, packed.weight, packed.bias)


class SplitAttention(nn.Module):
    """`nn.MultiheadAttention` with three projections of its inputs instead of one packed matrix.

    Args:
        packed: Attention whose keys and values are as wide as its queries. Its first projection is
            copied, its last is shared.

    Example:
        >>> packed, rows = nn.MultiheadAttention(8, 2, batch_first=True), torch.randn(2, 3, 8)
        >>> found = SplitAttention(packed)(rows, rows, rows)[0]
        >>> torch.allclose(found, packed(rows, rows, rows)[0], atol=1e-6)
        True
    """

    def __init__(self, packed: nn.MultiheadAttention) -> None:
        super().__init__()
        thirds = _thirds(packed.in_proj_weight, packed.in_proj_bias)
        for name, layer in zip(_OWN, thirds, strict=True):
            self.add_module(name, layer)
        self.out_proj = packed.out_proj
        self.heads, self.batch_first = packed.num_heads, packed.batch_first

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        need_weights: bool = False,
        attn_mask: Tensor | None = None,
    ) -> tuple[Tensor, None]:
        """Return the attention's output, and None for its weights."""
        if not self.batch_first:
            query, key, value = (part.transpose(0, 1) for part in (query, key, value))
        queries, keys, values = (
            getattr(self, name)(part).unflatten(-1, (self.heads, -1)).transpose(1, 2)
            for name, part in zip(_OWN, (query, key, value), strict=True)
        )
        if attn_mask is not None and attn_mask.ndim == 3:  # one for each image and head
            attn_mask = attn_mask.unflatten(0, (-1, self.heads))
        if attn_mask is not None and attn_mask.dtype == torch.bool:
            attn_mask = ~attn_mask  # True meant: not this one
        found = scaled_dot_product_attention(queries, keys, values, attn_mask=attn_mask)
        output: Tensor = self.out_proj(found.transpose(1, 2).flatten(2))
        return (output if self.batch_first else output.transpose(0, 1)), None

    def give_back(self, packed: nn.MultiheadAttention) -> None:
        """Write the weights into the attention that they came from."""
        _write_thirds(self, packed.in_proj_weight, packed.in_proj_bias)


def _thirds(weight: Tensor, bias: Tensor | None) -> list[nn.Linear]:
    """Return three linear layers with the thirds of a packed one's weights."""
    layers = []
    biases = [None] * 3 if bias is None else bias.detach().chunk(3)
    for rows, offset in zip(weight.detach().chunk(3), biases, strict=True):
        layer = nn.Linear(rows.shape[1], rows.shape[0], offset is not None, device="meta")
        layer.weight = nn.Parameter(rows.clone())
        if offset is not None:
            layer.bias = nn.Parameter(offset.clone())
        layers.append(layer)
    return layers


@torch.no_grad()
def _write_thirds(split: nn.Module, weight: Tensor, bias: Tensor | None) -> None:
    layers: list[Any] = [getattr(split, name) for name in _OWN]
    weight.copy_(torch.cat([layer.weight for layer in layers]))
    if bias is not None:
        bias.copy_(torch.cat([layer.bias for layer in layers]))


def _is_packed(module: nn.Module) -> bool:
    """Whether a module keeps the three projections in one matrix of equal thirds."""
    if isinstance(module, nn.MultiheadAttention):
        return module._qkv_same_embed_dim and module.bias_k is None and not module.add_zero_attn
    return isinstance(module, nn.Linear) and module.out_features == 3 * module.in_features


def _places(layers: Sequence[nn.Module]) -> Iterator[tuple[nn.Module, tuple[str, ...]]]:
    """Yield the owners of projections in layers, and the attributes that hold them."""
    for layer in layers:
        for path, owner in layer.named_modules():
            if "cross" in path:  # attention to the other encoder, which no dual encoder runs
                continue
            names = dict(owner.named_children())
            for triple in _TRIPLES:
                if all(isinstance(names.get(name), nn.Linear) for name in triple):
                    yield owner, triple
            for name, child in names.items():
                packed = isinstance(child, nn.MultiheadAttention) or name == "qkv"
                if packed and _is_packed(child):
                    yield owner, (name,)


def has_projections(layers: Sequence[nn.Module]) -> bool:
    """Whether queries, keys and values are found in every one of some layers."""
    return bool(layers) and all(any(True for _ in _places([layer])) for layer in layers)


class AttentionAccess(EncoderProtocol):
    """Opens the attention of the layers, where the family says that it can be changed."""

    def attention_layers(self, part: Part) -> list[nn.Module]:
        """Return the layers whose attention can be changed; those of `image_layers`, `text_layers`."""
        return self.image_layers() if part == "image" else self.text_layers()

    def attention_weights(self, part: Part) -> dict[str, Tensor]:
        """Return the matrices of queries, keys and values by their names in `model`; not copies.

        Raises:
            EncoderError: If the family does not offer `image_attention` or `text_attention`.
        """
        self.require(f"{part}_attention")
        found = []
        for owner, names in _places(self.attention_layers(part)):
            for layer in (getattr(owner, name) for name in names):
                attends = isinstance(layer, nn.MultiheadAttention)
                found.append(layer.in_proj_weight if attends else layer.weight)
        wanted = {id(weight) for weight in found}
        return {
            name: weight.detach()
            for name, weight in self.model.named_parameters()
            if id(weight) in wanted
        }

    def open_attention(self, part: Part) -> list[str]:
        """Make queries, keys and values of all layers of one encoder linear layers.

        The encoder computes the same. `close_attention` puts the layers back together.

        Args:
            part: "image" or "text".

        Returns:
            The names of the linear layers in `model`, in order: three a layer.

        Raises:
            EncoderError: If the family does not offer `image_attention` or `text_attention`.
        """
        self.require(f"{part}_attention")
        opened: list[tuple[nn.Module, str, nn.Module, Any]] = self.__dict__.setdefault(
            "_opened", []
        )
        layers: list[nn.Module] = []
        for owner, names in list(_places(self.attention_layers(part))):
            if len(names) == 3:
                layers += [getattr(owner, name) for name in names]
                continue
            packed = getattr(owner, names[0])
            attends = isinstance(packed, nn.MultiheadAttention)
            split = (SplitAttention if attends else SplitLinear)(packed)
            setattr(owner, names[0], split.train(packed.training))
            opened.append((owner, names[0], packed, split))
            layers += [getattr(split, name) for name in _OWN]
        known = {id(module): name for name, module in self.model.named_modules()}
        return [known[id(layer)] for layer in layers]

    def close_attention(self) -> None:
        """Put layers that `open_attention` took apart back together, with the weights they have now.

        Raises:
            EncoderError: If one of the three is no plain linear layer any more.
        """
        for owner, name, packed, split in self.__dict__.pop("_opened", []):
            if any(type(getattr(split, part)) is not nn.Linear for part in _OWN):
                raise EncoderError(
                    f"the attention {name!r} of {self.name!r} still holds layers of a method: merge them "
                    "before close_attention"
                )
            split.give_back(packed)
            setattr(owner, name, packed)
