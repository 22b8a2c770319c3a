"""What every method of adaptation has in common: what it may see, and what it gives back.

A method sees a `Task`: labelled examples of some classes. It gives back a `Predictor`, which scores
examples against any `ClassSet`. Methods on features look at `Examples.image_features` alone; those
that train through a tower use `Task.encoder` and `Examples.pictures`.
"""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from rada.core.config import Config
from rada.core.errors import ConfigError, FeatureError
from rada.core.hashing import fingerprint_tensors
from rada.core.values import check_scale, check_seed
from rada.data import DEFAULT_TEMPLATE
from rada.features import check_features

if TYPE_CHECKING:
    from rada.data import ImageSplit
    from rada.encoders import DualEncoder

__all__ = ["ClassSet", "Examples", "Method", "NoSettings", "Predictor", "Task", "UnknownClassError"]


class UnknownClassError(ConfigError):
    """A method that knows its training classes alone was asked about others."""


@dataclass(frozen=True, eq=False)
class ClassSet:
    """The candidate classes of a prediction.

    Attributes:
        names: K display names.
        text_features: `(K, D)` unit-norm.
        templates: The prompt templates behind the text features.
    """

    names: tuple[str, ...]
    text_features: Tensor
    templates: tuple[str, ...] = (DEFAULT_TEMPLATE,)

    def __len__(self) -> int:
        return len(self.names)

    def take(self, rows: Sequence[int] | Tensor) -> ClassSet:
        """Return the classes at `rows`, in that order.

        Example:
            >>> ClassSet(("cat", "dog"), torch.eye(2)).take([1]).names
            ('dog',)
        """
        chosen = [int(row) for row in rows]
        names = tuple(self.names[row] for row in chosen)
        return replace(self, names=names, text_features=self.text_features[chosen])

    def rows_among(self, known: Sequence[str]) -> list[int | None]:
        """Return for each class its index in `known`, None where it is not there."""
        place = {name: index for index, name in enumerate(known)}
        return [place.get(name) for name in self.names]


@dataclass(frozen=True, eq=False)
class Examples:
    """Pictures as features, and as pictures where there are any.

    Attributes:
        image_features: `(N, V, D)` unit-norm; view 0 is the plain picture. `(N, D)` becomes
            `(N, 1, D)`.
        pictures: The same N pictures, or None.
    """

    image_features: Tensor
    pictures: ImageSplit | None = None

    def __post_init__(self) -> None:
        if self.image_features.ndim == 2:
            object.__setattr__(self, "image_features", self.image_features[:, None])

    def __len__(self) -> int:
        return len(self.image_features)

    def plain(self) -> Tensor:
        """Return view 0, `(N, D)`."""
        return self.image_features[:, 0]

    def take(self, rows: Tensor) -> Examples:
        """Return the examples at `rows`."""
        pictures = None if self.pictures is None else self.pictures.subset(rows.numpy())
        return Examples(self.image_features[rows], pictures)


@dataclass(frozen=True, eq=False)
class Task:
    """What a method may learn from.

    Attributes:
        examples: The labelled pictures, N.
        labels: `(N,)` indices into `classes`.
        classes: The K classes to learn.
        scale: The exponentiated logit scale.
        seed: Seed of everything random.
        encoder: The encoder of the features; None where there are features alone.

    Example:
        >>> classes = ClassSet(("cat", "dog"), torch.eye(2))
        >>> task = Task(Examples(torch.eye(2)), torch.tensor([0, 1]), classes, scale=20.0)
        >>> task.on_classes([1]).labels.tolist()
        [0]
    """

    examples: Examples
    labels: Tensor
    classes: ClassSet
    scale: float
    seed: int = 0
    encoder: DualEncoder | None = None

    def __post_init__(self) -> None:
        check_seed(self.seed)
        object.__setattr__(self, "scale", check_scale(self.scale))
        if len(self.examples) == 0:  # for the methods that learn nothing
            return
        check_features(
            self.examples.image_features,
            self.classes.text_features,
            self.labels,
            num_classes=len(self.classes),
        )

    def on_classes(self, classes: Sequence[int] | Tensor, keep: Tensor | None = None) -> Task:
        """Return the task of some of the classes, relabelled in their order.

        Args:
            classes: Class indices.
            keep: Mask `(N,)` of examples that may be used; None for all.
        """
        rows = torch.as_tensor(classes)
        position = torch.full((len(self.classes),), -1, dtype=torch.long)
        position[rows] = torch.arange(len(rows))
        labels = position[self.labels]
        chosen = labels >= 0 if keep is None else (labels >= 0) & keep
        found = chosen.nonzero().flatten()
        return replace(
            self,
            examples=self.examples.take(found),
            labels=labels[found],
            classes=self.classes.take(rows),
        )

    def fingerprint(self, extra: object = None) -> str:
        """Hash what can be learned from, with a JSON value; the key of a training state."""
        return fingerprint_tensors(
            self.examples.image_features,
            self.labels,
            self.classes.text_features,
            extra=[self.scale, self.seed, list(self.classes.names), extra],
        )


