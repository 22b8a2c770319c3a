"""A support vector machine on frozen features, as AutoGluon's few-shot classifier is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np
import torch
from torch import Tensor

from rada.core.config import Config
from rada.features import ClassSet, Features
from rada.head.attention import transforms_active
from rada.methods.base import AdaptedModel, Facts, Method, Run, Shapes
from rada.methods.registry import register_method
from rada.training.folds import Held, likeliest_weight, shot_folds

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["SvmConfig", "SvmProbe"]

SHARPNESSES = tuple(float(value) for value in np.logspace(-2, 2, 33))
"""The factors of the scores that are compared."""

_ABSENT = -1e4  # the logit of a class without images
_AT_ONCE = 1 << 24  # numbers in a table of images and pairs of classes


@dataclass(frozen=True)
class SvmConfig(Config):
    """Configuration of the machine, AutoGluon's: standardised features, an RBF kernel of width 1 / D.

    Attributes:
        C: Inverse weight of the margin's regularisation.
    """

    C: float = 1.0

    def validate(self) -> None:
        """Check that every field is in its range."""
        self.require(self.C > 0, "C", "above 0")


class SvmModel(AdaptedModel):
    """Votes of one machine for each pair of classes, times a factor that makes them logits.

    P is the number of classes with images, S that of the support vectors. A pair needs nothing of the other
    classes, so the votes among some candidates are those of a machine that was trained on them alone.

    Attributes:
        mean: Of the images, `(D,)`.
        spread: Their standard deviation, `(D,)`.
        present: The classes with images, `(P,)`.
        vectors: Support vectors, standardised, `(S, D)`, class by class.
        owners: Their classes among `present`, `(S,)`.
        duals: Their coefficients against each other class, `(P - 1, S)`.
        offsets: `(P, P)`, of the pair (i, j) with i < j at both places.
        sharpness: The factor, `()`.
    """

    mean: Tensor
    spread: Tensor
    present: Tensor
    vectors: Tensor
    owners: Tensor
    duals: Tensor
    offsets: Tensor
    sharpness: Tensor

    def __init__(
        self, method: Method, facts: Facts, config: SvmConfig, vectors: int, present: int
    ) -> None:
        super().__init__(method, facts, config)
        self.register_buffer("mean", torch.zeros(facts.dim))
        self.register_buffer("spread", torch.ones(facts.dim))
        self.register_buffer("present", torch.zeros(present, dtype=torch.long))
        self.register_buffer("vectors", torch.zeros(vectors, facts.dim))
        self.register_buffer("owners", torch.zeros(vectors, dtype=torch.long))
        self.register_buffer("duals", torch.zeros(max(0, present - 1), vectors))
        self.register_buffer("offsets", torch.zeros(present, present))
        self.register_buffer("sharpness", torch.tensor(1.0))

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Check that every class was trained."""
        self.refuse_unknown(classes.names)
        return classes

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return the votes for the classes, sharpened; -1e4 for a class without images."""
        place = {label: index for index, label in enumerate(self.present.tolist())}
        rows = [place.get(row) for row in classes.rows_among(self.facts.classes) if row is not None]
        columns = [column for column, row in enumerate(rows) if row is not None]
        logits = images.new_full((images.shape[0], len(rows)), _ABSENT if place else 0.0)
        if columns:
            found = self.votes(images, [row for row in rows if row is not None])
            logits[:, columns] = self.sharpness.to(images) * found.to(images)
        return logits

    def votes(self, images: Tensor, rows: Sequence[int]) -> Tensor:
        """Return the votes `(B, C)` for classes among `present`, as scikit-learn counts them.

        A class has one vote for each other that it beats, and as a fraction below one third the sum of its
        margins.
        """
        points = (images.to(self.vectors) - self.mean) / self.spread
        table = self._table(rows).to(points.device)
        place = torch.tensor(rows, device=points.device)
        first, second = place[:, None], place[None]
        partner = (second - (second > first).long()).clamp(0, max(0, len(self.duals) - 1))
        none = torch.zeros(len(self.duals), 1).to(self.duals)
        duals = torch.cat([self.duals, none], 1)[partner[:, None, :], table[:, :, None]]
        side = (second - first).sign().to(points)
        offsets = self.offsets[first, second]
        step = max(1, _AT_ONCE // len(rows) ** 2)
        parts = []
        # An exported graph takes all images at once: it has no loop whose length depends on them.
        for part in (points,) if transforms_active() else points.split(step):
            kernel = (-_squared_distances(part, self.vectors) / part.shape[1]).exp()
            kernel = torch.nn.functional.pad(kernel, (0, 1))
            pull = torch.bmm(kernel[:, table].transpose(0, 1), duals).transpose(0, 1)
            margins = side * (pull + pull.transpose(1, 2) + offsets)  # (B, C, C), antisymmetric
            wins = (margins > 0) | ((margins == 0) & (side > 0))
            total = margins.sum(2)
            parts.append(wins.sum(2) + total / (3 * (total.abs() + 1)))
        return torch.cat(parts)

    def _table(self, rows: Sequence[int]) -> Tensor:
        """Return the vectors of each class, `(C, M)`; `len(vectors)` stands for none."""
        own: dict[int, list[int]] = {row: [] for row in rows}
        for vector, row in enumerate(self.owners.tolist()):
            if row in own:
                own[row].append(vector)
        width = max(map(len, own.values()))
        none = len(self.vectors)
        return torch.tensor([found + [none] * (width - len(found)) for found in own.values()])


def _squared_distances(points: Tensor, vectors: Tensor) -> Tensor:
    """Return `(B, S)`; `cdist` takes another way for more than 25 points, which no graph can follow."""
    if transforms_active():
        lengths = points.square().sum(1, keepdim=True) + vectors.square().sum(1)
        return (lengths - 2 * points @ vectors.T).clamp_min(0)
    return torch.cdist(points, vectors).square()


@dataclass(frozen=True)
class SvmProbe(Method):
    """Before it learns, every class is equally likely."""

    config: ClassVar[type[Config]] = SvmConfig

    def build(
        self, facts: Facts, config: SvmConfig, shapes: Shapes, encoder: DualEncoder | None
    ) -> SvmModel:
        """Return a machine of the size that a file has, or an empty one."""
        vectors, present = shapes.get("vectors", (0,))[0], shapes.get("present", (0,))[0]
        return SvmModel(self, facts, config, vectors, present)

    def train(
        self, model: AdaptedModel, data: Features, config: SvmConfig, run: Run
    ) -> AdaptedModel:
        """Fit the machine, and choose the factor of its votes on shots that are held out in turn.

        Its place does not change the prediction, only how sure it is; with one shot of every class it is 1.
        """
        assert isinstance(model, SvmModel)
        fitted = self._fitted(data, config)
        parts = []
        for learned, asked in shot_folds(data, run.seed):
            votes = self._fitted(learned, config).score(asked.plain(), asked.class_set())
            parts.append(Held(torch.zeros_like(votes), votes, asked.labels))
        if parts:
            fitted.sharpness.fill_(likeliest_weight(parts, SHARPNESSES))
        fitted.record |= {"sharpness": float(fitted.sharpness), "vectors": len(fitted.vectors)}
        return fitted

    def _fitted(self, data: Features, config: SvmConfig) -> SvmModel:
        """Return the machine of some images."""
        from sklearn.preprocessing import StandardScaler
        from sklearn.svm import SVC

        rows, labels = data.plain().cpu().double().numpy(), data.labels.cpu().numpy()
        scaler = StandardScaler().fit(rows)
        machine = SVC(C=config.C, gamma="auto", random_state=0).fit(scaler.transform(rows), labels)
        count = len(machine.classes_)
        # With two classes scikit-learn turns the signs round.
        sign = -1.0 if count == 2 else 1.0
        upper = np.zeros((count, count))
        upper[np.triu_indices(count, 1)] = sign * machine.intercept_
        found = {
            "mean": scaler.mean_,
            "spread": scaler.scale_,
            "present": machine.classes_,
            "vectors": machine.support_vectors_,
            "owners": np.repeat(np.arange(count), machine.n_support_),
            "duals": sign * machine.dual_coef_,
            "offsets": upper + upper.T,
        }
        shapes = {name: value.shape for name, value in found.items()}
        model = self.build(Facts.of(data), config, shapes, None)
        for name, value in found.items():
            getattr(model, name).copy_(torch.from_numpy(value))
        return model.to(data.image_features.device)


register_method(
    SvmProbe(
        "svm_probe",
        "SVM probe",
        "Cortes and Vapnik, Support-Vector Networks, Machine Learning 1995, on frozen features as in "
        "AutoGluon's few-shot classifier",
        trains="support vectors and their coefficients for each pair of classes",
        new_classes=False,
    )
)
