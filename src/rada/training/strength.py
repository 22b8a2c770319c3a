"""The strength of an adapted model, and its temperature: chosen by likelihood on held-out shots.

For a RAda head the strength is the mask used at inference, `M_lambda = 1 + lambda (M - 1)`; since logits
are linear in the mask, that is the same as mixing logits, so one rule serves every method. A model that
learned some classes may do worse than zero-shot on classes that it never saw; a smaller strength mends
that. So there are two strengths, and each is asked of the images that it is for:

- where all candidates were trained on: the point (a strength, or what else a method has to choose; see
  `Grid`) with the best log-likelihood on held-out images of learned classes;
- where some are new: half of the classes is held out as pseudo-new classes, the other half is learned,
  and the other way round, so that as many are new as were learned. Of the strengths up to 1/2 the
  smallest with 70 % of the best gain in log-likelihood over zero-shot is taken; zero if nothing is gained.

Log-likelihoods give smooth curves where accuracies of a few images jump. They are those of calibrated
logits: for every point the temperature is fitted on the same images, with a prior at the one that fits
the zero-shot logits of all shots (these are honest, since zero-shot does not learn); a smaller temperature
than 1, or than that one, must be shown by more images than a larger one. The temperatures of the
chosen points make the model's probabilities. With one image a class nothing can be held out of the
learned classes, and the point of the prior is taken. The models of the folds learn for as many steps as
the final one, whose curve theirs stands for. (The paper has neither strength nor temperature; both are
ours.)
"""

from __future__ import annotations

import math
import shutil
from collections.abc import Callable, Iterable, Iterator
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from rada.core.config import Config
from rada.core.errors import CheckpointError
from rada.core.hashing import fingerprint_tensors
from rada.core.processes import process_rank
from rada.core.records import FoldRecord, check_record
from rada.core.storage import read_json, write_json
from rada.core.threads import side_by_side
from rada.features import ClassSet, Features

__all__ = [
    "LARGEST_NEW",
    "PLAIN_GRID",
    "SHARE_OF_GAIN",
    "STRENGTHS",
    "Fold",
    "Grid",
    "Point",
    "Scores",
    "Strength",
    "StrengthChoice",
    "TemperaturePrior",
    "cautious_strength",
    "choose_strength",
    "fitted_temperature",
    "folds_of",
    "position_in_class",
    "score",
]

STRENGTHS = tuple(round(0.05 * step, 2) for step in range(21))
"""The strengths that are compared."""
SHARE_OF_GAIN = 0.7
"""Part of the best gain that a strength for new classes must keep."""
LARGEST_NEW = 0.5
"""The largest strength for new classes: beyond it chance decides whether they lose."""

_STEP = 0.25  # between the logarithms of temperatures that are tried
_MOST_IMAGES = 4096  # of a fold are asked; more would say the same more slowly

Point = tuple[float, ...]


@dataclass(frozen=True)
class TemperaturePrior:
    """How far the logarithm of a temperature is expected to be from where it is looked for.

    Attributes:
        lower: Standard deviation towards smaller temperatures, which make probabilities more sure.
        upper: Towards larger ones.
        free: How far towards smaller ones all are as likely; `lower` counts from there.

    Example:
        >>> TemperaturePrior(0.5, 1.0).penalty(torch.tensor([-1.0, 0.0, 1.0]))
        tensor([2.0000, 0.0000, 0.5000])
    """

    lower: float
    upper: float
    free: float = 0.0

    def penalty(self, steps: Tensor) -> Tensor:
        """Return what each distance must make up for, in nats, `(T,)`."""
        below = (steps + self.free).clamp(max=0) / self.lower
        return torch.where(steps < 0, below, steps / self.upper).square() / 2

    def steps(self) -> Tensor:
        """Return the distances that are tried, `(T,)`: evenly, to 3/2 on both sides of what is free."""
        more = math.ceil(self.free / _STEP)
        return _STEP * torch.arange(-6 - more, 7, dtype=torch.float64)


