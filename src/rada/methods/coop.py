"""CoOp: context vectors that learn, in front of the class names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn

from rada.core.config import Config
from rada.core.errors import ConfigError
from rada.methods.base import ClassSet, Method, Predictor, Task
from rada.methods.registry import register_method
from rada.training.feature_loop import Recipe, train

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["CoOp", "CoOpSettings"]


@dataclass(frozen=True)
class CoOpSettings(Recipe):
    """Settings of CoOp, those of its base-to-new experiments.

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
    """While the block runs, a tower is in evaluation mode and takes no gradients of its own."""
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


class ContextPredictor(Predictor):
    """Zero-shot with prompts whose first token embeddings are learned, one context for all classes."""

    def __init__(self, context: Tensor, scale: float, encoder: DualEncoder) -> None:
        super().__init__("coop", {"shape": list(context.shape), "scale": scale})
        self.context = nn.Parameter(context.clone())
        self.scale, self.encoder = scale, encoder

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Run the text tower on the learned context before each class name."""
        encoder, length = self.encoder, len(self.context)
        with _frozen(encoder.model):
            prompts = [f"{name}." for name in classes.names]
            tokens = encoder.tokenize_with_context(prompts, length)
            embeddings = encoder.embed_tokens(tokens).detach()
            first = encoder.context_start
            context = self.context.to(embeddings).expand(len(prompts), -1, -1)
            parts = [embeddings[:, :first], context, embeddings[:, first + length :]]
            text = encoder.encode_texts_from_embeddings(torch.cat(parts, dim=1), tokens)
        return replace(classes, text_features=text.to(classes.text_features.device))

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return `scale * cosine`."""
        return self.scale * images @ classes.text_features.T


@dataclass(frozen=True)
class CoOp(Method):
    """Starts as zero-shot with the prompt "CONTEXT NAME."."""

    settings: ClassVar[type[Config]] = CoOpSettings

    def start(self, task: Task, config: CoOpSettings) -> Predictor:
        """Return the context that spells `config.context`."""
        assert task.encoder is not None
        encoder = task.encoder
        tokens = encoder.tokenize([config.context])
        first = encoder.context_start
        length = int(tokens["attention_mask"].sum()) - first - 1  # the marks before and behind
        with torch.no_grad():
            found = encoder.embed_tokens(tokens)[0, first : first + length]
        return ContextPredictor(found.float().cpu(), task.scale, encoder)

    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return a context of the right shape for an encoder."""
        if encoder is None:
            raise ConfigError("coop needs the encoder whose prompts it learned")
        rows, width = map(int, facts["shape"])
        return ContextPredictor(torch.zeros(rows, width), float(facts["scale"]), encoder)

    def train(
        self,
        predictor: Predictor,
        task: Task,
        config: CoOpSettings,
        *,
        state_path: Path | None,
        progress: bool | None,
    ) -> Predictor:
        """Train the context on cached image features, through the text tower."""
        return train(predictor, task, config, state_path=state_path, progress=progress)


register_method(
    CoOp(
        "coop",
        "CoOp",
        "Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022",
        needs=frozenset({"encoder"}),
    )
)
