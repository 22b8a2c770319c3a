"""The training loop that the methods with gradients share."""

from __future__ import annotations

import contextlib
import itertools
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from rada.core.config import Config
from rada.core.errors import TrainingDivergedError
from rada.core.progress import progress_bar
from rada.methods.base import ClassSet, Predictor, Task
from rada.training.eft import draw_classes
from rada.training.schedule import warmup_cosine
from rada.training.state import TrainingState, optimizer_moments, restore_moments

__all__ = ["Recipe", "learning_rate", "seeded", "train"]

_WARM_RATE = 1e-5


@dataclass(frozen=True)
class Recipe(Config):
    """How a method is optimised.

    Attributes:
        epochs: Passes over the examples.
        batch_size: Examples a step.
        learning_rate: The peak.
        optimizer: "sgd" (momentum 0.9), "adam" (weight decay as an L2 term in the gradient) or "adamw"
            (decoupled).
        weight_decay: Its weight.
        schedule: "epochs": the first epoch at 1e-5, then a cosine from the full rate, changed once an
            epoch (as in CoOp); "steps": a linear warm-up over the part `warmup` of all steps, then a
            cosine.
        warmup: Part of the steps, for "steps".
        epsilon: Adam's.
    """

    epochs: int = 50
    batch_size: int = 32
    learning_rate: float = 0.002
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    schedule: Literal["epochs", "steps"] = "epochs"
    warmup: float = 0.0
    epsilon: float = 1e-8

    def validate(self) -> None:
        """Check that every field is in its range."""
        self.require(self.epochs >= 1, "epochs", "a positive integer")
        self.require(self.batch_size >= 1, "batch_size", "a positive integer")
        self.require(self.learning_rate > 0, "learning_rate", "above 0")
        self.require(self.weight_decay >= 0, "weight_decay", "0 or more")
        self.require(0 <= self.warmup < 1, "warmup", "in [0, 1)")
        self.require(self.epsilon > 0, "epsilon", "above 0")


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While the block runs, torch draws from `seed`; for initial weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def learning_rate(
    recipe: Recipe, step: int, steps_per_epoch: int, steps: int | None = None
) -> float:
    """Return the rate of a step, counted from 0, of `steps` or else of whole epochs.

    Example:
        >>> recipe = Recipe(epochs=3, learning_rate=1.0)
        >>> [round(learning_rate(recipe, step, 1), 5) for step in range(3)]
        [1e-05, 1.0, 0.75]
    """
    if recipe.schedule == "epochs":
        epoch = step // steps_per_epoch
        if epoch == 0:
            return _WARM_RATE
        # CoOp's warm-up epoch comes before the cosine, which then begins at its own first value.
        part = (epoch - 1) / recipe.epochs
        return recipe.learning_rate * 0.5 * (1 + math.cos(math.pi * part))
    total = steps or recipe.epochs * steps_per_epoch
    return warmup_cosine(recipe.learning_rate, step, total, recipe.warmup)


