"""The one training loop of everything that learns on features."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rada.core.config import Config
from rada.core.errors import CheckpointError, TrainingDivergedError
from rada.core.hashing import fingerprint_tensors
from rada.core.progress import progress_bar
from rada.core.threads import stop_if_told
from rada.features import ClassSet, Features
from rada.training import optimizers
from rada.training.schedule import epoch_cosine, warmup_cosine
from rada.training.state import TrainingState, optimizer_moments, restore_moments

__all__ = [
    "Losses",
    "Recipe",
    "Step",
    "TrainingInterrupted",
    "class_logits_loss",
    "default_subset",
    "draw_classes",
    "learning_rate",
    "train",
]

Losses = dict[str, Tensor]
"""`loss` is what a step minimises, the others are reported. All are means over the images."""


class Step(NamedTuple):
    """What one step of training sees.

    Attributes:
        number: Its number within the epoch.
        rows: Which rows of the data, `(B,)`.
        images: Their features, one view of each, `(B, D)`.
        labels: Their labels among `classes`, `(B,)`.
        classes: The classes of the step.
        views: Which view of each, `(B,)`.
    """

    number: int
    rows: Tensor
    images: Tensor
    labels: Tensor
    classes: ClassSet
    views: Tensor


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C during training; what was finished is kept.

    Attributes:
        model: The model as it was after the last whole epoch.
        history: One entry for each finished epoch.
    """

    def __init__(self, model: nn.Module, history: list[dict[str, float]]) -> None:
        super().__init__(f"interrupted after {len(history)} epochs")
        self.model, self.history = model, history


@dataclass(frozen=True)
class Recipe(Config):
    """How a method is optimised.

    Attributes:
        epochs: Passes over the images.
        batch_size: Images a step.
        learning_rate: The peak.
        optimizer: "sgd" (momentum 0.9), "adam" (weight decay as an L2 term in the gradient) or "adamw"
            (decoupled).
        weight_decay: Its weight.
        schedule: "epochs": the first epoch at 1e-5, then a cosine from the full rate, changed once an
            epoch (as in CoOp); "steps": a linear warm-up over the part `warmup` of all steps, then a
            cosine; "constant": the same rate in every step.
        warmup: Part of the steps, for "steps".
        epsilon: Adam's.
    """

    epochs: int = 50
    batch_size: int = 32
    learning_rate: float = 0.002
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    weight_decay: float = 5e-4
    schedule: Literal["epochs", "steps", "constant"] = "epochs"
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

    def optimizer_for(self, parameters: list[Any]) -> torch.optim.Optimizer:
        """Return the optimiser of some parameters, or of groups of them, of which each may name its `lr`."""
        if self.optimizer == "sgd":
            return optimizers.SGD(
                parameters, lr=self.learning_rate, momentum=0.9, weight_decay=self.weight_decay
            )
        kind = optimizers.Adam if self.optimizer == "adam" else optimizers.AdamW
        # On a CPU the one pass of the fused form takes a seventh of the time of a dozen passes.
        groups = [found["params"] if isinstance(found, dict) else [found] for found in parameters]
        each = [parameter for group in groups for parameter in group]
        fused = all(p.device.type == "cpu" and p.is_floating_point() for p in each) or None
        return kind(
            parameters,
            lr=self.learning_rate,
            weight_decay=self.weight_decay,
            eps=self.epsilon,
            fused=fused,
        )


