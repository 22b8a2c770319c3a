"""The configuration that every training of an encoder has."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from rada.core.config import Config

__all__ = ["EncoderConfig", "EncoderPart"]

EncoderPart = Literal["image", "text"]


@dataclass(frozen=True)
class EncoderConfig(Config):
    """How an encoder is trained; each method adds its own fields and defaults.

    Batches are small by default: the published 512 images a step belong to ImageNet.

    Attributes:
        epochs: Passes over the training images.
        batch_size: Images of a step, over all processes.
        accumulate: Parts that a step's images are cut into, one after the other, to save memory; the
            result is the same, except for FLYP, whose contrast is within a part.
        learning_rate: Peak learning rate of the encoder.
        optimizer: "adamw" (decoupled weight decay) or "sgd" (momentum 0.9, weight decay as an L2 term in
            the gradient).
        weight_decay: Its weight.
        schedule: "steps": a linear warm-up over the part `warmup` of all steps, then a cosine to
            `final_learning_rate`; "epochs": the first epoch at 1e-5, then a cosine from the full
            rate, changed once an epoch (as in CoOp); "cosine_epochs": the same without that first epoch.
        warmup: Part of all steps with a rising learning rate, in [0, 1), for "steps".
        final_learning_rate: What the cosine falls to, for "steps".
        max_grad_norm: The norm that gradients are clipped to; 0 for none.
        train: The parts of the encoder that learn.
        augmentation: "random" for the encoder's training transform, "plain" for its evaluation
            transform.
        crop_scale: Smallest and largest part of an image in a random crop; None for the encoder's
            own.
        train_mode: Whether dropout and stochastic depth are active and batch norms keep
            learning their statistics; off, every image counts alone, whatever its batch.
        text_chunk: Prompts that a trainable text encoder runs at once; chunks are computed again in
            the backward pass, so memory does not grow with the classes.
        precision: "bf16" or "fp16" for mixed precision; None for what the launcher says.
        evaluate_every: Epochs between evaluations of `FineTuner`; 0 evaluates at the end alone.
        select: "last" keeps the weights after the last epoch, "best" those of the epoch with the
            highest accuracy on the validation split.
        checkpoint_every: Steps between checkpoints; each epoch's end is one more.
        keep_checkpoints: Checkpoints that are kept.
        wise_alpha: Weight of the tuned weights in the result; below 1 they are averaged with
            the pretrained ones (WiSE-FT).

    Raises:
        ConfigError: If a field is ill-typed or out of range.

    Example:
        >>> EncoderConfig(epochs=2).batch_size
        32
    """

    epochs: int = 10
    batch_size: int = 32
    accumulate: int = 1
    learning_rate: float = 3e-5
    optimizer: Literal["adamw", "sgd"] = "adamw"
    weight_decay: float = 0.1
    schedule: Literal["steps", "epochs", "cosine_epochs"] = "steps"
    warmup: float = 0.1
    final_learning_rate: float = 0.0
    max_grad_norm: float = 1.0
    train: Literal["both", "image", "text"] = "both"
    augmentation: Literal["random", "plain"] = "random"
    crop_scale: tuple[float, ...] | None = None
    train_mode: bool = False
    text_chunk: int = 64
    precision: Literal["no", "bf16", "fp16"] | None = None
    evaluate_every: int = 1
    select: Literal["last", "best"] = "last"
    checkpoint_every: int = 500
    keep_checkpoints: int = 2
    wise_alpha: float = 1.0

    least_epochs: ClassVar[int] = 1

    @property
    def parts(self) -> tuple[EncoderPart, ...]:
        """The parts of the encoder that learn."""
        return ("image", "text") if self.train == "both" else (self.train,)

    def validate(self) -> None:
        """Check that every field is in its range."""
        least = self.least_epochs
        meaning = "a positive integer" if least == 1 else "0 or more"
        self.require(self.epochs >= least, "epochs", meaning)
        for name in ("batch_size", "accumulate", "text_chunk"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        for name in ("checkpoint_every", "keep_checkpoints"):
            self.require(getattr(self, name) >= 1, name, "a positive integer")
        for name in ("weight_decay", "max_grad_norm", "evaluate_every"):
            self.require(getattr(self, name) >= 0, name, "0 or more")
        self.require(self.learning_rate > 0, "learning_rate", "above 0")
        self.require(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        self.require(
            0 <= self.final_learning_rate <= self.learning_rate,
            "final_learning_rate",
            "from 0 to learning_rate",
        )
        self.require(0 <= self.wise_alpha <= 1, "wise_alpha", "in [0, 1]")
        self.require(self.accumulate <= self.batch_size, "accumulate", "at most batch_size")
        crop = self.crop_scale
        self.require(
            crop is None or (len(crop) == 2 and 0 < crop[0] <= crop[1] <= 1),
            "crop_scale",
            "two numbers, 0 < low <= high <= 1",
        )
