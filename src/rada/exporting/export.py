"""`export_model`: a classifier written for programs that have no rada."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from rada._version import __version__
from rada.core.config import Config
from rada.core.errors import ConfigError, EncoderError, RadaError, one_line
from rada.core.extras import check_extra
from rada.core.output import claim
from rada.core.storage import write_json
from rada.exporting.formats import FORMATS, trace
from rada.exporting.graph import FromFeatures, FromPixels, OpenClasses
from rada.exporting.preprocessing import Preprocessing, describe_preprocessing

if TYPE_CHECKING:
    from rada.classifier import Classifier
    from rada.encoders import DualEncoder
    from rada.features import ClassSet
    from rada.methods import AdaptedModel

__all__ = ["ExportSettings", "export_model"]

_EXACT, _ROUNDED = 1e-4, 2e-2
"""Largest difference of a probability between the file and rada: in float32, and in half precision."""
_CHECKED = (1, 16)
"""How many images the file is run with; other numbers than it was traced with."""


@dataclass(frozen=True)
class ExportSettings(Config):
    """What a file is to hold.

    Attributes:
        format: "onnx", or "torch" for `torch.export.load`.
        source: What goes in: "pixels" of images, or "features" of the model's encoder.
        classes: "fixed" for the classifier's candidates, "input" for class features that are an input
            beside the images.
        dtype: Type that the image encoder computes in, whatever it does in rada; the scores are float32
            always.
        strength: Strength in [0, 1]; None for the model's own.
    """

    format: Literal["onnx", "torch"] = "onnx"
    source: Literal["pixels", "features"] = "pixels"
    classes: Literal["fixed", "input"] = "fixed"
    dtype: Literal["float32", "float16"] = "float32"
    strength: float | None = None

    def validate(self) -> None:
        """Check that the fields fit each other."""
        self.require(self.strength is None or 0 <= self.strength <= 1, "strength", "in [0, 1]")
        half = self.dtype == "float16"
        self.require(
            not (half and self.source == "features"),
            "dtype",
            "'float32' for features: float16 is the image encoder's type",
        )


def export_model(
    classifier: Classifier, directory: str | Path, settings: ExportSettings | None = None
) -> dict[str, Any]:
    """Write a classifier as one graph that ends in probabilities, and check it against rada.

    `model.onnx` (or `model.pt2`) and `export.json` are written; the JSON tells the inputs, the classes and
    what is to be done to an image before, and stands in the metadata of the graph as well.

    Args:
        classifier: The classifier, fitted or zero-shot.
        directory: A new folder, or one that was exported to before.
        settings: What the file is to hold; the defaults of `ExportSettings` when None.

    Returns:
        What `export.json` holds; `max_difference` is the largest difference of a probability between
        the file and rada on the images of the check.

    Raises:
        ConfigError: If class features cannot be an input of this method.
        EncoderError: If the encoder cannot be exported, or the file computes something else.
        MissingExtraError: If the packages of the extra `onnx` are not installed.
        OutputError: If the folder holds what rada did not write.

    Example:
        >>> export_model(Classifier.from_pretrained("my-model"), "exported")  # doctest: +SKIP
    """
    settings = settings or ExportSettings()
    if settings.format == "onnx":
        check_extra("onnx", "an export to ONNX")
    part = _Part.of(classifier, settings)
    with claim(directory, "export") as folder, folder.saving() as stage:
        write, load = FORMATS[settings.format]
        facts = part.facts()
        inputs = part.examples(2, seed=0)
        program = trace(part.graph(), inputs)
        name = write(program, tuple(inputs), stage, facts)
        facts |= {"file": name, "max_difference": _check(part, load, stage / name)}
        write_json(stage / "export.json", facts)
    return facts


@dataclass(frozen=True)
class _Part:
    """What is exported of a classifier."""

    settings: ExportSettings
    model: AdaptedModel
    classes: ClassSet
    strength: float
    temperature: float
    encoder: DualEncoder | None
    preprocessing: Preprocessing | None

    @classmethod
    def of(cls, classifier: Classifier, settings: ExportSettings) -> _Part:
        classes = classifier.class_set()
        dim = classes.text_features.shape[1]
        model = classifier.model_ or classifier.zero_shot_model(classes.names, dim)
        if settings.classes == "input" and not model.by_class_features:
            raise ConfigError(
                f"{model.method.title} scores classes by more than their features, so these cannot be an "
                "input: export it with fixed classes"
            )
        if settings.classes == "input" and getattr(model, "shortlist", None) is not None:
            raise ConfigError(
                f"{model.method.title} was fitted with shortlist={model.shortlist!r}, which depends on "
                "how many classes there are, so these cannot be an input: export it with fixed classes"
            )
        encoder, preprocessing = None, None
        if settings.source == "pixels":
            encoder = classifier.encoder_
            if encoder is None:
                raise ConfigError(
                    "this model was trained on features, and its encoder is not known: export it from "
                    "features"
                )
            preprocessing = describe_preprocessing(encoder)
        strength, temperature = settings.strength, 1.0
        if strength is None:
            among = classes.names if settings.classes == "fixed" else ("",)  # nobody's name
            strength = model.strength.for_classes(among)
            temperature = model.strength.temperature_for(among)
        return cls(settings, model.eval(), classes, strength, temperature, encoder, preprocessing)

    def graph(self) -> nn.Module:
        """Return the computation."""
        scores = (
            FromFeatures(self.model, self.classes, self.strength, self.temperature)
            if self.settings.classes == "fixed"
            else OpenClasses(self.model, self.strength, self.temperature)
        )
        if self.encoder is None or self.preprocessing is None:
            return scores
        encoder, wanted = self.encoder, getattr(torch, self.settings.dtype)
        if encoder.dtype is not wanted and encoder.family == "custom":
            kinds = [str(one).removeprefix("torch.") for one in (encoder.dtype, wanted)]
            raise EncoderError(
                f"functions of your own compute in the {kinds[0]} of their module, not in {kinds[1]}: give "
                f"CustomEncoder a module in {kinds[1]}, or export the model from features"
            )
        if encoder.dtype is not wanted:
            encoder = copy.copy(encoder)
            encoder.model = copy.deepcopy(encoder.model)
            encoder.place(None, wanted)
        encoder.model.eval()
        return FromPixels(encoder, self.preprocessing, scores)

    def examples(self, count: int, seed: int) -> dict[str, Tensor]:
        """Return inputs by name, random ones."""
        generator = torch.Generator().manual_seed(seed)
        dim = self.classes.text_features.shape[1]
        if self.preprocessing is None:
            found = {"image_features": torch.randn(count, dim, generator=generator)}
        else:
            found = {"images": _pictures(count, self.preprocessing.crop, generator)}
        if self.settings.classes == "input":
            found["class_features"] = self.classes.text_features.clone()
        return found

    def expected(self, inputs: dict[str, Tensor]) -> Tensor:
        """Return the probabilities that rada itself gives."""
        first = next(iter(inputs.values()))
        if self.preprocessing is None or self.encoder is None:
            features = nn.functional.normalize(first, dim=-1)
        else:
            features = self.encoder.infer_images(self.preprocessing.normalise(first))
        logits = self.model.logits(features, self.classes, strength=self.strength)
        return (logits / self.temperature).softmax(-1)

    def facts(self) -> dict[str, Any]:
        """Return what a program must know, as plain JSON."""
        settings = self.settings
        inputs = {
            name: {
                "dtype": str(value.dtype).removeprefix("torch."),
                "shape": [None, *value.shape[1:]],
            }
            for name, value in self.examples(1, seed=0).items()
        }
        preprocessing = self.preprocessing
        return {
            "rada_version": __version__,
            "method": self.model.method.name,
            "format": settings.format,
            "inputs": inputs,
            "outputs": ["probabilities", "logits"],
            "classes": list(self.classes.names) if settings.classes == "fixed" else None,
            "strength": self.strength,
            "temperature": self.temperature,
            "encoder": None if self.encoder is None else self.encoder.name,
            "dtype": settings.dtype,
            "preprocessing": None if preprocessing is None else preprocessing.to_dict(),
        }


def _pictures(count: int, size: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Return images `(N, height, width, 3)` of uint8: noise, and coarse shapes as photos have, in turns."""
    noise = torch.rand(count, 3, *size, generator=generator)
    shapes = torch.zeros_like(noise)
    for cells in (2, 5, 12, 30):
        coarse = torch.randn(count, 3, cells, cells, generator=generator) / cells**0.5
        shapes += nn.functional.interpolate(coarse, size=size, mode="bilinear")
    found = torch.where(torch.arange(count)[:, None, None, None] % 2 == 0, noise, shapes.sigmoid())
    return (found * 255).round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _check(part: _Part, load: Callable[[Path], Any], path: Path) -> float:
    """Return the largest difference of a probability between a file and rada.

    Raises:
        EncoderError: If it is more than rounding explains, or the file cannot be run.
    """
    examples = [part.examples(count, seed=count) for count in _CHECKED]
    try:
        run = load(path)
        answers = [run(tuple(inputs.values()))[0] for inputs in examples]
    except RadaError:
        raise
    except Exception as error:  # of onnxruntime and of torch, without a common base
        raise EncoderError(
            f"the graph was written and cannot be run: {one_line(error, 300)}; please report this "
            "encoder and method"
        ) from error
    largest = 0.0
    rounds = part.settings.dtype == "float16"
    rounds |= part.encoder is not None and part.encoder.dtype in (torch.float16, torch.bfloat16)
    tolerance = _ROUNDED if rounds else _EXACT
    for inputs, found in zip(examples, answers, strict=True):
        difference = float((found - part.expected(inputs)).abs().max())
        if not difference <= tolerance:  # nor NaN
            advice = (
                "its encoder needs more than half precision: export it, or fit it, in float32"
                if rounds
                else "please report this encoder and method"
            )
            raise EncoderError(
                f"the exported graph differs from rada by {difference:.1e} in a probability, more than "
                f"{tolerance:g}: nothing was written; {advice}"
            )
        largest = max(largest, difference)
    return largest
