"""The protocol that every vision-language model is wrapped in."""

from __future__ import annotations

import contextlib
import re
import warnings
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from rada.core.errors import DataError, EncoderError
from rada.core.progress import progress_bar
from rada.core.values import check_scale
from rada.encoders.fingerprint import digest, module_digest, weights_version
from rada.encoders.memory import keep_freed_memory
from rada.encoders.prompts import deep_prompts, insert_context, output_replaced
from rada.encoders.structure import describe_module
from rada.encoders.tokens import Tokens, check_prompts, token_count, token_slice
from rada.encoders.transforms import stack_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["CAPABILITIES", "DualEncoder", "Part", "TruncationWarning"]

Part = Literal["both", "image", "text"]
Transform = Callable[["Image"], Tensor]

CAPABILITIES: dict[str, str] = {
    "image_gradients": "the image tower can be trained",
    "text_gradients": "the text tower can be trained",
    "learned_scale": "the checkpoint holds the scale of the logits",
    "logit_bias": "the score has a bias (it never changes the ranking of the classes)",
    "token_embeddings": "learned context vectors can stand among the token embeddings",
    "deep_text_prompts": "learned prompts can enter every layer of the text tower",
    "deep_image_prompts": "learned prompts can enter every layer of the image tower",
    "fast_inference": "an image path faster than the module's own, equal within 1e-4",
    "save": "writes the format of its own library",
}


class TruncationWarning(UserWarning):
    """A prompt is longer than the text tower reads; its end was cut off."""


@contextlib.contextmanager
def evaluating(module: nn.Module) -> Iterator[None]:
    """Put a module into evaluation mode and give every submodule its own mode back afterwards."""
    training = [part for part in module.modules() if part.training]
    module.eval()
    try:
        yield
    finally:
        for part in training:
            part.training = True


