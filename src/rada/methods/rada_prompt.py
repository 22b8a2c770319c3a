"""RAda + Prompt: the head on top of learned prompts, those of CoOp or those of KgCoOp.

The prompts are trained first, as their own method trains them; the head then learns on their class features,
which cost nothing more. The paper names the combination and publishes no recipe for these prompts.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rada.core.config import Config
from rada.core.errors import ConfigError
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Cost, Facts, Run, Shapes
from rada.methods.coop import COOP
from rada.methods.kgcoop import KGCOOP
from rada.methods.prompts import PromptMethod, PromptModel, prompted_text
from rada.methods.rada import SOURCE, EFTConfig, HeadModel, RAda
from rada.methods.registry import register_method
from rada.training.feature_loop import Recipe

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["RAdaPrompt", "RAdaPromptConfig"]


@dataclass(frozen=True)
class RAdaPromptConfig(EFTConfig):
    """Configuration of RAda + Prompt: that of the head, and the fields of the prompts that differ by data.

    Attributes:
        prompt_epochs: Passes of the prompts' training; None for those that their method publishes.
        context: Words whose token embeddings the context starts from.
    """

    prompt_epochs: int | None = None
    context: str = "a photo of a"

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        epochs = self.prompt_epochs
        self.require(epochs is None or epochs >= 1, "prompt_epochs", "None or a positive integer")
        self.require(bool(self.context.strip()), "context", "at least one word")


@dataclass(frozen=True)
class RAdaCoOpConfig(RAdaPromptConfig):
    """Configuration of RAda + Prompt on CoOp's prompts."""


@dataclass(frozen=True)
class RAdaKgCoOpConfig(RAdaPromptConfig):
    """Configuration of RAda + Prompt on KgCoOp's prompts."""


class PromptedHeadModel(HeadModel):
    """A head whose class features come from a learned context; the context does not learn with it."""

    by_class_features = False

    encoder: DualEncoder
    context: Tensor

    def __init__(
        self, method: RAdaPrompt, facts: Facts, config: Any, context: Tensor, encoder: DualEncoder
    ) -> None:
        super().__init__(method, facts, config)
        self.encoder = encoder
        self.register_buffer("context", context)

    @torch.no_grad()
    def prepare(self, classes: ClassSet) -> ClassSet:
        """Run the text encoder on the learned context before each class name."""
        text = prompted_text(self.encoder, classes.names, self.context)
        return dataclasses.replace(classes, text_features=text.to(classes.text_features.device))


@dataclass(frozen=True)
class RAdaPrompt(RAda):
    """Starts as zero-shot with the prompt "CONTEXT NAME."; the strength is chosen on the shots.

    Attributes:
        prompts: The method that learns the prompts.
    """

    trains: str = "context vectors of the prompt, then the head"
    needs: frozenset[str] = frozenset({"encoder", "token_embeddings"})
    cost: Cost = "text encoder"
    prompts: PromptMethod = COOP

    def build(
        self, facts: Facts, config: Any, shapes: Shapes, encoder: DualEncoder | None
    ) -> PromptedHeadModel:
        """Return a head, with the context that the prompts start from or a place for the one of a file."""
        if encoder is None:
            raise ConfigError(f"{self.name} needs the encoder whose prompts it learned")
        if "context" in shapes:
            context = torch.empty(shapes["context"])
        else:
            context = self.prompts.first_context(config, encoder)
        return PromptedHeadModel(self, facts, config, context, encoder)

    def learn(
        self,
        model: AdaptedModel,
        data: Features,
        recipe: Recipe,
        run: Run,
        *,
        classes_per_step: int = 0,
        steps: int | None = None,
        state_path: Path | None = None,
        hard_classes: int = 0,
    ) -> AdaptedModel:
        """Train the prompts, then the head on their class features."""
        assert isinstance(model, PromptedHeadModel)
        # A fold's state is forgotten together with the folder of its name.
        folder = run.state_file("prompts") if state_path is None else state_path.with_suffix("")
        prompts = self.prompts.fit(
            data, self._prompt_config(model.config), dataclasses.replace(run, state_dir=folder)
        )
        assert isinstance(prompts, PromptModel)
        with torch.no_grad():
            model.context.copy_(prompts.context)
        model.record["prompts"] = {key: prompts.record[key] for key in ("history", "effective")}
        text = model.prepare(data.class_set()).text_features
        return super().learn(
            model,
            dataclasses.replace(data, text_features=text),
            recipe,
            run,
            classes_per_step=classes_per_step,
            steps=steps,
            state_path=state_path,
            hard_classes=hard_classes,
        )

    def _prompt_config(self, config: Any) -> Config:
        """Return the prompts' own configuration, with the fields that were named."""
        assert isinstance(config, RAdaPromptConfig)
        changes: dict[str, Any] = {"context": config.context}
        if config.prompt_epochs is not None:
            changes["epochs"] = config.prompt_epochs
        return self.prompts.config(**changes)


@dataclass(frozen=True)
class RAdaCoOp(RAdaPrompt):
    """RAda on CoOp's prompts."""

    config: ClassVar[type[Config]] = RAdaCoOpConfig


@dataclass(frozen=True)
class RAdaKgCoOp(RAdaPrompt):
    """RAda on KgCoOp's prompts."""

    config: ClassVar[type[Config]] = RAdaKgCoOpConfig
    prompts: PromptMethod = KGCOOP


register_method(
    RAdaCoOp("rada_coop", "RAda + Prompt (CoOp)", f"{SOURCE}; the recipe on CoOp's prompts is ours")
)
register_method(
    RAdaKgCoOp(
        "rada_kgcoop", "RAda + Prompt (KgCoOp)", f"{SOURCE}; the recipe on KgCoOp's prompts is ours"
    )
)
