"""Why a model gave an image its class: evidence, words, places and similar training images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from torch import Tensor

from rada.core.config import Config
from rada.core.errors import ConfigError, EncoderError, FeatureError
from rada.core.warn import warn
from rada.data import ImageSplit
from rada.evaluating import training_features
from rada.evaluation.seen import seen_images
from rada.explain.evidence import (
    best_classes,
    class_scores,
    compare_terms,
)
from rada.explain.explanation import ImageExplanation, Nearest, Words
from rada.explain.neighbours import nearest
from rada.explain.where import HeatMap, check_captum, gradient_map, occlusion_map
from rada.explain.words import Vocabulary
from rada.features import ClassSet, Features
from rada.inputs import Data
from rada.methods import AdaptedModel
from rada.methods.terms import Terms

if TYPE_CHECKING:
    from PIL.Image import Image

    from rada.classifier_base import ClassifierBase

__all__ = ["ExplainConfig", "Explainer"]


@dataclass(frozen=True)
class ExplainConfig(Config):
    """What an explanation says, and how much.

    Attributes:
        classes: Classes with the highest logits that are looked at, at least 2.
        dimensions: Dimensions that are named one by one in a sum.
        words: Words at most for a vector; 0 for no words.
        where: How the heat maps are made: "occlusion", "gradients", "both" or "none".
        difference: Whether they are of the difference of the best two logits; otherwise of the best one.
        grid: Cells along the longer side of an image.
        steps: Points on the way of the gradients.
        neighbours: Training images of either kind.

    Example:
        >>> ExplainConfig(where="both").words
        8
    """

    classes: int = 3
    dimensions: int = 8
    words: int = 8
    where: Literal["occlusion", "gradients", "both", "none"] = "occlusion"
    difference: bool = True
    grid: int = 8
    steps: int = 24
    neighbours: int = 4

    def validate(self) -> None:
        """Check that every field is in its range."""
        self.require(self.classes >= 2, "classes", "at least 2")
        for name in ("dimensions", "neighbours", "words"):
            self.require(0 <= getattr(self, name) <= 100, name, "from 0 to 100")
        for name in ("grid", "steps"):
            self.require(2 <= getattr(self, name) <= 64, name, "from 2 to 64")

    @property
    def maps(self) -> tuple[str, ...]:
        """The heat maps to make."""
        every = ("occlusion", "gradients")
        return (
            every if self.where == "both" else tuple(kind for kind in every if kind == self.where)
        )


class Explainer:
    """Explains the predictions of a classifier, image by image; what is the same for all is made once.

    Args:
        classifier: The classifier.
        config: What to say.
        train: The training images, where the classifier does not have them in memory.

    Raises:
        ConfigError: If the method's logits are no sum over dimensions, or there is one class alone.
        MissingExtraError: If heat maps are wanted and captum is not installed.
    """

    def __init__(
        self,
        classifier: ClassifierBase,
        config: ExplainConfig | None = None,
        *,
        train: Data | None = None,
    ) -> None:
        self.classifier = classifier
        self.config = ExplainConfig() if config is None else config
        self.notes: list[str] = []
        self._vocabularies: dict[str, Vocabulary] = {}
        if len(classifier.candidates()) < 2:
            raise ConfigError("an explanation compares classes, and there is one candidate alone")
        if self.config.maps:
            check_captum()
        self.train = self._training_images(train) if self.config.neighbours else None

    def explain(
        self, image: Any, *, target: str | None = None, against: str | None = None
    ) -> ImageExplanation:
        """Explain the prediction of one image.

        Args:
            image: As for `Classifier.predict`, but one.
            target: The class that is explained; None for the best one.
            against: The class that it is compared with; None for the best other one.

        Raises:
            ConfigError: If there is not one image, or a class is no candidate.
            DataError: If the image cannot be read.
        """
        features, classes = self.classifier.to_predict(image)
        count = 0 if features is None else len(features)
        if features is None or count != 1:
            raise ConfigError(f"one image is explained at a time, not {count}")
        model = self._model(classes, features)
        rows = features.plain()
        # Both at the model's temperature: another would look like a change of the evidence.
        temperature = model.strength.temperature_for(classes.names)
        before = (1 / temperature) * model.logit_terms(rows, classes, strength=0.0).double()
        after = model.logit_terms(rows, classes).double()
        logits = (before.logits()[0], after.logits()[0])
        looked_at = self._order(classes, logits, target, against)
        scores = class_scores(*logits, classes.names, looked_at, temperature)
        notes = list(self.notes)
        vocabulary = self.vocabulary(classes, notes)
        evidence = tuple(
            compare_terms(
                before,
                after,
                classes.names,
                looked_at[0],
                other,
                self.config.dimensions,
                vocabulary,
                self.config.words,
            )
            for other in looked_at[1:]
        )
        return ImageExplanation(
            features.ids[0],
            model.method.title,
            scores,
            evidence,
            self._in_words(classes, before, after, looked_at, vocabulary),
            self._maps(model, classes, looked_at, features, notes),
            self._nearest(rows[0], classes.names[looked_at[1]]),
            tuple(notes),
            _shown(features),
            "the tuned encoder alone" if model.method.train_encoder else "zero-shot",
            temperature,
        )

    def _model(self, classes: ClassSet, features: Features) -> AdaptedModel:
        clf = self.classifier
        if clf.model_ is not None:
            return clf.model_
        return clf.zero_shot_model(classes.names, features.dim, clf.inputs.scale_for(features))

    # -- the classes that are looked at ----------------------------------------------------------

    def _order(
        self,
        classes: ClassSet,
        logits: tuple[Tensor, Tensor],
        target: str | None,
        against: str | None,
    ) -> list[int]:
        """Return the classes to look at: the explained one, the one against it, then the best others."""
        asked = [self._place(classes, name) for name in (target, against) if name is not None]
        best = best_classes(*logits, max(self.config.classes, 2))
        if target is None and against is not None:  # the best class but that one
            asked.insert(0, next(row for row in best if row != asked[0]))
        if len(set(asked)) < len(asked):
            raise ConfigError(f"{target!r} cannot be compared with itself: name two classes")
        return list(dict.fromkeys((*asked, *best)))

    def _place(self, classes: ClassSet, name: str) -> int:
        if name not in classes.names:
            raise ConfigError(
                f"{name!r} is no candidate class; the candidates are {', '.join(classes.names[:20])}"
            )
        return classes.names.index(name)

    # -- in words --------------------------------------------------------------------------------

    def vocabulary(self, classes: ClassSet, notes: list[str]) -> Vocabulary | None:
        """Return the words as the text encoder embeds them; None, and a note, where it cannot."""
        if not self.config.words:
            return None
        template = classes.template
        if template not in self._vocabularies:
            try:
                self._vocabularies[template] = vocabulary_of(self.classifier, template)
            except (EncoderError, FeatureError) as error:
                notes.append(f"no words: {error}")
        return self._vocabularies.get(template)

    def _in_words(
        self,
        classes: ClassSet,
        before: Terms,
        after: Terms,
        rows: Sequence[int],
        vocabulary: Vocabulary | None,
    ) -> Words | None:
        if vocabulary is None:
            return None
        most, scale = self.config.words, float(before.weights[0].norm(dim=-1).mean())
        mean = vocabulary.centre if self.train is None else self.train.plain().double().mean(0)
        described, changed = {}, {}
        for row in rows:
            name, weight = classes.names[row], after.weights[0, row]
            described[name] = vocabulary.describe(weight / scale - vocabulary.centre, most)
            change = weight - before.weights[0, row]
            if bool(change.abs().max() > 1e-6 * scale):
                changed[name] = vocabulary.describe(change, most, signed=True)
        image = vocabulary.describe(after.images[0] - mean, most)
        return Words(image, described, changed, self.train is not None)

    # -- where -----------------------------------------------------------------------------------

    def _maps(
        self,
        model: AdaptedModel,
        classes: ClassSet,
        rows: Sequence[int],
        features: Features,
        notes: list[str],
    ) -> tuple[HeatMap, ...]:
        if not self.config.maps:
            return ()
        encoder = self.classifier.encoder_
        if features.images is None or encoder is None:
            notes.append("no heat map: there are features alone, and no image behind them")
            return ()
        logits = model.logit_function(classes)
        target, against = rows[0], rows[1] if self.config.difference else None

        def score(images: Tensor) -> Tensor:
            found = logits(images)
            return found[:, target] if against is None else found[:, target] - found[:, against]

        image, maps, grid = features.images.load(0), [], self.config.grid
        names = (classes.names[target], None if against is None else classes.names[against])
        for kind in self.config.maps:
            try:
                if kind == "occlusion":
                    maps.append(occlusion_map(encoder, score, image, grid, *names))
                else:
                    steps = self.config.steps
                    maps.append(gradient_map(encoder, score, image, grid, *names, steps=steps))
            except EncoderError as error:
                notes.append(f"no heat map by {kind}: {error}")
        return tuple(maps)

    # -- like what -------------------------------------------------------------------------------

    def _nearest(self, image: Tensor, other: str) -> Nearest | None:
        if self.train is None:
            return None
        count = self.config.neighbours
        return Nearest(
            nearest(image, self.train, count),
            nearest(image, self.train, count, only=other),
            other,
        )

    def _training_images(self, data: Data | None) -> Features | None:
        """Return the training images as features of the encoder in use, None where nobody has them."""
        found = training_features(self.classifier, data)
        if found is None:
            self.notes.append(
                "no similar training images: they are not saved with a model, so name them "
                "(--train DATA, train= in Python)"
            )
        elif data is not None:
            self._warn_of_others(found if found.images is None else found.images)
        return found

    def _warn_of_others(self, found: ImageSplit | Features) -> None:
        if not self.classifier.is_fitted:
            return
        kept = list(self.classifier.fitted_.record.image_keys)
        if kept and not seen_images(found, kept):
            warn(
                "none of the images given as training images is one that the model was trained on: "
                "the similar images are not what it learned from",
                UserWarning,
                stacklevel=4,
            )


def vocabulary_of(classifier: ClassifierBase, template: str) -> Vocabulary:
    """Return the words as a classifier's text encoder embeds them.

    Raises:
        FeatureError: If there is no encoder.
        EncoderError: If it cannot be loaded.
    """
    encoder = classifier.encoder_
    if encoder is None:
        raise FeatureError("there is no text encoder to embed them")
    keep = classifier.cache is not False
    return Vocabulary.of(encoder, template, keep=keep, progress=classifier.progress)


def _shown(features: Features) -> Image | None:
    if features.images is None:
        return None
    image = features.images.load(0)
    image.thumbnail((640, 640))
    return image
