"""Configuration of test-time training."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rada.core.config import Config
from rada.core.errors import FeatureError
from rada.core.values import check_seed

__all__ = ["TTTConfig"]


@dataclass(frozen=True)
class TTTConfig(Config):
    """Adaptation of the head to each unlabelled picture from views of it.

    The protocol is that of TPT, which the paper follows; its learning rate for the head is not public.
    The defaults were chosen on training pictures (`benchmarks/test_time_figures.py --tune`).

    Attributes:
        views: V, the original and V - 1 random views of it; for features, their own V counts.
        selection: Part of the views with the lowest entropy that is kept, in (0, 1]; 1 keeps all.
        steps: AdamW steps on a picture.
        learning_rate: Learning rate of AdamW.
        weight_decay: Decoupled weight decay of AdamW, of all layers of the head.
        alpha: Weight of the smoothness term `max |M - 1|`, mean over the kept views. From the
            untrained head its gradient is zero in the first step.
        strength: Mask strength, while adapting and predicting, in [0, 1]; None for the trained head's
            own, 1 without one.
        predict_with: "original" predicts the original view, "kept" takes the mean probability
            of the kept views (the logits are then its logarithm).
        max_entropy: Pictures are left as they are if the entropy of the kept views' mean
            prediction is above this part of `log K`, in (0, 1]; 1 adapts to every picture.
        augmentation: "crop" is a random crop, resized, and a mirror image; "augmix" mixes chains of
            photometric and geometric operations on top (AugMix at severity 1, as TPT's code).
        smallest_crop: Smallest part of the picture's area in a crop, in (0, 1].
        seed: Chooses the views, together with each picture's content and the view's number.
        num_heads: Attention heads of the untrained head; must divide the width of the features.
        temperature: Temperature of the untrained head.
        head_seed: Seed of the untrained head's random layers.
        episodic: True starts anew for every picture; False goes on from picture to picture (online).
        online_restart: Pictures after which the online head starts anew; 0 for never.
        online_decay: Part of its way from the start that the online head goes back after each picture,
            in [0, 1].
        online_collapse: The online head starts anew when its predictions hold less than this part of the
            unadapted head's information about the class, or agree with it by less than this, in
            [0, 1); 0 for never.
        memory_budget: Bytes that the per-picture parameters and activations may take.
    """

    views: int = 64
    selection: float = 0.1
    steps: int = 1
    learning_rate: float = 5e-3
    weight_decay: float = 0.01
    alpha: float = 0.0
    strength: float | None = None
    predict_with: Literal["original", "kept"] = "original"
    max_entropy: float = 1.0
    augmentation: Literal["crop", "augmix"] = "crop"
    smallest_crop: float = 0.08
    seed: int = 0
    num_heads: int = 8
    temperature: float = 1.0
    head_seed: int = 0
    episodic: bool = True
    online_restart: int = 1000
    online_decay: float = 0.1
    online_collapse: float = 0.5
    memory_budget: int = 256 << 20

    def validate(self) -> None:
        """Check that every field is in its range."""
        for name in ("views", "steps", "num_heads", "memory_budget"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        for name in ("seed", "head_seed"):
            check_seed(getattr(self, name), f"TTTConfig.{name}")
        for name in ("selection", "max_entropy", "smallest_crop"):
            self.require(0 < getattr(self, name) <= 1, name, "above 0 and at most 1")
        for name in ("learning_rate", "temperature"):
            self.require(getattr(self, name) > 0, name, "above 0")
        for name in ("weight_decay", "alpha", "online_restart"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        self.require(
            self.strength is None or 0 <= self.strength <= 1, "strength", "None or in [0, 1]"
        )
        self.require(0 <= self.online_decay <= 1, "online_decay", "in [0, 1]")
        self.require(0 <= self.online_collapse < 1, "online_collapse", "in [0, 1)")

    def kept(self, views: int) -> int:
        """Return how many of `views` views are kept.

        Raises:
            FeatureError: If it is none.

        Example:
            >>> TTTConfig().kept(64)
            6
        """
        # 0.1 * 30 is 3.0000000000000004, 0.3 * 10 is 2.9999999999999996: both mean 3.
        count = int(views * self.selection + 1e-9)
        if count < 1:
            raise FeatureError(
                f"{views} views are too few: keeping {self.selection:g} of them keeps none; give at "
                f"least {-int(-1 / self.selection // 1)} views, or raise selection"
            )
        return count
