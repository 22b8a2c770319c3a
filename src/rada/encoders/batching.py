"""Images, texts and classes in any number, embedded batch by batch."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn import functional

from rada.core.errors import DataError, EncoderError
from rada.core.progress import progress_bar
from rada.encoders.protocol import EncoderProtocol, evaluating
from rada.encoders.tokens import Tokens, check_prompts, token_count, token_slice
from rada.encoders.transforms import stack_pixels

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Batching"]


class Batching(EncoderProtocol):
    """Embeds images, texts and classes in any number."""

    def encode_images(
        self,
        images: Sequence[Image | str | Path] | Tensor,
        *,
        batch_size: int = 32,
        progress: bool | None = False,
    ) -> Tensor:
        """Embed images.

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

    def _load(self, images: Sequence[Image | str | Path]) -> Tensor:
        from rada.data import open_image

        return stack_pixels([self.preprocess(open_image(image)) for image in images])


def _check_batch_size(value: Any) -> None:
    if not isinstance(value, int) or value < 1:
        raise EncoderError(f"the batch size should be a positive integer, not {value!r}")
