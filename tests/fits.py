"""Every method fitted once on a few coloured images, for all tests and all processes of one run of pytest."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock

from golden.make import quick_config, tiny_encoder, write_images
from rada import Classifier

OPTIONS: dict[str, Any] = {"workers": 0, "cache": False, "progress": False}


@dataclass(frozen=True)
class Fits:
    """Saved models, made when a test first asks for them.

    Attributes:
        root: A folder that all processes of the run share.
    """

    root: Path

    @property
    def encoder(self) -> Path:
        """The folder of the tiny CLIP that all methods stand on."""
        with self._lock("encoder"):
            if not (self.root / "encoder").exists():
                tiny_encoder(self.root / "half-encoder")
                (self.root / "half-encoder").rename(self.root / "encoder")
        return self.root / "encoder"

    @property
    def images(self) -> Path:
        """The folder of 12 images of three classes that all methods were fitted to."""
        with self._lock("colours"):
            if not (self.root / "colours").exists():
                write_images(self.root / "half" / "colours").rename(self.root / "colours")
        return self.root / "colours"

    def folder(self, name: str) -> Path:
        """Return the saved model of a method; do not write there."""
        place = self.root / "models" / name
        with self._lock(name):
            if not (place / "config.json").exists():
                clf = Classifier(str(self.encoder), name, config=quick_config(name), **OPTIONS)
                clf.fit(str(self.images), seed=1, output_dir=place)
        return place

    def load(self, name: str) -> Classifier:
        """Return a classifier of one's own."""
        return Classifier.from_pretrained(self.folder(name), **OPTIONS)

    def _lock(self, name: str) -> FileLock:
        return FileLock(self.root / f"{name}.lock")
