"""Choosing prompt templates by the likelihood of labelled images, before anything is trained.

Zero-shot logits learn nothing from the images but one scale, so the images that a method is about to learn
from can compare templates honestly, from one image of each class on.
"""

from __future__ import annotations

import dataclasses
import logging
import statistics
import weakref
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.functional import normalize

from rada.data.prompts import build_prompts
from rada.data.templates import ENSEMBLE, IMAGENET_TEMPLATES
from rada.features.features import Features

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["TemplateChoice", "choose_templates"]

MOST_CLASSES = 100
"""Classes that are asked, evenly spaced among all: 80 prompts of each have to be embedded."""
MOST_IMAGES = 16
"""Images of each class that are asked."""
OWN = "the data's own"
FEW = (2, 3, 5, 10)
"""How many of the best single templates are averaged."""
_LOGGER = logging.getLogger(__name__)
_SCALES = (0.05, 5.0)  # times the encoder's own, between which the scale is fitted


@dataclass(frozen=True)
class TemplateChoice:
    """Which templates were chosen, and on what grounds.

    Attributes:
        templates: The chosen ones; those of the data where no others were better by more than chance.
        own: Those of the data.
        changed: Whether others than the data's were chosen.
        gain: Mean log-likelihood of an image with the best other candidate, less that with the data's own.
        standard_error: Of the gain, over classes, times Student's factor for so few.
        images: Images that were asked.
        classes: Classes among which they were asked.
        log_likelihoods: Mean log-likelihood of an image, by candidate, the best first.
    """

    templates: tuple[str, ...]
    own: tuple[str, ...]
    changed: bool
    gain: float
    standard_error: float
    images: int
    classes: int
    log_likelihoods: dict[str, float]

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values, under "how" that the likelihood chose."""
        return {"how": "likelihood"} | dataclasses.asdict(self)

    def __str__(self) -> str:
        best = next(name for name in self.log_likelihoods if name != OWN)
        asked = f"an image, on {self.images} images of {self.classes} classes"
        if self.changed:
            shown = self.templates[0] if len(self.templates) == 1 else best
            return f"templates: {shown} (log-likelihood {self.gain:+.3f} against the data's own {asked})"
        return (
            f"templates: the data's own (the best of {len(self.log_likelihoods) - 1} others, {best}, gains "
            f"{self.gain:.3f} log-likelihood {asked}, not above the standard error {self.standard_error:.3f})"
        )


@dataclass(frozen=True, eq=False)
class _Candidate:
    name: str
    templates: tuple[str, ...]
    likelihoods: Tensor  # of each image


def choose_templates(
    features: Features, encoder: DualEncoder, seed: int = 0
) -> tuple[Features, TemplateChoice]:
    """Return features with the class features of the best templates, and the choice.

    Candidates are the data's own templates, each of the 80 that CLIP's authors wrote for ImageNet, the mean
    of their 7, the mean of the 80, and the means of the best few. A candidate is as good as the mean
    log-likelihood of the labelled images under its zero-shot logits, with one scale fitted to them. The
    best one is taken if its gain over the data's own is above one standard error. Images of one class
    share a prompt, so the error is that of the classes' mean gains, with Student's factor for their number.

    At most `MOST_CLASSES` classes and `MOST_IMAGES` images of each are asked, whatever there is. Where there
    are more classes, the mean of the 80 is no candidate: all of them would need 80 prompts.

    Args:
        features: Labelled features with class features and scale.
        encoder: The encoder that they come from.
        seed: Chooses the images where there are more.
    """
    asked = _asked(features, seed)
    candidates = _candidates(asked, encoder, whole=len(features.classes) <= MOST_CLASSES)
    own = candidates[0]
    best = max(candidates[1:], key=lambda one: float(one.likelihoods.mean()))
    gain, error = _gain(best.likelihoods - own.likelihoods, asked.labels)
    changed = gain > error
    chosen = best if changed else own
    order = sorted(candidates, key=lambda one: -float(one.likelihoods.mean()))
    choice = TemplateChoice(
        chosen.templates,
        own.templates,
        changed,
        gain,
        error,
        len(asked),
        len(asked.classes),
        {one.name: float(one.likelihoods.mean()) for one in order},
    )
    _LOGGER.info("%s", choice)
    if not changed:
        return features, choice
    text = encoder.encode_classes(features.classes, chosen.templates)
    return dataclasses.replace(features, text_features=text, templates=chosen.templates), choice


def _asked(features: Features, seed: int) -> Features:
    """Return some images of some classes, evenly spaced among those that have images."""
    present = features.labels.unique().tolist()
    count = min(len(present), MOST_CLASSES)
    classes = [present[place * len(present) // count] for place in range(count)]
    return features.select_classes(classes).few_shot(MOST_IMAGES, seed, allow_fewer=True)


def _candidates(asked: Features, encoder: DualEncoder, *, whole: bool) -> list[_Candidate]:
    """Return all candidates, the data's own first."""
    own, names = asked.class_set(), IMAGENET_TEMPLATES
    rows = _embedded(encoder, asked.classes)

    def candidate(name: str, places: Sequence[int]) -> _Candidate:
        text = normalize(rows[list(places)].mean(0), dim=-1)
        return _Candidate(name, tuple(names[row] for row in places), _likelihoods(asked, text))

    singles = [candidate(name, [row]) for row, name in enumerate(names)]
    order = sorted(range(len(names)), key=lambda row: -float(singles[row].likelihoods.mean()))
    means = {f"mean of CLIP's {len(ENSEMBLE)}": [names.index(name) for name in ENSEMBLE]}
    means |= {f"mean of the best {count}": order[:count] for count in FEW}
    if whole:
        means[f"mean of CLIP's {len(names)}"] = list(range(len(names)))
    others = [*singles, *(candidate(name, places) for name, places in means.items())]
    first = _Candidate(OWN, own.templates, _likelihoods(asked, own.text_features))
    return [first, *(one for one in others if one.templates != own.templates)]


