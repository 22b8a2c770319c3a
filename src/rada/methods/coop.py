"""CoOp: context vectors that learn, in front of the class names."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, ClassVar

import torch
from torch import Tensor, nn

from rada.core.config import Config
from rada.core.errors import ConfigError
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Run, Shapes
from rada.methods.registry import register_method
from rada.training.feature_loop import Recipe

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["CoOp", "CoOpConfig"]


@dataclass(frozen=True)
class CoOpConfig(Recipe):
    """Configuration of CoOp, those of its base-to-new experiments.

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


class CoOpModel(AdaptedModel):
    """Zero-shot with prompts whose first token embeddings are learned, one context for all classes."""

    def __init__(
        self,
        method: Method,
        facts: Facts,
        config: CoOpConfig,
        context: Tensor,
        encoder: DualEncoder,
    ) -> None:
        super().__init__(method, facts, config, encoder)
        self.context = nn.Parameter(context)

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Run the text encoder on the learned context before each class name."""
        encoder, length = self.encoder, len(self.context)
        assert encoder is not None
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
        return self.zero_shot_logits(images, classes)


@dataclass(frozen=True)
class CoOp(Method):
    """Starts as zero-shot with the prompt "CONTEXT NAME."."""

    config: ClassVar[type[Config]] = CoOpConfig

    def build(
        self, facts: Facts, config: CoOpConfig, shapes: Shapes, encoder: DualEncoder | None
    ) -> AdaptedModel:
        """Return the context that spells `config.context`, or a place for the one of a file."""
        if encoder is None:
            raise ConfigError(f"{self.name} needs the encoder whose prompts it learned")
        if "context" in shapes:
            context = torch.empty(shapes["context"])
        else:
            tokens = encoder.tokenize([config.context])
            first = encoder.context_start
            length = int(tokens["attention_mask"].sum()) - first - 1  # the marks before and behind
            with torch.no_grad():
                found = encoder.embed_tokens(tokens)[0, first : first + length]
            context = found.float().cpu().clone()
        return CoOpModel(self, facts, config, context, encoder)

    def train(
        self, model: AdaptedModel, data: Features, config: CoOpConfig, run: Run
    ) -> AdaptedModel:
        """Train the context on cached image features, through the text encoder."""
        return self.learn(model, data, config, run)


register_method(
    CoOp(
        "coop",
        "CoOp",
        "Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022",
        trains="context vectors of the prompt",
        needs=frozenset({"encoder", "token_embeddings"}),
        cost="text encoder",
    )
)
