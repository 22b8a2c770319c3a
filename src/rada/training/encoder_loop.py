"""The one loop in which encoders learn: any number of processes, exact to go on with."""

from __future__ import annotations

import contextlib
import itertools
import math
import signal
import time
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor, distributed

from rada.core.errors import RadaError, TrainingDivergedError
from rada.core.processes import process_count
from rada.core.progress import progress_bar
from rada.core.randomness import seeded
from rada.training.batches import Batch, Order, Position, StepData
from rada.training.checkpoints import Checkpoints, RunState, collect, restore
from rada.training.encoder_config import EncoderConfig
from rada.training.schedule import epoch_cosine, warmup_cosine
from rada.training.sharding import ShardedLearner
from rada.training.signals import StopRequest
from rada.training.tracking import StepLog

if TYPE_CHECKING:
    from accelerate import Accelerator

__all__ = ["EncoderLearner", "EncoderLoop", "FineTuningStopped", "OutOfMemoryError"]

_SUMS = (
    *("loss", "cross_entropy", "smoothness", "contrastive", "penalty"),
    *("text_distance", "image_distance", "divergence", "accuracy"),
)


class OutOfMemoryError(RadaError, MemoryError):
    """A step of training did not fit into memory."""


class FineTuningStopped(KeyboardInterrupt):
    """A signal asked the run to stop; a checkpoint was written.

    Attributes:
        signal: Number of the signal.
        step: Steps that are done.
    """

    def __init__(self, number: int, step: int) -> None:
        name = signal.Signals(number).name
        super().__init__(f"{name}: stopped after step {step}; the same command goes on from there")
        self.signal, self.step = number, step


class EncoderLearner(Protocol):
    """What the loop trains: a module whose call with a `Batch` returns the losses of that share."""

    @property
    def changing(self) -> Collection[str]:
        """Names of the weights and buffers that training can change."""

    def parameter_groups(self) -> list[dict[str, Any]]:
        """Return the optimiser's groups; `lr` is the peak rate of a group."""

    def training_mode(self) -> None:
        """Set every part to the mode that it learns in."""

    def eval(self) -> object:
        """Set every part to evaluation mode."""


def _optimizer(groups: list[dict[str, Any]], config: EncoderConfig) -> torch.optim.Optimizer:
    """Return the optimiser of some groups, each with its rate."""
    decay = config.weight_decay
    if config.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=0.9, weight_decay=decay)
    return torch.optim.AdamW(groups, weight_decay=decay)


