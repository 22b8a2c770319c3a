"""Learned prompts: vectors among the token embeddings and in the layers of an encoder."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from typing import Literal

from torch import Tensor

from rada.core.errors import EncoderError
from rada.encoders.prompts import (
    deep_prompts,
    insert_context,
    inserted_tokens,
    output_replaced,
)
from rada.encoders.protocol import EncoderProtocol
from rada.encoders.tokens import Tokens

__all__ = ["PromptLearning"]


class PromptLearning(EncoderProtocol):
    """Takes learned prompts, where the family offers what they need."""

    def embed_tokens(self, tokens: Tokens) -> Tensor:
        """Return the token embeddings `(K, L, E)`, before positions are added; differentiable.

        Raises:
            EncoderError: If the family does not offer `token_embeddings`.
        """
        self.require("token_embeddings")
        found: Tensor = self.token_embedding_module()(self._tokens(tokens)["input_ids"])
        return found

    def encode_texts_from_embeddings(self, embeddings: Tensor, tokens: Tokens) -> Tensor:
        """Run the text encoder on token embeddings that a method has changed.

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
        # The encoder runs as it is, masks and positions included; only its first layer returns
        # the given vectors.
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
        """While the block runs, put learned vectors into the layers of the text encoder.

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
        """While the block runs, put learned tokens behind the patches of the image encoder.

        Before layer 0 `prompts[0]` of shape `(n, W)` or `(B, n, W)` is appended, before layer j
        these n rows become `prompts[j]`.

        Raises:
            EncoderError: If the family does not offer `deep_image_prompts`.
        """
        self.require("deep_image_prompts")
        with deep_prompts(self.image_layers(), prompts, start=None):
            yield

    @contextlib.contextmanager
    def inserted_tokens(
        self, part: Literal["image", "text"], tokens: Sequence[Tensor]
    ) -> Iterator[list[Tensor]]:
        """While the block runs, put further tokens into the last layers of one encoder.

        They stand behind the start mark of a text or the class token of an image, where the words and
        patches move aside for them, and are gone behind the last layer.

        Args:
            part: "image" or "text".
            tokens: `(n, W)` for each of the last layers.

        Yields:
            A list to which every run adds what the last layer made of its tokens, `(B, n, W)`.

        Raises:
            EncoderError: If the family does not offer `deep_image_prompts` or `deep_text_prompts`.
        """
        self.require(f"deep_{part}_prompts")
        layers = self.image_layers() if part == "image" else self.text_layers()
        start = 1 if part == "image" else self.context_start
        with inserted_tokens(layers, tokens, start=start) as seen:
            yield seen