OF_ZERO_SHOT = TemperaturePrior(0.1, 2.0)
"""Of zero-shot logits, around 1: a few images that it has right do not show that it should be surer."""
AT_POINTS = TemperaturePrior(0.1, 0.5)
"""Of a strength or point, around the one of zero-shot."""


@dataclass(frozen=True)
class Strength(Config):
    """The strengths of an adapted model, and the temperatures of its logits at these.

    Attributes:
        value: Where some of the candidates are new to the model, in [0, 1].
        trained: Where it was trained on all of them; None for `value` there too.
        classes: Names of the classes that it was trained on.
        temperature: By which logits are divided where some candidates are new, above 0.
        trained_temperature: Where all were trained on; None for `temperature` there too.

    Example:
        >>> strength = Strength(0.3, trained=0.9, classes=("cat", "dog"))
        >>> strength.for_classes(["cat"]), strength.for_classes(["cat", "owl"])
        (0.9, 0.3)
    """

    value: float = 1.0
    trained: float | None = None
    classes: tuple[str, ...] = ()
    temperature: float = 1.0
    trained_temperature: float | None = None

    def label(self, field: str) -> str:
        """Return what errors call a field."""
        return {"value": "strength value", "trained": "trained strength"}.get(field, field)

    def validate(self) -> None:
        """Check that strengths are in [0, 1] and temperatures above 0."""
        self.require(0 <= self.value <= 1, "value", "in [0, 1]")
        trained = self.trained
        self.require(trained is None or 0 <= trained <= 1, "trained", "None or in [0, 1]")
        self.require(1e-3 <= self.temperature <= 1e3, "temperature", "from 0.001 to 1000")
        own = self.trained_temperature
        self.require(
            own is None or 1e-3 <= own <= 1e3, "trained_temperature", "None or from 0.001 to 1000"
        )

    def knows(self, names: Iterable[str]) -> bool:
        """Whether the model was trained on all candidates."""
        return set(names) <= set(self.classes)

    def for_classes(self, names: Iterable[str]) -> float:
        """Return the strength among candidates: another where all of them were trained on."""
        return self.value if self.trained is None or not self.knows(names) else self.trained

    def temperature_for(self, names: Iterable[str]) -> float:
        """Return the temperature among candidates: another where all of them were trained on."""
        own = self.trained_temperature
        return self.temperature if own is None or not self.knows(names) else own


@dataclass(frozen=True)
class Grid:
    """What can be chosen where all candidates were trained on.

    Attributes:
        points: What is compared; the first is zero-shot.
        prior: The point taken where nothing can be held out.
        penalties: What the log-likelihood of the held-out images must make up for at each point, in
            nats; it draws the choice to the prior where few images are held out.
    """

    points: tuple[Point, ...]
    prior: Point
    penalties: tuple[float, ...]


PLAIN_GRID = Grid(tuple((one,) for one in STRENGTHS), (1.0,), (0.0,) * len(STRENGTHS))
"""Of a method that has nothing but a strength to choose."""


