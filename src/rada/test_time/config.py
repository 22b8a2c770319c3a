"""Configuration of what is done with the views of an image."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rada.core.config import Config
from rada.core.errors import FeatureError
from rada.core.values import check_seed

__all__ = ["TTTConfig", "ViewConfig"]


@dataclass(frozen=True)
class ViewConfig(Config):
    """The views of an image, and which of them are trusted.

    Attributes:
        views: V, the original and V - 1 random views of it; for features, their own V counts.
        selection: Part of the views with the lowest entropy that is kept, in (0, 1]; 1 keeps all.
        augmentation: "crop" is a random crop, resized, and a mirror image; "augmix" mixes chains of
            photometric and geometric operations on top (AugMix at severity 1, as TPT's code).
        smallest_crop: Smallest part of the image's area in a crop, in (0, 1].
        seed: Chooses the views, together with each image's content and the view's number.
    """

    views: int = 64
    selection: float = 0.1
    augmentation: Literal["crop", "augmix"] = "crop"
    smallest_crop: float = 0.08
    seed: int = 0

    def validate(self) -> None:
        """Check that every field is in its range."""
        self.require(self.views >= 1, "views", "a positive integer")
        for name in ("selection", "smallest_crop"):
            self.require(0 < getattr(self, name) <= 1, name, "above 0 and at most 1")
        check_seed(self.seed)

    def kept(self, views: int) -> int:
        """Return how many of `views` views are kept.

        Raises:
            FeatureError: If it is none.

        Example:
            >>> ViewConfig().kept(64)
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


@dataclass(frozen=True)
class TTTConfig(ViewConfig):
    """Adaptation of the head to each unlabelled image from views of it.

    The protocol is that of TPT, which the paper follows; its learning rate for the head is not public.
    The defaults were chosen on training images (`benchmarks/test_time_figures.py --tune`).

    Attributes:
        steps: Steps on an image, down the gradient of the loss in the head's layer `out`.
        max_step: Length of a step: how far the mask that moves most, of the kept views and the predicted
            one, may move in any of its numbers. It means the same for every encoder.
        agreement: Images keep their prediction if less than this part of the views names the class that
            the kept views' mean prediction names, in [0, 1]; 0 adapts to every image.
        alpha: Weight of the smoothness term `max |M - 1|`, mean over the kept views. From the
            untrained head its gradient is zero in the first step.
        strength: Mask strength, while adapting and predicting, in [0, 1]; None for the trained head's
            own, 1 without one.
        predict_with: "original" predicts the original view, "kept" takes the mean probability
            of the kept views (the logits are then its logarithm).
        max_entropy: Images are left as they are if the entropy of the kept views' mean
            prediction is above this part of `log K`, in (0, 1]; 1 adapts to every image.
        num_heads: Attention heads of the untrained head; must divide the width of the features.
        temperature: Temperature of the untrained head.
        head_seed: Seed of the untrained head's random layers.
        episodic: True starts anew for every image; False goes on from image to image (online).
        online_restart: Images after which the online head starts anew; 0 for never.
        online_decay: Part of its way from the start that the online head goes back after each image,
            in [0, 1].
        online_collapse: The online head starts anew when its predictions hold less than this part of the
            unadapted head's information about the class, or agree with it by less than this, in
            [0, 1); 0 for never.
        memory_budget: Bytes that the per-image parameters and activations may take.
    """

    steps: int = 1
    max_step: float = 0.1
    agreement: float = 0.7
    alpha: float = 0.0
    strength: float | None = None
    predict_with: Literal["original", "kept"] = "original"
    max_entropy: float = 1.0
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
        super().validate()
        check_seed(self.head_seed, "TTTConfig.head_seed")
        for name in ("steps", "num_heads", "memory_budget"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        self.require(0 < self.max_entropy <= 1, "max_entropy", "above 0 and at most 1")
        for name in ("max_step", "temperature"):
            self.require(getattr(self, name) > 0, name, "above 0")
        self.require(0 <= self.agreement <= 1, "agreement", "in [0, 1]")
        for name in ("alpha", "online_restart"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        self.require(
            self.strength is None or 0 <= self.strength <= 1, "strength", "None or in [0, 1]"
        )
        self.require(0 <= self.online_decay <= 1, "online_decay", "in [0, 1]")
        self.require(0 <= self.online_collapse < 1, "online_collapse", "in [0, 1)")