class EncoderLoop:
    """Training of an encoder together with what the method added.

    Args:
        model: The model, changed in place.
        config: How it is trained.
        order: The order of the images.
        data: This process's batches.
        accelerator: Devices, processes and precision.
        checkpoints: Where states go; None for none.
        log_path: File of one JSON line for each step; None for none.
        after_epoch: Called after each epoch; what it returns joins the epoch's entry in the history.
        stop: Says whether a signal has come.
        progress: Show a bar; None on a terminal only.
        title: The method's name, beside the bar.
        steps: Number of steps; None for the configuration's epochs. The last epoch may be a part.
        shards: The copy of the model that learns in shards; None where every process learns the whole.
    """

    def __init__(
        self,
        model: EncoderLearner,
        config: EncoderConfig,
        order: Order,
        data: StepData,
        accelerator: Accelerator,
        *,
        checkpoints: Checkpoints | None,
        log_path: Path | None,
        after_epoch: Callable[[int, RunState], dict[str, Any]],
        stop: StopRequest,
        progress: bool | None,
        title: str,
        steps: int | None = None,
        shards: ShardedLearner | None = None,
    ) -> None:
        self.plain: EncoderLearner = model if shards is None else shards.module
        self.shards, self.config, self.title = shards, config, title
        self.order, self.data = order, data
        self.accelerator, self.checkpoints = accelerator, checkpoints
        self.log_path, self.after_epoch = log_path, after_epoch
        self.stop, self.progress = stop, progress
        self.total = steps or config.epochs * order.steps_per_epoch
        self.epochs = math.ceil(self.total / order.steps_per_epoch)
        groups = [{**group, "peak": group["lr"]} for group in self.plain.parameter_groups()]
        if shards is None:
            self.model, self.optimizer = accelerator.prepare(model, _optimizer(groups, config))
            self.losses = self.model
        else:  # cut already, by our own rule
            optimizer = _optimizer(shards.groups(groups), config)
            self.model, self.optimizer = shards.module, accelerator.prepare_optimizer(optimizer)
            self.losses = shards

    def run(self) -> RunState:
        """Train until the last epoch, from a checkpoint if there is one.

        Raises:
            TrainingDivergedError: If the loss is not finite, or would not be after the last step; the
                checkpoint before is kept then.
            OutOfMemoryError: If a step does not fit.
            FineTuningStopped: If a signal came; a checkpoint was written.
        """
        state = self._restored()
        main = self.accelerator.is_main_process
        log = StepLog(self.log_path if main else None, state.step)
        start = Position(*divmod(state.step, self.order.steps_per_epoch))
        shown = self.progress if main else False
        try:
            with progress_bar(
                f"Training ({self.title})", self.total, enabled=shown, unit="step"
            ) as advance:
                advance(state.step)
                self.plain.training_mode()
                every = self.data.steps(start, self.epochs)
                for at, batches in itertools.islice(every, self.total - state.step):
                    values = self._step(at, batches, state)
                    log.write(values)
                    self.accelerator.log(
                        {k: v for k, v in values.items() if k != "step"}, state.step
                    )
                    advance(1)
                    self._end_of_step(at, batches, state, log)
        finally:
            log.close()
        return state

    # -- one step --------------------------------------------------------------------------------

    def _step(self, at: Position, batches: list[Batch], state: RunState) -> dict[str, Any]:
        began = time.perf_counter()
        rate = self._set_rates(state.step)
        # Whatever is random inside the model depends on the step alone, so a resumed run agrees.
        seed = hash((self.order.seed, state.step, self.accelerator.process_index))
        try:
            with seeded(seed, self.accelerator.device):
                found = self._gradients(batches)
        except (torch.OutOfMemoryError, RuntimeError) as error:
            if isinstance(error, torch.OutOfMemoryError) or "allocate" in str(error):
                raise OutOfMemoryError(self._memory_advice()) from error
            raise
        sums, stop = self._over_processes(found)
        if not all(math.isfinite(value) for value in sums.values()):
            raise TrainingDivergedError(self._diverged(at, state, rate, sums["loss"]))
        norm = self._update()
        state.step += 1
        if stop:
            self.stop.signal = stop
        for name, value in sums.items():
            state.sums[name] = state.sums.get(name, 0.0) + value
        seconds = time.perf_counter() - began
        return {
            "step": state.step,
            "epoch": at.epoch + 1,
            **sums,
            "learning_rate": rate,
            "gradient_norm": norm,
            "images_per_second": len(self.order.images(at)) / seconds,
        }

    def _gradients(self, batches: list[Batch]) -> dict[str, Tensor]:
        """Add up the gradients of the parts of a step; return the sums that are reported."""
        self.optimizer.zero_grad()
        sums: dict[str, Tensor] = {}
        for index, batch in enumerate(batches):
            last = index == len(batches) - 1
            at_once = last or self.shards is not None
            held = contextlib.nullcontext() if at_once else self.accelerator.no_sync(self.model)
            with held:
                found = self.losses(batch)
                # Gradients are averaged over the processes, losses are shares of a sum.
                self.accelerator.backward(found["loss"] * process_count())
            for name, value in found.items():
                sums[name] = sums.get(name, torch.zeros_like(value.detach())) + value.detach()
        return sums

    def _over_processes(self, sums: dict[str, Tensor]) -> tuple[dict[str, float], int]:
        """Return the sums over all processes, and the signal that any of them has received."""
        names = [name for name in _SUMS if name in sums]
        values = torch.stack([sums[name].double().cpu() for name in names])
        stop = torch.tensor(self.stop.signal)
        if process_count() > 1:
            values, stop = values.to(self._wire()), stop.to(self._wire())
            distributed.all_reduce(values)
            distributed.all_reduce(stop, distributed.ReduceOp.MAX)
        return dict(zip(names, values.tolist(), strict=True)), int(stop)

    def _wire(self) -> torch.device:
        """Where tensors must be to be exchanged."""
        gloo = distributed.get_backend() == "gloo"
        return torch.device("cpu") if gloo else self.accelerator.device

    def _update(self) -> float:
        norm = 0.0
        if self.shards is not None:
            self.shards.average_scalars()
            if self.config.max_grad_norm:
                norm = self.shards.clip(self.config.max_grad_norm)
        elif self.config.max_grad_norm:
            found = self.accelerator.clip_grad_norm_(
                self.model.parameters(), self.config.max_grad_norm
            )
            norm = float(found) if found is not None else 0.0
        self.optimizer.step()
        return norm

    def _set_rates(self, step: int) -> float:
        """Set the learning rates of a step; return the encoder's."""
        for group in self.optimizer.param_groups:
            group["lr"] = self._rate(group["peak"], step)
        return self._rate(self.config.learning_rate, step)

    def _rate(self, peak: float, step: int) -> float:
        config = self.config
        epoch = step // self.order.steps_per_epoch
        if config.schedule == "epochs":
            return epoch_cosine(peak, epoch, self.epochs)
        if config.schedule == "cosine_epochs":
            return warmup_cosine(peak, epoch, self.epochs, 0.0)
        final = min(peak, config.final_learning_rate)
        return warmup_cosine(peak, step, self.total, config.warmup, final)

    # -- between steps -----------------------------------------------------------------------------

    def _end_of_step(
        self, at: Position, batches: list[Batch], state: RunState, log: StepLog
    ) -> None:
        ended = at.step == self.order.steps_per_epoch - 1 or state.step == self.total
        saved = self.stop.signal or ended or state.step % self.config.checkpoint_every == 0
        if saved:
            self._check_weights(at, batches, state)
        if ended:
            means = {k: v / (at.step + 1) for k, v in state.sums.items()}
            entry: dict[str, Any] = {"epoch": at.epoch + 1, **means}
            if self.shards is not None:
                self.shards.give()
            entry |= self.after_epoch(at.epoch, state)
            self.plain.training_mode()
            state.history.append(entry)
            state.sums = {}
            log.write({"step": state.step, **{k: v for k, v in entry.items() if k not in means}})
        if saved:
            self._save(state)
        if self.stop.signal and state.step < self.total:
            raise FineTuningStopped(self.stop.signal, state.step)

    @torch.no_grad()
    def _check_weights(self, at: Position, batches: list[Batch], state: RunState) -> None:
        """Check the weights that the last step made, before anything is kept or evaluated."""
        self.plain.eval()  # statistics and dropout stay out of it
        sums: dict[str, Tensor] = {}
        for batch in batches:
            for name, value in self.losses(batch).items():
                sums[name] = sums.get(name, torch.zeros_like(value)) + value
        self.plain.training_mode()
        found, _ = self._over_processes(sums)
        if not all(math.isfinite(value) for value in found.values()):
            rate = self._set_rates(state.step - 1)
            raise TrainingDivergedError(self._diverged(at, state, rate, found["loss"], after=True))

    def _save(self, state: RunState) -> None:
        if self.checkpoints is None:
            return
        weights, moments, state.groups = collect(
            self.model, self.optimizer.optimizer, self.plain.changing
        )
        if self.accelerator.scaler is not None:
            state.scaler = self.accelerator.scaler.state_dict()
        if self.accelerator.is_main_process:
            self.checkpoints.save(state, weights, moments)
        self.accelerator.wait_for_everyone()

    def _restored(self) -> RunState:
        found = None if self.checkpoints is None else self.checkpoints.load()
        if found is None:
            return RunState()
        state, weights, moments = found
        restore(self.model, self.optimizer.optimizer, weights, moments, state.groups)
        if self.accelerator.scaler is not None and state.scaler:
            self.accelerator.scaler.load_state_dict(state.scaler)
        if self.shards is not None and state.step == self.total:
            self.shards.give()  # no epoch will
        return state

    # -- messages ------------------------------------------------------------------------------------

    def _diverged(
        self, at: Position, state: RunState, rate: float, loss: float, *, after: bool = False
    ) -> str:
        place = f"after step {state.step}" if after else f"at step {state.step + 1}"
        images = self.order.images(at).tolist()
        names = ", ".join(repr(self.data.split.ids[index]) for index in images[:3])
        return (
            f"the loss is {loss} {place} (epoch {at.epoch + 1}, learning rate {rate:.3g}, "
            f"a batch of {len(images)} images that begins with {names}); the last checkpoint is "
            "kept: lower the learning rate or max_grad_norm, or look at these images"
        )

    def _memory_advice(self) -> str:
        config = self.config
        return (
            f"a step of {config.batch_size} images in {config.accumulate} part(s) does not fit into "
            f"memory: raise accumulate (--set accumulate={2 * config.accumulate}), or lower batch_size, "
            f"classes_per_step or text_chunk ({config.text_chunk})"
        )