@dataclass(frozen=True)
class StrengthChoice:
    """How a strength was chosen.

    Attributes:
        strength: The strength chosen, for candidates of which some are new.
        method: "classes" (cross-validation over classes), "shots" (over shots, for fewer than four
            classes) or "none" (one shot of fewer than four classes: nothing to validate on).
        strengths: The strengths compared.
        base_accuracy: Accuracy on held-out images of learned classes, one a point; empty where none
            could be held out.
        new_accuracy: Accuracy on held-out classes, one a strength; empty for "shots" and "none".
        trained_strength: The strength for candidates that were all trained on.
        points: The points compared on held-out images of learned classes.
        point: The one chosen.
        base_likelihood: Mean log-likelihood of those images, one a point, each at its best temperature.
        new_likelihood: The same of images of held-out classes, one a strength, at the temperature that is
            best for zero-shot.
        temperature: Of logits where some candidates are new.
        trained_temperature: Where all were trained on.
        base_images: How many held-out images of learned classes there were.
        new_images: How many images of held-out classes.
        base_changed: Of how many of the former zero-shot and the chosen point say differently right.
        linear_probe: Accuracy of a linear probe on the same held-out images of learned classes, from
            the same shots; None where none was fitted.
    """

    strength: float
    method: str
    strengths: tuple[float, ...] = STRENGTHS
    base_accuracy: tuple[float, ...] = ()
    new_accuracy: tuple[float, ...] = ()
    trained_strength: float | None = None
    points: tuple[Point, ...] = ()
    point: Point | None = None
    base_likelihood: tuple[float, ...] = ()
    new_likelihood: tuple[float, ...] = ()
    temperature: float = 1.0
    trained_temperature: float | None = None
    base_images: int = 0
    new_images: int = 0
    base_changed: int = 0
    linear_probe: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return all fields as JSON would give them back: lists for tuples."""
        found = asdict(self)
        return {key: _listed(value) for key, value in found.items()}


def _listed(value: Any) -> Any:
    return [_listed(entry) for entry in value] if isinstance(value, tuple) else value


class Adapted(Protocol):
    """What a fold's training returns."""

    def features_of(self, data: Features) -> Tensor:
        """Return the features `(N, D)` that it scores of some data."""

    def at_points(
        self, images: Tensor, classes: ClassSet, points: Iterable[Point]
    ) -> Iterator[Tensor]:
        """Yield logits `(N, K)` at every point."""


Baseline = Callable[[Features, Features], Tensor | None]
"""Learns from the first, returns the logits of the second; None where it would take too long."""


@dataclass
class Scores:
    """What images say of every point.

    Attributes:
        correct: Right predictions, `(P,)`.
        changed: Images that the point has right and the first has not, or the other way round, `(P,)`.
        loss: Sums of negative log-likelihoods at every temperature, `(P, T)`.
        images: How many there were.
    """

    correct: Tensor
    changed: Tensor
    loss: Tensor
    images: int

    @classmethod
    def none(cls, points: int, prior: TemperaturePrior = AT_POINTS) -> Scores:
        """Return what no images say."""
        zeros = torch.zeros(points, dtype=torch.long)
        loss = torch.zeros(points, len(prior.steps()), dtype=torch.float64)
        return cls(zeros, zeros, loss, 0)

    def __add__(self, other: Scores) -> Scores:
        return Scores(
            self.correct + other.correct,
            self.changed + other.changed,
            self.loss + other.loss,
            self.images + other.images,
        )

    def accuracy(self) -> tuple[float, ...]:
        """Return the accuracy at every point."""
        return tuple((self.correct.double() / max(1, self.images)).tolist())

    def calibrated(self, prior: TemperaturePrior = AT_POINTS) -> tuple[Tensor, Tensor]:
        """Return the loss at every point's best temperature, and which that is, both `(P,)`."""
        best = (self.loss + prior.penalty(prior.steps())).min(1)
        return best.values, best.indices

    def to_lists(self) -> list[Any]:
        """Return plain JSON values."""
        return [self.correct.tolist(), self.changed.tolist(), self.loss.tolist(), self.images]

    @classmethod
    def from_lists(cls, values: list[Any]) -> Scores:
        """Build from plain JSON values."""
        correct, changed, loss, images = values
        return cls(
            torch.tensor(correct),
            torch.tensor(changed),
            torch.tensor(loss, dtype=torch.float64),
            images,
        )


@torch.no_grad()
def score(
    logits: Iterable[Tensor],
    labels: Tensor,
    prior: float = 1.0,
    at_points: TemperaturePrior = AT_POINTS,
) -> Scores:
    """Return what images say of every point.

    Args:
        logits: `(N, K)` at every point; the first is zero-shot.
        labels: `(N,)`.
        prior: The temperature around which others are tried.
        at_points: How far around it.
    """
    correct, changed, loss, first = [], [], [], None
    temperatures = prior * at_points.steps().exp()
    for at_point in logits:
        right = at_point.argmax(1) == labels
        first = right if first is None else first
        correct.append(right.sum().cpu())
        changed.append((right != first).sum().cpu())
        loss.append(
            [
                float(cross_entropy(at_point / float(one), labels, reduction="sum"))
                for one in temperatures
            ]
        )
    table = torch.tensor(loss, dtype=torch.float64)
    return Scores(torch.stack(correct), torch.stack(changed), table, len(labels))


