"""CoOp: context vectors that learn, in front of the class names."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from rada.core.config import Config
from rada.methods.prompts import PromptConfig, PromptMethod
from rada.methods.registry import register_method

__all__ = ["COOP", "CoOp", "CoOpConfig"]


@dataclass(frozen=True)
class CoOpConfig(PromptConfig):
    """Configuration of CoOp, those of its base-to-new experiments."""


@dataclass(frozen=True)
class CoOp(PromptMethod):
    """Starts as zero-shot with the prompt "CONTEXT NAME."."""

    config: ClassVar[type[Config]] = CoOpConfig


COOP = CoOp("coop", "CoOp", "Zhou et al., Learning to Prompt for Vision-Language Models, IJCV 2022")
register_method(COOP)
