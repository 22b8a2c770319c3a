"""What the methods that train an encoder have in common."""

from __future__ import annotations

import copy
import dataclasses
from abc import ABC
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal, NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rada.core.config import Config
from rada.core.errors import ConfigError
from rada.core.processes import process_rank, wait_for_all
from rada.core.randomness import seeded
from rada.features import Features
from rada.methods.base import AdaptedModel, Cost, Facts, Run, Shapes
from rada.methods.finetune.model import EncoderTraining, TunedModel
from rada.training.batches import Batch
from rada.training.checkpoints import Checkpoints
from rada.training.encoder_config import EncoderConfig
from rada.training.encoder_training import EncoderJob, train_encoder
from rada.training.feature_loop import Losses
from rada.training.strength import Strength

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["EncoderConfig", "EncoderMethod", "ImageEncoderConfig", "Scored", "weighted"]


@dataclass(frozen=True)
class ImageEncoderConfig(EncoderConfig):
    """Training of the image encoder together with one vector for each class.

    Attributes:
        train: "image", the one part that these methods can train.
    """

    train: Literal["both", "image", "text"] = "image"

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.require(
            self.train == "image",
            "train",
            "'image', since one vector is learned for each class and the text encoder has no part in it",
        )


class Scored(NamedTuple):
    """What a step computes of its images.

    Attributes:
        images: Their features, `(n, D)`.
        text: Features of the step's classes, `(C, D)`.
        logits: `(n, C)`.
        losses: Losses of single images `(n,)` by name, which add up to what learns.
    """

    images: Tensor
    text: Tensor
    logits: Tensor
    losses: dict[str, Tensor]


