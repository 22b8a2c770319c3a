"""`adapt_views`: test-time training on features, batched exactly."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from rada.core.errors import TrainingDivergedError
from rada.core.finite import broken_rows
from rada.core.progress import progress_bar
from rada.core.values import check_count
from rada.head import RAdaHead
from rada.test_time.base import check_views
from rada.test_time.config import TTTConfig
from rada.test_time.out_layers import OutLayers, bytes_of_image
from rada.test_time.start import Adaptation, Start, make_start

__all__ = ["adapt_in_detail", "adapt_views"]

_LARGEST_CHUNK = 64
"""More images at once gain nothing and leave the caches."""


def adapt_views(
    view_features: Any,
    text_features: Any,
    scale: float,
    head: RAdaHead | None = None,
    config: TTTConfig | None = None,
    batch_size: int | None = None,
    *,
    progress: bool | None = False,
) -> Tensor:
    """Adapt the head to each image from its views, and predict the image.

    Each image keeps the views whose predictions have the lowest entropy, takes steps on the
    entropy of their mean prediction, with an output layer of its own, and is predicted with its
    original view ("One Last Attention for Your Vision-Language Model", ICCV 2025, test-time training;
    the protocol is that of TPT, NeurIPS 2022). An image whose views do not agree keeps its prediction.

    Args:
        view_features: Unit-norm `(N, V, D)`: V views of N images, view 0 the original.
        text_features: Unit-norm class features `(K, D)`.
        scale: The exponentiated logit scale.
        head: The head to start from; None for the untrained one, whose mask is one.
        config: How to adapt; the defaults of `TTTConfig` when None. With `episodic=False` the
            images are a stream in order, whose head is not reset (see `OnlineAdapter`).
        batch_size: Images at once, at most; `config.memory_budget` bounds them as well. The results
            are the same to 1e-5 of the largest logit.
        progress: Show a bar; None shows it on a terminal only.

    Returns:
        Logits `(N, K)`.

    Raises:
        FeatureError: If features cannot be used (shape, NaN, zero rows, widths) or the views are too
            few to keep one.
        ConfigError: If scale or batch size is out of range.
        TrainingDivergedError: If adaptation makes NaN or infinite logits.

    Example:
        >>> import torch
        >>> from torch.nn.functional import normalize
        >>> generator = torch.Generator().manual_seed(0)
        >>> text = normalize(torch.randn(3, 16, generator=generator), dim=-1)
        >>> views = normalize(text[[0, 2], None] + torch.randn(2, 20, 16, generator=generator), dim=-1)
        >>> adapt_views(views, text, 20.0).shape
        torch.Size([2, 3])
    """
    config = config or TTTConfig()
    if not config.episodic:
        from rada.test_time.online import OnlineAdapter

        return OnlineAdapter(text_features, scale, head, config).predict(view_features)
    return adapt_in_detail(
        view_features, text_features, scale, head, config, batch_size, progress=progress
    ).logits


def adapt_in_detail(
    view_features: Any,
    text_features: Any,
    scale: float,
    head: RAdaHead | None = None,
    config: TTTConfig | None = None,
    batch_size: int | None = None,
    *,
    progress: bool | None = False,
) -> Adaptation:
    """Do what `adapt_views` does and tell all about it; every image starts anew."""
    largest = _LARGEST_CHUNK if batch_size is None else check_count(batch_size, "batch_size")
    config = config or TTTConfig()
    views = check_views(view_features)
    start = make_start(text_features, scale, head, config, views.dtype)
    check_views(views, start.text.shape[1])
    each = bytes_of_image(start, config.kept(views.shape[1]) + 1)
    size = max(1, min(config.memory_budget // each, largest))
    parts = []
    with progress_bar("Adapting", len(views), enabled=progress, unit="images") as advance:
        for chunk in views.split(size):
            parts.append(_adapt(start, chunk))
            advance(len(chunk))
    columns = zip(*parts, strict=True)
    return Adaptation(*(torch.cat(column) for column in columns))


def _adapt(start: Start, views: Tensor) -> tuple[Tensor, ...]:
    """Return the fields of `Adaptation` for one chunk `(n, V, D)`."""
    chosen = start.choose(views)
    logits, peaks = chosen.logits.clone(), chosen.logits.new_zeros(len(views))
    active = chosen.active.nonzero()[:, 0]
    if len(active):
        layers, rows = OutLayers(start, len(active)), start.rows(chosen.views[active])
        for _ in range(start.config.steps):
            layers.step(rows)
        found, deviation = layers.predict(rows)
        logits[active] = start.answer(found)
        peaks[active] = deviation.amax(-1)
    broken = broken_rows(logits)
    if broken.any():
        raise TrainingDivergedError(
            f"adaptation made NaN or infinite logits of {int(broken.sum())} of {len(views)} images: lower "
            f"max_step ({start.config.max_step:g}) or the number of steps ({start.config.steps})"
        )
    return (
        logits,
        chosen.logits,
        chosen.kept,
        chosen.entropies,
        chosen.mean_entropy,
        peaks,
        chosen.active,
    )
