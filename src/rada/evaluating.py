"""Evaluating a classifier on labelled data: zero-shot and adapted side by side."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor

from rada.core.errors import CheckpointError, DataError, EncoderError, FeatureError
from rada.core.warn import warn
from rada.data import ImageSplit, Naming
from rada.data.bad import warn_of_bad
from rada.data.checks import check_labelled
from rada.data.prompts import ClassNamesSource
from rada.evaluation import Comparison, Evaluation
from rada.evaluation.duplicates import NearDuplicate, near_duplicates
from rada.evaluation.seen import image_keys, seen_images
from rada.features import Features, FeatureStore
from rada.inputs import TEST_SPLITS, TRAIN_SPLITS, Data, Opened, data_name, open_labelled

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rada.classifier_base import ClassifierBase

__all__ = [
    "accuracy",
    "evaluate",
    "evaluate_opened",
    "open_to_evaluate",
    "run_facts",
    "training_features",
]


def open_to_evaluate(
    classifier: ClassifierBase,
    data: Data,
    split: str | None = None,
    class_names: ClassNamesSource | None = None,
) -> Opened:
    """Open labelled data under the names that its classes had in training, or other given ones.

    Raises:
        DataError: If it cannot be opened, or an image has no label.
    """
    naming = Naming.of(class_names)
    if class_names is None:
        naming = Naming(aliases=aliases(classifier), lenient=True)
    return _opened(classifier, data, naming, split, embed=class_names is not None)


def _opened(
    classifier: ClassifierBase, data: Data, naming: Naming, split: str | None, *, embed: bool
) -> Opened:
    splits = TEST_SPLITS if split is None else (split,)
    known = classifier.is_fitted or classifier.classes is not None
    opened = open_labelled(
        data,
        splits,
        naming,
        skip_bad=classifier.skip_bad,
        embed=embed and bool(classifier.inputs.slot),
        known=classifier.candidates() if known else None,
    )
    check_labelled(opened.found.labels, opened.found.ids, "an evaluation")
    return opened


def aliases(classifier: ClassifierBase) -> Mapping[str, str]:
    """Return the class names by what the data calls them, as far as they are known."""
    if classifier.is_fitted:
        return classifier.fitted_.aliases
    return classifier.classes if isinstance(classifier.classes, Mapping) else {}


def accuracy(classifier: ClassifierBase, data: Data, *, zero_shot: bool = False) -> float:
    """Return the accuracy among the classifier's candidates, in [0, 1], after or before training."""
    naming = Naming()
    if classifier.is_fitted or classifier.classes is not None:
        naming = Naming(classifier.candidates(), aliases(classifier))
    opened = _opened(classifier, data, naming, None, embed=True)
    right, images = 0, 0
    for part in opened.parts():
        features = classifier.inputs.features(part, opened.templates)
        if zero_shot:
            logits, _ = _before_training(classifier, part, opened.templates, features)
        else:
            logits = classifier.model_logits(
                features.plain(), features.class_set(), scale=features.scale
            )
        right += int((logits.argmax(1) == features.labels).sum())
        images += len(features)
    return right / images  # an image that cannot be read is not wrong


def evaluate(
    classifier: ClassifierBase,
    data: Data,
    split: str | None,
    class_names: ClassNamesSource | None,
    ood: Mapping[str, Data],
    train: Data | None = None,
) -> Evaluation:
    """Do what `Classifier.evaluate` says."""
    opened = open_to_evaluate(classifier, data, split, class_names)
    learned = None if train is None else training_features(classifier, train)
    found = evaluate_opened(classifier, opened, data_name(data), learned)
    if not ood:
        return found
    shifted: dict[str, Any] = {}
    for name, other in ood.items():
        part = open_to_evaluate(classifier, other, None, class_names)
        result = evaluate_opened(classifier, part, data_name(other), learned).result
        shifted[name] = {row: result[row] for row in result["rows"]} | {
            key: result[key] for key in ("images", "skipped")
        }
    rows = [row for row in found.result["rows"] if all(row in shifted[name] for name in ood)]
    shifted["mean"] = {
        row: statistics.fmean(shifted[name][row]["accuracy"] for name in ood) for row in rows
    }
    return dataclasses.replace(found, result=found.result | {"out_of_distribution": shifted})


def training_features(classifier: ClassifierBase, data: Data | None = None) -> Features | None:
    """Return the training images as features of the encoder in use; None where nobody has them.

    Args:
        classifier: The classifier.
        data: The training images; None for those that it has in memory since its fit.
    """
    found: ImageSplit | Features | None = classifier.train_features_
    if data is not None:
        naming = Naming(aliases=aliases(classifier), lenient=True)
        known = classifier.candidates()
        skip_bad = classifier.skip_bad
        opened = open_labelled(data, TRAIN_SPLITS, naming, skip_bad=skip_bad, known=known)
        found = opened.whole()
    model = classifier.model_
    if isinstance(found, Features) and model is not None and model.method.train_encoder:
        found = found.labelled_images()  # their features are those of the encoder before
    return None if found is None else classifier.inputs.encode(found)


