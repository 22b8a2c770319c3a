"""RAda as released: the head with the hyper-parameters of the authors' code, for comparison."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from rada.core.config import Config
from rada.head import RAdaHead
from rada.methods.base import Method, Predictor, Task
from rada.methods.rada import SOURCE, HeadPredictor
from rada.methods.registry import register_method
from rada.training.feature_loop import Recipe, seeded, train

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["RAdaReleased", "ReleasedSettings"]


@dataclass(frozen=True)
class ReleasedSettings(Recipe):
    """The released values: Adam with coupled weight decay, batches of 4, no smoothness term.

    Coupled decay shrinks query, key and value layers even while their gradient is zero.

    Attributes:
        views: Cached random views; the released code augments anew in every epoch.
    """

    epochs: int = 5
    batch_size: int = 4
    learning_rate: float = 3.5e-3
    optimizer: Literal["sgd", "adam", "adamw"] = "adam"
    views: int = 1


@dataclass(frozen=True)
class RAdaReleased(Method):
    """Starts as zero-shot; all classes in every step, strength 1."""

    settings: ClassVar[type[Config]] = ReleasedSettings

    def start(self, task: Task, config: ReleasedSettings) -> Predictor:
        """Return the head whose mask is one."""
        with seeded(task.seed):
            head = RAdaHead(task.classes.text_features.shape[1])
        return HeadPredictor(self.name, head, task.scale)

    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return a head of the right shapes."""
        return HeadPredictor.from_facts(self.name, facts)

    def train(
        self,
        predictor: Predictor,
        task: Task,
        config: ReleasedSettings,
        *,
        state_path: Path | None,
        progress: bool | None,
    ) -> Predictor:
        """Train the head."""
        return train(predictor, task, config, state_path=state_path, progress=progress)


register_method(RAdaReleased("rada_released", "RAda as released", SOURCE))