def fitted_temperature(
    logits: Tensor, labels: Tensor, prior: TemperaturePrior = OF_ZERO_SHOT
) -> float:
    """Return the temperature that makes logits most likely, with a prior at 1.

    Args:
        logits: `(N, K)` of a model that did not learn from these images.
        labels: `(N,)`.
        prior: How far from 1 it is expected.

    Example:
        >>> logits = torch.tensor([[50.0, 0.0], [50.0, 0.0], [0.0, 50.0], [50.0, 0.0]])
        >>> fitted_temperature(logits, torch.tensor([0, 0, 1, 1])) > 10
        True
    """
    steps = torch.linspace(-1.5, 5.0, 66, dtype=torch.float64)
    losses = torch.tensor(
        [
            float(cross_entropy(logits / math.exp(step), labels, reduction="sum"))
            for step in steps.tolist()
        ],
        dtype=torch.float64,
    )
    return math.exp(float(steps[(losses + prior.penalty(steps)).argmin()]))


def choose_strength(
    train: Callable[[Features, Path | None], Adapted],
    data: Features,
    seed: int,
    *,
    grid: Grid = PLAIN_GRID,
    folds: int = 2,
    key: object = None,
    folder: Path | None = None,
    baseline: Baseline | None = None,
    of_zero_shot: TemperaturePrior = OF_ZERO_SHOT,
    at_points: TemperaturePrior = AT_POINTS,
    own_scale: bool = False,
    final: Callable[[], object] | None = None,
    workers: int = 1,
) -> StrengthChoice:
    """Choose strengths and temperatures by cross-validation on the training images.

    Args:
        train: Adapts to a part of the data; the path is the file for its state.
        data: The training images with their class features and scale.
        seed: Draws the folds.
        grid: What to compare where all candidates were trained on.
        folds: Parts of the classes that take turns as pseudo-new classes.
        key: A JSON value that tells runs on the same data apart.
        folder: Where the states of the folds are kept, so that a killed run goes on; None keeps none.
        baseline: A linear probe, to be asked of the same held-out images.
        of_zero_shot: Prior of the temperature of zero-shot.
        at_points: Prior of the temperature at each point.
        own_scale: Whether training itself sets how sure the logits are, as that of prompts does: where
            zero-shot is too sure, temperatures from its own down to 1 are then as likely as each other.
        final: Trains on all of the data, which is done first or beside the folds; None for nothing.
        workers: Threads that train side by side (`rada.core.threads.side_by_side`).

    Returns:
        The choice with the curves that led to it.
    """
    assert data.scale is not None
    classes = data.class_set()
    logits = classes.zero_shot_logits(data.plain(), data.scale)
    prior = fitted_temperature(logits, data.labels, of_zero_shot)
    if own_scale:
        at_points = replace(at_points, free=max(0.0, math.log(prior)))
    runs = _Folds(train, grid, prior, at_points, folder, [seed, key], baseline)
    base, new = runs.nothing(grid.points), runs.nothing(PLAIN_GRID.points)
    method, parts = "none", list(folds_of(data, seed, folds))
    first = [] if final is None else [final]
    found = side_by_side([*first, *(partial(runs.scores, fold) for fold in parts)], workers)
    for fold, (base_scores, new_scores) in zip(parts, found[len(first) :], strict=True):
        runs.ask_baseline(fold)
        base, new = base + base_scores, new + new_scores
        method = fold.name.partition("-")[0]
    asked = base if base.images else None
    return _chosen(runs, method, asked, new if method == "classes" else None)