def evaluate_opened(
    classifier: ClassifierBase,
    opened: Opened,
    name: str | None,
    train: Features | None = None,
    **extra: Tensor,
) -> Evaluation:
    """Evaluate on data that is open already.

    Args:
        classifier: The classifier.
        opened: Labelled data.
        name: What it is called.
        train: The training images; None for those in memory, if there are any.
        extra: Logits `(N, K)` of further rows by name.
    """
    rows = _Rows(classifier, train)
    for part in opened.parts():
        rows.add(part, opened.templates, extra)
    found, features = opened.found, rows.features
    assert features is not None and rows.comparison is not None
    classes, model, encoder = features.class_set(), classifier.model_, classifier.encoder_id()
    trained = set() if model is None else set(model.strength.classes)
    rows.warn()
    skipped = [*opened.skipped, *rows.skipped]
    if classifier.skip_bad:
        warn_of_bad(skipped, f"images of {name!r}" if name else "images", stacklevel=5)
    stored = isinstance(found, FeatureStore)
    result = rows.comparison.result() | {
        "skipped": [list(entry) for entry in skipped],
        "strength": classifier.strength_for(classes.names),
        "scale": features.scale,
        "templates": list(classes.templates),
        "encoder": None if encoder is None else encoder.to_dict(),
        "data": name,
        "data_fingerprint": found.fingerprint if stored else features.fingerprint,
        "training": run_facts(classifier),
        "row_names": rows.names,
        "tuned": model is not None and model.method.train_encoder,
        "trained_classes": sum(name in trained for name in classes.names),
        "new_classes": [name for name in classes.names if trained and name not in trained],
        "seen_in_training": rows.seen,
        "near_duplicates": rows.duplicates,
        "near_duplicates_unchecked": rows.unchecked,
    }
    if stored:
        return Evaluation(result, None, classes.names, {})
    images = features.images if isinstance(found, ImageSplit) else None  # without the bad ones
    return Evaluation(result, features, classes.names, rows.logits, images, rows.train)


class _Rows:
    """The predictors side by side, part by part of the data; the logits of the last part are kept.

    Attributes:
        comparison: What was counted.
        features: The last part.
        logits: Of the last part, by predictor.
        names: What tables call the predictors.
        skipped: Images that were left out, with the reason.
        seen: Images that the model was trained on.
        duplicates: Images that are training images under another name.
        unchecked: Further images that may be, which are too many to look at.
        train: The training images; None where they are not known.
    """

    def __init__(self, classifier: ClassifierBase, train: Features | None) -> None:
        self._classifier = classifier
        if train is None and classifier.is_fitted:
            train = training_features(classifier)
        self.train = train
        self.comparison: Comparison | None = None
        self.features: Features | None = None
        self.logits: dict[str, Tensor] = {}
        self.names: dict[str, str] = {}
        self.skipped: list[tuple[str, str]] = []
        self.seen, self._images = 0, 0
        self.duplicates: list[dict[str, Any]] = []
        self.unchecked = 0

    def add(
        self,
        part: ImageSplit | Features,
        templates: tuple[str, ...] | None,
        extra: dict[str, Tensor],
    ) -> None:
        """Count the images of a part; `extra` are logits of further predictors for it."""
        classifier = self._classifier
        features = classifier.inputs.features(part, templates)
        zero_shot, self.names = _before_training(classifier, part, templates, features)
        self.logits = {"zero_shot": zero_shot}
        model = classifier.model_
        if model is not None:  # without a fit there is nothing to compare
            self.logits["adapted"] = classifier.model_logits(
                features.plain(),
                features.class_set(),
                scale=features.scale,
                # what a tuned encoder was compared with are logits of another one
                zero_shot=None if model.method.train_encoder else zero_shot,
            )
        self.logits |= _linear_probe(classifier, features) | extra
        if self.comparison is None:
            self.comparison = Comparison(features.classes)
        self.comparison.add(self.logits, features.labels)
        self.features = features
        self.skipped += features.skipped
        self._images += len(features)
        if classifier.is_fitted:
            self.seen += seen_images(features, list(classifier.fitted_.record.image_keys))
        if self.train is not None:
            duplicates, unchecked = _duplicates(features, self.train)
            self.duplicates += duplicates
            self.unchecked += unchecked

    def warn(self) -> None:
        """Warn of test images that were trained on."""
        if self.seen:
            warn(
                f"{self.seen} of the {self._images} test images are images that the model was trained "
                "on, so its accuracy says little: evaluate on others (a test/ folder, or --split)",
                UserWarning,
                stacklevel=5,
            )
        if self.duplicates:
            first, least = self.duplicates[0], "at least " if self.unchecked else ""
            warn(
                f"{least}{len(self.duplicates)} of the {self._images} test images are near duplicates of "
                f"training images ({first['test']!r} of {first['train']!r}), so that the accuracy is too "
                "high: leave them out",
                UserWarning,
                stacklevel=5,
            )


