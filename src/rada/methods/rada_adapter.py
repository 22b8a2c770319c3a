"""RAda + Adapter: residual bottlenecks on both features, before the head.

The paper names the combination; its published form has a last layer of zeros followed by a ReLU,
which never learns. Here the last layer starts at zero and nothing follows it, so that the start is
zero-shot exactly and every weight learns.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, normalize

from rada.core.config import Config, EFTConfig
from rada.head import RAdaHead
from rada.methods.base import ClassSet, Method, Predictor, Task
from rada.methods.rada import SOURCE
from rada.methods.registry import register_method
from rada.methods.strength import choose_by_classes, keep_choice, strength_for
from rada.training.eft import default_subset
from rada.training.feature_loop import Recipe, seeded, train

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["RAdaAdapter", "RAdaAdapterSettings"]


@dataclass(frozen=True)
class RAdaAdapterSettings(EFTConfig):
    """Settings of RAda + Adapter: those of the head, and the bottleneck.

    Attributes:
        hidden: Units of each bottleneck.
    """

    hidden: int = 32

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(self.hidden >= 1, "hidden", "a positive integer")

    def steps(self, examples: int) -> int:
        """Return the steps of a run on so many examples, as for the head alone."""
        per_epoch = -(-examples // self.batch_size)
        return max(self.epochs, -(-self.min_steps // per_epoch)) * per_epoch

    def recipe(self) -> Recipe:
        """Return the recipe of the head."""
        return Recipe(
            batch_size=self.batch_size,
            learning_rate=self.learning_rate,
            optimizer="adamw",
            weight_decay=self.weight_decay,
            schedule="steps",
            warmup=self.warmup,
        )

    def subset(self, classes: int) -> int:
        """Return how many of the classes a step draws, 0 for all."""
        if self.classes_per_step is None:
            return default_subset(classes)
        return self.classes_per_step


class Bottleneck(nn.Module):
    """`normalise(x + W2 gelu(W1 x))` with W2 = 0 at the start."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.down = nn.Linear(dim, hidden)
        self.up = nn.Linear(hidden, dim)
        nn.init.zeros_(self.up.weight)
        nn.init.zeros_(self.up.bias)

    def forward(self, features: Tensor) -> Tensor:
        """Return adapted unit-norm features."""
        return normalize(features + self.up(nn.functional.gelu(self.down(features))), dim=-1)


class AdaptedHeadPredictor(Predictor):
    """Two bottlenecks and a head; the strength mixes its logits with the zero-shot ones.

    For the head alone that is the same as the strength of its mask.
    """

    strength: Tensor

    def __init__(self, head: RAdaHead, hidden: int, scale: float, alpha: float) -> None:
        facts = {"dim": head.dim, "num_heads": head.num_heads, "temperature": head.temperature}
        super().__init__("rada_adapter", facts | {"hidden": hidden, "scale": scale, "alpha": alpha})
        self.head, self.scale, self.alpha = head, scale, alpha
        self.image_adapter = Bottleneck(head.dim, hidden)
        self.text_adapter = Bottleneck(head.dim, hidden)
        self.register_buffer("strength", torch.tensor(1.0, dtype=torch.float64))

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits at the predictor's strength."""
        strength = strength_for(self, classes)
        text = classes.text_features
        output = self.head(self.image_adapter(images), self.text_adapter(text), self.scale)
        logits: Tensor = output.logits
        if strength == 1.0:
            return logits
        return torch.lerp(self.scale * images @ text.T, logits, strength)

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Tensor:
        """Return cross-entropy plus the smoothness term of the mask."""
        text = self.text_adapter(classes.text_features)
        output = self.head(self.image_adapter(images), text, self.scale)
        smoothness: Tensor = output.max_deviation.mean()
        return cross_entropy(output.logits, labels) + self.alpha * smoothness


@dataclass(frozen=True)
class RAdaAdapter(Method):
    """Starts as zero-shot."""

    settings: ClassVar[type[Config]] = RAdaAdapterSettings

    def start(self, task: Task, config: RAdaAdapterSettings) -> Predictor:
        """Return adapters that add nothing and a head whose mask is one."""
        dim = task.classes.text_features.shape[1]
        with seeded(task.seed):
            head = RAdaHead(dim, config.num_heads, config.temperature)
            return AdaptedHeadPredictor(head, config.hidden, task.scale, config.alpha)

    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return a predictor of the right shapes."""
        head = RAdaHead(int(facts["dim"]), int(facts["num_heads"]), float(facts["temperature"]))
        predictor = AdaptedHeadPredictor(
            head, int(facts["hidden"]), float(facts["scale"]), float(facts["alpha"])
        )
        predictor.facts = dict(facts)
        return predictor

    def train(
        self,
        predictor: Predictor,
        task: Task,
        config: RAdaAdapterSettings,
        *,
        state_path: Path | None,
        progress: bool | None,
    ) -> Predictor:
        """Train adapters and head, then choose the strength as for the head alone."""
        assert isinstance(predictor, AdaptedHeadPredictor)
        # The folds stand for this predictor, so they learn for as many steps.
        steps = config.steps(len(task.labels))

        def trained(part: Task) -> Predictor:
            path = state_path and state_path.with_name(
                f"{state_path.name}-{part.fingerprint()}.safetensors"
            )
            return self._trained(self.start(part, config), part, config, steps, path)

        self._trained(predictor, task, config, steps, state_path, progress)
        if config.strength == "auto":
            choice = choose_by_classes(trained, task, config.strength_folds)
            keep_choice(predictor, task, choice.strength, choice)
        else:
            keep_choice(predictor, task, float(config.strength), None)
        return predictor

    def _trained(
        self,
        predictor: Predictor,
        task: Task,
        config: RAdaAdapterSettings,
        steps: int,
        state_path: Path | None = None,
        progress: bool | None = False,
    ) -> Predictor:
        return train(
            predictor,
            task,
            config.recipe(),
            classes_per_step=config.subset(len(task.classes)),
            steps=steps,
            state_path=state_path,
            progress=progress,
        )


register_method(RAdaAdapter("rada_adapter", "RAda + Adapter", f"{SOURCE}; adapters ours"))
