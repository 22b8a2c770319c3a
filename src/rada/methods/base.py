"""What every method of adaptation has in common: what it may see, and what it gives back.

A method sees labelled `Features` (with the images behind them, where it reads pixels) and a `Run`. It
gives back an `AdaptedModel`, which scores features against any `ClassSet`. One file and one registered
object a method; whatever rada can do, it can do with all of them.
"""

from __future__ import annotations

import dataclasses
import itertools
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor, nn

from rada.core.config import Config
from rada.core.errors import ConfigError, FeatureError, UnknownClassError
from rada.core.extras import check_extra
from rada.core.randomness import seeded
from rada.core.values import check_seed
from rada.encoders.protocol import evaluating
from rada.features import ClassSet, Features
from rada.head import RAdaHead
from rada.methods.terms import Terms, linear_terms
from rada.training.feature_loop import Losses, Recipe, Step, class_logits_loss, train
from rada.training.probe import probe_logits
from rada.training.strength import (
    PLAIN_GRID,
    Grid,
    Point,
    Strength,
    StrengthChoice,
    choose_strength,
)

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["AdaptedModel", "Facts", "Method", "NoConfig", "Run", "Shapes", "UnknownClassError"]

Shapes = Mapping[str, tuple[int, ...]]
"""Shapes of a model's weights by name, as the header of a file tells them."""

Cost = Literal["features", "text encoder", "image encoder"]


@dataclass(frozen=True)
class Facts(Config):
    """What a model must know of the data that it learned from, besides its configuration.

    Attributes:
        dim: Width D of the features.
        scale: The exponentiated logit scale.
        classes: Names of the classes that it learned.
        templates: Their prompt templates.
    """

    dim: int
    scale: float
    classes: tuple[str, ...]
    templates: tuple[str, ...] = ()

    @classmethod
    def of(cls, data: Features) -> Facts:
        """Return the facts of some data."""
        assert data.scale is not None  # Method.fit has checked it
        return cls(data.dim, float(data.scale), data.classes, data.class_set().templates)

    def validate(self) -> None:
        """Check that sizes and scale can be used."""
        self.require(1 <= self.dim <= 1 << 16, "dim", "from 1 to 65536")
        self.require(0 < self.scale <= 1e6, "scale", "above 0 and at most a million")


@dataclass(frozen=True)
class Run:
    """How a fit runs, besides the method's configuration.

    Attributes:
        seed: Seed of everything random.
        encoder: The encoder behind the features; None where there are features alone.
        state_dir: Folder for the states of training, from which the same call goes on; None keeps
            none.
        progress: Show bars; None on a terminal only.
        workers: Processes that decode images, for methods that read them; None chooses.
        skip_bad: Go on without images that cannot be read, for methods that read them.
        device: Where encoders learn; None for what Accelerate finds.
        after_epoch: Called after each epoch of a method that trains an encoder, with the model and the
            number of finished epochs; what it returns joins the history.
        select: Judges the model after each epoch of a method that trains an encoder, on a validation
            split; the weights of the best epoch are kept.
        log_path: File of one JSON line for each step, for methods that train an encoder.
        trackers: "tensorboard", "wandb" or "trackio", for methods that train an encoder.
    """

    seed: int = 0
    encoder: DualEncoder | None = None
    state_dir: Path | None = None
    progress: bool | None = False
    workers: int | None = None
    skip_bad: bool = False
    device: str | torch.device | None = None
    after_epoch: Callable[[AdaptedModel, int], dict[str, Any]] | None = None
    select: Callable[[AdaptedModel], dict[str, Any]] | None = None
    log_path: Path | None = None
    trackers: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_seed(self.seed)

    def state_file(self, name: str) -> Path | None:
        """Return the path of a state, or None if none is kept."""
        return None if self.state_dir is None else self.state_dir / name


