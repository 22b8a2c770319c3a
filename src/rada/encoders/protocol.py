"""What every family of encoders implements, and what follows from it for one batch."""

from __future__ import annotations

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, ClassVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn import functional

from rada.core.errors import EncoderError
from rada.core.locks import fork_safe_lock
from rada.core.values import check_scale
from rada.core.warn import warn
from rada.encoders.hooks import INSERTING
from rada.encoders.memory import keep_freed_memory
from rada.encoders.packing import packed_weights
from rada.encoders.tokens import Tokens, check_prompts

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CAPABILITIES", "EncoderProtocol", "Transform", "TruncationWarning", "evaluating"]

Transform = Callable[["Image"], Tensor]

CAPABILITIES: dict[str, str] = {
    "image_gradients": "the image encoder can be trained",
    "text_gradients": "the text encoder can be trained",
    "learned_scale": "the checkpoint holds the scale of the logits",
    "logit_bias": "the score has a bias (it never changes the ranking of the classes)",
    "token_embeddings": "learned context vectors can stand among the token embeddings",
    "deep_text_prompts": "learned prompts can enter every layer of the text encoder",
    "deep_image_prompts": "learned prompts can enter every layer of the image encoder",
    "residual_branches": "a learned branch can be added to every layer of both encoders",
    "text_attention": "queries, keys and values of the text encoder's layers can be changed",
    "image_attention": "queries, keys and values of the image encoder's layers can be changed",
    "image_projection": "the image encoder ends in a linear projection that can be read and changed",
    "fast_inference": "an image path faster than the module's own, equal within 1e-4",
    "save": "writes the format of its own library",
}


class TruncationWarning(UserWarning):
    """A prompt is longer than the text encoder reads; its end was cut off."""


