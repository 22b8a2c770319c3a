"""Models that put learned parts into frozen encoders: what they keep, run and save is those parts alone."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from rada.core.config import Config
from rada.core.errors import CheckpointError, ConfigError
from rada.encoders.inserts import Inserts, first_norm, layer_inputs
from rada.features import ClassSet, Features, iter_features
from rada.methods.base import Facts, Run, Shapes
from rada.methods.deep_text import deep_prompted_text
from rada.methods.finetune.base import EncoderConfig, EncoderMethod
from rada.methods.finetune.model import TunedModel
from rada.methods.prompts import context_vectors

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = [
    "STATISTIC_LAYERS",
    "DeepPromptConfig",
    "DeepPromptMethod",
    "DeepPrompts",
    "InsertConfig",
    "InsertMethod",
    "InsertedModel",
    "PromptedModel",
]


STATISTIC_LAYERS = 3
"""First layers of the image encoder whose tokens are described: those with prompts in PromptAlign's runs."""


@dataclass(frozen=True)
class InsertConfig(EncoderConfig):
    """Training of parts inside both encoders, optimised as in CoOp's code: SGD, a cosine over the epochs."""

    optimizer: Literal["adamw", "sgd"] = "sgd"
    weight_decay: float = 5e-4
    schedule: Literal["steps", "epochs", "cosine_epochs"] = "epochs"
    warmup: float = 0.0
    max_grad_norm: float = 0.0

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.train == "both", "train", "'both': the method has parts in both encoders")


@dataclass(frozen=True)
class DeepPromptConfig(InsertConfig):
    """Training of tokens in the layers of both encoders.

    Attributes:
        depth: Layers, from the first on, whose inputs get tokens; an encoder of fewer gets them in all.
        context: Words that the prompts begin with; the first tokens of the text start from theirs.
        augmentation: As in `EncoderConfig`.
    """

    batch_size: int = 4
    depth: int = 9
    context: str = "a photo of a"

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.depth >= 1, "depth", "a positive integer")
        self.require(bool(self.context.strip()), "context", "at least one word")


class InsertedModel(TunedModel):
    """Frozen encoders with learned parts in them.

    Attributes:
        inserts: The parts; they are all that learns and all that is saved.
    """

    inserts: Inserts

    def __init__(
        self,
        method: InsertMethod,
        facts: Facts,
        config: Any,
        encoder: DualEncoder,
        text: Tensor,
        inserts: Inserts,
    ) -> None:
        super().__init__(method, facts, config, encoder, text)
        self.inserts = inserts
        encoder.inserts = inserts

    def _choose_parameters(self) -> None:
        self.encoder.freeze()
        if self.head is not None:
            self.head.requires_grad_(True)

    @contextmanager
    def plain_encoder(self) -> Iterator[DualEncoder]:
        """While the block runs, the encoder is without the parts."""
        self.encoder.inserts = None
        try:
            yield self.encoder
        finally:
            self.encoder.inserts = self.inserts


@dataclass(frozen=True)
class InsertMethod(EncoderMethod, ABC):
    """A method whose parts are put into frozen encoders."""

    config: ClassVar[type[Config]] = InsertConfig
    frozen_encoder: bool = True
    tuned_model: ClassVar[type[InsertedModel]] = InsertedModel

    def capabilities(self, config: Any) -> frozenset[str]:
        """Return what the encoder must offer."""
        return super().capabilities(config) | (self.needs - {"encoder", "images"})

    @abstractmethod
    def inserts(self, config: Any, encoder: DualEncoder, shapes: Shapes) -> Inserts:
        """Return the parts before training, or places for those of a file with these shapes."""

    def build(
        self, facts: Facts, config: Any, shapes: Shapes, encoder: DualEncoder | None
    ) -> TunedModel:
        """Return a model around an encoder."""
        if encoder is None:
            raise ConfigError(f"{self.name} needs the encoder that it was trained with")
        text = torch.zeros(len(facts.classes), encoder.dim, device=encoder.device)
        inserts = self.inserts(config, encoder, shapes)
        return self.tuned_model(self, facts, config, encoder, text, inserts)

    def _tuned(self, facts: Facts, config: Any, encoder: DualEncoder, text: Tensor) -> TunedModel:
        """Return the model before training."""
        inserts = self.inserts(config, encoder, {}).to(encoder.device)
        return self.tuned_model(self, facts, config, encoder, text, inserts)


# -- prompts -----------------------------------------------------------------------------------------


class DeepPrompts(Inserts):
    """Tokens in the layers of both encoders; the text's enter where class names are, images' everywhere."""

    @abstractmethod
    def text_vectors(self) -> list[Tensor]:
        """Return the tokens `(n, E)` of the text encoder's layers, from the first on."""

    @abstractmethod
    def image_vectors(self) -> list[Tensor]:
        """Return the tokens `(m, W)` of the image encoder's layers, from the first on."""

    @contextmanager
    def in_images(self, encoder: DualEncoder) -> Iterator[None]:
        """Put the tokens behind the patches, before the norm in front of the first layer."""
        first, *rest = self.image_vectors()
        first = encoder.image_token_norm()(first.to(encoder.device, encoder.dtype))
        with encoder.deep_image_prompts([first, *rest]):
            yield


