"""Which images a step sees, and how: functions of seed, epoch and step alone."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from rada.core.errors import ConfigError, DataError
from rada.data.views import seeded_view
from rada.encoders.transforms import TrainTransform, stack_pixels
from rada.training.feature_loop import draw_classes

if TYPE_CHECKING:
    from rada.data import ImageSplit
    from rada.encoders import DualEncoder
    from rada.encoders.base import Transform

__all__ = ["Batch", "Order", "Position", "StepData", "training_transform"]


@dataclass
class Batch:
    """This process's share of one part of a step.

    Attributes:
        pixels: `(n, 3, H, W)`.
        labels: `(n,)` among `classes`.
        weights: `(n,)`; 0 for images that fill the share up to the size of the others.
        count: Images of the whole step, over all processes and parts.
        parts: Parts of the step.
        classes: Indices `(C,)` of the classes that were drawn; None for all.
        template: Number of the prompt template of this step.
        captions: A caption of each image, where the method wants them.
    """

    pixels: Tensor
    labels: Tensor
    weights: Tensor
    count: int
    parts: int = 1
    classes: Tensor | None = None
    template: int = 0
    captions: tuple[str, ...] = ()


class Position(NamedTuple):
    """A step of training, counted from 0 within its epoch."""

    epoch: int
    step: int


@dataclass(frozen=True)
class Order:
    """The order of the images: the same for any number of processes.

    Attributes:
        labels: `(N,)`.
        classes: K.
        batch_size: Images a step.
        classes_per_step: Classes a step, or as many as its images have; 0 for all.
        templates: Number of prompt templates.
        seed: Seed.

    Example:
        >>> order = Order(torch.tensor([0, 1, 1]), 2, 2, 0, 1, seed=0)
        >>> order.steps_per_epoch, sorted(torch.cat([order.images(Position(0, s)) for s in (0, 1)]).tolist())
        (2, [0, 1, 2])
    """

    labels: Tensor
    classes: int
    batch_size: int
    classes_per_step: int
    templates: int
    seed: int

    @property
    def steps_per_epoch(self) -> int:
        """Steps of an epoch; the last may have fewer images."""
        return math.ceil(len(self.labels) / self.batch_size)

    def images(self, at: Position) -> Tensor:
        """Return the indices `(n,)` of the images of a step, over all processes."""
        start = at.step * self.batch_size
        return self._epoch(at.epoch)[start : start + self.batch_size]

    def _epoch(self, epoch: int) -> Tensor:
        held: dict[int, Tensor] = self.__dict__.setdefault("_held", {})
        if epoch not in held:
            held.clear()
            generator = torch.Generator().manual_seed(self.seed * 1_000_003 + epoch)
            held[epoch] = torch.randperm(len(self.labels), generator=generator)
        return held[epoch]

    def draws(self, at: Position) -> tuple[Tensor | None, int]:
        """Return the classes that a step draws (None: all) and the number of its template."""
        number = (at.epoch * self.steps_per_epoch + at.step) * 2 + 1
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + 500_009 * number)
        template = int(torch.randint(self.templates, (), generator=generator))
        labels = self.labels[self.images(at)]
        # An encoded image is too costly to be dropped because its class was not drawn.
        size = max(self.classes_per_step or self.classes, len(labels.unique()))
        return draw_classes(labels, self.classes, size, generator), template

    def caption_templates(self, at: Position) -> Tensor:
        """Return the number of the template of each image's caption, for the images of a step."""
        number = (at.epoch * self.steps_per_epoch + at.step) * 2
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + 500_009 * number)
        return torch.randint(self.templates, (len(self.images(at)),), generator=generator)

    def share(self, at: Position, rank: int, processes: int) -> tuple[Tensor, Tensor]:
        """Return the places of one process's images within a step, and their weights.

        All shares are as long as the longest; what fills them up has the weight 0.
        """
        count = len(self.images(at))
        own = torch.arange(count)[rank::processes]
        missing = math.ceil(count / processes) - len(own)
        weights = torch.cat([torch.ones(len(own)), torch.zeros(missing)])
        return torch.cat([own, torch.zeros(missing, dtype=torch.long)]), weights


def training_transform(
    encoder: DualEncoder, augmentation: str, crop_scale: tuple[float, ...] | None
) -> Transform:
    """Return what turns a training image into pixels.

    Args:
        encoder: The encoder.
        augmentation: "random" or "plain", as in `EncoderConfig`.
        crop_scale: Smallest and largest part of an image in a random crop; None for the
            encoder's own.

    Raises:
        ConfigError: If a crop scale is asked for and the encoder's transform has none.
    """
    if augmentation == "plain":
        return encoder.preprocess
    transform = encoder.train_transform
    if crop_scale is None:
        return transform
    if not isinstance(transform, TrainTransform):
        raise ConfigError(
            f"the encoder {encoder.name!r} brings a training transform of its own, which has no crop "
            "scale: leave crop_scale out"
        )
    return replace(transform, scale=(crop_scale[0], crop_scale[1]))


