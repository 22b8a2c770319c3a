"""Zero-shot: the encoder as it is, with one prompt a class or the mean of several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from rada.core.config import Config
from rada.core.errors import ConfigError
from rada.methods.base import ClassSet, Method, Predictor, Task
from rada.methods.registry import register_method

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["ENSEMBLE", "ZeroShot", "ZeroShotEnsemble"]

ENSEMBLE = (
    "itap of a {}.",
    "a bad photo of the {}.",
    "a origami {}.",
    "a photo of the large {}.",
    "a {} in a video game.",
    "art of the {}.",
    "a photo of the small {}.",
)
"""The seven templates that CLIP's authors chose for ImageNet among eighty."""


class ZeroShotPredictor(Predictor):
    """Cosine times scale."""

    def __init__(self, method: str, scale: float) -> None:
        super().__init__(method, {"scale": scale})
        self.scale = scale

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return `scale * cosine`."""
        return self.scale * images @ classes.text_features.T


class EnsemblePredictor(ZeroShotPredictor):
    """Cosine with the mean of several prompts."""

    def __init__(
        self, method: str, scale: float, templates: tuple[str, ...], encoder: DualEncoder
    ) -> None:
        super().__init__(method, scale)
        self.facts["templates"] = list(templates)
        self.templates, self.encoder = templates, encoder

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Encode the names with the templates and with the data set's own."""
        templates = tuple(dict.fromkeys((*classes.templates, *self.templates)))
        text = self.encoder.encode_classes(classes.names, templates)
        return replace(classes, text_features=text, templates=templates)


@dataclass(frozen=True)
class ZeroShot(Method):
    """No adaptation, one template."""

    def start(self, task: Task, config: Any) -> Predictor:
        """Return the predictor; there is nothing to learn."""
        return ZeroShotPredictor(self.name, task.scale)

    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return the predictor with the scale of the facts."""
        return ZeroShotPredictor(self.name, float(facts["scale"]))


@dataclass(frozen=True)
class EnsembleSettings(Config):
    """Settings of the ensemble.

    Attributes:
        templates: Prompts averaged with the data set's own.
    """

    templates: tuple[str, ...] = ENSEMBLE


@dataclass(frozen=True)
class ZeroShotEnsemble(Method):
    """No adaptation, the mean over templates."""

    settings: ClassVar[type[Config]] = EnsembleSettings

    def start(self, task: Task, config: EnsembleSettings) -> Predictor:
        """Return the predictor; there is nothing to learn."""
        return self.build({"scale": task.scale, "templates": list(config.templates)}, task.encoder)

    def build(self, facts: dict[str, Any], encoder: DualEncoder | None) -> Predictor:
        """Return the predictor for an encoder."""
        if encoder is None:
            raise ConfigError(f"{self.name} needs the encoder that embeds its prompts")
        templates = tuple(map(str, facts["templates"]))
        return EnsemblePredictor(self.name, float(facts["scale"]), templates, encoder)


_SOURCE = "Radford et al., Learning Transferable Visual Models From Natural Language, ICML 2021"
register_method(ZeroShot("zero_shot", "Zero-shot", _SOURCE, learns=False))
register_method(
    ZeroShotEnsemble(
        "zero_shot_ensemble",
        "Zero-shot, ensemble",
        f"{_SOURCE}, section 3.1.4",
        needs=frozenset({"encoder"}),
        learns=False,
    )
)
