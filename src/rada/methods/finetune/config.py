"""The configuration of full fine-tuning."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rada.core.config import Config

__all__ = ["FFTConfig"]


@dataclass(frozen=True)
class FFTConfig(Config):
    """Full fine-tuning: encoders, head, or both.

    The values for FT and FLYP are those of their code where it was published (learning rate, weight
    decay, clipping); for RAda's full fine-tuning no code was published, so its defaults are ours.
    Batches are small by default: the published 512 pictures a step belong to ImageNet.

    Attributes:
        epochs: Passes over the training pictures.
        batch_size: Pictures of a step, over all processes.
        accumulate: Parts that a step's pictures are cut into, one after the other, to save memory; the
            result is the same, except for FLYP, whose contrast is within a part.
        learning_rate: Peak learning rate of the encoders; None for the method's own (3e-5, FLYP 1e-5).
        head_learning_rate: Peak learning rate of the RAda head while the encoders learn.
        weight_decay: Decoupled weight decay; None for the method's own (0.1, L2-SP 0).
        warmup: Part of all steps with a rising learning rate, in [0, 1); a cosine to zero follows.
        max_grad_norm: The norm that gradients are clipped to; 0 for none.
        train: Towers that learn; None for the method's own choice.
        head_first: Whether RAda-FT trains its head on frozen encoders before everything learns
            together; otherwise all learn together from the start.
        head_epochs: Passes of that first stage over the features.
        alpha: Weight of the smoothness term `mean_b max |M - 1|`.
        num_heads: Attention heads of the RAda head.
        temperature: Temperature of its joint softmax.
        strength: Mask strength at inference in [0, 1], or "auto" to choose it on the training images by
            the rules for frozen encoders. RAda-FT then makes a whole run for every fold, of as many steps
            as the final one: with three folds it takes four times as long as with a number.
        strength_folds: Folds of that cross-validation, at least 2.
        classes_per_step: Classes that a step of RAda draws, or as many as its pictures have, if that is
            more; None for at most 64, 0 for all. In the first stage None is the rule of `EFTConfig`.
        augmentation: "random" for the encoder's training transform, "plain" for its evaluation
            transform.
        crop_scale: Smallest and largest part of a picture in a random crop; None for the encoder's
            own.
        same_class: FLYP: "negatives" counts other captions of the same class as wrong, as
            published; "positives" shares the target among them.
        l2_alpha: L2-SP: weight of half the squared distance to the pretrained weights.
        l2_beta: L2-SP: weight of half the squared norm of new weights.
        train_mode: Whether dropout and stochastic depth are active and batch norms keep
            learning their statistics; off, every picture counts alone, whatever its batch.
        text_chunk: Prompts that a trainable text tower runs at once; chunks are computed again in the
            backward pass, so memory does not grow with the classes.
        precision: "bf16" or "fp16" for mixed precision; None for what the launcher says.
        evaluate_every: Epochs between evaluations; 0 evaluates at the end alone.
        select: "last" keeps the weights after the last epoch, "best" those of the epoch with the highest
            accuracy on the validation split.
        checkpoint_every: Steps between checkpoints; each epoch's end is one more.
        keep_checkpoints: Checkpoints that are kept.
        wise_alpha: Weight of the tuned weights in the result; below 1 they are averaged with
            the pretrained ones (WiSE-FT).

    Raises:
        ConfigError: If a field is ill-typed or out of range.

    Example:
        >>> FFTConfig(epochs=2).batch_size
        32
    """

    epochs: int = 10
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float | None = None
    head_learning_rate: float = 3e-4
    weight_decay: float | None = None
    warmup: float = 0.1
    max_grad_norm: float = 1.0
    train: Literal["both", "image", "text"] | None = None
    head_first: bool = True
    head_epochs: int = 20
    alpha: float = 1.0
    num_heads: int = 8
    temperature: float = 1.0
    strength: float | Literal["auto"] = "auto"
    strength_folds: int = 3
    classes_per_step: int | None = None
    augmentation: Literal["random", "plain"] = "random"
    crop_scale: tuple[float, ...] | None = None
    same_class: Literal["negatives", "positives"] = "negatives"
    l2_alpha: float = 0.1
    l2_beta: float = 0.01
    train_mode: bool = False
    text_chunk: int = 64
    precision: Literal["no", "bf16", "fp16"] | None = None
    evaluate_every: int = 1
    select: Literal["last", "best"] = "last"
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    wise_alpha: float = 1.0

    def validate(self) -> None:
        """Check that every field is in its range."""
        for name in ("epochs", "batch_size", "accumulate", "head_epochs", "num_heads"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        for name in ("text_chunk", "checkpoint_every", "keep_checkpoints"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        for name in ("alpha", "l2_alpha", "l2_beta", "max_grad_norm", "evaluate_every"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        rate, decay = self.learning_rate, self.weight_decay
        self.require(rate is None or rate > 0, "learning_rate", "above 0")
        self.require(decay is None or decay >= 0, "weight_decay", "0 or more")
        self.require(self.head_learning_rate > 0, "head_learning_rate", "above 0")
        self.require(self.temperature > 0, "temperature", "above 0")
        self.require(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        self.require(
            self.strength == "auto" or 0 <= float(self.strength) <= 1,
            "strength",
            "'auto' or in [0, 1]",
        )
        self.require(self.strength_folds >= 2, "strength_folds", "at least 2")
        self.require(0 <= self.wise_alpha <= 1, "wise_alpha", "in [0, 1]")
        subset = self.classes_per_step
        self.require(
            subset is None or subset == 0 or subset >= 2, "classes_per_step", "0 or above 1"
        )
        self.require(self.accumulate <= self.batch_size, "accumulate", "at most batch_size")
        crop = self.crop_scale
        self.require(
            crop is None or (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1),
            "crop_scale",
            "two numbers, 0 < low <= high <= 1",
        )