def train(
    predictor: Predictor,
    task: Task,
    recipe: Recipe,
    *,
    classes_per_step: int = 0,
    steps: int | None = None,
    state_path: Path | None = None,
    progress: bool | None = False,
    description: str = "",
) -> Predictor:
    """Minimise `predictor.step_loss` over the examples of a task.

    Which examples, views and classes a step sees is a function of the seed and the epoch alone, so
    a run that goes on from `state_path` ends with the same weights, bit for bit.

    Args:
        predictor: Changed in place.
        task: Its examples; with several views, a step takes one of each at random.
        recipe: How to optimise.
        classes_per_step: Classes that a step draws (they hold the labels of the batch as far as they
            go; examples of others sit the step out); 0 for all.
        steps: Number of steps; None for the whole epochs of the recipe.
        state_path: File for the state after an epoch, as often as writing it costs little.
        progress: Show a bar; None on a terminal only.
        description: Beside the bar.

    Raises:
        TrainingDivergedError: If the loss becomes NaN or infinite.

    Returns:
        The predictor; its record holds the curve, and the epochs and steps that were made.
    """
    parameters = [p for p in predictor.parameters() if p.requires_grad]
    optimizer = _optimizer(parameters, recipe)
    per_epoch = math.ceil(len(task.labels) / recipe.batch_size)
    steps = steps or recipe.epochs * per_epoch
    epochs = math.ceil(steps / per_epoch)
    told = [predictor.method, predictor.facts, asdict(recipe), classes_per_step, steps]
    state = _restore(state_path, task.fingerprint(told), predictor, optimizer)
    predictor.train()
    with progress_bar(
        description or predictor.method, steps, enabled=progress, unit="step"
    ) as advance:
        advance(state.epoch * per_epoch)
        for epoch in range(state.epoch, epochs):
            total, seen = 0.0, 0
            batches = _batches(task, recipe, classes_per_step, epoch)
            left = steps - epoch * per_epoch
            for step, rows, images, labels, classes in itertools.islice(batches, left):
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(recipe, epoch * per_epoch + step, per_epoch, steps)
                candidates = task.classes if classes is None else classes
                loss = predictor.step_loss(rows, images, labels, candidates)
                _check_loss(loss, recipe, f"at step {epoch * per_epoch + step + 1}")
                optimizer.zero_grad(set_to_none=True)
                loss.backward()
                optimizer.step()
                total, seen = total + float(loss.detach()) * len(labels), seen + len(labels)
                advance(1)
            state.history.append({"loss": total / max(1, seen)})
            state.epoch = epoch + 1
            due = state.epoch == epochs or (state_path is not None and state.due())
            if due:  # what the last step made of the weights, before anything is kept
                with torch.no_grad():
                    loss = predictor.step_loss(rows, images, labels, candidates)
                _check_loss(loss, recipe, f"after step {min(steps, state.epoch * per_epoch)}")
            if state_path is not None and due:
                state.weights = dict(predictor.state_dict())
                state.moments = optimizer_moments(predictor, optimizer)
                state.save(state_path)
    predictor.record |= {
        "history": state.history,
        "effective": {"epochs": epochs, "steps": steps},
    }
    return predictor.eval()


def _check_loss(loss: Tensor, recipe: Recipe, place: str) -> None:
    if not bool(loss.isfinite()):
        raise TrainingDivergedError(
            f"the loss is {float(loss)} {place}: nothing of this is kept; lower the learning rate, "
            f"which was at most {recipe.learning_rate:g}"
        )


def _optimizer(parameters: list[torch.nn.Parameter], recipe: Recipe) -> torch.optim.Optimizer:
    rate, decay = recipe.learning_rate, recipe.weight_decay
    if recipe.optimizer == "sgd":
        return torch.optim.SGD(parameters, lr=rate, momentum=0.9, weight_decay=decay)
    kind = torch.optim.Adam if recipe.optimizer == "adam" else torch.optim.AdamW
    return kind(parameters, lr=rate, weight_decay=decay, eps=recipe.epsilon)


def _restore(
    path: Path | None, key: str, predictor: Predictor, optimizer: torch.optim.Optimizer
) -> TrainingState:
    if path is not None and path.exists():
        state = TrainingState.load(path)
        if state.key == key:
            predictor.load_state_dict(state.weights)
            restore_moments(predictor, optimizer, state.moments)
            return state
    return TrainingState(key)


def _batches(
    task: Task, recipe: Recipe, classes_per_step: int, epoch: int
) -> Iterator[tuple[int, Tensor, Tensor, Tensor, ClassSet | None]]:
    """Yield step, rows, images, labels and the drawn classes (None: all) of one epoch."""
    features = task.examples.image_features
    generator = torch.Generator().manual_seed(task.seed * 1_000_003 + epoch)
    order = torch.randperm(len(features), generator=generator)
    for step, batch in enumerate(torch.split(order, recipe.batch_size)):
        views = torch.randint(features.shape[1], (len(batch),), generator=generator)
        images, labels = features[batch, views], task.labels[batch]
        count = len(task.classes)
        drawn = draw_classes(labels, count, classes_per_step or count, generator)
        if drawn is None:
            yield step, batch, images, labels, None
            continue
        position = torch.full((count,), -1)
        position[drawn] = torch.arange(len(drawn))
        kept = (position[labels] >= 0).nonzero().flatten()
        yield step, batch[kept], images[kept], position[labels][kept], task.classes.take(drawn)
