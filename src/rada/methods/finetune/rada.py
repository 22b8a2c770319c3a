"""RAda, the head alone: the encoder stays frozen."""

from __future__ import annotations

from dataclasses import dataclass

from rada.core.config import EFTConfig
from rada.methods.finetune.base import FFTMethod, FirstStage
from rada.methods.finetune.model import TunedModel
from rada.methods.finetune.registry import register_fft_method
from rada.training.eft import TrainedHead, describe, train_head

__all__ = ["SOURCE", "HeadOnly", "train_first_head"]

SOURCE = (
    "One Last Attention for Your Vision-Language Model, ICCV 2025, arXiv 2507.15480; no code was "
    "published for this setting, so all values are this library's"
)


def train_first_head(model: TunedModel, stage: FirstStage, strength: float | str) -> TrainedHead:
    """Train the head on the training features, as `rada fit` does; `strength` may be "auto"."""
    assert model.head is not None
    features, config = stage.features(), model.config
    settings = EFTConfig(
        epochs=config.head_epochs,
        alpha=config.alpha,
        num_heads=config.num_heads,
        temperature=config.temperature,
        classes_per_step=config.classes_per_step,
        strength="auto" if strength == "auto" else float(strength),
        strength_folds=config.strength_folds,
    )
    trained = train_head(
        features.image_features,
        features.labels,
        model.text.cpu(),
        float(model.scale()),
        settings,
        stage.seed,
        checkpoint_dir=stage.folder,
        progress=stage.progress,
    )
    model.head.load_state_dict(trained.head.state_dict())
    model.effective = describe(trained)["effective"]
    return trained


@dataclass(frozen=True)
class HeadOnly(FFTMethod):
    """The head of the first stage; no tower learns."""

    def first(self, model: TunedModel, stage: FirstStage) -> None:
        """Train the head and choose its strength."""
        trained = train_first_head(model, stage, model.config.strength)
        if trained.strength_choice is not None:
            model.strength = trained.strength_choice


register_fft_method(HeadOnly("rada", "RAda", SOURCE, towers=frozenset(), train=None, has_head=True))