class AdaptedModel(nn.Module):
    """A method before, while and after it learns: scores features against class sets.

    Subclasses implement `score`; those with work on the side of the text also `prepare`.

    Args:
        method: The method.
        facts: What it knows of the data.
        config: The method's configuration.
        encoder: The encoder that it asks or owns, or None.

    Attributes:
        strength: How far to go from zero-shot, among trained and among other candidates, and the
            temperatures there.
        grid: What there is to choose on held-out shots among trained classes.
        record: What the fit wants to tell: curve, values that it chose. Plain JSON.
        head: The RAda head, where there is one.
        by_class_features: Whether the logits depend on the candidates' features alone, not on their names.
    """

    by_class_features: ClassVar[bool] = False

    def __init__(
        self,
        method: Method,
        facts: Facts,
        config: Config,
        encoder: DualEncoder | None = None,
    ) -> None:
        super().__init__()
        self.method, self.facts, self.config, self.encoder = method, facts, config, encoder
        self.strength = Strength(classes=facts.classes)
        self.record: dict[str, Any] = {}
        self.head: RAdaHead | None = None
        self.grid: Grid = PLAIN_GRID

    # -- what a method implements ----------------------------------------------------------------

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Return the class set with the text features that `score` wants."""
        return classes

    @abstractmethod
    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits `(B, K)` of features `(B, D)` for a prepared class set, at full strength."""

    def score_from(self, images: Tensor, classes: ClassSet, zero_shot: Tensor) -> Tensor:
        """Return `score`, given the logits `(B, K)` at strength 0 that are known already.

        For methods whose score begins there and whose `prepare` changes nothing.
        """
        return self.score(images, classes)

    def terms(self, images: Tensor, classes: ClassSet) -> Terms:
        """Return the sum behind `score`, one term a dimension; arguments as for `score`.

        A method whose logits are linear in the image features needs no more than this.

        Raises:
            ConfigError: If the logits are no such sum; the message names the method.
        """
        found = linear_terms(lambda rows: self.score(rows, classes), images)
        if found is None:
            raise ConfigError(
                f"{self.method.title} cannot be explained dimension by dimension: its logits are no "
                "sum over the dimensions of the image features"
            )
        return found

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Losses:
        """Return what training minimises; cross-entropy unless a method says otherwise."""
        return class_logits_loss(self(images, classes), labels)

    def step_loss(self, step: Step) -> Losses:
        """Return the losses of a step of training; methods that keep the images look at its rows."""
        return self.loss(step.images, step.labels, step.classes)

    def features_of(self, data: Features) -> Tensor:
        """Return the features `(N, D)` that it scores of some data: of its own encoder if it has one."""
        return data.plain()

    def own_state(self) -> dict[str, Tensor]:
        """Return the weights to save, without those of an encoder."""
        return dict(self.state_dict())

    # -- what it offers --------------------------------------------------------------------------

    def forward(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits `(B, K)` at full strength, differentiable in the method's parameters."""
        return self.score(images, self.prepare(classes))

    def zero_shot_logits(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits `(N, K)` at strength 0: scale times cosine."""
        return classes.zero_shot_logits(images, self.facts.scale)

    def adapted_logits(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits `(N, K)` at full strength, without gradients.

        Raises:
            UnknownClassError: If the method cannot score one of the classes.
        """
        return self.logits(images, classes, strength=1.0)

    def as_learned(self, images: Tensor, classes: ClassSet) -> tuple[Tensor, ClassSet]:
        """Return features of images and classes as precise as what was learned from features."""
        own = {value.dtype for value in itertools.chain(self.parameters(), self.buffers())}
        wanted = torch.float64 if torch.float64 in own else torch.float32
        if self.method.cost != "features" or wanted not in own:
            return images, classes  # an encoder is as precise as it was loaded
        text = classes.text_features.to(wanted)
        return images.to(wanted), dataclasses.replace(classes, text_features=text)

    @property
    def embeds_classes(self) -> bool:
        """Whether its text encoder learned, which embeds names under the templates that it learned with."""
        return False

    def embedded(self, names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor | None:
        """Return class features `(K, D)` that it makes and keeps for its own logits; None if it does not."""
        return None

    @torch.no_grad()
    def logits(
        self,
        images: Tensor,
        classes: ClassSet,
        *,
        strength: float | None = None,
        batch_size: int = 128,
        zero_shot: Tensor | None = None,
    ) -> Tensor:
        """Return logits `(N, K)` of features `(N, D)`, without gradients.

        Args:
            images: Unit-norm features; of the tuned encoder where the method trains one.
            classes: The candidates.
            strength: 0 for zero-shot, 1 for the full adaptation; None for the model's own, and logits
                that are divided by its temperature there.
            batch_size: Rows that are scored at once.
            zero_shot: These logits at strength 0, where they are known; None computes what is needed.

        Raises:
            UnknownClassError: If the method cannot score one of the classes.
            ConfigError: If the strength is out of range.
        """
        share = self._share(classes, strength)
        rows = torch.split(images, batch_size)
        known: Sequence[Tensor | None] = [None] * len(rows)
        if zero_shot is not None:
            known = torch.split(zero_shot, batch_size)
        with evaluating(self):
            prepared = classes if share == 0 else self.prepare(classes)
            parts = [
                self.mixed(part, classes, prepared, share, before)
                for part, before in zip(rows, known, strict=True)
            ]
            return torch.cat(parts) / self._temperature(classes, strength)

    @torch.no_grad()
    def logit_terms(
        self, images: Tensor, classes: ClassSet, *, strength: float | None = None
    ) -> Terms:
        """Return the sum behind `logits`, one term a dimension; arguments as for `logits`.

        All B images are taken apart at once, into `(B, K, D)`.

        Raises:
            UnknownClassError: If the method cannot score one of the classes.
            ConfigError: If the strength is out of range, or the method's logits are no such sum.
        """
        share = self._share(classes, strength)
        with evaluating(self):
            zero_shot = linear_terms(lambda rows: self.zero_shot_logits(rows, classes), images)
            assert zero_shot is not None  # a scale times a cosine
            found = zero_shot
            if share > 0:
                found = self.terms(images, self.prepare(classes))
                if share < 1:
                    found = zero_shot + share * (found - zero_shot)
            return (1 / self._temperature(classes, strength)) * found

    def logit_function(
        self, classes: ClassSet, *, strength: float | None = None
    ) -> Callable[[Tensor], Tensor]:
        """Return `logits` as a function of features `(B, D)`, differentiable in them."""
        share = self._share(classes, strength)
        temperature = self._temperature(classes, strength)
        with torch.no_grad(), evaluating(self):
            prepared = classes if share == 0 else self.prepare(classes)

        def score(images: Tensor) -> Tensor:
            with evaluating(self):
                return self.mixed(images, classes, prepared, share) / temperature

        return score

    def _share(self, classes: ClassSet, strength: float | None) -> float:
        share = self.strength.for_classes(classes.names) if strength is None else strength
        if not 0 <= share <= 1:
            raise ConfigError(f"strength should be in [0, 1], not {share!r}")
        return share

    def _temperature(self, classes: ClassSet, strength: float | None) -> float:
        """Return the temperature of the model's own strength; 1 at another, which has none."""
        return 1.0 if strength is not None else self.strength.temperature_for(classes.names)

    def mixed(
        self,
        images: Tensor,
        classes: ClassSet,
        prepared: ClassSet,
        strength: float,
        zero_shot: Tensor | None = None,
    ) -> Tensor:
        """Return logits of one batch, for class sets before and after `prepare`; what `logits` repeats.

        Nothing in it depends on values, so that `torch.export` can follow it.
        """
        if zero_shot is None:
            if strength == 1:
                return self.score(images, prepared)
            zero_shot = self.zero_shot_logits(images, classes)
        if strength == 0:
            return zero_shot
        adapted = self.score_from(images, prepared, zero_shot)
        return adapted if strength == 1 else zero_shot + strength * (adapted - zero_shot)

    def at_points(
        self, images: Tensor, classes: ClassSet, points: Iterable[Point]
    ) -> Iterator[Tensor]:
        """Yield logits `(N, K)` at points of `grid`, or at strengths, without temperature."""
        zero_shot = self.zero_shot_logits(images, classes)
        change = self.adapted_logits(images, classes) - zero_shot
        for (strength,) in points:
            yield zero_shot + strength * change

    def trainable_parameters(self) -> int:
        """Return how many numbers the method learned."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def keep_choice(self, choice: StrengthChoice) -> None:
        """Take over strengths and temperatures, and tell in the record how they were chosen."""
        self.strength = Strength(
            choice.strength,
            choice.trained_strength,
            self.strength.classes,
            choice.temperature,
            choice.trained_temperature,
        )
        self.record["strength_choice"] = choice.to_dict()

    def refuse_unknown(self, names: Iterable[str]) -> None:
        """Raise an `UnknownClassError` if a name is none of the trained classes."""
        known = set(self.facts.classes)
        unknown = [name for name in names if name not in known]
        if unknown:
            raise UnknownClassError(
                f"{self.method.title} knows its {len(known)} training classes alone, not "
                f"{unknown[0]!r}: choose a method for new classes (`rada methods`), or fit again"
            )


@dataclass(frozen=True)
class NoConfig(Config):
    """The configuration of a method that has none."""


@dataclass(frozen=True)
class Method(ABC):
    """A way to adapt; one file and one registered object each.

    Attributes:
        name: How to ask for it.
        title: How tables name it.
        source: Where it is described, and what of it is ours.
        trains: What it trains, in a few words.
        needs: "encoder" if it asks or trains one, "images" if it reads pixels, and capabilities of the
            encoder (`rada.encoders.CAPABILITIES`).
        cost: What is run in every step: cached features alone, the text encoder, or the image
            encoder.
        train_encoder: Whether it changes the encoder; the model then owns a copy.
        frozen_encoder: Whether the encoder's own weights stay as they are in that copy: a saved model then
            names the encoder instead of holding it.
        learns: Whether it looks at the images at all.
        new_classes: Whether it can score classes that it was not trained on.
        extra: The extra whose packages it needs beside those of every fit; None for none.
        config: Its configuration class.
        model: The class of its models.
    """

    name: str
    title: str
    source: str
    trains: str = "nothing"
    needs: frozenset[str] = field(default_factory=frozenset)
    cost: Cost = "features"
    train_encoder: bool = False
    frozen_encoder: bool = False
    learns: bool = True
    new_classes: bool = True
    extra: ClassVar[str | None] = None
    config: ClassVar[type[Config]] = NoConfig
    model: ClassVar[Callable[..., AdaptedModel]] = AdaptedModel

    @property
    def saves_encoder(self) -> bool:
        """Whether a saved model holds an encoder."""
        return self.train_encoder and not self.frozen_encoder

    def build(
        self, facts: Facts, config: Any, shapes: Shapes, encoder: DualEncoder | None
    ) -> AdaptedModel:
        """Return a model whose weights are of the right shapes, without meaning yet.

        Args:
            facts: What it knows of the data.
            config: The configuration.
            shapes: Shapes of the weights in a file; empty for a model that is about to learn.
            encoder: The encoder, where the method needs one.
        """
        return self.model(self, facts, config, encoder)

    def start(self, data: Features, config: Any, run: Run) -> AdaptedModel:
        """Return the model before training."""
        with seeded(run.seed):
            return self.build(Facts.of(data), config, {}, run.encoder)

    def started(self, data: Features, config: Any, run: Run) -> AdaptedModel:
        """Return the model before training, where the features are, and as precise as they are."""
        model = self.start(data, config, run).to(data.image_features.device)
        precise = self.cost == "features" and data.image_features.dtype is torch.float64
        return model.double() if precise else model

    def train(self, model: AdaptedModel, data: Features, config: Any, run: Run) -> AdaptedModel:
        """Train what `start` returned; methods without training leave it as it is."""
        return model

    def templates(self, found: tuple[str, ...]) -> tuple[str, ...]:
        """Return the prompt templates where the user names none; those of the data unless it differs."""
        return found

    def with_templates(self, data: Features, encoder: DualEncoder | None) -> Features:
        """Return data, whose templates the user did not name, with those that the method wants."""
        found = data.class_set().templates
        wanted = self.templates(found)
        if wanted == found or encoder is None:
            return data
        text = encoder.encode_classes(data.classes, wanted)
        return dataclasses.replace(data, text_features=text, templates=wanted)

    def views(self, config: Any) -> int:
        """Return how many views of each image the method wants."""
        return int(getattr(config, "views", 1))

    def fit(
        self, data: Features, config: Config | None = None, run: Run | None = None
    ) -> AdaptedModel:
        """Adapt to labelled features.

        Args:
            data: Labelled features with `text_features` and `scale`, and with `images` for methods that
                read pixels.
            config: The method's configuration; its defaults when None.
            run: Seed, encoder, folder for states; the defaults of `Run` when None.

        Returns:
            The model, in evaluation mode; `record["seconds"]` is the time taken.

        Raises:
            ConfigError: If the run lacks what the method needs, or the configuration is another
                method's.
            FeatureError: If the data lacks class features, scale or labels, or fewer than two classes
                have images.
            TrainingDivergedError: If a loss or a weight is not finite.
            TrainingInterrupted: On Ctrl-C.
        """
        run = run or Run()
        config = self.checked(config)
        self.check(data, config, run)
        began = time.perf_counter()
        # whatever the caller has switched off: learning needs gradients
        with torch.inference_mode(False), torch.enable_grad():
            model = self.train(self.started(data, config, run), data, config, run)
        model.record["seconds"] = time.perf_counter() - began
        return model.eval()

    def checked(self, config: Config | None) -> Config:
        """Return a configuration, the defaults for None; refuse that of another method.

        Raises:
            ConfigError: If it is another method's.
        """
        config = self.config() if config is None else config
        if not isinstance(config, self.config):
            raise ConfigError(
                f"{self.name} takes {self.config.__name__}, not {type(config).__name__}"
            )
        return config

    def capabilities(self, config: Any) -> frozenset[str]:
        """Return what the encoder must offer, of `rada.encoders.CAPABILITIES`."""
        return self.needs - {"encoder", "images"}

    def check_packages(self) -> None:
        """Check that the packages of the method's own extra are installed.

        Raises:
            MissingExtraError: If one is not.
        """
        if self.extra is not None:
            check_extra(self.extra, self.title)

    def check(self, data: Features, config: Any, run: Run) -> None:
        """Check that data and run hold what the method needs."""
        self.check_packages()
        if "encoder" in self.needs and run.encoder is None:
            raise ConfigError(
                f"{self.name} works through the encoder, but there are features alone: "
                "give images as data, or choose another method (`rada methods`)"
            )
        if run.encoder is not None:
            for capability in sorted(self.capabilities(config)):
                run.encoder.require(capability)
        if "images" in self.needs and data.images is None:
            raise ConfigError(f"{self.name} trains on images, but there are features alone")
        data.class_set()
        if data.scale is None:
            raise FeatureError("the features lack the scale of the logits: pass scale=")
        if not self.learns:
            return
        if bool((data.labels < 0).any()):
            raise FeatureError("training needs a label for every image, but some have none")
        present = len(torch.bincount(data.labels).nonzero())
        if present < 2:
            raise FeatureError(
                f"{self.name} needs images of at least 2 classes, but only "
                f"{present} class of {len(data.classes)} has any"
            )

    # -- shared by the methods that learn on features --------------------------------------------

    def learn(
        self,
        model: AdaptedModel,
        data: Features,
        recipe: Recipe,
        run: Run,
        *,
        classes_per_step: int = 0,
        steps: int | None = None,
        state_path: Path | None = None,
        hard_classes: int = 0,
    ) -> AdaptedModel:
        """Train a model by its own loss on features, through the one loop.

        With `hard_classes` a step draws its classes from so many likely ones of each of its images.
        """
        per_epoch = -(-len(data) // recipe.batch_size)
        history = train(
            model,
            model.step_loss,
            data,
            recipe,
            run.seed,
            classes_per_step=classes_per_step,
            steps=steps,
            key=[self.name, model.facts.to_dict(), model.config.to_dict()],
            shortlists=_likely(data, hard_classes) if hard_classes else None,
            state_path=state_path or run.state_file("state.safetensors"),
            progress=run.progress,
            description=f"Training ({self.title})",
        )
        effective = {"epochs": len(history), "steps": steps or recipe.epochs * per_epoch}
        model.record |= {"history": history, "effective": effective}
        return model

    def choose_strength(
        self,
        model: AdaptedModel,
        data: Features,
        run: Run,
        fit_part: Callable[[Features, Path | None], AdaptedModel],
        folds: int = 2,
        final: Callable[[], object] | None = None,
        workers: int = 1,
    ) -> None:
        """Choose the model's strengths and temperatures on its training images, by the one rule.

        `final` trains the model itself, and is done first or beside the folds.
        """
        choice = choose_strength(
            fit_part,
            data,
            run.seed,
            grid=model.grid,
            folds=folds,
            key=[self.name, model.config.to_dict()],
            folder=run.state_dir,
            baseline=None if self.train_encoder else lambda a, b: probe_logits(a, b, run.seed),
            own_scale=self.cost != "features",  # what is below the head learns how sure to be
            final=final,
            workers=workers,
        )
        model.keep_choice(choice)


def _likely(data: Features, count: int) -> Tensor:
    """Return the classes with the highest zero-shot logits of each image, `(N, count)`, on the CPU."""
    classes = data.class_set()
    parts = (
        classes.zero_shot_logits(part, 1.0).topk(min(count, len(classes)), 1).indices
        for part in data.plain().split(4096)
    )
    return torch.cat([part.cpu() for part in parts])
