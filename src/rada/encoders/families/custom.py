"""A user's own pair of functions as a dual encoder."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Never
from uuid import uuid4

import torch
from torch import Tensor, nn

from rada.core.errors import EncoderError, MissingExtraError, one_line
from rada.core.extras import needed_for
from rada.core.warn import warn
from rada.encoders.base import Transform, evaluating
from rada.encoders.fingerprint import digest
from rada.encoders.registry import EncoderFamily, LoadOptions, register_family
from rada.encoders.spec import ModelSpec
from rada.encoders.structure import describe_function
from rada.encoders.tokens import Tokens
from rada.encoders.transforms import EvalTransform, TrainTransform, stack_pixels

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

__all__ = ["CustomEncoder"]

_HALF = (0.5, 0.5, 0.5)


@register_family
class CustomEncoder(EncoderFamily):
    """Your own pair of functions.

    Args:
        image_fn: Takes pixels `(B, 3, H, W)`, returns `(B, dim)` (tensor or array); the result need not be
            normalised.
        text_fn: Takes a list of K texts, or what `tokenize` made of them; returns `(K, dim)`.
        scale: Factor of the cosine similarity in the logits.
        dim: Width of the features.
        preprocess: PIL image to pixels `(3, H, W)`, picklable; None for 224 x 224, bicubic, values in
            [-1, 1].
        train_transform: The same at random; None for a random crop and mirror image of 224 x 224
            or, where only `preprocess` is given, for `preprocess` itself.
        tokenize: Takes a list of K texts, returns a dict of tensors whose first axis is K; None
            gives `text_fn` the texts themselves.
        image_module: The module behind `image_fn`, if its weights may be trained or moved.
        text_module: The module behind `text_fn`, likewise.
        name: What to call the pair.
        fingerprint: A text of your own that changes whenever the functions give other features. None
            hashes weights and settings of the modules and the code of their functions and, of a
            function without a module, the features of a probe. Where a function cannot embed the probe
            (two images of random colours, "a photo of a dog.", "red"), the pair is known to this process
            alone, with a warning.

    Raises:
        EncoderError: If an argument cannot be used; later, if a function returns something other
            than finite features of the right shape.

    Example:
        >>> colours = {"red": [1.0, 0.0, 0.0], "green": [0.0, 1.0, 0.0]}
        >>> encoder = CustomEncoder(
        ...     image_fn=lambda pixels: pixels.mean((2, 3)) + 1,
        ...     text_fn=lambda texts: torch.tensor([colours[text] for text in texts]),
        ...     scale=10.0,
        ...     dim=3,
        ... )
        >>> encoder.encode_texts(["green"])
        tensor([[0., 1., 0.]])
        >>> from PIL import Image
        >>> encoder.encode_images([Image.new("RGB", (32, 32), "red")])
        tensor([[1., 0., 0.]])
    """

    family = "custom"
    spelling = "rada.CustomEncoder(...)"
    summary = "your own pair of functions"
    capabilities = frozenset({"image_gradients", "text_gradients"})
    conditional = capabilities

    def __init__(
        self,
        image_fn: Callable[[Tensor], Tensor | np.ndarray[Any, Any]],
        text_fn: Callable[[Any], Tensor | np.ndarray[Any, Any]],
        scale: float,
        dim: int,
        *,
        preprocess: Transform | None = None,
        train_transform: Transform | None = None,
        tokenize: Callable[[list[str]], Tokens] | None = None,
        image_module: nn.Module | None = None,
        text_module: nn.Module | None = None,
        name: str = "custom",
        fingerprint: str | None = None,
    ) -> None:
        if not isinstance(dim, int) or dim < 1:
            raise EncoderError(f"dim should be a positive integer, not {dim!r}")
        for argument, function in (("image_fn", image_fn), ("text_fn", text_fn)):
            if not callable(function):
                raise EncoderError(f"{argument} should be a function, not {function!r}")
        self._image_fn, self._text_fn, self._tokenize = image_fn, text_fn, tokenize
        self._image_module = image_module or nn.Module()
        self._text_module = text_module or nn.Module()
        self._own_fingerprint, self._lasting = fingerprint, True
        usual = TrainTransform((224, 224), _HALF, _HALF)
        super().__init__(
            nn.ModuleDict({"image": self._image_module, "text": self._text_module}),
            name=name,
            dim=dim,
            preprocess=preprocess or EvalTransform((224, 224), 224, _HALF, _HALF),
            train_transform=train_transform or preprocess or usual,
            scale=scale,
        )
        self.capabilities = frozenset(
            capability
            for capability, module in (
                ("image_gradients", image_module),
                ("text_gradients", text_module),
            )
            if module is not None
        )

    @classmethod
    def claims(cls, spec: ModelSpec) -> bool:
        """Claim nothing: functions have no name that could be loaded."""
        return False

    @classmethod
    def load(cls, spec: ModelSpec, options: LoadOptions) -> Never:
        """Refuse: functions have no name that could be loaded."""
        raise EncoderError(f"{spec.text!r}: build a CustomEncoder and give the object itself")

    @property
    def image_module(self) -> nn.Module:
        """The module behind `image_fn`, empty if none was given."""
        return self._image_module

    @property
    def text_module(self) -> nn.Module:
        """The module behind `text_fn`, empty if none was given."""
        return self._text_module

    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Call `image_fn`."""
        with self._running("image_fn"):
            found = self._image_fn(pixels)
        return self._checked(found, pixels.shape[0], "image_fn")  # len() would fix it in a graph

    def text_embeddings(self, tokens: Tokens) -> Tensor:
        """Call `text_fn`."""
        given = tokens if self._tokenize is not None else _decode(tokens)
        with self._running("text_fn"):
            found = self._text_fn(given)
        return self._checked(found, len(next(iter(tokens.values()))), "text_fn")

    def tokenize_checked(self, prompts: list[str]) -> tuple[Tokens, list[int]]:
        """Call `tokenize`, or carry the texts along as bytes."""
        with self._running("tokenize"):
            return (self._tokenize or _encode)(prompts), []

    def tokenizer_key(self) -> str:
        """Return what identifies the functions: the user's word, or what a probe gives."""
        if self._own_fingerprint is not None:
            return self._own_fingerprint
        # A function without a module may hold weights that nothing here can see: its results are
        # probed. Before normalising: a function that only scales its result is another function.
        parts = [describe_function(self._tokenize)]
        for name, function, module, probe in (
            ("image_fn", self._image_fn, self._image_module, self._probe_images),
            ("text_fn", self._text_fn, self._text_module, self._probe_texts),
        ):
            known = not _is_empty(module)
            parts.append(describe_function(function) if known else self._probed(name, probe))
        return digest(*parts)

    @property
    def lasting(self) -> bool:
        """Whether the functions could be probed, or have a fingerprint of the user's."""
        return bool(self.fingerprint) and self._lasting  # which probes them

    def _probe_images(self) -> Tensor:
        """Return the features of two images that are always the same."""
        pixels = stack_pixels([self.preprocess(image) for image in _probe_images()])
        return self.image_embeddings(self._pixels(pixels))

    def _probe_texts(self) -> Tensor:
        """Return the features of two texts."""
        return self.text_embeddings(self._tokens(self.tokenize(["a photo of a dog.", "red"])))

    def _probed(self, name: str, probe: Callable[[], Tensor]) -> str:
        """Hash the features of a probe; where the function is for other input alone, nothing is the same."""
        try:
            with torch.no_grad(), evaluating(self.model):
                return _digest_of(probe())
        except MissingExtraError:
            raise
        except Exception as error:
            warn(
                f"{name} of the encoder {self.name!r} cannot embed what its fingerprint is made of "
                f"({type(error).__name__}: {one_line(error, 200)}), so what is learned or kept with it is "
                "not recognised by another process: give CustomEncoder a text of your own, "
                "fingerprint='...', which changes whenever the functions do",
                stacklevel=2,
            )
            self._lasting = False
            return uuid4().hex

    @contextmanager
    def _running(self, function: str) -> Iterator[None]:
        """Let an error of the user's own function say which one was running."""
        try:
            yield
        except Exception as error:
            error.add_note(f"in {function} of the encoder {self.name!r}")
            raise

    def _checked(self, features: Any, count: int, function: str) -> Tensor:
        try:
            found = torch.as_tensor(features, device=self.device)
        except (TypeError, ValueError, RuntimeError) as error:
            raise EncoderError(
                f"{function} returned {type(features).__name__}, not features {(count, self.dim)}, a tensor "
                f"or an array of numbers ({one_line(error, 200)})"
            ) from error
        if found.shape != (count, self.dim):
            raise EncoderError(
                f"{function} returned features of shape {tuple(found.shape)}, not {(count, self.dim)}"
            )
        if torch.compiler.is_compiling():  # a graph has no numbers yet
            return found
        if not found.isfinite().all() or not found.any(dim=-1).all():
            raise EncoderError(f"{function} returned NaN, Inf or a row of zeros")
        return found


def _probe_images() -> list[Image]:
    """Make two coloured images, always the same."""
    with needed_for("the images of an encoder of your own"):
        from torchvision.transforms.functional import to_pil_image

    generator = torch.Generator().manual_seed(0)
    return [to_pil_image(torch.rand(3, 8, 8, generator=generator)) for _ in range(2)]


def _is_empty(module: nn.Module) -> bool:
    return next(module.parameters(), None) is None and next(module.buffers(), None) is None


def _digest_of(features: Tensor) -> str:
    return digest(features.cpu().double().numpy().tobytes().hex())


def _encode(texts: list[str]) -> Tokens:
    """Write texts as rows of UTF-8 bytes, padded with -1."""
    rows = [torch.tensor(list(text.encode()), dtype=torch.int16) for text in texts]
    padded = nn.utils.rnn.pad_sequence(rows, batch_first=True, padding_value=-1)
    return {"utf8": padded}


def _decode(tokens: Tokens) -> list[str]:
    """Read what `_encode` wrote.

    Example:
        >>> _decode(_encode(["one", "drei ß"]))
        ['one', 'drei ß']
    """
    rows: Sequence[list[int]] = tokens["utf8"].tolist()
    return [bytes(byte for byte in row if byte >= 0).decode() for row in rows]
