"""A tuned model on disk: the encoder in its own library's format, head and classes beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rada.core.storage import whole_directory, write_json
from rada.pretrained import ENCODER_FOLDER, HeadConfig, save_parts
from rada.report.robustness import accuracies, draw_robustness

if TYPE_CHECKING:
    from torch import Tensor

    from rada.classifier import RAdaClassifier
    from rada.methods.finetune.model import TunedModel

__all__ = ["RESULT_FILE", "as_classifier", "save_tuned"]

RESULT_FILE = "result.json"
FIGURE_FILE = "robustness.svg"
_TOLD = ("setting", "method", "config", "seed", "shots", "data", "data_fingerprint", "images")


def _describe(model: TunedModel, result: dict[str, Any]) -> HeadConfig:
    encoder, config = model.encoder, model.config
    return HeadConfig(
        dim=encoder.dim,
        num_heads=config.num_heads if model.head is not None else 1,
        temperature=config.temperature,
        scale=encoder.scale,
        strength=config.strength if model.head is not None else 0.0,
        encoder={"name": ENCODER_FOLDER, "fingerprint": encoder.fingerprint},
        classes=list(model.classes),
        templates=list(model.templates),
        training={key: result[key] for key in _TOLD if key in result},
        parts=[
            ENCODER_FOLDER,
            *(["head"] if model.head is not None else []),
            *(["classes"] if model.vectors is not None else []),
        ],
    )


def _vectors(model: TunedModel) -> Tensor | None:
    """Return the learned class features `(K, D)`, or None where the text tower gives them."""
    return None if model.vectors is None else model.class_features(None).detach().cpu()


def save_tuned(directory: Path, model: TunedModel, result: dict[str, Any]) -> None:
    """Write a tuned model; the result comes last, so a folder with one is whole.

    Args:
        directory: The folder.
        model: The model.
        result: What `FineTuner.fit` returned.

    Raises:
        EncoderError: If the encoder's family cannot be written.
        StorageError: If the place cannot be written.
    """
    with whole_directory(directory / ENCODER_FOLDER) as temporary:
        model.encoder.save(temporary)
    save_parts(directory, model.head, _vectors(model), _describe(model, result))
    _draw(directory / FIGURE_FILE, model.method.title, result)
    write_json(directory / RESULT_FILE, result)


def _draw(path: Path, title: str, result: dict[str, Any]) -> None:
    """Draw the robustness of the run, where it was judged in and out of distribution."""
    before, after = accuracies(result["zero_shot"]), accuracies(result["tuned"])
    if before is None or after is None:
        return
    points = [accuracies(entry) for entry in result["wise"]]
    curve = [point for point in points if point is not None]
    draw_robustness(path, before, {title: after}, {title: curve})


def as_classifier(model: TunedModel, result: dict[str, Any]) -> RAdaClassifier:
    """Return a tuned model as a classifier, which shares its weights."""
    from rada.classifier import RAdaClassifier

    classifier = RAdaClassifier(model.encoder, model.classes, templates=list(model.templates))
    classifier.adopt(model.head, _vectors(model), _describe(model, result))
    return classifier