class _Images(Dataset[Tensor | DataError]):
    """Pixels by (epoch, image); a image that cannot be read gives its error."""

    def __init__(self, split: ImageSplit, transform: Transform, seed: int) -> None:
        self.split, self.transform, self.seed = split, transform, seed
        self.ids = split.ids

    def __getitem__(self, key: tuple[int, int]) -> Tensor | DataError:
        epoch, index = key
        try:
            image = self.split.load(index)
        except DataError as error:
            return DataError(str(error))
        return seeded_view(image, self.transform, self.seed, self.ids[index], epoch)


def _collate(items: list[Tensor | DataError]) -> tuple[Tensor | None, list[tuple[int, str]]]:
    bad = [(place, str(item)) for place, item in enumerate(items) if isinstance(item, DataError)]
    good = [item for item in items if not isinstance(item, DataError)]
    if not good:
        return None, bad
    whole = [torch.zeros_like(good[0]) if isinstance(item, DataError) else item for item in items]
    return stack_pixels(whole), bad


class StepData:
    """The batches of one process.

    Args:
        split: The training images.
        order: Their order.
        transform: Image to pixels, random through torch's generator.
        workers: Processes that decode.
        templates: Prompt templates, for captions.
        captions: Whether batches need captions.
        parts: Parts that a step is cut into.
        skip_bad: Give images that cannot be read the weight 0 instead of stopping.
        rank: Number of this process.
        processes: How many there are.
        device: Where the batches go.
    """

    def __init__(
        self,
        split: ImageSplit,
        order: Order,
        transform: Transform,
        *,
        workers: int,
        templates: tuple[str, ...],
        captions: bool,
        parts: int,
        skip_bad: bool,
        rank: int,
        processes: int,
        device: torch.device,
    ) -> None:
        self.split, self.order, self.transform = split, order, transform
        self.workers, self.templates, self.captions = workers, templates, captions
        self.parts, self.skip_bad, self.device = parts, skip_bad, device
        self.rank, self.processes = rank, processes

    def steps(self, start: Position, epochs: int) -> Iterator[tuple[Position, list[Batch]]]:
        """Yield the steps from `start` on, each with its parts.

        Raises:
            DataError: If a image cannot be read; the message names it.
        """
        plan = [
            Position(epoch, step)
            for epoch in range(start.epoch, epochs)
            for step in range(start.step if epoch == start.epoch else 0, self.order.steps_per_epoch)
        ]
        loader: DataLoader[Tensor | DataError] = DataLoader(
            _Images(self.split, self.transform, self.order.seed),
            batch_sampler=_Keys(self, plan),
            num_workers=self.workers,
            collate_fn=_collate,
            generator=torch.Generator(),  # its seeds must not come out of the model's generator
        )
        for at, (pixels, bad) in zip(plan, loader, strict=True):
            if bad and (not self.skip_bad or pixels is None):
                raise DataError(
                    f"{bad[0][1]}; mend or remove it, or go on without it (--skip-bad, skip_bad=True)"
                )
            yield at, self._parts(at, pixels, [place for place, _ in bad])

    def _parts(self, at: Position, pixels: Tensor, bad: list[int]) -> list[Batch]:
        places, weights = self.order.share(at, self.rank, self.processes)
        rows = self.order.images(at)[places]
        weights[bad] = 0.0
        classes, template = self.order.draws(at)
        labels = self.order.labels[rows]
        captions = self._captions(at, places, labels) if self.captions else ()
        if classes is not None:
            position = torch.full((self.order.classes,), -1)
            position[classes] = torch.arange(len(classes))
            labels, classes = position[labels], classes.to(self.device)
        size = math.ceil(len(rows) / self.parts)
        pieces = range(0, len(rows), size)
        return [
            Batch(
                pixels[i : i + size].to(self.device, memory_format=torch.channels_last),
                labels[i : i + size].to(self.device),
                weights[i : i + size].to(self.device),
                len(self.order.images(at)),
                len(pieces),
                classes,
                template,
                captions[i : i + size],
            )
            for i in pieces
        ]

    def _captions(self, at: Position, places: Tensor, labels: Tensor) -> tuple[str, ...]:
        """Return one caption for each image, by a template of its own."""
        drawn, names = self.order.caption_templates(at)[places], self.split.classes
        return tuple(
            self.templates[template].format(names[label])
            for template, label in zip(drawn.tolist(), labels.tolist(), strict=True)
        )


class _Keys:
    """For each step the keys of its images."""

    def __init__(self, data: StepData, plan: list[Position]) -> None:
        self.data, self.plan = data, plan

    def __len__(self) -> int:
        return len(self.plan)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        for at in self.plan:
            places, _ = self.data.order.share(at, self.data.rank, self.data.processes)
            yield [(at.epoch, row) for row in self.data.order.images(at)[places].tolist()]
