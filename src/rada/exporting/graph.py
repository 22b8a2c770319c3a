"""The computation that is exported, as modules that torch can trace."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn
from torch.nn.functional import normalize

from rada.encoders import DualEncoder
from rada.exporting.preprocessing import Preprocessing
from rada.features import ClassSet
from rada.methods import AdaptedModel

__all__ = ["FromFeatures", "FromPixels", "OpenClasses"]


class FromFeatures(nn.Module):
    """Image features `(N, D)` to probabilities and logits `(N, K)` among fixed classes.

    The model is no submodule: torch then takes along the weights alone that the graph reads, and not, say,
    those of a text encoder.

    Args:
        model: The adapted model.
        classes: The candidates.
        strength: How far to go from zero-shot.
        temperature: What the logits are divided by.
    """

    _model: AdaptedModel

    def __init__(
        self, model: AdaptedModel, classes: ClassSet, strength: float, temperature: float
    ) -> None:
        super().__init__()
        object.__setattr__(self, "_model", model)
        self.strength, self.temperature, self.classes = strength, temperature, classes
        with torch.no_grad():
            self.prepared = classes if strength == 0 else model.prepare(classes)

    def forward(self, image_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits."""
        images = normalize(image_features.float(), dim=-1)
        logits = self._model.mixed(images, self.classes, self.prepared, self.strength)
        logits = logits / self.temperature
        return logits.softmax(-1), logits


class OpenClasses(nn.Module):
    """Image features `(N, D)` and class features `(K, D)` to probabilities and logits `(N, K)`.

    Args:
        model: A model whose logits depend on the class features alone (`by_class_features`).
        strength: How far to go from zero-shot.
        temperature: What the logits are divided by.
    """

    _model: AdaptedModel

    def __init__(self, model: AdaptedModel, strength: float, temperature: float) -> None:
        super().__init__()
        object.__setattr__(self, "_model", model)
        self.strength, self.temperature = strength, temperature

    def forward(self, image_features: Tensor, class_features: Tensor) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits."""
        images = normalize(image_features.float(), dim=-1)
        classes = replace(_NOBODY, text_features=normalize(class_features.float(), dim=-1))
        logits = self._model.mixed(images, classes, classes, self.strength)
        logits = logits / self.temperature
        return logits.softmax(-1), logits


_NOBODY = ClassSet((), torch.empty(0))


class FromPixels(nn.Module):
    """Resized and cropped images to what a graph on features gives.

    Args:
        encoder: The image encoder.
        preprocessing: Its preprocessing, whose last step, the normalisation, is in the graph.
        scores: The graph on features.
    """

    def __init__(
        self, encoder: DualEncoder, preprocessing: Preprocessing, scores: nn.Module
    ) -> None:
        super().__init__()
        self._encoder, self._preprocessing, self.scores = encoder, preprocessing, scores

    def forward(
        self, images: Tensor, class_features: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """Return probabilities and logits of `(N, height, width, 3)`, uint8."""
        features = self._encoder.forward_images(self._preprocessing.normalise(images))
        given = () if class_features is None else (class_features,)
        found: tuple[Tensor, Tensor] = self.scores(features, *given)
        return found
