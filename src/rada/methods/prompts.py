"""Learned context vectors in front of the class names, and what the methods that have them share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from rada.core.config import Config
from rada.core.errors import ConfigError
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Cost, Facts, Method, Run, Shapes
from rada.training.feature_loop import Recipe

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = [
    "PromptConfig",
    "PromptMethod",
    "PromptModel",
    "PromptTexts",
    "context_vectors",
    "frozen",
    "prompted_text",
]

TEXT_CHUNK = 64
"""Prompts that are run at once; of more the backward pass computes each chunk again."""


@dataclass(frozen=True)
class PromptConfig(Recipe):
    """How context vectors learn.

    Attributes:
        context: Words whose token embeddings the context starts from.
    """

    context: str = "a photo of a"

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(bool(self.context.strip()), "context", "at least one word")


@contextlib.contextmanager
def frozen(module: nn.Module) -> Iterator[None]:
    """While the block runs, an encoder is in evaluation mode and takes no gradients of its own."""
    wanted = [p for p in module.parameters() if p.requires_grad]
    training = [part for part in module.modules() if part.training]
    module.eval()
    for parameter in wanted:
        parameter.requires_grad_(False)
    try:
        yield
    finally:
        for parameter in wanted:
            parameter.requires_grad_(True)
        for part in training:
            part.training = True


def context_vectors(encoder: DualEncoder, words: str) -> Tensor:
    """Return the token embeddings of some words, `(n, E)`."""
    tokens = encoder.tokenize([words])
    first = encoder.context_start
    length = int(tokens["attention_mask"].sum()) - first - 1  # the marks before and behind
    with torch.no_grad():
        found = encoder.embed_tokens(tokens)[0, first : first + length]
    return found.float().cpu().clone()


class PromptTexts:
    """The text encoder on learned vectors before class names, differentiable in the vectors.

    Of more than `TEXT_CHUNK` prompts no activations are kept, so that memory does not grow with them.

    Args:
        encoder: Its own weights take no gradients here.
        names: K class names.
        length: Vectors before each name, n.
    """

    def __init__(self, encoder: DualEncoder, names: Sequence[str], length: int) -> None:
        self.encoder, self.names, self.length = encoder, tuple(names), length
        self.tokens = encoder.tokenize_with_context([f"{name}." for name in names], length)

    def __call__(self, context: Tensor) -> Tensor:
        """Return unit-norm class features.

        Args:
            context: `(n, E)` for all classes, or one for each of B images, `(B, n, E)`.

        Returns:
            `(K, D)`, or `(B, K, D)`.
        """
        shared = context.ndim == 2
        count = len(self.names) * (
            1 if shared else context.shape[0]
        )  # len() would fix it in a graph
        if (
            torch.compiler.is_compiling()
        ):  # a graph has no chunks: they would fix the number of images
            found = self._encoded(context, torch.arange(count))
        elif count <= TEXT_CHUNK or not torch.is_grad_enabled():
            found = torch.cat([self._encoded(context, rows) for rows in _chunks(count)])
        else:
            from torch.utils.checkpoint import checkpoint  # torch 2.6 imports sympy for it

            found = torch.cat(
                [
                    checkpoint(self._encoded, context, rows, use_reentrant=False)
                    for rows in _chunks(count)
                ]
            )
        return found if shared else found.unflatten(0, (context.shape[0], len(self.names)))

    def _encoded(self, context: Tensor, rows: Tensor) -> Tensor:
        """Return the features of some prompts, counted image by image."""
        encoder, first, names = self.encoder, self.encoder.context_start, len(self.names)
        tokens = {key: tensor[rows % names] for key, tensor in self.tokens.items()}
        with frozen(encoder.model):
            embeddings = encoder.embed_tokens(tokens).detach()
            place = context.to(embeddings)
            place = (
                place.expand(len(embeddings), -1, -1)
                if context.ndim == 2
                else place[rows.to(place.device) // names]
            )
            parts = [embeddings[:, :first], place, embeddings[:, first + self.length :]]
            return encoder.encode_texts_from_embeddings(torch.cat(parts, dim=1), tokens)


def _chunks(count: int) -> Iterator[Tensor]:
    return iter(torch.arange(count).split(TEXT_CHUNK))


def prompted_text(encoder: DualEncoder, names: tuple[str, ...], context: Tensor) -> Tensor:
    """Run the text encoder on a context before each class name, once; see `PromptTexts`.

    Args:
        encoder: Its own weights take no gradients here.
        names: K class names.
        context: `(n, E)`, or `(B, n, E)`.

    Returns:
        Unit-norm `(K, D)`, or `(B, K, D)`.
    """
    return PromptTexts(encoder, names, context.shape[-2])(context)


class PromptModel(AdaptedModel):
    """Zero-shot with prompts whose first token embeddings are learned, one context for all classes.

    A model whose class features come of more than the context overrides `prepare`. If an image's own context
    tells all of it, it overrides `contexts` as well: TPT then goes on from there.

    Attributes:
        context: The learned vectors, `(n, E)`.
    """

    def __init__(
        self, method: Method, facts: Facts, config: Any, context: Tensor, encoder: DualEncoder
    ) -> None:
        super().__init__(method, facts, config, encoder)
        self.context = nn.Parameter(context)
        self._texts: PromptTexts | None = None

    def texts(self, classes: ClassSet) -> PromptTexts:
        """Return the text encoder on the class names; their tokens are kept until others are asked for."""
        if self._texts is None or self._texts.names != classes.names:
            assert self.encoder is not None
            self._texts = PromptTexts(self.encoder, classes.names, len(self.context))
        return self._texts

    def contexts(self, images: Tensor) -> Tensor:
        """Return the contexts of images `(B, D)`: `(n, E)` where all share it, else `(B, n, E)`."""
        return self.context

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Run the text encoder on the learned context before each class name."""
        text = self.texts(classes)(self.context)
        return replace(classes, text_features=text.to(classes.text_features.device))

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return `scale * cosine`."""
        return self.zero_shot_logits(images, classes)


@dataclass(frozen=True)
class PromptMethod(Method):
    """Trains a context on cached image features, through the text encoder."""

    config: ClassVar[type[Config]] = PromptConfig
    model = PromptModel
    trains: str = "context vectors of the prompt"
    needs: frozenset[str] = frozenset({"encoder", "token_embeddings"})
    cost: Cost = "text encoder"

    def build(
        self, facts: Facts, config: Any, shapes: Shapes, encoder: DualEncoder | None
    ) -> AdaptedModel:
        """Return the context that the method starts from, or a place for the one of a file."""
        if encoder is None:
            raise ConfigError(f"{self.name} needs the encoder whose prompts it learned")
        if "context" in shapes:
            context = torch.empty(shapes["context"])
        else:
            context = self.first_context(config, encoder)
        return self.model(self, facts, config, context, encoder)

    def first_context(self, config: Any, encoder: DualEncoder) -> Tensor:
        """Return the context before training, `(n, E)`."""
        return context_vectors(encoder, config.context)

    def train(self, model: AdaptedModel, data: Features, config: Any, run: Run) -> AdaptedModel:
        """Train the context."""
        return self.learn(model, data, config, run)