class DualEncoder(ABC):
    """An image tower and a text tower that embed into one space.

    A family subclasses this, implements the abstract methods and registers itself with
    `rada.encoders.register_family`. Features are unit-norm float32, whatever the precision of the
    weights.

    Args:
        model: Everything that has weights.
        name: What `load_encoder` was asked for.
        dim: Width D of the features.
        preprocess: PIL image to float32 pixels `(3, H, W)`, for evaluation. Picklable.
        train_transform: The same at random, drawing from torch's global generator. Picklable.
        scale: Overrides the model's own scale of the logits; None keeps it.

    Attributes:
        family: Name of the family.
        capabilities: What it can do beyond the protocol; the keys of `CAPABILITIES`.
        default_scale: Scale where the model learns none.
    """

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
        self._fingerprint: tuple[object, tuple[str, str]] | None = None

    # What a family implements -------------------------------------------------------------

    @property
    @abstractmethod
    def image_module(self) -> nn.Module:
        """The module that holds the weights of the image tower."""

    @property
    @abstractmethod
    def text_module(self) -> nn.Module:
        """The module that holds the weights of the text tower."""

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
        """Parameters of scale and bias, which belong to neither tower."""
        return []

    # Scores ---------------------------------------------------------------------------------

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

    # Images -----------------------------------------------------------------------------------

    def forward_images(self, pixels: Tensor) -> Tensor:
        """Embed pixels `(B, 3, H, W)` as unit-norm float32 `(B, D)`, differentiably.

        Raises:
            EncoderError: If `pixels` has another shape.
        """
        return functional.normalize(self.image_embeddings(self._pixels(pixels)).float(), dim=-1)

    def infer_images(self, pixels: Tensor) -> Tensor:
        """Do the same without gradients, in evaluation mode, as fast as the family can."""
        keep_freed_memory()
        with torch.no_grad(), evaluating(self.model):
            return self.forward_images(pixels)

    def encode_images(
        self,
        images: Sequence[Image | str | Path] | Tensor,
        *,
        batch_size: int = 32,
        progress: bool | None = False,
    ) -> Tensor:
        """Embed pictures.

        Args:
            images: PIL images, paths, or pixels `(N, 3, H, W)` that are preprocessed already.
            batch_size: Images that are run at once.
            progress: Show a bar; None on a terminal only.

        Returns:
            Unit-norm float32 `(N, D)` on the CPU.
        """
        _check_batch_size(batch_size)
        if isinstance(images, str | Path):
            raise DataError(f"images should be a list; give [{str(images)!r}] for one path")
        features = torch.empty(len(images), self.dim)
        with progress_bar("Images", len(images), enabled=progress, unit="img") as advance:
            for start in range(0, len(images), batch_size):
                chunk = images[start : start + batch_size]
                pixels = chunk if isinstance(chunk, Tensor) else self._load(chunk)
                features[start : start + len(pixels)] = self.infer_images(pixels).cpu()
                advance(len(pixels))
        return features

    # Texts ------------------------------------------------------------------------------------

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
            warnings.warn(
                f"the text tower of {self.name!r} reads fewer tokens than this prompt has, "
                f"so its end is ignored: {texts[cut[0]]!r}{more}; shorten it",
                TruncationWarning,
                stacklevel=2,
            )
        return tokens

    def forward_texts(self, tokens: Tokens) -> Tensor:
        """Embed tokens as unit-norm float32 `(K, D)`, differentiably."""
        return functional.normalize(self.text_embeddings(self._tokens(tokens)).float(), dim=-1)

    def forward_texts_chunked(self, tokens: Tokens, *, chunk_size: int = 64) -> Tensor:
        """Embed tokens chunk by chunk and, where gradients are on, keep no activations.

        The backward pass computes each chunk again (gradient checkpointing), so that thousands of
        class prompts fit.
        """
        from torch.utils.checkpoint import checkpoint

        _check_batch_size(chunk_size)
        parts = []
        for start in range(0, token_count(tokens), chunk_size):
            chunk = token_slice(tokens, slice(start, start + chunk_size))
            if torch.is_grad_enabled():
                parts.append(checkpoint(self.forward_texts, chunk, use_reentrant=False))
            else:
                parts.append(self.forward_texts(chunk))
        return torch.cat(parts)

    def encode_texts(
        self, prompts: Sequence[str], *, batch_size: int = 64, progress: bool | None = False
    ) -> Tensor:
        """Embed prompts.

        Args:
            prompts: K texts, in any language the model knows, none of them empty.
            batch_size: Prompts that are run at once.
            progress: Show a bar; None on a terminal only.

        Returns:
            Unit-norm float32 `(K, D)` on the CPU.
        """
        _check_batch_size(batch_size)
        texts = check_prompts(prompts)
        # Prompts of like length together: no time goes into padding.
        order = sorted(range(len(texts)), key=lambda index: len(texts[index]))
        features = torch.empty(len(texts), self.dim)
        with (
            progress_bar("Prompts", len(texts), enabled=progress, unit="prompts") as advance,
            torch.no_grad(),
            evaluating(self.model),
        ):
            for start in range(0, len(order), batch_size):
                chunk = order[start : start + batch_size]
                tokens = self.tokenize([texts[index] for index in chunk])
                features[chunk] = self.forward_texts(tokens).cpu()
                advance(len(chunk))
        return features

    def encode_classes(
        self,
        classes: Sequence[str],
        templates: Sequence[str] | None = None,
        *,
        batch_size: int = 64,
        progress: bool | None = False,
    ) -> Tensor:
        """Embed class names: the mean over the templates, normalised again.

        Args:
            classes: K names.
            templates: Each with one `{}`; None for "a photo of a {}.".
            batch_size: Prompts that are run at once.
            progress: Show a bar; None on a terminal only.

        Returns:
            Unit-norm float32 `(K, D)` on the CPU.
        """
        from rada.data import build_prompts

        prompts = build_prompts(classes, templates)
        flat = [text for row in prompts for text in row]
        features = self.encode_texts(flat, batch_size=batch_size, progress=progress)
        return functional.normalize(features.view(len(prompts), -1, self.dim).mean(1), dim=-1)

    # Prompts as learned vectors -----------------------------------------------------------------

    def embed_tokens(self, tokens: Tokens) -> Tensor:
        """Return the token embeddings `(K, L, E)`, before positions are added; differentiable.

        Raises:
            EncoderError: If the family does not offer `token_embeddings`.
        """
        self.require("token_embeddings")
        found: Tensor = self.token_embedding_module()(self._tokens(tokens)["input_ids"])
        return found

    def encode_texts_from_embeddings(self, embeddings: Tensor, tokens: Tokens) -> Tensor:
        """Run the text tower on token embeddings that a method has changed.

        Args:
            embeddings: `(K, L, E)`, such as `embed_tokens(tokens)` with some rows replaced.
            tokens: The tokens they stand for: lengths and end marks are read from these.

        Returns:
            Unit-norm float32 `(K, D)`, differentiable in `embeddings`.

        Raises:
            EncoderError: If the family does not offer `token_embeddings`, or the shapes differ.
        """
        self.require("token_embeddings")
        tokens = self._tokens(tokens)
        if embeddings.ndim != 3 or embeddings.shape[:2] != tokens["input_ids"].shape:
            raise EncoderError(
                f"embeddings of shape {tuple(embeddings.shape)} do not fit tokens of shape "
                f"{tuple(tokens['input_ids'].shape)}; expected (K, L, E)"
            )
        embeddings = embeddings.to(self.device, self.dtype)
        # The tower runs as it is, masks and positions included; only its first layer answers
        # with the given vectors.
        with output_replaced(self.token_embedding_module(), embeddings):
            return self.forward_texts(tokens)

    def tokenize_with_context(self, prompts: Sequence[str], length: int) -> Tokens:
        """Tokenize prompts with `length` free places before the words, for learned vectors.

        With `s = encoder.context_start` the places are `s .. s + length - 1` of each row: replace these
        rows of `embed_tokens(tokens)` and run `encode_texts_from_embeddings`.

        Raises:
            EncoderError: If the family has no token embeddings, or a prompt leaves no room.
        """
        self.require("token_embeddings")
        return insert_context(
            self.tokenize(prompts), length, self.max_tokens, start=self.context_start
        )

    @contextlib.contextmanager
    def deep_text_prompts(self, prompts: Sequence[Tensor | None]) -> Iterator[None]:
        """While the block runs, put learned vectors into the layers of the text tower.

        Before layer j the n rows from `context_start` on of its input become `prompts[j]`, of shape
        `(n, E)` or `(K, n, E)`; None leaves a layer alone. Meant with
        `tokenize_with_context(..., length=n)`.
        Where layers are checkpointed (`forward_texts_chunked`), the backward pass belongs into the
        block too, since it runs them again.

        Raises:
            EncoderError: If the family does not offer `deep_text_prompts`.
        """
        self.require("deep_text_prompts")
        with deep_prompts(self.text_layers(), prompts, start=self.context_start):
            yield

    @contextlib.contextmanager
    def deep_image_prompts(self, prompts: Sequence[Tensor | None]) -> Iterator[None]:
        """While the block runs, put learned tokens behind the patches of the image tower.

        Before layer 0 `prompts[0]` of shape `(n, W)` or `(B, n, W)` is appended, before layer j
        these n rows become `prompts[j]`.

        Raises:
            EncoderError: If the family does not offer `deep_image_prompts`.
        """
        self.require("deep_image_prompts")
        with deep_prompts(self.image_layers(), prompts, start=None):
            yield

    def token_embedding_module(self) -> nn.Module:
        """The layer that turns token numbers into vectors, which `token_embeddings` needs."""
        raise NotImplementedError

    def text_layers(self) -> list[nn.Module]:
        """Transformer layers of the text tower, in order; empty where it has none."""
        return []

    def image_layers(self) -> list[nn.Module]:
        """Transformer layers of the image tower, in order; empty where it has none."""
        return []

    @property
    def context_start(self) -> int:
        """Where learned context begins: behind the start mark, or at 0 where there is none."""
        return 1

    @property
    def max_tokens(self) -> int:
        """The longest row of tokens that the text tower reads."""
        return 77

    # Weights -----------------------------------------------------------------------------------

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

    def freeze(self, which: Part = "both") -> None:
        """Turn gradients off for one tower, or for everything, and go to evaluation mode."""
        for parameter in self._parameters(which):
            parameter.requires_grad_(False)
        for module in self._modules(which):
            module.eval()

    def unfreeze(self, which: Part = "both") -> None:
        """Turn gradients on for one tower, or for everything; the mode stays.

        Raises:
            EncoderError: If the family has no gradients there.
        """
        for part in ("image", "text") if which == "both" else (which,):
            self.require(f"{part}_gradients")
        for parameter in self._parameters(which):
            parameter.requires_grad_(True)

    def trainable_parameters(self, which: Part = "both") -> list[nn.Parameter]:
        """Return the parameters that take gradients; "both" includes those of the scale."""
        return [parameter for parameter in self._parameters(which) if parameter.requires_grad]

    def save(self, directory: str | Path) -> None:
        """Write the model in its own library's format.

        Raises:
            EncoderError: If the family does not offer `save`.
            OutputError: If the folder holds what rada did not write, or another process writes to it.
            StorageError: If the place cannot be written.
        """
        self.require("save")
        from rada.core.output import claim

        with claim(directory, "encoder") as out, out.saving() as stage:
            self.write(stage)

    def write(self, directory: Path) -> None:
        """Family's part of `save`; the folder exists and is empty."""
        raise NotImplementedError

    # Identity -----------------------------------------------------------------------------------

    @property
    def fingerprint(self) -> str:
        """A hash of weights, architecture, preprocessing and tokenizer, the same in every process.

        It is computed once and again only after the weights have changed.
        """
        return self._fingerprints()[0]

    def has_fingerprint(self, other: str) -> bool:
        """Whether a fingerprint that was saved with a head or with features is this encoder's.

        Fingerprints of rada 0.1.0 left the architecture out. Such a one is accepted, with a warning,
        where everything that it covers is the same.
        """
        now, before = self._fingerprints()
        if other != before:
            return other == now
        warnings.warn(
            f"the fingerprint {other} was saved by an earlier rada, which left the architecture out: "
            f"weights, preprocessing and tokenizer of {self.name!r} are the same, but the activation, the "
            "number of heads and other settings cannot be compared. If the model is certainly the same, "
            "save the head or the features again to renew the fingerprint; otherwise fit or encode again. "
            "(An open_clip model with QuickGELU, such as every /openai tag, that an earlier rada finetune "
            "or encoder.save wrote loads with another activation: tune it again.)",
            stacklevel=3,
        )
        return True

    def _fingerprints(self) -> tuple[str, str]:
        """Return the fingerprint, and the one that rada 0.1.0 gave the same encoder."""
        version = weights_version(self.model)
        if self._fingerprint is None or self._fingerprint[0] != version:
            parts = (
                self.family,
                module_digest(self.model),
                self.transform_key("preprocess"),
                self._tokenizer_digest,
            )
            both = digest(*parts, digest(self.architecture_key())), digest(*parts)
            self._fingerprint = (version, both)
        return self._fingerprint[1]

    def architecture_key(self) -> str:
        """Return a text that changes with every setting that decides features beside the weights."""
        return describe_module(self.model)

    @cached_property
    def _tokenizer_digest(self) -> str:
        return digest(self.tokenizer_key())

    def transform_key(self, kind: Literal["preprocess", "train_transform"]) -> str:
        """Return a stable text that identifies a transform, for the keys of caches."""
        # Functions print their address, which differs between processes.
        return digest(re.sub(r" at 0x[0-9a-fA-F]+", "", repr(getattr(self, kind))))

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

    # Inner parts --------------------------------------------------------------------------------

    def _modules(self, which: Part) -> list[nn.Module]:
        if which not in ("both", "image", "text"):
            raise EncoderError(f"which should be 'both', 'image' or 'text', not {which!r}")
        towers = {"image": self.image_module, "text": self.text_module, "both": self.model}
        return [towers[which]]

    def _parameters(self, which: Part) -> list[nn.Parameter]:
        found = [p for module in self._modules(which) for p in module.parameters()]
        known = {id(parameter) for parameter in found}
        if which == "both":
            found += [p for p in self.scale_parameters() if id(p) not in known]
        return found

    def _pixels(self, pixels: Tensor) -> Tensor:
        if pixels.ndim != 4 or pixels.shape[1] != 3:
            raise EncoderError(f"pixels should be (B, 3, H, W), not {tuple(pixels.shape)}")
        return pixels.to(self.device, self.dtype)

    def _tokens(self, tokens: Tokens) -> Tokens:
        return {name: tensor.to(self.device) for name, tensor in tokens.items()}

    def _load(self, images: Sequence[Image | str | Path]) -> Tensor:
        from rada.data import open_image

        return stack_pixels([self.preprocess(open_image(image)) for image in images])


def _check_batch_size(value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise EncoderError(f"the batch size should be a positive integer, not {value!r}")