@dataclass
class _Folds:
    """Trains on one part and scores others; reads the scores back if they are there."""

    train: Callable[[Features, Path | None], Adapted]
    grid: Grid
    prior: float
    at_points: TemperaturePrior
    folder: Path | None
    key: object
    baseline: Baseline | None
    probe_right: int = 0
    probe_images: int = 0

    def nothing(self, points: tuple[Point, ...]) -> Scores:
        """Return what no images say of points."""
        return Scores.none(len(points), self.at_points)

    def scores(self, fold: Fold) -> tuple[Scores, Scores]:
        """Return what held-out images of learned and of other classes say."""
        name, learned, base, new = fold
        record = self.folder and self.folder / f"strength-{name}.json"
        parts = [part and part.fingerprint for part in (base, new)]
        identity = fingerprint_tensors(extra=[self.key, learned.fingerprint, parts])
        if record is not None and record.exists():
            saved = read_json(record, error=CheckpointError, what="the training state")
            what = f"the state {str(record)!r}"
            check_record(FoldRecord, saved, error=CheckpointError, what=what)
            if saved.get("key") == identity:
                first, second = map(Scores.from_lists, saved["scores"])
                return first, second
        state = self.folder and self.folder / f"strength-{name}.safetensors"
        model = self.train(learned, state)
        found = (
            self._asked(model, base, self.grid.points),
            self._asked(model, new, PLAIN_GRID.points),
        )
        if record is not None and process_rank() == 0:
            write_json(record, {"key": identity, "scores": [one.to_lists() for one in found]})
            _forget(state)
        return found

    def _asked(self, model: Adapted, part: Features | None, points: tuple[Point, ...]) -> Scores:
        if part is None:
            return self.nothing(points)
        if len(part) > _MOST_IMAGES:
            part = part.subset(torch.linspace(0, len(part) - 1, _MOST_IMAGES).long())
        with torch.no_grad():
            logits = model.at_points(model.features_of(part), part.class_set(), points)
            return score(logits, part.labels, self.prior, self.at_points)

    def ask_baseline(self, fold: Fold) -> None:
        """Count how many held-out images the linear probe gets right."""
        if self.baseline is None or fold.base is None:
            return
        logits = self.baseline(fold.learned, fold.base)
        if logits is None:
            self.baseline = None
            return
        self.probe_right += int((logits.argmax(1) == fold.base.labels).sum())
        self.probe_images += len(fold.base)


def _forget(state: Path | None) -> None:
    """Delete the state of a fold that is counted: a file, or a folder of the same name."""
    if state is not None:
        state.unlink(missing_ok=True)
        shutil.rmtree(state.with_suffix(""), ignore_errors=True)


class Fold(NamedTuple):
    """What one model of the choice learns and is asked.

    Attributes:
        name: Of its files.
        learned: What it learns from.
        base: Held-out images of the learned classes, if there are any.
        new: Images of classes held out, if there are any.
    """

    name: str
    learned: Features
    base: Features | None
    new: Features | None


