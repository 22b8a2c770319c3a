"""A tuned model on disk: the encoder in its own library's format, head and classes beside it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from rada.core.output import claim
from rada.core.storage import write_json
from rada.pretrained import ENCODER_FOLDER, HeadConfig, write_parts
from rada.report.robustness import accuracies, draw_robustness

if TYPE_CHECKING:
    from torch import Tensor

    from rada.classifier import RAdaClassifier
    from rada.methods.finetune.model import TunedModel

__all__ = ["LOG_FILE", "RESULT_FILE", "as_classifier", "save_tuned"]

LOG_FILE = "log.jsonl"
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
    """Write a tuned model and its result; a reader sees the old files or the new ones.

    Args:
        directory: The folder.
        model: The model.
        result: What `FineTuner.fit` returned.

    Raises:
        EncoderError: If the encoder's family cannot be written.
        OutputError: If the folder holds what rada did not write, or another process writes to it.
        StorageError: If the place cannot be written.
    """
    model.encoder.require("save")
    with claim(directory, "model") as out, out.saving(keep=(LOG_FILE,)) as stage:
        (stage / ENCODER_FOLDER).mkdir()
        model.encoder.write(stage / ENCODER_FOLDER)
        write_parts(stage, model.head, _vectors(model), _describe(model, result))
        _draw(stage / FIGURE_FILE, model.method.title, result)
        write_json(stage / RESULT_FILE, result)


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
