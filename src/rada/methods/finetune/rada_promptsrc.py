"""RAda + Prompt on PromptSRC's prompts: the head on top of tokens in the layers of both encoders.

The tokens are trained first, as PromptSRC trains them; the head then learns on what both encoders give with
them.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import ClassVar, Literal

from rada.core.config import Config
from rada.features import Features
from rada.methods.base import Run
from rada.methods.finetune.base import EncoderConfig
from rada.methods.finetune.model import TunedModel
from rada.methods.finetune.promptsrc import PromptSRC, PromptSRCConfig, PromptSRCModel
from rada.methods.rada import RADA, SOURCE, EFTConfig
from rada.methods.registry import register_method

__all__ = ["RAdaPromptSRC", "RAdaPromptSRCConfig"]


@dataclass(frozen=True)
class RAdaPromptSRCConfig(PromptSRCConfig):
    """Configuration of RAda + Prompt on PromptSRC's prompts: theirs, and the head's of `EFTConfig`.

    Attributes:
        head_epochs: Passes over the training images in which the head learns.
        head_min_steps: Least number of its steps.
        alpha: Weight of the smoothness term `mean_b max |M - 1|`.
        num_heads: Attention heads of the head.
        temperature: Temperature of its joint softmax.
        strength: Mask strength at inference in [0, 1], or "auto" to choose it on the training images by
            the one rule. A whole run of as many steps as the final one is made for every fold: with
            two folds it takes three times as long as with a number.
        strength_folds: Folds of that cross-validation, at least 2.
    """

    head_epochs: int = 10
    head_min_steps: int = 300
    alpha: float = 1.0
    num_heads: int = 8
    temperature: float = 1.0
    strength: float | Literal["auto"] = "auto"
    strength_folds: int = 2

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        for name in ("head_epochs", "num_heads"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        for name in ("head_min_steps", "alpha"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        self.require(self.temperature > 0, "temperature", "above 0")
        self.require(
            self.strength == "auto" or 0 <= float(self.strength) <= 1,
            "strength",
            "'auto' or in [0, 1]",
        )
        self.require(self.strength_folds >= 2, "strength_folds", "at least 2")

    def head(self) -> EFTConfig:
        """Return the configuration of the head's training on features."""
        return EFTConfig(
            epochs=self.head_epochs,
            min_steps=self.head_min_steps,
            alpha=self.alpha,
            num_heads=self.num_heads,
            temperature=self.temperature,
            strength=1.0,  # chosen with the prompts
        )


@dataclass(frozen=True)
class RAdaPromptSRC(PromptSRC):
    """PromptSRC, then the head; strength 0 is PromptSRC alone."""

    config: ClassVar[type[Config]] = RAdaPromptSRCConfig
    trains: str = "tokens in the layers of both encoders, then the head"
    has_head: bool = True

    def tune(
        self,
        model: TunedModel,
        data: Features,
        config: EncoderConfig,
        run: Run,
        steps: int | None = None,
    ) -> TunedModel:
        """Train the tokens, then the head on the features that they give."""
        assert isinstance(model, PromptSRCModel) and model.head is not None
        assert isinstance(config, RAdaPromptSRCConfig)
        model.head.requires_grad_(False)
        super().tune(model, data, config, run, steps)
        model.eval()
        learned = dataclasses.replace(
            data,
            image_features=model.features_of(data).to(data.image_features),
            text_features=model.prepare(data.class_set()).text_features.cpu(),
        )
        found = RADA.fit(learned, config.head(), self._first_run(run))
        assert found.head is not None and model.last is not None
        model.head.load_state_dict(found.head.state_dict())
        model.head.requires_grad_(True)
        model.record["head"] = {key: found.record[key] for key in ("history", "effective")}
        state = model.tuned()
        model.last |= {name: value for name, value in state.items() if name.startswith("head.")}
        return model


register_method(
    RAdaPromptSRC(
        "rada_promptsrc",
        "RAda + Prompt (PromptSRC)",
        f"{SOURCE}; the prompts are those of its released configuration, the head after them is ours",
    )
)
