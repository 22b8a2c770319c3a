"""One fit, from data to a model that can be saved: what `Classifier.fit` does."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from rada.convert import first_missing
from rada.core.config import Config
from rada.core.errors import CheckpointError, FeatureError
from rada.core.hashing import fingerprint_tensors
from rada.core.printable import escape
from rada.core.warn import warn
from rada.data import ImageSplit, Naming
from rada.data.bad import warn_of_bad
from rada.data.checks import check_labelled
from rada.evaluation.duplicates import NearDuplicate, near_duplicates
from rada.evaluation.seen import image_keys, remembered
from rada.features import Features
from rada.features.template_choice import choose_templates
from rada.inputs import TRAIN_SPLITS, Data, Inputs, data_name, open_labelled
from rada.methods import AdaptedModel, Method, Run
from rada.pretrained import CONFIG_FILE, EncoderId, Fitted, Record, load_model, write_model
from rada.training.checkpoints import RUN_FILE
from rada.training.probe import quick_weights

if TYPE_CHECKING:
    from rada.core.output import OutputFolder

MOST_COMPARED = 8192
"""More training images are not compared with each other."""

__all__ = ["FitPlan", "as_fitted", "fit_model", "given_templates", "labelled_arrays", "unit_rows"]


@dataclass(frozen=True)
class FitPlan:
    """What to fit and how.

    Attributes:
        method: The method.
        config: Its configuration.
        inputs: Reads the data.
        naming: The class names that are wanted.
        run: Seed and everything else that the method may use; its encoder and folder are filled in.
        shots: Images of each class; None for all.
        allow_fewer: Go on where a class has fewer.
        overwrite: Replace another model in the output folder.
    """

    method: Method
    config: Config
    inputs: Inputs
    naming: Naming
    run: Run
    shots: int | None = None
    allow_fewer: bool = False
    overwrite: bool = False


def fit_model(
    plan: FitPlan, data: Data, out: OutputFolder | None
) -> tuple[Fitted, Features, tuple[str, ...]]:
    """Fit a method to labelled data.

    Args:
        plan: What to fit and how.
        data: Labelled data, as for `open_labelled`.
        out: Folder for the finished model; until then it holds the states of training. A model of this
            very run that is there is loaded instead.

    Returns:
        The fitted model, the features that it learned from, and the splits of the data that it did not.

    Raises:
        RadaError: As `Classifier.fit`.
    """
    inputs, method, seed = plan.inputs, plan.method, plan.run.seed
    opened = open_labelled(
        data, TRAIN_SPLITS, plan.naming, skip_bad=inputs.skip_bad, embed=bool(inputs.slot)
    )
    check_labelled(opened.found.labels, opened.found.ids, "training")
    found, skipped = inputs.draw(opened, plan.shots, seed, plan.allow_fewer)
    views = method.views(plan.config)
    features = inputs.features(found, opened.templates, views=views, seed=seed)
    encoder = inputs.slot.get() if _needs_encoder(method, found, inputs) else None
    choice: dict[str, Any] | None = None
    if inputs.choose:
        features, found_choice = choose_templates(features, inputs.slot.get(), seed)
        choice = found_choice.to_dict()
    elif inputs.templates is None:
        features = method.with_templates(features, encoder)
    else:
        choice = given_templates(inputs.templates)
    skipped = [*opened.skipped, *skipped, *features.skipped]
    if inputs.skip_bad:
        warn_of_bad(skipped, "training images", stacklevel=4)
    _warn_of_conflicts(features)
    key = fingerprint_tensors(
        extra=[method.name, plan.config.to_dict(), seed, features.fingerprint]
    )
    if out is not None:
        finished = _finished(plan, out, key)
        if finished is not None:
            return finished, features, opened.others
        _check_unfinished(plan, out)
    state = None if out is None else out.training
    run = dataclasses.replace(plan.run, encoder=encoder, state_dir=state)
    model = _fitted(plan, features, run, out)
    if choice is not None:
        model.record["template_choice"] = choice
    # Bad images are not remembered: they were never seen.
    learned = features.images if isinstance(found, ImageSplit) and features.images else found
    record = Record(
        seed=seed,
        shots=plan.shots,
        data=data_name(data),
        data_fingerprint=features.fingerprint,
        key=key,
    )
    encoder_id = _encoder_of(features, inputs)
    fitted = as_fitted(model, features, learned, opened.aliases, encoder_id, record, skipped)
    if out is not None:
        with out.saving() as stage:
            write_model(stage, fitted)
        out.clear_training()
    return fitted, features, opened.others


def as_fitted(
    model: AdaptedModel,
    features: Features,
    seen: ImageSplit | Features,
    aliases: Mapping[str, str],
    encoder: EncoderId | None,
    record: Record,
    skipped: Sequence[tuple[str, str]],
) -> Fitted:
    """Return a model that has just learned with all that is needed to use it.

    Args:
        model: The model.
        features: What it learned from, by the encoder before any training.
        seen: The same images, or their features, as an evaluation will look for them.
        aliases: Class names by what the data calls the classes.
        encoder: The encoder of the features.
        record: The run; what model, images and `skipped` tell is filled in.
        skipped: `(id, reason)` of each image that was left out.
    """
    method = model.method
    return Fitted(
        model,
        features.classes,
        # A features file may not say what its class features were made of.
        features.templates,
        aliases,
        None if method.train_encoder else features.class_set().text_features,
        encoder,
        dataclasses.replace(
            record,
            images=len(features),
            skipped=tuple((escape(str(name)), escape(reason)) for name, reason in skipped),
            image_keys=tuple(remembered(image_keys(seen))),
            details=model.record,
        ),
        _baseline(method, features, record.seed),
    )


def given_templates(templates: Sequence[str]) -> dict[str, Any]:
    """Return what a record says of templates that the user named, which a saved model keeps."""
    return {"how": "given", "templates": list(templates)}


def _baseline(
    method: Method, features: Features, seed: int
) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Return a linear probe on the same images, where it says something and takes seconds."""
    if method.train_encoder or not method.learns or method.name == "linear_probe":
        return None
    return quick_weights(features, seed)