@dataclass(frozen=True)
class EncoderMethod(EncoderTraining, ABC):
    """A method that trains a copy of the encoder, and perhaps a head or weights of the classes.

    Attributes:
        captions: Whether a step needs a caption of each image.
    """

    config: ClassVar[type[Config]] = EncoderConfig
    trains: str = "the encoder"
    needs: frozenset[str] = frozenset({"encoder", "images"})
    cost: Cost = "image encoder"
    train_encoder: bool = True
    captions: bool = False

    # -- what a method may change ------------------------------------------------------------------

    def first(self, model: TunedModel, data: Features, run: Run) -> None:
        """Change `model` on features of the pretrained encoder before the encoder learns.

        Nothing, unless a method says otherwise.
        """

    def scored(self, model: TunedModel, batch: Batch) -> Scored:
        """Return the logits of a batch and the losses of its images, already weighted.

        Cross-entropy of the class logits, unless a method says otherwise.
        """
        images = model.image_features(batch.pixels)
        text = model.class_features(batch.classes, batch.template)
        logits = model.scale() * images @ text.T
        biases = model.class_biases_of(batch.classes)
        if biases is not None:
            logits = logits + biases
        losses = cross_entropy(logits, batch.labels, reduction="none")
        return Scored(images, text, logits, {"cross_entropy": losses})

    def loss(self, model: TunedModel, batch: Batch) -> Losses:
        """Return `loss` (this batch's share of the step's mean) and sums to report."""
        found = self.scored(model, batch)
        return weighted(batch, found.logits, **found.losses)

    def penalty(self, model: TunedModel) -> Tensor | None:
        """Return what is added to the loss of a step whatever its images, or None."""
        return None

    def classes_per_step(self, config: Any, classes: int) -> int:
        """Return how many of the classes a step draws; 0 for all."""
        return 0

    def end_epoch(self, model: TunedModel, done: int, epochs: int) -> None:
        """Change `model` when `done` of its epochs are done, before they are evaluated and kept.

        Nothing, unless a method says otherwise.
        """

    # -- how it fits -------------------------------------------------------------------------------

    def capabilities(self, config: Any) -> frozenset[str]:
        """Return what the encoder must offer: gradients of the parts that learn."""
        return frozenset(f"{part}_gradients" for part in config.parts)

    def check(self, data: Features, config: Any, run: Run) -> None:
        """Check that data and run hold what the method needs."""
        super().check(data, config, run)
        if getattr(config, "select", "last") == "best" and run.select is None:
            raise ConfigError(
                "select='best' needs a validation split (val), and the data has none: nothing is ever "
                "selected on test images; give one, or keep the last weights"
            )

    def build(
        self, facts: Facts, config: Any, shapes: Shapes, encoder: DualEncoder | None
    ) -> TunedModel:
        """Return a model that owns the encoder."""
        if encoder is None:
            raise ConfigError(f"{self.name} needs the encoder that it trained")
        text = torch.zeros(len(facts.classes), encoder.dim, device=encoder.device)
        return self._tuned(facts, config, encoder, text)

    def start(self, data: Features, config: Any, run: Run) -> TunedModel:
        """Return the zero-shot model, with an encoder of its own.

        Functions of the user's own (family `custom`) cannot be copied and are trained in place.
        """
        assert run.encoder is not None  # fit has checked it
        own = run.encoder if run.encoder.family == "custom" else copy.deepcopy(run.encoder)
        facts = Facts.of(data)
        if not data.templates:  # nobody named any
            facts = dataclasses.replace(facts, templates=self.templates(facts.templates))
        with seeded(run.seed):
            model = self._tuned(facts, config, own, data.class_set().text_features)
        model.keep_pretrained()
        if self.has_head:
            given = 1.0 if config.strength == "auto" else float(config.strength)
            model.strength = Strength(given, classes=data.classes)
        return model

    def _tuned(self, facts: Facts, config: Any, encoder: DualEncoder, text: Tensor) -> TunedModel:
        """Return the model of the method around an encoder."""
        return TunedModel(self, facts, config, encoder, text)

    def train(self, model: AdaptedModel, data: Features, config: Any, run: Run) -> AdaptedModel:
        """Train the model on the images; choose the strength of a head by whole runs on parts of them."""
        assert isinstance(model, TunedModel)
        if self.has_head and config.strength == "auto":
            self._choose_strength(model, data, config, run)
        return self.tune(model, data, config, run)

    def _choose_strength(self, model: TunedModel, data: Features, config: Any, run: Run) -> None:
        # A fold of fewer images makes as many steps as the final run, whose curve its own stands for.
        steps = config.epochs * -(-len(data) // config.batch_size)
        fold_config = dataclasses.replace(config, strength=1.0, select="last")

        def fit_part(part: Features, path: Path | None) -> AdaptedModel:
            model.load_tuned(model.pretrained)  # functions of the user's own are trained in place
            own = dataclasses.replace(
                run,
                state_dir=None if path is None else path.with_suffix(""),
                after_epoch=None,
                select=None,
                log_path=None,
                trackers=(),
            )
            fold = self.start(part, fold_config, own)
            return self.tune(fold, part, fold_config, own, steps)

        self.choose_strength(model, data, run, fit_part, config.strength_folds)
        model.load_tuned(model.pretrained)

    def tune(
        self,
        model: TunedModel,
        data: Features,
        config: EncoderConfig,
        run: Run,
        steps: int | None = None,
    ) -> TunedModel:
        """Train a model once, for `steps` or else the configuration's epochs."""
        checkpoints = self._checkpoints(data, config, run)
        if checkpoints is None or not checkpoints.all():
            self.first(model, data, self._first_run(run))
        epochs = -(-steps // -(-len(data) // config.batch_size)) if steps else config.epochs
        job = EncoderJob(
            data.labelled_images(),
            model.facts.templates,
            self.title,
            captions=self.captions,
            classes_per_step=self.classes_per_step(config, len(data.classes)),
            after_epoch=self._after_epoch(model, run, epochs),
            select=_asked(run.select if config.select == "best" else None, model),
            steps=steps,
            shards=self.shards,
        )
        state = train_encoder(model, job, config, run, checkpoints)
        effective = {"epochs": len(state.history), "steps": state.step}
        model.record |= {"history": state.history, "best": state.best, "effective": effective}
        model.keep_average(config.wise_alpha)
        return model

    def _after_epoch(
        self, model: TunedModel, run: Run, epochs: int
    ) -> Callable[[int], dict[str, Any]]:
        """Return what is called after each epoch."""
        asked = _asked(run.after_epoch, model)

        def after(done: int) -> dict[str, Any]:
            self.end_epoch(model, done, epochs)
            return {} if asked is None else asked(done)

        return after

    def _checkpoints(self, data: Features, config: EncoderConfig, run: Run) -> Checkpoints | None:
        """Take the folder for the states of this very run; those of another are replaced."""
        folder = run.state_file("encoder")
        if folder is None:
            return None
        identity = {"method": self.name, "config": config.to_dict(), "seed": run.seed}
        identity["data"] = data.fingerprint
        checkpoints = Checkpoints(folder, identity, config.keep_checkpoints)
        if process_rank() == 0:
            checkpoints.claim(overwrite=True)
        wait_for_all()
        return checkpoints

    def _first_run(self, run: Run) -> Run:
        """Return how the first stage runs: all processes do the same, and one writes."""
        main = process_rank() == 0
        return dataclasses.replace(
            run,
            encoder=None,
            state_dir=run.state_file("first-stage") if main else None,
            progress=run.progress if main else False,
        )


def _asked(function: Callable[..., dict[str, Any]] | None, model: TunedModel) -> Any:
    """Return a function that calls another one with the model in evaluation mode, or None."""
    if function is None:
        return None

    def call(*arguments: int) -> dict[str, Any]:
        return function(model.eval(), *arguments)

    return call


def weighted(batch: Batch, logits: Tensor | None = None, **losses: Tensor) -> Losses:
    """Add up losses of single images: `loss` is their share of the step's mean.

    Args:
        batch: Says what counts.
        logits: `(n, C)`, for the accuracy on the training images.
        losses: Losses `(n,)` by name, already weighted against each other.
    """
    found = {name: (values * batch.weights).sum() / batch.count for name, values in losses.items()}
    result = {"loss": torch.stack(list(found.values())).sum()}
    result |= {name: value.detach() for name, value in found.items()}
    if logits is not None:
        hits = (logits.detach().argmax(1) == batch.labels).to(batch.weights.dtype)
        result["accuracy"] = (hits * batch.weights).sum() / batch.count
    return result