def prompt_depth(config: DeepPromptConfig, encoder: DualEncoder) -> int:
    """Return the layers that get tokens: as many as are asked for, or as there are."""
    return min(config.depth, len(encoder.text_layers()), len(encoder.image_layers()))


def first_vectors(
    config: DeepPromptConfig, length: int, encoder: DualEncoder, shapes: Shapes, name: str
) -> Tensor:
    """Return the token embeddings of the context's first words `(n, E)`, or a place for those of a file.

    Raises:
        ConfigError: If the words have fewer tokens than the prompt.
        CheckpointError: If the file has no such weights.
    """
    if shapes:
        if name not in shapes:
            raise CheckpointError(f"the weights {name!r} are missing")
        return torch.empty(shapes[name])
    found = context_vectors(encoder, config.context)
    if len(found) < length:
        raise ConfigError(
            f"the context {config.context!r} has {len(found)} tokens, fewer than the {length} that learn: "
            "name more words (context=), or learn fewer tokens"
        )
    return found[:length]


class PromptedModel(InsertedModel):
    """Frozen encoders with learned tokens in their layers.

    Attributes:
        token_means: Means of each token of the training images in front of the first layers,
            `(l, L, W)`; None before the end of training.
        token_variances: Their variances, of the same shape.
    """

    inserts: DeepPrompts
    config: DeepPromptConfig
    token_means: Tensor | None
    token_variances: Tensor | None

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.register_buffer("token_means", None)
        self.register_buffer("token_variances", None)

    @torch.no_grad()
    def keep_statistics(self, data: Features) -> None:
        """Keep means and variances of the tokens of the plain images, for PromptAlign.

        Nothing where the layers do not begin with a norm, by which their inputs are seen.
        """
        layers = self.encoder.image_layers()[:STATISTIC_LAYERS]
        if any(isinstance(first_norm(layer), torch.nn.Identity) for layer in layers):
            return
        count, total, squares = 0, torch.zeros(()), torch.zeros(())
        images = data.labelled_images()
        with layer_inputs(layers) as seen:
            for batch in iter_features(self.encoder, images, workers=0, cache=False):
                rows = torch.stack([torch.cat(runs) for runs in seen]).cpu().double()
                for runs in seen:
                    runs.clear()
                count += len(batch.indices)
                total = total + rows.sum(1)
                squares = squares + rows.square().sum(1)
        means = total / count
        variances = (squares / count - means.square()).clamp(min=0)
        self.token_means = means.float().to(self.encoder.device)
        self.token_variances = variances.float().to(self.encoder.device)

    def class_features(self, classes: Tensor | None, template: int = 0) -> Tensor:
        """Return `(C, D)` of the classes at `classes`, by the learned prompts."""
        names = self.facts.classes
        if classes is not None:
            names = tuple(names[row] for row in classes.tolist())
        return self.prompted(names)

    def prompted(self, names: tuple[str, ...]) -> Tensor:
        """Return class features `(K, D)` of any names, by the learned prompts."""
        vectors = self.inserts.text_vectors()
        return deep_prompted_text(self.encoder, names, self.config.context, vectors)

    @property
    def embeds_classes(self) -> bool:
        """False: the learned prompts take the place of the templates."""
        return False

    def _encoded(self, classes: ClassSet) -> ClassSet:
        """Return the class set with the features of the learned prompts."""
        return dataclasses.replace(classes, text_features=self._texts(classes.names))

    def _embed(self, names: tuple[str, ...]) -> Tensor:
        """Embed names by the learned prompts."""
        return self.prompted(names)


@dataclass(frozen=True)
class DeepPromptMethod(InsertMethod, ABC):
    """A method that learns tokens in the layers of both encoders."""

    config: ClassVar[type[Config]] = DeepPromptConfig
    needs: frozenset[str] = frozenset(
        {"encoder", "images", "token_embeddings", "deep_text_prompts", "deep_image_prompts"}
    )
    tuned_model: ClassVar[type[InsertedModel]] = PromptedModel

    def build(
        self, facts: Facts, config: Any, shapes: Shapes, encoder: DualEncoder | None
    ) -> TunedModel:
        """Return a model around an encoder, with places for the statistics that a file has."""
        model = super().build(facts, config, shapes, encoder)
        for name in ("token_means", "token_variances"):
            if name in shapes:
                setattr(model, name, torch.empty(shapes[name]))
        return model

    def tune(
        self,
        model: TunedModel,
        data: Features,
        config: EncoderConfig,
        run: Run,
        steps: int | None = None,
    ) -> TunedModel:
        """Train the tokens, then look once at what they make of the images."""
        found = super().tune(model, data, config, run, steps)
        assert isinstance(found, PromptedModel)
        if not self.has_head:  # which keeps PromptAlign from these tokens
            found.keep_statistics(data)
        return found


def copies(module: torch.nn.Module, count: int) -> torch.nn.ModuleList:
    """Return copies of a module, which start from the same weights."""
    return torch.nn.ModuleList(copy.deepcopy(module) for _ in range(count))
