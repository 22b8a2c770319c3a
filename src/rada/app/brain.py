"""The encoder that all sessions share, and the model that the app was started with."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor

from rada.classifier import Classifier
from rada.core.errors import ConfigError
from rada.explain import Vocabulary
from rada.features import ClassSet
from rada.methods import get_method

__all__ = ["Brain"]


class Brain:
    """Encodes images and class names, one caller at a time.

    Args:
        start: The classifier that the app begins with: an encoder, or a saved model.

    Raises:
        ConfigError: If it has no encoder, so that no image could be looked at.
    """

    def __init__(self, start: Classifier) -> None:
        encoder = start.encoder_
        if encoder is None:
            raise ConfigError(
                "the model was trained on features alone and does not say which encoder made them: the "
                "app looks at images, so give it with --encoder"
            )
        self.start, self.encoder = start, encoder
        self._plain = Classifier(encoder, cache=False, workers=0, progress=False)
        self._lock = threading.Lock()
        self._names: dict[tuple[str, ...], ClassSet] = {}

    @property
    def scale(self) -> float:
        """The logit scale of the encoder."""
        return float(self._plain.inputs.scale_for())

    def warm(self) -> None:
        """Do everything once that is slow the first time: nobody should wait for it later.

        The words of explanations take some seconds of the first start, and come from the cache later.
        """
        from PIL import Image

        with TemporaryDirectory() as folder:
            Image.new("RGB", (64, 64)).save(Path(folder) / "grey.png")
            self.encode([Path(folder) / "grey.png"])
        classes = self.class_set(("this", "that"))
        Vocabulary.of(self.encoder, classes.template, progress=False)

    def encode(self, paths: Sequence[Path]) -> Tensor:
        """Return features `(N, D)` of images."""
        if not paths:
            return torch.zeros(0, self.encoder.dim)
        with self._lock:
            classifier = Classifier(
                self.encoder, classes=["a", "b"], cache=False, workers=0, progress=False
            )
            features, _ = classifier.to_predict([str(path) for path in paths])
        assert features is not None
        return features.plain()

    def class_set(self, names: tuple[str, ...]) -> ClassSet:
        """Return class names with their features; those of late are remembered."""
        with self._lock:
            if names not in self._names:
                if len(self._names) > 64:
                    self._names.clear()
                self._names[names] = self._plain.class_set(names)
            return self._names[names]

    def classifier(self, method: str) -> Classifier:
        """Return an unfitted classifier on the shared encoder.

        Raises:
            ConfigError: If there is no such method.
        """
        return Classifier(
            self.encoder, get_method(method).name, cache=False, workers=0, progress=False
        )
