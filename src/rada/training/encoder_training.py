"""Training an encoder from images, from the first batch to the weights that are kept."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from rada.core.errors import ConfigError
from rada.data import ImageSplit
from rada.encoders.memory import keep_freed_memory
from rada.training.batches import Order, StepData, training_transform
from rada.training.best_epoch import BestEpoch, Tunable
from rada.training.checkpoints import Checkpoints, RunState
from rada.training.distributed import make_accelerator
from rada.training.encoder_config import EncoderConfig
from rada.training.encoder_loop import EncoderLearner, EncoderLoop, FineTuningStopped
from rada.training.sharding import ShardedLearner, wants_shards
from rada.training.signals import listening
from rada.training.tracking import start_trackers

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rada.encoders import DualEncoder

__all__ = ["EncoderJob", "RunOptions", "TunableEncoder", "train_encoder"]


class RunOptions(Protocol):
    """How a run is carried out; `rada.methods.Run` is one."""

    @property
    def seed(self) -> int:
        """Seed of everything random."""

    @property
    def progress(self) -> bool | None:
        """Show a bar; None on a terminal only."""

    @property
    def workers(self) -> int | None:
        """Processes that decode images; None chooses."""

    @property
    def skip_bad(self) -> bool:
        """Go on without images that cannot be read."""

    @property
    def device(self) -> str | torch.device | None:
        """Where the encoder learns; None for what Accelerate finds."""

    @property
    def log_path(self) -> Path | None:
        """File of one JSON line for each step."""

    @property
    def trackers(self) -> tuple[str, ...]:
        """Names of further trackers."""


class TunableEncoder(EncoderLearner, Tunable, Protocol):
    """A model that owns an encoder."""

    @property
    def encoder(self) -> DualEncoder:
        """The encoder."""


@dataclass(frozen=True)
class EncoderJob:
    """What is learned.

    Attributes:
        images: The training images.
        templates: Prompt templates of the classes.
        title: The method's name, for the bar.
        captions: Whether a step needs a caption of each image.
        classes_per_step: Classes that a step draws, or as many as its images have; 0 for all.
        after_epoch: Called after each epoch with the number of finished epochs; what it returns joins
            the epoch's entry in the history.
        select: Returns the metrics on the validation split; the weights of the best epoch are
            kept. None keeps the last.
        steps: Number of steps; None for the configuration's epochs. The last epoch may be a part.
        shards: Whether the model can learn in shards: its losses read no weights of the encoder's layers.
    """

    images: ImageSplit
    templates: tuple[str, ...]
    title: str
    captions: bool = False
    classes_per_step: int = 0
    after_epoch: Callable[[int], dict[str, Any]] | None = None
    select: Callable[[], dict[str, Any]] | None = None
    steps: int | None = None
    shards: bool = False


def train_encoder(
    model: TunableEncoder,
    job: EncoderJob,
    config: EncoderConfig,
    run: RunOptions,
    checkpoints: Checkpoints | None = None,
) -> RunState:
    """Train a model that owns an encoder, from the newest checkpoint if there is one.

    Args:
        model: The model, changed in place.
        job: What is learned.
        config: How it is optimised.
        run: How the run is carried out.
        checkpoints: Where states go; None for none.

    Returns:
        The state at the end, with the history.

    Raises:
        DataError: If an image cannot be read.
        TrainingDivergedError: If the loss is not finite.
        OutOfMemoryError: If a step does not fit into memory.
        FineTuningStopped: On Ctrl-C or SIGTERM, after a checkpoint.
    """
    folder = None if run.log_path is None else run.log_path.parent
    accelerator = make_accelerator(
        run.device, config.precision, trackers=run.trackers, folder=folder
    )
    start_trackers(accelerator, run.trackers, config.to_dict())
    _place(model, config, accelerator)
    best = None
    if job.select is not None:
        path = None if checkpoints is None else checkpoints.folder / "best.safetensors"
        best = BestEpoch(model, job.select, path)

    def after_epoch(epoch: int, state: RunState) -> dict[str, Any]:
        entry: dict[str, Any] = {}
        if best is not None:
            entry["validation"] = best(epoch, state, write=accelerator.is_main_process)
        return entry | (job.after_epoch(epoch + 1) if job.after_epoch is not None else {})

    order = _order(job, config, run.seed)
    with listening() as stop:
        loop = EncoderLoop(
            model,
            config,
            order,
            _step_data(model, job, order, config, run, accelerator),
            accelerator,
            checkpoints=checkpoints,
            log_path=run.log_path,
            after_epoch=after_epoch,
            stop=stop,
            progress=run.progress,
            title=job.title,
            steps=job.steps,
            shards=_shards(model, job, accelerator),
        )
        state = loop.run()
        if stop.signal:  # it came with the last step: everything but the evaluation is done
            raise FineTuningStopped(stop.signal, state.step)
    accelerator.free_memory()
    for tracker in accelerator.trackers:  # end_training would end the other processes' group, too
        tracker.finish()
    if best is not None:
        best.restore()
    return state


def _place(model: TunableEncoder, config: EncoderConfig, accelerator: Accelerator) -> None:
    """Put the encoder where it learns, in the layout that convolutions are fastest in."""
    keep_freed_memory()
    module = model.encoder.model.to(accelerator.device)
    if "image" in config.parts:
        module.to(memory_format=torch.channels_last)


def _shards(
    model: TunableEncoder, job: EncoderJob, accelerator: Accelerator
) -> ShardedLearner | None:
    """Return the copy that learns in shards, if the launcher asked for it."""
    if not wants_shards(accelerator):
        return None
    if not job.shards:
        raise ConfigError(
            f"{job.title} cannot learn in shards (FSDP): its losses read weights of the encoder's layers, or "
            "it puts parts into them. Use one process a GPU without --use_fsdp, or ft, lp_ft, flyp or rada_ft"
        )
    if model.encoder.family == "custom":
        raise ConfigError(
            "functions of your own cannot be copied, and what learns in shards (FSDP) is a copy: use one "
            "process a GPU without --use_fsdp"
        )
    return ShardedLearner(model, accelerator.device, half=accelerator.mixed_precision == "bf16")


def _order(job: EncoderJob, config: EncoderConfig, seed: int) -> Order:
    return Order(
        torch.from_numpy(job.images.labels.copy()),
        len(job.images.classes),
        config.batch_size,
        job.classes_per_step,
        len(job.templates),
        seed,
    )


def _step_data(
    model: TunableEncoder,
    job: EncoderJob,
    order: Order,
    config: EncoderConfig,
    run: RunOptions,
    accelerator: Accelerator,
) -> StepData:
    """Return this process's batches."""
    return StepData(
        job.images,
        order,
        training_transform(model.encoder, config.augmentation, config.crop_scale),
        workers=_workers(run.workers, accelerator),
        templates=job.templates,
        captions=job.captions,
        parts=config.accumulate,
        skip_bad=run.skip_bad,
        rank=accelerator.process_index,
        processes=accelerator.num_processes,
        device=accelerator.device,
    )


def _workers(wanted: int | None, accelerator: Accelerator) -> int:
    if wanted is not None:
        return wanted
    if accelerator.device.type == "cpu":  # the encoder needs the cores
        return 0
    return min(8, (os.cpu_count() or 1) // int(accelerator.num_processes))
