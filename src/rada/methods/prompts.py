"""Learned context vectors in front of the class names, and what the methods that have them share."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from rada.core.config import Config
from rada.core.errors import ConfigError
from rada.encoders.tokens import Tokens, token_count, token_slice
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Cost, Facts, Method, Run, Shapes
from rada.training.feature_loop import Recipe

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["PromptConfig", "PromptMethod", "PromptModel", "context_vectors", "prompted_text"]

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
def _frozen(module: nn.Module) -> Iterator[None]:
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


def prompted_text(encoder: DualEncoder, names: tuple[str, ...], context: Tensor) -> Tensor:
    """Run the text encoder on a context before each class name, differentiably in the context.

    Of more than `TEXT_CHUNK` classes no activations are kept, so that memory does not grow with them.

    Args:
        encoder: Its own weights take no gradients here.
        names: K class names.
        context: `(n, E)`.

    Returns:
        Unit-norm `(K, D)`.
    """
    prompts = [f"{name}." for name in names]
    tokens = encoder.tokenize_with_context(prompts, len(context))
    first, length = encoder.context_start, len(context)

    def encoded(context: Tensor, tokens: Tokens) -> Tensor:
        with _frozen(encoder.model):
            embeddings = encoder.embed_tokens(tokens).detach()
            place = context.to(embeddings).expand(len(embeddings), -1, -1)
            parts = [embeddings[:, :first], place, embeddings[:, first + length :]]
            return encoder.encode_texts_from_embeddings(torch.cat(parts, dim=1), tokens)

    count = token_count(tokens)
    if count <= TEXT_CHUNK or not torch.is_grad_enabled():
        chunks = [
            encoded(context, token_slice(tokens, slice(start, start + TEXT_CHUNK)))
            for start in range(0, count, TEXT_CHUNK)
        ]
    else:
        chunks = [
            checkpoint(
                encoded,
                context,
                token_slice(tokens, slice(start, start + TEXT_CHUNK)),
                use_reentrant=False,
            )
            for start in range(0, count, TEXT_CHUNK)
        ]
    return torch.cat(chunks)


class PromptModel(AdaptedModel):
    """Zero-shot with prompts whose first token embeddings are learned, one context for all classes."""

    def __init__(
        self, method: Method, facts: Facts, config: Any, context: Tensor, encoder: DualEncoder
    ) -> None:
        super().__init__(method, facts, config, encoder)
        self.context = nn.Parameter(context)

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Run the text encoder on the learned context before each class name."""
        assert self.encoder is not None
        text = prompted_text(self.encoder, classes.names, self.context)
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
