"""What adaptation has to beat, on the same views: no head is involved in any of these."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from rada.core.errors import EncoderError
from rada.core.progress import track
from rada.test_time.adapt import check_views, check_widths
from rada.test_time.config import TTTConfig
from rada.test_time.selection import entropy, gather_views, mean_log_probability
from rada.test_time.start import make_start

if TYPE_CHECKING:
    from rada.encoders import DualEncoder
    from rada.encoders.tokens import Tokens

__all__ = ["tpt_logits", "view_baselines"]


def view_baselines(
    view_features: Any, text_features: Any, scale: float, config: TTTConfig | None = None
) -> dict[str, Tensor]:
    """Return what the views give without adaptation.

    Args:
        view_features: Unit-norm `(N, V, D)`, view 0 the original.
        text_features: Unit-norm class features `(K, D)`.
        scale: The exponentiated logit scale.
        config: `selection` is used.

    Returns:
        `(N, K)` each: "zero_shot" logits of the original view, "mean_of_views" and "confident_mean",
        logarithms of the mean probability of all views and of those with the lowest entropy.

    Example:
        >>> views = torch.eye(4).repeat(2, 5, 1)[:, :20]
        >>> sorted(view_baselines(views, torch.eye(4)[:3], 10.0))
        ['confident_mean', 'mean_of_views', 'zero_shot']
    """
    views = check_views(view_features)
    start = make_start(text_features, scale, None, config or TTTConfig(num_heads=1), views.dtype)
    check_widths(views, start)
    logits = start.logits(views)
    chosen = start.choose(views)
    return {
        "zero_shot": logits[:, 0],
        "mean_of_views": mean_log_probability(logits),
        "confident_mean": mean_log_probability(gather_views(logits, chosen.kept)),
    }


def tpt_logits(
    encoder: DualEncoder,
    classes: Sequence[str],
    view_features: Any,
    config: TTTConfig | None = None,
    *,
    context: str = "a photo of a",
    progress: bool | None = False,
) -> Tensor:
    """Adapt a learned text prompt to each picture (TPT, Shu et al., NeurIPS 2022).

    The token vectors of `context` are learned, anew for every picture, on the same kept views and
    with the same loss, steps and optimiser as the head. One picture at a time: each step runs the
    text tower on all classes.

    Args:
        encoder: An encoder with the capability `token_embeddings`.
        classes: K class names.
        view_features: Unit-norm `(N, V, D)` of this encoder.
        config: `selection`, `steps`, `learning_rate` and `weight_decay` are used.
        context: Words before the class name.
        progress: Show a bar; None shows it on a terminal only.

    Returns:
        Logits `(N, K)` of the original views.

    Raises:
        EncoderError: If the encoder has no token embeddings, or the context is not the same tokens in
            every prompt.
    """
    config = config or TTTConfig()
    views = check_views(view_features)
    tokens, length = _prompt_tokens(encoder, classes, context)
    with torch.no_grad():
        embedded = encoder.embed_tokens(tokens)
        text = encoder.encode_texts_from_embeddings(embedded, tokens)
    first = embedded[0, 1 : 1 + length]

    def embed(vectors: Tensor) -> Tensor:
        place = vectors.expand(len(embedded), -1, -1)
        changed = torch.cat([embedded[:, :1], place, embedded[:, 1 + length :]], 1)
        return encoder.encode_texts_from_embeddings(changed, tokens)

    start = make_start(text, encoder.scale, None, config, views.dtype)
    check_widths(views, start)
    answers = []
    for picture in track(views, "TPT", enabled=progress, unit="pictures"):
        kept = start.choose(picture[None]).views[0]
        vectors = first.clone().requires_grad_(True)
        optimizer = torch.optim.AdamW(
            [vectors], lr=config.learning_rate, weight_decay=config.weight_decay
        )
        for _ in range(config.steps):
            logits = encoder.scale * kept @ embed(vectors).T
            optimizer.zero_grad()
            entropy(mean_log_probability(logits)).backward(inputs=[vectors])
            optimizer.step()
        with torch.no_grad():
            answers.append(encoder.scale * picture[0] @ embed(vectors).T)
    return torch.stack(answers)


def _prompt_tokens(
    encoder: DualEncoder, classes: Sequence[str], context: str
) -> tuple[Tokens, int]:
    """Return the prompts' tokens and the number of the context's, which follow the start mark."""
    encoder.require("token_embeddings")
    tokens = encoder.tokenize([f"{context} {name}." for name in classes])
    alone = encoder.tokenize([context])
    length = int(alone["attention_mask"].sum()) - 2  # without start and end mark
    context_ids = tokens["input_ids"][:, 1 : 1 + length]
    if length < 1 or not (context_ids == alone["input_ids"][:, 1 : 1 + length]).all():
        raise EncoderError(
            f"the tokenizer of {encoder.name!r} does not give the context {context!r} the same "
            "tokens in every prompt: choose other words"
        )
    return tokens, length