class Predictor(nn.Module):
    """A method after (or before) training: scores examples against class sets.

    Subclasses implement `score`; those with work on the side of the text also `prepare`.

    Attributes:
        method: Name of the method.
        facts: What its constructor needs besides the weights, as plain JSON.
        record: What the fit wants to tell: curve, values that it chose.
    """

    def __init__(self, method: str, facts: Mapping[str, Any]) -> None:
        super().__init__()
        self.method = method
        self.facts = dict(facts)
        self.record: dict[str, Any] = {}

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Return the class set with the text features that `score` wants."""
        return classes

    @abstractmethod
    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits `(B, K)` of features `(B, D)` for a prepared class set."""

    def forward(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return logits `(B, K)`, differentiable in the method's parameters."""
        return self.score(images, self.prepare(classes))

    def loss(self, images: Tensor, labels: Tensor, classes: ClassSet) -> Tensor:
        """Return what training minimises; cross-entropy unless a method says otherwise."""
        return cross_entropy(self(images, classes), labels)

    def step_loss(self, rows: Tensor, images: Tensor, labels: Tensor, classes: ClassSet) -> Tensor:
        """Return the loss of a step of training on the examples at `rows` of the task.

        For methods that keep the examples themselves; for all others it is `loss`.
        """
        del rows
        return self.loss(images, labels, classes)

    @torch.no_grad()
    def predict(self, queries: Examples, classes: ClassSet, *, batch_size: int = 128) -> Tensor:
        """Return logits `(N, K)`, without gradients.

        Raises:
            UnknownClassError: If the method cannot score one of the classes.
        """
        training = self.training
        self.eval()
        try:
            prepared = self.prepare(classes)
            parts = torch.split(queries.plain(), batch_size)
            return torch.cat([self.score(images, prepared) for images in parts])
        finally:
            self.train(training)

    def trainable_parameters(self) -> int:
        """Return how many numbers the method learned."""
        return sum(p.numel() for p in self.parameters() if p.requires_grad)

    def save(self, path: str | Path) -> None:
        """Write the predictor to one safetensors file; `load_predictor` reads it.

        Raises:
            StorageError: If the place cannot be written.
        """
        from rada.methods.saving import save_predictor

        save_predictor(self, path)


@dataclass(frozen=True)
class NoSettings(Config):
    """The settings of a method that has none."""


@dataclass(frozen=True)
class Method(ABC):
    """A way to adapt; one file and one registered object each.

    Attributes:
        name: How to ask for it.
        title: How tables name it.
        source: Where it is described.
        needs: "encoder" if it trains through or asks a tower, "pictures" if it needs the pixels.
        learns: Whether it looks at the examples at all.
        open_set: Whether it can score classes that it was not trained on.
        settings: Its configuration class.
    """

    name: str
    title: str
    source: str
    needs: frozenset[str] = field(default_factory=frozenset)
    learns: bool = True
    open_set: bool = True
    settings: ClassVar[type[Config]] = NoSettings

    @abstractmethod
    def start(self, task: Task, config: Any) -> Predictor:
        """Return the predictor before training."""

    @abstractmethod
    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return a predictor of the right shapes, for weights from a file."""

    def train(
        self,
        predictor: Predictor,
        task: Task,
        config: Any,
        *,
        state_path: Path | None,
        progress: bool | None,
    ) -> Predictor:
        """Train what `start` returned; methods without training leave it as it is."""
        return predictor

    def views(self, config: Any) -> int:
        """Return how many views of each picture the method wants."""
        return int(getattr(config, "views", 1))

    def fit(
        self,
        task: Task,
        config: Config | None = None,
        *,
        state_path: str | Path | None = None,
        progress: bool | None = False,
    ) -> Predictor:
        """Adapt to a task.

        Args:
            task: Labelled examples and their classes.
            config: Settings; the method's defaults when None.
            state_path: File for the state of training; the same call goes on from there. A method may
                put more files beside it, so give it a folder of its own.
            progress: Show a bar; None shows it on a terminal only.

        Returns:
            The predictor, in evaluation mode; `record["seconds"]` is the time taken.

        Raises:
            ConfigError: If the task lacks what the method needs, or the settings are another method's.
            FeatureError: If fewer than two classes have examples.
        """
        config = self.settings() if config is None else config
        if not isinstance(config, self.settings):
            raise ConfigError(
                f"{self.name} takes {self.settings.__name__}, not {type(config).__name__}"
            )
        self._check(task)
        began = time.perf_counter()
        predictor = self.train(
            self.start(task, config),
            task,
            config,
            state_path=None if state_path is None else Path(state_path),
            progress=progress,
        )
        predictor.record["seconds"] = time.perf_counter() - began
        return predictor.eval()

    def _check(self, task: Task) -> None:
        if "encoder" in self.needs and task.encoder is None:
            raise ConfigError(
                f"{self.name} works through the encoder, but there are features alone: "
                "give pictures as data, or leave this method out"
            )
        if "pictures" in self.needs and task.examples.pictures is None:
            raise ConfigError(f"{self.name} trains on pictures, but there are features alone")
        present = len(torch.bincount(task.labels).nonzero())
        if self.learns and present < 2:
            raise FeatureError(
                f"{self.name} needs examples of at least 2 classes, but only "
                f"{present} of {len(task.classes)} has any"
            )