_modes = fork_safe_lock()
_evaluated: WeakKeyDictionary[nn.Module, int] = WeakKeyDictionary()
"""Parts of modules that are to learn again, and how many evaluate them meanwhile."""


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode and give every submodule its own mode back afterwards.

    Of several threads the last to leave does so.
    """
    with _modes:
        held = [part for part in module.modules() if part.training or part in _evaluated]
        for part in held:
            _evaluated[part] = _evaluated.get(part, 0) + 1
            part.training = False
    try:
        yield
    finally:
        with _modes:
            for part in held:
                _evaluated[part] -= 1
                if not _evaluated[part]:
                    del _evaluated[part]
                    part.training = True


class EncoderProtocol(ABC):
    """What a family implements, the scores, and one batch; `DualEncoder` adds the rest.

    Attributes:
        family: Name of the family.
        capabilities: What it can do beyond the protocol; the keys of `CAPABILITIES`.
        default_scale: Scale where the model learns none.
        inserts: What a method put into the encoder without changing its weights; None for nothing.
    """

    inserts: nn.Module | None = None  # of the class `rada.encoders.inserts.Inserts`
    family: ClassVar[str] = ""
    capabilities: frozenset[str] = frozenset()
    default_scale: ClassVar[float] = 100.0

    def __init__(
        self,
        model: nn.Module,
        *,
        name: str,
        dim: int,
        preprocess: Transform,
        train_transform: Transform,
        scale: float | None = None,
    ) -> None:
        if scale is not None:
            scale = check_scale(scale, error=EncoderError)
        self.model = model
        self.name = name
        self.dim = dim
        self.preprocess = preprocess
        self.train_transform = train_transform
        self._scale = scale

    # What a family implements -------------------------------------------------------------

    @property
    @abstractmethod
    def image_module(self) -> nn.Module:
        """The module that holds the weights of the image encoder."""

    @property
    @abstractmethod
    def text_module(self) -> nn.Module:
        """The module that holds the weights of the text encoder."""

    @abstractmethod
    def image_embeddings(self, pixels: Tensor) -> Tensor:
        """Embed pixels `(B, 3, H, W)` as `(B, D)`, in the model's precision, not normalised."""

    @abstractmethod
    def text_embeddings(self, tokens: Tokens) -> Tensor:
        """Embed tokens as `(K, D)`, in the model's precision, not normalised."""

    @abstractmethod
    def tokenize_checked(self, prompts: list[str]) -> tuple[Tokens, list[int]]:
        """Turn prompts into tokens; also return the indices of those whose end was cut off."""

    @abstractmethod
    def tokenizer_key(self) -> str:
        """A text that changes when the tokenizer does."""

    def learned_scale(self) -> Tensor | None:
        """The model's own exponentiated scale as a 0-d tensor; None where it has none."""
        return None

    def learned_bias(self) -> Tensor | None:
        """The model's own bias of the logits as a 0-d tensor; None where it has none."""
        return None

    def scale_parameters(self) -> list[nn.Parameter]:
        """Parameters of scale and bias, which belong to neither encoder."""
        return []

    def token_embedding_module(self) -> nn.Module:
        """The layer that turns token numbers into vectors, which `token_embeddings` needs."""
        raise NotImplementedError

    def text_layers(self) -> list[nn.Module]:
        """Transformer layers of the text encoder, in order; empty where it has none."""
        return []

    def image_layers(self) -> list[nn.Module]:
        """Transformer layers of the image encoder, in order; empty where it has none."""
        return []

    def image_token_norm(self) -> nn.Module:
        """What normalises the tokens of an image before the first layer; the identity where nothing does."""
        return nn.Identity()

    def image_output_norm(self) -> nn.Module:
        """What normalises the tokens of an image behind the last layer; the identity where nothing does."""
        return nn.Identity()

    def image_projection_slot(self) -> tuple[nn.Module, str]:
        """Where the last, linear step of the image encoder is kept, which `image_projection` needs.

        Returns:
            A module and the name of its attribute: an `nn.Linear`, or a matrix `(W, D)`.
        """
        raise NotImplementedError

    @property
    def context_start(self) -> int:
        """Where learned context begins: behind the start mark, or at 0 where there is none."""
        return 1

    @property
    def max_tokens(self) -> int:
        """The longest row of tokens that the text encoder reads."""
        return 77

    # Scores -------------------------------------------------------------------------------

    def forward_scale(self) -> Tensor:
        """Return the scale as a 0-d float32 tensor, differentiable where the model learns it."""
        learned = self.learned_scale()
        if self._scale is not None or learned is None:
            value = self.default_scale if self._scale is None else self._scale
            return torch.tensor(value, dtype=torch.float32, device=self.device)
        return learned.float().reshape(())

    @property
    def scale(self) -> float:
        """The factor of the cosine similarity in the logits (already exponentiated)."""
        return float(self.forward_scale().detach())

    @property
    def logit_bias(self) -> float:
        """What is added to every logit: SigLIP's bias, 0 elsewhere."""
        learned = self.learned_bias()
        return 0.0 if learned is None else float(learned.detach())

    def logits(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Return the family's own zero-shot logits `(B, K)` from `(B, D)` and `(K, D)`."""
        return self.forward_scale() * image_features @ text_features.T + self.logit_bias

    # One batch ----------------------------------------------------------------------------

    def forward_images(self, pixels: Tensor) -> Tensor:
        """Embed pixels `(B, 3, H, W)` as unit-norm float32 `(B, D)`, differentiably.

        Raises:
            EncoderError: If `pixels` has another shape.
        """
        with self._inserted("in_images"), packed_weights(self.dtype, self.device):
            embeddings = self.image_embeddings(self._pixels(pixels)).float()
            return self._inside("image_features", functional.normalize(embeddings, dim=-1))

    def infer_images(self, pixels: Tensor) -> Tensor:
        """Do the same without gradients, in evaluation mode, as fast as the family can."""
        keep_freed_memory()
        with torch.no_grad(), evaluating(self.model):
            return self.forward_images(pixels)

    def tokenize(self, prompts: Sequence[str]) -> Tokens:
        """Turn K prompts into tokens: a dict of tensors whose first axis is K.

        A prompt that is too long is cut and named in a `TruncationWarning`.

        Raises:
            DataError: If a prompt is empty or not a text.
        """
        texts = check_prompts(prompts)
        tokens, cut = self.tokenize_checked(texts)
        if cut:
            more = f" and {len(cut) - 1} more" if len(cut) > 1 else ""
            warn(
                f"the text encoder of {self.name!r} reads fewer tokens than this prompt has, "
                f"so its end is ignored: {texts[cut[0]]!r}{more}; shorten it",
                TruncationWarning,
                stacklevel=2,
            )
        return tokens

    def forward_texts(self, tokens: Tokens) -> Tensor:
        """Embed tokens as unit-norm float32 `(K, D)`, differentiably."""
        packed = packed_weights(self.dtype, self.device)
        with INSERTING, self._inserted("in_texts"), packed:
            embeddings = self.text_embeddings(self._tokens(tokens)).float()
            return self._inside("text_features", functional.normalize(embeddings, dim=-1))

    @contextlib.contextmanager
    def _inserted(self, where: str) -> Iterator[None]:
        """Run a block in which what was put into the encoder is there."""
        if self.inserts is None:
            yield
            return
        with INSERTING, getattr(self.inserts, where)(self):
            yield

    def _inside(self, name: str, features: Tensor) -> Tensor:
        """Return features as what was put into the encoder changes them."""
        if self.inserts is None:
            return features
        found: Tensor = getattr(self.inserts, name)(self, features)
        return found

    @property
    def dim(self) -> int:
        """Width D of the features, with what was put into the encoder."""
        if self.inserts is None:
            return self._dim
        found: int = self.inserts.width(self._dim)  # type: ignore[operator]  # it is a method
        return found

    @dim.setter
    def dim(self, value: int) -> None:
        self._dim = value

    # The model ----------------------------------------------------------------------------

    @property
    def lasting(self) -> bool:
        """Whether another process knows it by its fingerprint; if not, nothing of it is cached."""
        return True

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next((p.device for p in self.model.parameters()), torch.device("cpu"))

    @property
    def dtype(self) -> torch.dtype:
        """Precision of the weights; scale and bias keep float32 whatever the rest is."""
        scales = {id(parameter) for parameter in self.scale_parameters()}
        found = (
            p.dtype
            for p in self.model.parameters()
            if p.is_floating_point() and id(p) not in scales
        )
        return next(found, torch.float32)

    def place(self, device: torch.device | None, dtype: torch.dtype | None) -> None:
        """Move the weights and set their precision, each None for as they are; in evaluation mode."""
        exact = [parameter.detach().clone() for parameter in self.scale_parameters()]
        self.model.to(device=device, dtype=dtype)
        for parameter, value in zip(self.scale_parameters(), exact, strict=True):
            # Half precision would round a scale of 14.285 to 14.25.
            parameter.data = value.to(
                parameter.device, torch.promote_types(value.dtype, parameter.dtype)
            )
        self.model.eval()

    @property
    def parameter_count(self) -> int:
        """How many parameters the model has."""
        return sum(parameter.numel() for parameter in self.model.parameters())

    def require(self, capability: str) -> None:
        """Raise an `EncoderError` unless the encoder offers a capability of `CAPABILITIES`."""
        if capability not in self.capabilities:
            have = ", ".join(sorted(self.capabilities)) or "none"
            raise EncoderError(
                f"{self.name!r} (family {self.family!r}) does not offer {capability!r} "
                f"({CAPABILITIES[capability]}); it offers: {have}. `rada models` lists others"
            )

    def __repr__(self) -> str:
        return f"{type(self).__name__}(name={self.name!r}, dim={self.dim}, scale={self.scale:.4g})"

    def _pixels(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise EncoderError(f"pixels should be (B, 3, H, W), not {tuple(pixels.shape)}")
        return pixels.to(self.device, self.dtype)

    def _tokens(self, tokens: Tokens) -> Tokens:
        return {name: tensor.to(self.device) for name, tensor in tokens.items()}
