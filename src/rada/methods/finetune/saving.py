"""A tuned model on disk: the encoder in its own library's format, head and classes beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rada.core.output import claim
from rada.core.storage import write_json
from rada.pretrained import ENCODER_FOLDER, ClassVectors, HeadConfig, SavedParts
from rada.report.robustness import accuracies, draw_robustness

if TYPE_CHECKING:
    from rada.classifier import RAdaClassifier
    from rada.methods.finetune.model import TunedModel

__all__ = ["LOG_FILE", "RESULT_FILE", "as_classifier", "save_tuned", "strength_facts"]

LOG_FILE = "log.jsonl"
RESULT_FILE = "result.json"
FIGURE_FILE = "robustness.svg"
_TOLD: tuple[str, ...] = (
    "setting",
    "method",
    "config",
    "seed",
    "shots",
    "data",
    "data_fingerprint",
    "images",
)
_TOLD += ("effective", "strength", "trained_strength", "strength_choice", "trained_classes")


def strength_facts(model: TunedModel) -> dict[str, Any]:
    """Return how the mask strength was chosen, as plain JSON; nothing for models without a head."""
    if model.head is None:
        return {}
    choice = model.strength
    chosen = {key: list(v) if isinstance(v, tuple) else v for key, v in choice.to_dict().items()}
    return {
        "strength": choice.strength,
        "trained_strength": choice.trained_strength,
        "strength_choice": chosen if model.config.strength == "auto" else None,
        "trained_classes": list(model.learned),
    }


def _parts(model: TunedModel, result: dict[str, Any], image_keys: Sequence[str]) -> SavedParts:
    """Return a tuned model in the form of one that was loaded."""
    encoder, config, head = model.encoder, model.config, model.head
    # The learned class features, where the text tower does not give them.
    vectors = None
    if model.vectors is not None and model.biases is not None:
        features = model.class_features(None).detach().cpu()
        vectors = ClassVectors(features, model.biases.detach().cpu())
    described = HeadConfig(
        dim=encoder.dim,
        num_heads=config.num_heads if head is not None else 1,
        temperature=config.temperature,
        scale=encoder.scale,
        strength=model.strength.strength if head is not None else 0.0,
        encoder={"name": ENCODER_FOLDER, "fingerprint": encoder.fingerprint},
        classes=list(model.classes),
        templates=list(model.templates),
        training={key: result[key] for key in _TOLD if key in result}
        | {"pretrained": result["encoder"], "image_keys": list(image_keys)},
        parts=[
            ENCODER_FOLDER,
            *(["head"] if head is not None else []),
            *(["classes"] if vectors is not None else []),
        ],
    )
    return SavedParts(head, vectors, Path(ENCODER_FOLDER), described)


def save_tuned(
    directory: Path, classifier: RAdaClassifier, title: str, result: dict[str, Any]
) -> None:
    """Write a tuned model and its result; a reader sees the old files or the new ones.

    Args:
        directory: The folder.
        classifier: The model, of `as_classifier`.
        title: Name of its method, for the figure.
        result: What `FineTuner.fit` returned.

    Raises:
        EncoderError: If the encoder's family cannot be written.
        OutputError: If the folder holds what rada did not write, or another process writes to it.
        StorageError: If the place cannot be written.
    """
    with claim(directory, "model") as out, out.saving(keep=(LOG_FILE,)) as stage:
        classifier.write(stage)
        _draw(stage / FIGURE_FILE, title, result)
        write_json(stage / RESULT_FILE, result)


def _draw(path: Path, title: str, result: dict[str, Any]) -> None:
    """Draw the robustness of the run, where it was judged in and out of distribution."""
    before, after = accuracies(result["zero_shot"]), accuracies(result["tuned"])
    if before is None or after is None:
        return
    points = [accuracies(entry) for entry in result["wise"]]
    curve = [point for point in points if point is not None]
    draw_robustness(path, before, {title: after}, {title: curve})


def as_classifier(
    model: TunedModel, result: dict[str, Any], image_keys: Sequence[str] = (), **options: Any
) -> RAdaClassifier:
    """Return a tuned model as a classifier, which shares its weights.

    Args:
        model: The model.
        result: What `FineTuner.fit` returned.
        image_keys: What is remembered of the training images; see `rada.evaluation.seen`.
        options: `cache`, `workers`, `skip_bad` and `progress` as for `RAdaClassifier`.
    """
    from rada.classifier import RAdaClassifier

    classifier = RAdaClassifier(
        model.encoder, model.classes, templates=list(model.templates), **options
    )
    classifier.adopt(_parts(model, result, image_keys))
    return classifier
