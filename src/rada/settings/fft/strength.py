"""Choosing the mask strength of RAda-FT, by the rules for frozen encoders, on whole runs.

The curve of a head on frozen encoders would be another model's: here encoders and head learn together,
and so they do in every fold, for as many steps as in the final run.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rada.core.errors import CheckpointError
from rada.core.records import FoldRecord, check_record
from rada.core.storage import read_json, write_json
from rada.features import extract_features
from rada.methods.finetune.model import TunedModel
from rada.training.checkpoints import Checkpoints
from rada.training.strength import (
    Counts,
    Part,
    StrengthChoice,
    choose_by_parts,
    count_right,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rada.data import ImageSplit

__all__ = ["choose_tuned_strength"]

Learn = Callable[[TunedModel, "ImageSplit", "Checkpoints | None"], Any]


def choose_tuned_strength(
    model: TunedModel,
    train: ImageSplit,
    learn: Learn,
    accelerator: Accelerator,
    *,
    checkpoints: Checkpoints | None,
    seed: int,
    skip_bad: bool,
) -> StrengthChoice:
    """Choose the strength of a run by cross-validation on its training images.

    Args:
        model: The model before training; its encoder tunes in every fold, and is as it was afterwards.
        train: The training images; their labels count in the model's classes.
        learn: Trains a model on images, for the steps of the final run.
        accelerator: The processes that share the work.
        checkpoints: Where the run keeps its states; each fold keeps its own below. None for none.
        seed: Seed of everything random.
        skip_bad: Leave out images that cannot be read.
    """

    def counts(part: Part, tests: Sequence[Part], name: str) -> list[Counts]:
        folder = None if checkpoints is None else checkpoints.folder
        record = folder and folder / f"strength-{name}.json"
        known = _known(record, accelerator)
        if known is not None:
            return known
        fold = _fold_model(model, part, seed)
        try:
            states = None
            if checkpoints is not None:
                run = checkpoints.run | {"fold": name}
                states = Checkpoints(checkpoints.folder / f"fold-{name}", run, checkpoints.keep)
                if accelerator.is_main_process:
                    states.claim(overwrite=True)
                accelerator.wait_for_everyone()
            learn(fold, _images(train, part), states)
            found = [_counted(fold, _images(train, test), skip_bad) for test in tests]
        finally:
            fold.load_tuned(fold.start)
        _keep(record, states, found, accelerator)
        return found

    labels = torch.from_numpy(train.labels.copy())
    folds = model.config.strength_folds
    return choose_by_parts(labels, len(model.classes), folds, seed, counts)


def _fold_model(model: TunedModel, part: Part, seed: int) -> TunedModel:
    names = [model.classes[row] for row in part.classes.tolist()]
    config = replace(model.config, strength=1.0, select="last")
    text = model.text[part.classes.to(model.text.device)]
    return TunedModel(model.encoder, model.method, config, names, model.templates, text, seed)


def _images(train: ImageSplit, part: Part) -> ImageSplit:
    kept = train if part.keep is None else train.subset(part.keep.numpy())
    return kept.select_classes(part.classes.tolist())


@torch.no_grad()
def _counted(fold: TunedModel, images: ImageSplit, skip_bad: bool) -> Counts:
    """Count right answers of a tuned model at every strength."""
    fold.eval()
    # Every process looks at all images, which are few, so that all choose alike.
    features = extract_features(
        fold.encoder, images, cache=False, workers=0, skip_bad=skip_bad, progress=False
    )
    candidates = fold.candidates(images.classes)
    plain, full = (
        fold.logits(features.plain(), candidates._replace(strength=value)) for value in (0.0, 1.0)
    )
    return count_right(plain, full - plain, features.labels)


def _known(record: Path | None, accelerator: Accelerator) -> list[Counts] | None:
    """Return what a fold counted before the run was stopped; the main process's word for all."""
    from accelerate.utils import broadcast_object_list

    told: list[Any] = [None]
    if accelerator.is_main_process and record is not None and record.exists():
        saved = read_json(record, error=CheckpointError, what="the training state")
        check_record(FoldRecord, saved, error=CheckpointError, what=f"the state {str(record)!r}")
        told[0] = saved["counts"]
    broadcast_object_list(told)
    if told[0] is None:
        return None
    return [Counts(torch.tensor(c), torch.tensor(m), n) for c, m, n in told[0]]


def _keep(
    record: Path | None, states: Checkpoints | None, found: list[Counts], accelerator: Accelerator
) -> None:
    if record is None or states is None:
        return
    if accelerator.is_main_process:
        rows = [[entry.correct.tolist(), entry.changed.tolist(), entry.images] for entry in found]
        write_json(record, {"key": "", "counts": rows})
        shutil.rmtree(states.folder, ignore_errors=True)
    accelerator.wait_for_everyone()
