"""TPT: a prompt that adapts to each image from its confident views."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rada.core.errors import ConfigError, EncoderError
from rada.core.progress import track
from rada.features import ClassSet
from rada.methods import AdaptedModel
from rada.test_time.base import TestTimeMethod, ViewPredictor, check_views
from rada.test_time.config import ViewConfig
from rada.test_time.registry import register_test_time_method
from rada.test_time.selection import entropy, keep_confident, mean_log_probability, view_entropies

if TYPE_CHECKING:
    from rada.encoders import DualEncoder
    from rada.encoders.tokens import Tokens

__all__ = ["TPT", "TPTConfig", "tpt_logits"]


@dataclass(frozen=True)
class TPTConfig(ViewConfig):
    """Configuration of TPT, with the published values.

    Attributes:
        steps: AdamW steps on an image.
        learning_rate: Its rate.
        weight_decay: Its decay.
        context: Words before the class name, whose token vectors are learned.
    """

    steps: int = 1
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    context: str = "a photo of a"

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.steps >= 1, "steps", "a positive integer")
        self.require(self.learning_rate > 0, "learning_rate", "above 0")
        self.require(self.weight_decay >= 0, "weight_decay", "0 or more")
        self.require(bool(self.context.strip()), "context", "at least one word")


@dataclass(frozen=True)
class TPT(TestTimeMethod):
    """Learns the token vectors of the context, anew for every image; starts from zero-shot."""

    config: ClassVar[type[ViewConfig]] = TPTConfig

    def check(self, model: AdaptedModel) -> None:
        """Check that the model is zero-shot."""
        if model.method.learns:
            raise ConfigError(
                f"{self.title} starts from zero-shot, not from {model.method.title}: its prompt would "
                "replace what was learned"
            )
        super().check(model)

    def predictor(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        config: TPTConfig,
        *,
        batch_size: int | None = None,
        progress: bool | None = False,
    ) -> ViewPredictor:
        """Return what adapts to one image at a time."""
        encoder = model.encoder
        assert encoder is not None
        return lambda views: tpt_logits(encoder, classes.names, views, config, progress=progress)


def tpt_logits(
    encoder: DualEncoder,
    classes: Sequence[str],
    view_features: Any,
    config: TPTConfig | None = None,
    *,
    progress: bool | None = False,
) -> Tensor:
    """Adapt a learned text prompt to each image (TPT, Shu et al., NeurIPS 2022).

    The token vectors of `context` are learned, anew for every image, on the same kept views and
    with the same loss, steps and optimiser as the head. One image at a time: each step runs the
    text encoder on all classes.

    Args:
        encoder: An encoder with the capability `token_embeddings`.
        classes: K class names.
        view_features: Unit-norm `(N, V, D)` of this encoder.
        config: `selection`, the optimiser's values and the context are used.
        progress: Show a bar; None shows it on a terminal only.

    Returns:
        Logits `(N, K)` of the original views.

    Raises:
        EncoderError: If the encoder has no token embeddings, or the context is not the same tokens in
            every prompt.
    """
    config = config or TPTConfig()
    tokens, length = _prompt_tokens(encoder, classes, config.context)
    with torch.no_grad():
        embedded = encoder.embed_tokens(tokens)
        text = encoder.encode_texts_from_embeddings(embedded, tokens)
    first = embedded[0, 1 : 1 + length]

    def embed(vectors: Tensor) -> Tensor:
        place = vectors.expand(len(embedded), -1, -1)
        changed = torch.cat([embedded[:, :1], place, embedded[:, 1 + length :]], 1)
        return encoder.encode_texts_from_embeddings(changed, tokens)

    views = check_views(view_features, text.shape[1])
    scale, count = encoder.scale, config.kept(views.shape[1])
    predictions = []
    for image in track(views, "TPT", enabled=progress, unit="images"):
        # In float64: rounding must not choose other views for another batch.
        entropies = view_entropies(scale * image.double() @ text.double().T)
        kept = image[keep_confident(entropies[None], count)[0]]
        vectors = first.clone().requires_grad_(True)
        optimizer = torch.optim.AdamW(
            [vectors], lr=config.learning_rate, weight_decay=config.weight_decay
        )
        for _ in range(config.steps):
            logits = scale * kept @ embed(vectors).T
            optimizer.zero_grad()
            entropy(mean_log_probability(logits)).backward(inputs=[vectors])
            optimizer.step()
        with torch.no_grad():
            predictions.append(scale * image[0] @ embed(vectors).T)
    return torch.stack(predictions)


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


register_test_time_method(
    TPT(
        "tpt",
        "TPT",
        "Shu et al., Test-Time Prompt Tuning for Zero-Shot Generalization in Vision-Language Models, "
        "NeurIPS 2022",
        needs=frozenset({"token_embeddings"}),
    )
)