def _linear_probe(classifier: ClassifierBase, features: Features) -> dict[str, Tensor]:
    """Return the logits of the linear probe that `fit` kept, where it knows all classes."""
    baseline = classifier.fitted_.baseline if classifier.is_fitted else None
    if baseline is None:
        return {}
    found = features.class_set().rows_among(classifier.fitted_.model.facts.classes)
    rows = [row for row in found if row is not None]
    if len(rows) < len(found):
        return {}
    weight, bias = (part[rows].to(features.image_features) for part in baseline)
    return {"linear_probe": features.plain() @ weight.T + bias}


def _before_training(
    classifier: ClassifierBase,
    part: ImageSplit | Features,
    templates: tuple[str, ...] | None,
    features: Features,
) -> tuple[Tensor, dict[str, str]]:
    """Return logits of the model as it was before any training, and names for the rows."""
    model = classifier.model_
    names = {} if model is None else {"adapted": model.method.title}
    if model is not None and model.method.train_encoder:
        try:
            return _pretrained_logits(classifier, part, templates), names
        except (EncoderError, CheckpointError, FeatureError) as error:
            warn(f"the zero-shot accuracy cannot be measured: {error}", UserWarning, stacklevel=4)
        names["zero_shot"] = f"{model.method.title}, no head"
    logits = classifier.model_logits(features.plain(), features.class_set(), 0.0, features.scale)
    return logits, names


def _pretrained_logits(
    classifier: ClassifierBase, found: ImageSplit | Features, templates: tuple[str, ...] | None
) -> Tensor:
    """Return the zero-shot logits of the encoder as it was before it was tuned."""
    inputs = classifier.pretrained_inputs
    if isinstance(found, Features):
        if found.images is None:
            raise FeatureError("the features are those of the tuned encoder")
        found = found.labelled_images()
    if inputs is None:
        raise EncoderError("the model does not say which encoder was tuned: tune it again")
    before = inputs.features(found, templates)
    assert before.scale is not None
    return before.class_set().zero_shot_logits(before.plain(), before.scale)


def _duplicates(features: Features, train: Features) -> tuple[list[dict[str, Any]], int]:
    """Return test images that are training images under another name, and how many more may be."""
    # An image at the very same place has its own warning.
    known, asked = (image_keys(_behind(one)) for one in (train, features))
    left: list[NearDuplicate] = []
    found = [
        {"test": features.ids[row], "train": train.ids[other], "similarity": similarity}
        for row, other, similarity in near_duplicates(features, train, left=left)
        if asked[row] != known[other]
    ]
    return found, sum(asked[row] != known[other] for row, other, _ in left)


def _behind(features: Features) -> ImageSplit | Features:
    return features if features.images is None else features.images


def run_facts(classifier: ClassifierBase) -> dict[str, Any]:
    """Return how the model was trained, without its curve, as plain JSON."""
    if not classifier.is_fitted:
        return {}
    fitted = classifier.fitted_
    model, record = fitted.model, fitted.record.to_dict()
    del record["image_keys"]
    details = {key: value for key, value in record.pop("details").items() if key != "history"}
    return {
        "method": model.method.name,
        "config": model.config.to_dict(),
        "trained_classes": list(model.strength.classes),
        "strength": model.strength.value,
        "trained_strength": model.strength.trained,
        "temperature": model.strength.temperature,
        "trained_temperature": model.strength.trained_temperature,
        **record,
        **details,
    }


def share_right(predicted: NDArray[Any], labels: Any, classes: NDArray[Any]) -> float:
    """Return the part of predictions that are right.

    Names stand for labels of other types: a saved model knows the class 5 as "5".

    Raises:
        DataError: If there is not one label for each prediction, or no label is a class at all.
    """
    wanted = np.asarray(labels)
    if wanted.shape == (len(predicted), 1):  # a column, which `fit` takes too
        wanted = wanted[:, 0]
    if wanted.shape != predicted.shape:
        raise DataError(
            f"the labels have the shape {wanted.shape} for {len(predicted)} images: give one an image"
        )
    found, known, values = (list(map(str, some.tolist())) for some in (predicted, classes, wanted))
    if values and not set(values) & set(known):
        raise DataError(
            f"none of the labels is a class of the model: the first is {values[0]!r}, and the classes are "
            f"{', '.join(map(repr, known[:10]))}"
        )
    return float(np.mean([one == other for one, other in zip(found, values, strict=True)]))
