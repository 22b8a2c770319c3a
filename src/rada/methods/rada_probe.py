"""RAda + probe: the head for every class, and a correction for the classes that were trained on.

The mask weighs evidence that the features hold; it cannot add what an image of a class shows beyond
its prompt. Class weights learned from images can, but for the trained classes alone. So where all candidates
were trained on, the logits are

    h + share * gate * (p - h),    h = zero-shot + strength * (head - zero-shot)

with `p` the logits of a prior probe and its gate (`rada.methods.prior_probe`): far from the images, and
wherever a candidate is new, the head answers alone. Strength and share are chosen on held-out shots by
likelihood, from a grid that holds zero-shot, the head alone and the probe alone; a penalty of a few nats
draws them to strength 1 and share 1/2, which are taken where nothing can be held out.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from torch import Tensor

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.methods.base import AdaptedModel, Facts, Method, Shapes
from rada.methods.prior_probe import Correction, PriorProbeConfig, remembered, trained_rows
from rada.methods.rada import SOURCE, EFTConfig, HeadModel, RAda
from rada.methods.registry import register_method
from rada.methods.terms import Terms
from rada.training.strength import Grid, Point, StrengthChoice

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["RAdaProbe", "RAdaProbeConfig", "pulled_grid"]

_PRIOR = (1.0, 0.5)
_STEPS = (0.0, 0.25, 0.5, 0.75, 1.0)


def pulled_grid(prior: Point = _PRIOR, pull: float = 1.0) -> Grid:
    """Return the points of strength and share that are compared, with what draws them to one of them.

    Args:
        prior: The strength and the share that are taken where nothing can be held out.
        pull: How firmly they draw; at 1, a strength of 0 instead of 1 must make up for two nats.

    Example:
        >>> pulled_grid().points[0], pulled_grid().penalties[0]
        ((0.0, 0.0), 4.0)
    """
    points = tuple(itertools.product(_STEPS, _STEPS))
    penalties = tuple(
        pull * (2 * (strength - prior[0]) ** 2 + 8 * (share - prior[1]) ** 2)
        for strength, share in points
    )
    return Grid(points, prior, penalties)


_GRID = pulled_grid()


@dataclass(frozen=True)
class RAdaProbeConfig(EFTConfig):
    """Configuration of RAda + probe: that of the head, and of the correction.

    Attributes:
        min_steps: Least number of steps of the head. Beside the correction it loses nothing by learning
            for a third of those that it needs alone (`docs/benchmark.md`), in a third of the time.
        variance: As in `PriorProbeConfig`.
        iterations: As there.
        reach: As there.
    """

    min_steps: int = 100
    variance: float = PriorProbeConfig.variance
    iterations: int = PriorProbeConfig.iterations
    reach: float = PriorProbeConfig.reach

    def validate(self) -> None:
        """Check that every field is in its range."""
        super().validate()
        self.probe()

    def probe(self) -> PriorProbeConfig:
        """Return the configuration of the correction."""
        return PriorProbeConfig(self.variance, self.iterations, self.reach)


class ProbedHeadModel(HeadModel):
    """A head and a correction.

    Attributes:
        correction: What the probe adds to zero-shot.
        mixture: Strength of the head and share of the probe among trained classes, `(2,)`.
    """

    mixture: Tensor
    by_class_features = False  # the trained classes are known by their names

    def __init__(
        self, method: Method, facts: Facts, config: RAdaProbeConfig, encoder: object, support: int
    ) -> None:
        super().__init__(method, facts, config)
        self.correction = Correction(len(facts.classes), facts.dim, support)
        self.register_buffer("mixture", torch.tensor(_PRIOR))
        self.grid = _GRID

    def rows(self, classes: ClassSet) -> Tensor | None:
        """Return the rows of the candidates among the trained classes; None if one is new."""
        return trained_rows(classes, self.facts, self.correction.weight.device)

    def terms(self, images: Tensor, classes: ClassSet) -> Terms:
        """Return the terms of the mixture, part by part."""
        head, rows = super().terms(images, classes), self.rows(classes)
        if rows is None:
            return head
        zero_shot = Terms.of(images, self.facts.scale * classes.text_features.to(images))
        strength, share = self.mixture.tolist()
        part = share * self.correction.gate(images)
        change: Terms = (head - zero_shot) * ((1 - part) * strength)
        probe: Terms = self.correction.terms(images, rows) * part
        return zero_shot + change + probe

    def score_from(self, images: Tensor, classes: ClassSet, zero_shot: Tensor) -> Tensor:
        """Return the model's logits, given those of zero-shot."""
        head = self.head_logits(images, classes)
        return self.with_head(images, head, classes, zero_shot=zero_shot)

    def with_head(
        self,
        images: Tensor,
        head_logits: Tensor,
        classes: ClassSet,
        strength: float = 1.0,
        zero_shot: Tensor | None = None,
    ) -> Tensor:
        """Return the mixture where all candidates were trained on, else the head's logits."""
        rows = self.rows(classes)
        if rows is None:
            return head_logits
        if zero_shot is None:
            zero_shot = self.zero_shot_logits(images, classes)
        point = tuple(self.mixture.tolist())
        return next(self._mixtures(images, head_logits, zero_shot, rows, [point], strength))

    def _mixtures(
        self,
        images: Tensor,
        head_logits: Tensor,
        zero_shot: Tensor,
        rows: Tensor,
        points: Iterable[Point],
        whole: float = 1.0,
    ) -> Iterator[Tensor]:
        change, added = head_logits - zero_shot, whole * self.correction(images, rows)
        gate = self.correction.gate(images)
        for strength, share in points:
            part = share * gate
            yield zero_shot + (1 - part) * strength * change + part * added

    def at_points(
        self, images: Tensor, classes: ClassSet, points: Iterable[Point]
    ) -> Iterator[Tensor]:
        """Yield logits `(N, K)` at strengths of the head, or at its strength and the probe's share."""
        listed = list(points)
        rows = self.rows(classes)
        if rows is None or len(listed[0]) == 1:
            yield from super().at_points(images, classes, listed)
            return
        with torch.no_grad():
            head = torch.cat([self.head_logits(part, classes) for part in images.split(128)])
            zero_shot = self.zero_shot_logits(images, classes)
            yield from self._mixtures(images, head, zero_shot, rows, listed)

    def keep_choice(self, choice: StrengthChoice) -> None:
        """Take over the mixture, too."""
        super().keep_choice(choice)
        assert choice.point is not None
        self.mixture = self.mixture.new_tensor(choice.point)

    def trainable_parameters(self) -> int:
        """Return how many numbers the method learned."""
        return super().trainable_parameters() + self.correction.numbers()


@dataclass(frozen=True)
class RAdaProbe(RAda):
    """Starts as zero-shot; the head is trained as alone, the correction solved for."""

    config: ClassVar[type[Config]] = RAdaProbeConfig

    def build(
        self, facts: Facts, config: Any, shapes: Shapes, encoder: DualEncoder | None
    ) -> AdaptedModel:
        """Return a model that remembers as many images as the file has."""
        return ProbedHeadModel(self, facts, config, encoder, remembered(shapes))

    def beside_head(
        self, model: AdaptedModel, data: Features, config: RAdaProbeConfig
    ) -> AdaptedModel:
        """Solve for the correction."""
        assert isinstance(model, ProbedHeadModel)
        model.correction.fit(data, config.probe())
        return model


register_method(
    RAdaProbe(
        "rada_probe",
        "RAda + probe",
        f"{SOURCE}; the probe beside the head is ours",
        trains="the head, and one vector for each trained class",
    )
)