def folds_of(data: Features, seed: int, folds: int = 2) -> Iterator[Fold]:
    """Yield what `choose_strength` trains on and asks; nothing where nothing can be held out."""
    shots = torch.bincount(data.labels.cpu(), minlength=len(data.classes))
    if len(data.classes) >= 4:
        yield from _over_classes(data, seed, min(folds, len(data.classes) // 2))
    elif int(shots.min()) >= 2:
        yield from _over_shots(data, seed)


def _over_classes(data: Features, seed: int, folds: int) -> Iterator[Fold]:
    order = torch.randperm(len(data.classes), generator=_generator(seed))
    held_out = _last_part_of_each_class(data, seed)
    everything = torch.ones_like(held_out)
    for fold, part in enumerate(order.tensor_split(folds)):
        pseudo_new = part.sort().values.tolist()
        pseudo_base = order[~torch.isin(order, part)].sort().values.tolist()
        learned = _part(data, ~held_out, pseudo_base)
        if learned is None:
            continue
        base, new = _part(data, held_out, pseudo_base), _part(data, everything, pseudo_new)
        yield Fold(f"classes-{fold}", learned, base, new)


def _part(data: Features, rows: Tensor, classes: list[int]) -> Features | None:
    """Return the marked images of some classes, relabelled; None if there are none."""
    found = (rows & torch.isin(data.labels.cpu(), torch.tensor(classes))).nonzero()
    return data.subset(found).select_classes(classes) if len(found) else None


def _over_shots(data: Features, seed: int) -> Iterator[Fold]:
    part = position_in_class(data, seed) % 2
    for fold in range(2):
        learned, asked = (
            data.subset((part != fold).nonzero()),
            data.subset((part == fold).nonzero()),
        )
        yield Fold(f"shots-{fold}", learned, asked, None)


def _chosen(runs: _Folds, method: str, base: Scores | None, new: Scores | None) -> StrengthChoice:
    """Choose from what held-out images said; None where there were none."""
    grid, temperatures = runs.grid, runs.prior * runs.at_points.steps().exp()
    point, trained_temperature = grid.prior, runs.prior
    found: dict[str, Any] = {}
    if base is not None:
        losses, best = base.calibrated(runs.at_points)
        place = int((losses + torch.tensor(grid.penalties, dtype=torch.float64)).argmin())
        point, trained_temperature = grid.points[place], float(temperatures[best[place]])
        found = {
            "points": grid.points,
            "base_accuracy": base.accuracy(),
            "base_likelihood": tuple((-losses / base.images).tolist()),
            "base_images": base.images,
            "base_changed": int(base.changed[place]),
        }
        if runs.baseline is not None and runs.probe_images:
            found["linear_probe"] = runs.probe_right / runs.probe_images
    # A method with more than a strength to choose keeps its choice; its strength is then whole.
    trained = point[0] if len(point) == 1 else 1.0
    strength, temperature = min(trained, LARGEST_NEW), runs.prior
    if new is not None and new.images:
        _, best = new.calibrated(runs.at_points)
        losses = new.loss[:, int(best[0])]
        strength = cautious_strength(losses)
        temperature = float(temperatures[best[STRENGTHS.index(strength)]])
        found |= {
            "new_accuracy": new.accuracy(),
            "new_likelihood": tuple((-losses / new.images).tolist()),
            "new_images": new.images,
        }
    return StrengthChoice(
        strength,
        method,
        trained_strength=trained,
        point=point,
        temperature=temperature,
        trained_temperature=trained_temperature,
        **found,
    )


def cautious_strength(
    losses: Tensor, share_of_gain: float = SHARE_OF_GAIN, largest: float = LARGEST_NEW
) -> float:
    """Return the smallest strength with most of the gain over zero-shot; 0 for no gain.

    Args:
        losses: Negative log-likelihoods at all `STRENGTHS`, `(S,)`.
        share_of_gain: How much of the best gain it must keep.
        largest: At most this is returned.

    Example:
        >>> cautious_strength((torch.tensor(STRENGTHS) - 0.4).square())
        0.2
    """
    gains = (losses[0] - losses).tolist()
    wanted = share_of_gain * max(gains)
    if wanted <= 0:
        return 0.0
    enough = (one for one, gain in zip(STRENGTHS, gains, strict=True) if gain >= wanted)
    return min(largest, next(enough))


def _generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed + 7_919)


def position_in_class(data: Features, seed: int) -> Tensor:
    """Number the images of each class from 0, in a random order."""
    labels = data.labels.cpu()
    position = torch.zeros(len(labels), dtype=torch.long)
    order = torch.randperm(len(labels), generator=_generator(seed))
    for label in labels.unique():
        members = order[labels[order] == label]
        position[members] = torch.arange(len(members))
    return position


def _last_part_of_each_class(data: Features, seed: int) -> Tensor:
    """Mark a quarter of the images of every class, at least one where there are two, `(N,)`."""
    labels, position = data.labels.cpu(), position_in_class(data, seed)
    shots = torch.bincount(labels, minlength=len(data.classes))[labels]
    held_out = torch.where(shots >= 2, (shots // 4).clamp(min=1), torch.zeros_like(shots))
    return position < held_out
