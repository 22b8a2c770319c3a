"""Zero-shot: the encoder as it is, with one prompt a class or the mean of several."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar

from torch import Tensor

from rada.core.config import Config
from rada.core.errors import ConfigError
from rada.data.templates import ENSEMBLE
from rada.features import ClassSet
from rada.methods.base import AdaptedModel, Facts, Method, Shapes
from rada.methods.registry import register_method

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["ENSEMBLE", "ZeroShot", "ZeroShotEnsemble"]


class ZeroShotModel(AdaptedModel):
    """Cosine times scale."""

    by_class_features = True

    def score(self, images: Tensor, classes: ClassSet) -> Tensor:
        """Return `scale * cosine`."""
        return self.zero_shot_logits(images, classes)


class EnsembleModel(ZeroShotModel):
    """Cosine with the mean of several prompts."""

    by_class_features = False

    def prepare(self, classes: ClassSet) -> ClassSet:
        """Encode the names with the templates and with the data set's own."""
        assert self.encoder is not None and isinstance(self.config, EnsembleConfig)
        templates = tuple(dict.fromkeys((*classes.templates, *self.config.templates)))
        text = self.encoder.encode_classes(classes.names, templates)
        return replace(classes, text_features=text, templates=templates)


@dataclass(frozen=True)
class ZeroShot(Method):
    """No adaptation, one template."""

    model = ZeroShotModel


@dataclass(frozen=True)
class EnsembleConfig(Config):
    """Configuration of the ensemble.

    Attributes:
        templates: Prompts averaged with the data set's own.
    """

    templates: tuple[str, ...] = ENSEMBLE


@dataclass(frozen=True)
class ZeroShotEnsemble(Method):
    """No adaptation, the mean over templates."""

    config: ClassVar[type[Config]] = EnsembleConfig

    def build(
        self, facts: Facts, config: Any, shapes: Shapes, encoder: DualEncoder | None
    ) -> AdaptedModel:
        """Return the model for an encoder."""
        if encoder is None:
            raise ConfigError(f"{self.name} needs the encoder that embeds its prompts")
        return EnsembleModel(self, facts, config, encoder)


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