def _warn_of_conflicts(features: Features) -> None:
    """Warn of images that are there twice, with different labels."""
    if len(features) > MOST_COMPARED:
        return
    left: list[NearDuplicate] = []
    found = near_duplicates(features, left=left)
    if found:
        row, other, _ = found[0]
        one, two = (
            f"{features.ids[place]!r} ({features.classes[int(features.labels[place])]})"
            for place in (row, other)
        )
        warn(
            f"{'at least ' if left else ''}{len(found)} training images have a near duplicate with another "
            f"label, such as {one} and {two}: one of the two labels is wrong",
            UserWarning,
            stacklevel=4,
        )


def _needs_encoder(method: Method, found: ImageSplit | Features, inputs: Inputs) -> bool:
    return bool(inputs.slot) and ("encoder" in method.needs or isinstance(found, ImageSplit))


def _encoder_of(features: Features, inputs: Inputs) -> EncoderId | None:
    """Return the encoder of the features: as they say, else the one that they were given with."""
    name, fingerprint = features.encoder, features.encoder_fingerprint
    loaded = inputs.slot.loaded
    if name and fingerprint and (loaded is None or loaded.fingerprint != fingerprint):
        return EncoderId(name, fingerprint)
    return EncoderId.of(inputs.slot.get()) if inputs.slot else None


def _fitted(plan: FitPlan, features: Features, run: Run, out: OutputFolder | None) -> Any:
    """Fit, from the state in an output folder if there is one."""
    try:
        return plan.method.fit(features, plan.config, run)
    except CheckpointError:  # the state is damaged
        if out is None or not plan.overwrite:
            raise
        out.clear_training()
        return plan.method.fit(features, plan.config, run)


