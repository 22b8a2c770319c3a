"""What a method puts into an encoder whose weights stay as they are: tokens, branches of layers."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from rada.core.errors import EncoderError
from rada.encoders.hooks import hooked

if TYPE_CHECKING:
    from rada.encoders.base import DualEncoder

__all__ = ["Inserts", "first_norm", "layer_inputs", "layer_width", "residual_branches"]

_FIRST_NORMS = ("ln_1", "layer_norm1", "norm1", "layernorm_before")


class Inserts(nn.Module):
    """Learned parts that an encoder runs with; this one has none.

    `encoder.inserts = ...` makes every image and every text of the encoder pass through them, and joins
    them to its fingerprint.
    """

    def in_images(self, encoder: DualEncoder) -> AbstractContextManager[None]:
        """Put the parts into the image encoder while the block runs."""
        return nullcontext()

    def in_texts(self, encoder: DualEncoder) -> AbstractContextManager[None]:
        """Put the parts into the text encoder while the block runs."""
        return nullcontext()

    def width(self, dim: int) -> int:
        """Return the width of the features of an encoder that has features of `dim` without the parts."""
        return dim

    def image_features(self, encoder: DualEncoder, features: Tensor) -> Tensor:
        """Return unit-norm image features `(B, D)` as the parts change them; called inside `in_images`."""
        return features

    def text_features(self, encoder: DualEncoder, features: Tensor) -> Tensor:
        """Return unit-norm text features `(K, D)` as the parts change them; called inside `in_texts`."""
        return features


def layer_width(layer: nn.Module) -> int:
    """Return the width of a transformer layer's input, that of its first layer norm.

    Example:
        >>> layer_width(nn.TransformerEncoderLayer(16, 2))
        16
    """
    for module in layer.modules():
        shape = getattr(module, "normalized_shape", None)
        if shape is not None:
            return int(shape[-1])
    raise EncoderError(f"a layer of the class {type(layer).__name__} has no layer norm")


def first_norm(layer: nn.Module) -> nn.Module:
    """Return the norm before a layer's attention; none where norms stand behind it.

    Example:
        >>> first_norm(nn.TransformerEncoderLayer(16, 2, norm_first=True))
        LayerNorm((16,), eps=1e-05, elementwise_affine=True, bias=True)
    """
    for name in _FIRST_NORMS:
        found = getattr(layer, name, None)
        if isinstance(found, nn.Module):
            return found
    return nn.Identity()


@contextlib.contextmanager
def residual_branches(
    layers: Sequence[nn.Module], branches: Sequence[nn.Module | None]
) -> Iterator[None]:
    """Add branches to the outputs of layers while the block runs.

    The output of layer j becomes `layer(x) + branch(norm(x))`, where norm is the layer's own first one.

    Args:
        layers: Transformer layers in order, whose first argument is the hidden states.
        branches: One a layer, from the first on; None leaves a layer alone.

    Raises:
        EncoderError: If there are more branches than layers.

    Example:
        >>> import torch
        >>> layer, rows = nn.Linear(2, 2), torch.ones(1, 2)
        >>> with residual_branches([layer], [nn.Identity()]):
        ...     changed = layer(rows)
        >>> torch.equal(changed, layer(rows) + rows)
        True
    """
    if len(branches) > len(layers):
        raise EncoderError(
            f"{len(branches)} branches for {len(layers)} layers; give at most one a layer"
        )

    def hook(branch: nn.Module) -> Any:
        def add(
            layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any
        ) -> Any:
            hidden: Tensor = args[0] if args else kwargs["hidden_states"]
            change = branch(first_norm(layer)(hidden))
            if isinstance(output, tuple):
                return (output[0] + change, *output[1:])
            return output + change

        return add

    with hooked(
        lambda: [
            layer.register_forward_hook(hook(branch), with_kwargs=True)
            for layer, branch in zip(layers, branches, strict=False)
            if branch is not None
        ]
    ):
        yield


@contextlib.contextmanager
def layer_inputs(layers: Sequence[nn.Module]) -> Iterator[list[list[Tensor]]]:
    """Note what goes into layers while the block runs, with the tokens that were put there.

    Args:
        layers: Transformer layers that begin with a norm.

    Yields:
        For each layer its inputs `(B, L, W)`, one a run.

    Raises:
        EncoderError: If a layer does not begin with a norm.

    Example:
        >>> import torch
        >>> layer, rows = nn.TransformerEncoderLayer(16, 2, norm_first=True), torch.ones(1, 3, 16)
        >>> with layer_inputs([layer]) as seen:
        ...     _ = layer(rows)
        >>> torch.equal(seen[0][0], rows)
        True
    """
    seen: list[list[Tensor]] = [[] for _ in layers]
    norms = [first_norm(layer) for layer in layers]
    if any(isinstance(norm, nn.Identity) for norm in norms):
        raise EncoderError(
            "the layers of this encoder do not begin with a norm: their inputs cannot be seen"
        )

    def note(place: list[Tensor]) -> Any:
        return lambda _, args: place.append(args[0])

    with hooked(
        lambda: [
            norm.register_forward_pre_hook(note(place))
            for norm, place in zip(norms, seen, strict=True)
        ]
    ):
        yield seen