def learning_rate(
    recipe: Recipe,
    step: int,
    steps_per_epoch: int,
    steps: int | None = None,
    peak: float | None = None,
) -> float:
    """Return the rate of a step, counted from 0, of `steps` or else of whole epochs.

    It rises to `peak`, the recipe's own for None.

    Example:
        >>> recipe = Recipe(epochs=3, learning_rate=1.0)
        >>> [round(learning_rate(recipe, step, 1), 5) for step in range(3)]
        [1e-05, 1.0, 0.75]
    """
    peak = recipe.learning_rate if peak is None else peak
    if recipe.schedule == "constant":
        return peak
    if recipe.schedule == "epochs":
        return epoch_cosine(peak, step // steps_per_epoch, recipe.epochs)
    total = steps or recipe.epochs * steps_per_epoch
    return warmup_cosine(peak, step, total, recipe.warmup)


def class_logits_loss(logits: Tensor, labels: Tensor, **weighted: Tensor) -> Losses:
    """Return cross-entropy plus other terms, each also by its name, and the accuracy.

    Args:
        logits: `(B, K)`.
        labels: `(B,)`.
        weighted: Further terms `()`, with their weights already.
    """
    entropy = cross_entropy(logits, labels)
    total = entropy
    for term in weighted.values():
        total = total + term
    accuracy = (logits.detach().argmax(1) == labels).to(entropy.dtype).mean()
    reported = {name: term.detach() for name, term in weighted.items()}
    return {"loss": total, "cross_entropy": entropy.detach(), **reported, "accuracy": accuracy}


def train(
    model: nn.Module,
    loss: Callable[[Step], Losses],
    data: Features,
    recipe: Recipe,
    seed: int,
    *,
    classes_per_step: int = 0,
    steps: int | None = None,
    key: object = None,
    state_path: Path | None = None,
    progress: bool | None = None,
    description: str = "Training",
    shortlists: Tensor | None = None,
) -> list[dict[str, float]]:
    """Train the parameters of a model that take gradients.

    Args:
        model: Changed in place; in evaluation mode afterwards. Its method `parameter_groups`, where it has
            one, returns groups with peak rates of their own.
        loss: Returns the losses of a step.
        data: Labelled features; of several views a step takes one of each image at random.
        recipe: How to optimise.
        seed: Seed of the order of images, classes and views: the same seed, machine and thread count
            give the same weights, bit for bit.
        classes_per_step: Classes that a step draws (they hold the labels of the batch as far as they
            go; images of other classes are skipped in this step); 0 for all.
        steps: Number of steps; None for the whole epochs of the recipe. The last epoch may be a part.
        key: A JSON value that tells runs with the same data and recipe apart.
        state_path: File for the state after an epoch, as often as writing it costs little. The same
            call goes on from there, bit for bit; a state of another run is replaced.
        progress: Show a bar; None on a terminal only.
        description: Beside the bar.
        shortlists: Classes from which those of a step are drawn that are no labels, `(N, C)` for the
            images; None for all.

    Returns:
        One entry for each epoch: the means of the losses and the last learning rate.

    Raises:
        TrainingDivergedError: If a loss or a weight is not finite; the state is not kept.
        TrainingInterrupted: On Ctrl-C.
        CheckpointError: If the state is damaged.
    """
    optimizer = _optimizer_of(model, recipe)
    per_epoch = math.ceil(len(data) / recipe.batch_size)
    steps = steps or recipe.epochs * per_epoch
    epochs = math.ceil(steps / per_epoch)
    identity = fingerprint_tensors(
        extra=[data.fingerprint, seed, asdict(recipe), classes_per_step, steps, key]
    )
    state = _restored(state_path, identity, model, optimizer)
    model.train()
    try:
        with progress_bar(description, steps, enabled=progress, unit="step") as advance:
            advance(state.epoch * per_epoch)
            for epoch in range(state.epoch, epochs):
                drawn = _steps(data, recipe, seed, classes_per_step, epoch, shortlists)
                numbered = zip(range(epoch * per_epoch, steps), drawn, strict=False)
                pace = functools.partial(_set_rates, optimizer, recipe, per_epoch, steps)
                paced = ((number + 1, step, pace(number)) for number, step in numbered)
                entry, last = _epoch(model, loss, optimizer, paced, advance)
                state.history.append(entry)
                state.epoch = epoch + 1
                due = state.epoch == epochs or (state_path is not None and state.due())
                if due:  # what the last step made of the weights, before anything is kept
                    with torch.no_grad():
                        done = min(steps, state.epoch * per_epoch)
                        _check_loss(loss(last), f"after step {done}", entry["learning_rate"])
                state.weights = {k: v.detach().clone() for k, v in model.state_dict().items()}
                if state_path is not None and due:
                    state.moments = optimizer_moments(model, optimizer)
                    state.save(state_path)
    except TrainingDivergedError as error:
        raise TrainingDivergedError(
            f"{error}: nothing of this is kept; lower the learning rate, which was at most "
            f"{recipe.learning_rate:g}"
        ) from None
    except KeyboardInterrupt as error:
        if state.weights:
            model.load_state_dict(state.weights)
        raise TrainingInterrupted(model.eval(), state.history) from error
    model.eval()
    return state.history


def _optimizer_of(model: nn.Module, recipe: Recipe) -> torch.optim.Optimizer:
    """Return the optimiser of what learns; each group keeps its peak rate."""
    groups = getattr(model, "parameter_groups", None)
    learning = [p for p in model.parameters() if p.requires_grad] if groups is None else groups()
    optimizer = recipe.optimizer_for(learning)
    for group in optimizer.param_groups:
        group["peak"] = group["lr"]
    return optimizer


def _set_rates(
    optimizer: torch.optim.Optimizer, recipe: Recipe, per_epoch: int, steps: int, number: int
) -> float:
    """Tell the optimiser the rates of a step; return that of the first group."""
    for group in optimizer.param_groups:
        group["lr"] = learning_rate(recipe, number, per_epoch, steps, group["peak"])
    return float(optimizer.param_groups[0]["lr"])


def _epoch(
    model: nn.Module,
    loss: Callable[[Step], Losses],
    optimizer: torch.optim.Optimizer,
    steps: Iterable[tuple[int, Step, float]],
    advance: Callable[[int], None],
) -> tuple[dict[str, float], Step]:
    """Take the numbered steps of an epoch, each with its rate, which the optimiser has been told.

    Returns:
        The means of the losses, and the last step.
    """
    totals: dict[str, float] = {}
    seen, rate = 0, 0.0
    for number, step, rate in steps:
        stop_if_told()
        losses = loss(step)
        reported = _check_loss(losses, f"at step {number}", rate)
        optimizer.zero_grad(set_to_none=True)
        losses["loss"].backward()
        optimizer.step()
        for name, value in reported.items():
            totals[name] = totals.get(name, 0.0) + value * len(step.labels)
        seen += len(step.labels)
        advance(1)
    means = {name: value / max(1, seen) for name, value in totals.items()}
    return means | {"learning_rate": rate}, step


def _check_loss(losses: Losses, place: str, rate: float) -> dict[str, float]:
    """Return the losses as numbers, read once; refuse those that are not finite."""
    found = {name: float(value.detach()) for name, value in losses.items()}
    for name, value in found.items():
        if not math.isfinite(value):
            raise TrainingDivergedError(
                f"the loss ({name}) is {value} {place} (learning rate {rate:.3g})"
            )
    return found


def _restored(
    path: Path | None, key: str, model: nn.Module, optimizer: torch.optim.Optimizer
) -> TrainingState:
    if path is not None and path.exists():
        state = TrainingState.load(path)
        if state.key == key:
            try:
                model.load_state_dict(state.weights)
                restore_moments(model, optimizer, state.moments)
            except RuntimeError as error:  # shapes of another model
                raise CheckpointError(
                    f"the training state {str(path)!r} is damaged ({error}): delete it to start afresh"
                ) from error
            return state
    return TrainingState(key)


def _steps(
    data: Features,
    recipe: Recipe,
    seed: int,
    classes_per_step: int,
    epoch: int,
    shortlists: Tensor | None = None,
) -> Iterator[Step]:
    """Yield the steps of one epoch, a pure function of the seed and the epoch."""
    # One generator an epoch, on the CPU: a resumed run and another device draw the same numbers.
    generator = torch.Generator().manual_seed(seed * 1_000_003 + epoch)
    images, classes = data.image_features, data.class_set()
    order = torch.randperm(len(images), generator=generator)
    for number, batch in enumerate(order.split(recipe.batch_size)):
        views = torch.randint(images.shape[1], (len(batch),), generator=generator)
        chosen, labels = images[batch, views], data.labels[batch]
        size = classes_per_step or len(classes)
        hard = None if shortlists is None else shortlists[batch]
        drawn = draw_classes(labels.cpu(), len(classes), size, generator, hard)
        if drawn is None:
            yield Step(number, batch, chosen, labels, classes, views)
            continue
        position = torch.full((len(classes),), -1)
        position[drawn] = torch.arange(len(drawn))
        relabelled = position[labels.cpu()]
        kept = (relabelled >= 0).nonzero().flatten()
        labels = relabelled[kept].to(labels.device)
        yield Step(number, batch[kept], chosen[kept], labels, classes.take(drawn), views[kept])


def default_subset(classes: int) -> int:
    """Return how many of the classes a step draws by default.

    Example:
        >>> default_subset(3), default_subset(24), default_subset(1000)
        (2, 12, 64)
    """
    return min(64, max(2, math.ceil(classes / 2)))


def draw_classes(
    labels: Tensor,
    count: int,
    size: int,
    generator: torch.Generator,
    hard: Tensor | None = None,
) -> Tensor | None:
    """Draw the classes of one step: the batch's own first, then hard ones, then others at random.

    Args:
        labels: Labels of the batch, `(B,)`.
        count: Number of classes, K.
        size: Classes to draw.
        generator: Source of randomness.
        hard: Classes that go before the others, of any shape.

    Returns:
        Sorted class indices `(size,)`, or None when all K are used.

    Example:
        >>> draw_classes(torch.tensor([3, 3]), 4, 2, torch.Generator().manual_seed(0)).tolist()
        [1, 3]
    """
    if size >= count:
        return None
    priority = torch.rand(count, generator=generator)
    if hard is not None:
        priority[hard.flatten()] += 1.0  # once, however often a class is there
        priority[labels] += 1.0
    priority[labels] += 1.0
    return priority.topk(size).indices.sort().values