# The last classes of an encoder: cells of a benchmark ask for the same ones again and again.
_KEPT: weakref.WeakKeyDictionary[DualEncoder, tuple[object, Tensor]] = weakref.WeakKeyDictionary()


def _embedded(encoder: DualEncoder, classes: tuple[str, ...]) -> Tensor:
    """Return class features `(80, K, D)`, one set for each template."""
    key = (encoder.fingerprint, classes)
    kept = _KEPT.get(encoder)
    if kept is None or kept[0] != key:
        prompts = [text for row in build_prompts(classes, IMAGENET_TEMPLATES) for text in row]
        rows = encoder.encode_texts(prompts).view(len(classes), len(IMAGENET_TEMPLATES), -1)
        kept = _KEPT[encoder] = (key, rows.transpose(0, 1))
    return kept[1]


def _likelihoods(asked: Features, text: Tensor) -> Tensor:
    """Return the log-likelihood of each image with the scale that suits all of them best."""
    from scipy.optimize import minimize_scalar  # type: ignore[import-untyped,unused-ignore]

    assert asked.scale is not None
    cosines = asked.plain().double() @ text.double().T
    places = torch.arange(len(asked))

    def likelihoods(scale: float) -> Tensor:
        return (scale * cosines).log_softmax(-1)[places, asked.labels]

    bounds = [asked.scale * factor for factor in _SCALES]
    # Convex in the scale: cross-entropy is, and logits are linear in it.
    best = minimize_scalar(lambda scale: -float(likelihoods(scale).mean()), bounds=bounds)
    return likelihoods(float(best.x))


def _gain(differences: Tensor, labels: Tensor) -> tuple[float, float]:
    """Return the mean difference of an image, and its standard error over classes."""
    from scipy.stats import norm, t  # type: ignore[import-untyped,unused-ignore]

    means = [float(differences[labels == label].mean()) for label in labels.unique()]
    if len(means) < 2:
        return float(differences.mean()), float("inf")
    factor = float(t.ppf(norm.cdf(1), len(means) - 1))
    return float(differences.mean()), factor * statistics.stdev(means) / len(means) ** 0.5