def _check_unfinished(plan: FitPlan, out: OutputFolder) -> None:
    """Refuse to throw away the checkpoints of fine-tuning, which are hours of work."""
    runs = [out.training / RUN_FILE]
    if not plan.method.train_encoder:
        runs.append(out.training / "encoder" / RUN_FILE)
    if not any(run.exists() for run in runs):
        return
    if not plan.overwrite:
        raise CheckpointError(
            f"{str(out.path)!r} holds a fine-tuning run that is not finished: choose another "
            "folder, or replace it with --overwrite (overwrite=True)"
        )
    out.clear_training()


def _finished(plan: FitPlan, out: OutputFolder, key: str) -> Fitted | None:
    """Return the model in a folder if it is of this very run; refuse to replace another."""
    if not (out.path / CONFIG_FILE).exists():
        return None
    try:
        encoder = plan.inputs.slot.get() if "encoder" in plan.method.needs else None
        fitted = load_model(out.path, encoder=encoder)
        if fitted.record.key == key:
            out.clear_training()
            return fitted
        there = "the model of another run"
    except CheckpointError as error:
        there = f"a model that cannot be used ({error})"
    if not plan.overwrite:
        raise CheckpointError(
            f"{str(out.path)!r} holds {there}: choose another folder, or replace it with --overwrite "
            "(overwrite=True)"
        )
    return None


def labelled_arrays(features: Any, labels: Any) -> tuple[Features, np.ndarray]:
    """Return features with labels as scikit-learn has them, and the label values in order.

    Args:
        features: `(N, D)` numbers; rows are normalised.
        labels: `(N,)` of any type.

    Raises:
        FeatureError: If they cannot be used: other lengths, no rows, NaN, no numbers, no classes, a zero row;
            it is a ValueError too, with scikit-learn's words.

    Example:
        >>> found, values = labelled_arrays(np.eye(2), ["b", "a"])
        >>> found.labels.tolist(), values.tolist()
        ([1, 0], ['a', 'b'])
    """
    from sklearn.utils.multiclass import check_classification_targets
    from sklearn.utils.validation import check_X_y

    _check_given(labels)
    with _refused():
        rows, given = check_X_y(_plain_array(features), _plain_array(labels))
        check_classification_targets(given)
    values, places = np.unique(given, return_inverse=True)
    names = tuple(map(str, values.tolist()))
    return Features(unit_rows(rows), torch.from_numpy(places), names), values


def _check_given(labels: Any) -> None:
    """Check that no label is missing: of objects scikit-learn sees it too late, or not at all."""
    values = labels.tolist() if hasattr(labels, "tolist") else labels
    if not isinstance(values, list | tuple):
        return
    row = first_missing(values, or_none=True)
    if row is not None:
        raise FeatureError(
            f"Input y contains NaN: the label of row {row} is missing ({values[row]!r}); fill it or leave "
            "the row out"
        )


def unit_rows(rows: Any) -> torch.Tensor:
    """Return an array `(N, D)` of numbers as unit-norm rows, float32.

    Raises:
        FeatureError: If it cannot be used: NaN, no rows, no numbers; with scikit-learn's words.
    """
    from sklearn.utils.validation import check_array

    with _refused():
        found = check_array(_plain_array(rows))
    # Squares of large and of small numbers leave float32; powers of two leave the other bits alone.
    _, exponents = np.frexp(np.abs(found).max(1, keepdims=True))
    table = torch.from_numpy(np.ldexp(found, -exponents).astype(np.float32, copy=False))
    return torch.nn.functional.normalize(table, dim=-1)


def _plain_array(values: Any) -> Any:
    """Return a tensor as an array that numpy can hold; other things as they are."""
    if not isinstance(values, torch.Tensor):
        return values
    values = values.detach().cpu()
    return (values.float() if values.dtype is torch.bfloat16 else values).numpy()


@contextlib.contextmanager
def _refused() -> Iterator[None]:
    """Turn what scikit-learn refuses into an error of rada's; types are refused as it does."""
    try:
        yield
    except ValueError as error:
        raise FeatureError(str(error)) from error
