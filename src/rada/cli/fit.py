"""`rada fit`: adapt to labelled images, by any method."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.endings import resumable
from rada.cli.options import (
    Extracting,
    JsonFlag,
    Model,
    Names,
    Training,
    grouped,
    print_json,
)
from rada.core.terminal import bold, echo, screen
from rada.core.values import DEFAULT_METHOD

if TYPE_CHECKING:
    from rada.classifier import Classifier
    from rada.core.output import OutputFolder

IMAGES_FILE = "training_images.json"
RESULT_FILE = "result.json"
MOST_NAMED = 10
"""So many images whose label may be wrong are named."""


@resumable
@grouped
def fit(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with one sub-folder per class, a table (.csv, .jsonl), the name of a data set, "
            "or a features file."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the model.")],
    method: Annotated[str, typer.Option(help="How to adapt; `rada methods` lists them.")] = (
        DEFAULT_METHOD
    ),
    model: Model = "embedded",
    scale: Annotated[
        float | None, typer.Option(help="Overrides the encoder's logit scale.")
    ] = None,
    check_labels: Annotated[
        bool,
        typer.Option(
            "--check-labels", help="Also name training images whose label is likely wrong."
        ),
    ] = False,
    json: JsonFlag = False,
    *,
    training: Training,
    names: Names,
    reading: Extracting,
) -> None:
    """Adapt to labelled images, by any method.

    After Ctrl-C or a crash the same command goes on where it stopped.
    """
    echo(f"Opening {data} ...", err=True)  # before torch, which takes a second or two to import
    from rada.classifier import Classifier
    from rada.core.output import claim
    from rada.core.values import check_seed
    from rada.data import load_class_names
    from rada.features import names_features
    from rada.inputs import check_named
    from rada.methods import get_method

    check_seed(training.seed)  # before anything is loaded
    check_named(data)
    chosen = get_method(method)
    own = training.configured(chosen.config)
    # A features file needs no encoder; one that is named makes the class features, by --template.
    source = context.get_parameter_source("model")
    named = source is not None and source.name != "DEFAULT"
    with claim(out, "model", inputs=[data]) as folder:
        classifier = Classifier(
            model if named or not names_features(data) else None,
            chosen.name,
            None if names.class_names is None else load_class_names(names.class_names),
            config=own,
            templates=names.template,
            scale=scale,
            **reading.options(),
        )
        classifier.fit(
            data,
            shots=training.shots,
            seed=training.seed,
            allow_fewer=training.allow_fewer,
            output_dir=out,
            overwrite=training.overwrite,
        )
        wrong = _label_errors(classifier, training.seed) if check_labels else None
        result = _result(classifier, folder, wrong)
        apart = bool({"test", "val"} & set(classifier.other_splits_))
    if json:
        print_json(result)
    else:
        _print_summary(result, chosen.title, _test_data(data, apart=apart), out)


def _label_errors(classifier: Classifier, seed: int) -> list[dict[str, Any]]:
    """Return the training images whose label is likely wrong."""
    from rada.evaluation.label_errors import likely_label_errors

    data = classifier.train_features_
    assert data is not None  # it was fitted just now
    return [
        {"image": data.ids[error.row]}
        | {key: value for key, value in error._asdict().items() if key != "row"}
        for error in likely_label_errors(data, seed)
    ]


def _result(
    classifier: Classifier, out: OutputFolder, wrong: list[dict[str, Any]] | None
) -> dict[str, Any]:
    """Write what the run used beside the model, and return its result."""
    from rada.evaluating import run_facts
    from rada.evaluation import environment
    from rada.evaluation.provenance import command_line, peak_memory
    from rada.training.held_out import held_out

    fitted, encoder = classifier.fitted_, classifier.encoder_id()
    training = run_facts(classifier) | {"history": fitted.record.history}
    result = {
        "head": str(out.path),
        "classes": list(classifier.candidates()),
        "strength": classifier.strength,
        "scale": fitted.model.facts.scale,
        "encoder": None if encoder is None else encoder.to_dict(),
        "training": training,
        "held_out": held_out(training.get("strength_choice")),
        "environment": environment(),
        "command": command_line(),
        "peak_memory_bytes": peak_memory(),
    }
    if wrong is not None:
        result["label_errors"] = wrong
    images = None if classifier.train_features_ is None else classifier.train_features_.images
    if images is not None:
        out.write_json(IMAGES_FILE, images.manifest())
    out.write_json(RESULT_FILE, result)
    return result


def _print_summary(result: dict[str, Any], title: str, test: str, out: Path) -> None:
    from rada.report.text import count

    training = result["training"]
    folder = shlex.quote(str(out))
    screen().print(
        f"{title} learned {count(len(result['classes']), 'class', 'classes')} from "
        f"{count(training['images'], 'image')}{_effort(training)}.\n",
        "".join(
            f"{line}\n"
            for line in (
                *_held_out_lines(result, title),
                *_strength_lines(training),
                *_label_lines(result.get("label_errors")),
            )
        ),
        "The model is in ",
        bold(out),
        f". Next:\n  rada evaluate {folder} {test}\n  rada predict {folder} IMAGE...",
        sep="",
        soft_wrap=True,
    )


def _label_lines(errors: list[dict[str, Any]] | None) -> list[str]:
    """Say which labels are likely wrong, where somebody asked."""
    from rada.report.text import count, percent

    if errors is None:
        return []
    if not errors:
        return ["No label looks wrong."]
    said = [
        f"  {error['image']}: labelled {error['label']} ({percent(error['own'])}), looks like "
        f"{error['suggested']} ({percent(error['probability'])})"
        for error in errors[:MOST_NAMED]
    ]
    more = [] if len(errors) <= MOST_NAMED else [f"  and {len(errors) - MOST_NAMED} more (--json)"]
    return [f"{count(len(errors), 'label')} may be wrong:", *said, *more]


def _test_data(data: str, *, apart: bool) -> str:
    """Return what to evaluate on after training on some data: never the images that were learned.

    Args:
        data: The data.
        apart: Whether it has a split to test on that was not learned.
    """
    place = Path(data)
    if apart:
        return shlex.quote(data)
    test = place.with_name("test")
    return shlex.quote(str(test)) if place.name == "train" and test.exists() else "TEST_IMAGES"


def _effort(training: dict[str, Any]) -> str:
    """Say how many epochs there were, and why more or fewer than were asked for."""
    from rada.report.rows import why_epochs
    from rada.report.text import count

    epochs = len(training["history"])
    if not epochs:
        return ""
    why = why_epochs(training["config"], training.get("effective") or {}, epochs)
    return f" in {count(epochs, 'epoch')}{f' ({why})' if why else ''}"


def _held_out_lines(result: dict[str, Any], title: str) -> list[str]:
    """Say how zero-shot, a linear probe and the model did on what they had not seen."""
    from rada.report.text import count, percent

    if not result["held_out"]:
        return [
            "Nothing was held out: `rada evaluate` compares with zero-shot on images of your own."
        ]
    lines = []
    for entry in result["held_out"]:
        images = count(entry["images"], "image")
        lines.append(f"On held-out {entry['what']} ({entry['part']}; {images}):")
        names = {"zero_shot": "zero-shot", "linear_probe": "linear probe", "adapted": title}
        for row, name in names.items():
            if entry.get(row) is not None:
                low, high = entry["intervals"][row]
                lines.append(
                    f"  {name:<14} {percent(entry[row]):>7}  (95 %: {percent(low)} to {percent(high)})"
                )
    return lines


def _strength_lines(training: dict[str, Any]) -> list[str]:
    """Say both strengths, the one that `evaluate` and `predict` take, and where they come from."""
    choice, among = training.get("strength_choice"), training["trained_strength"]
    if choice is None and training["strength"] == 1.0 and "strength" not in training["config"]:
        return []  # the method has none
    how = {
        "classes": "chosen by cross-validation over classes, on the same held-out shots",
        "shots": "chosen by cross-validation over shots, on the same held-out shots",
        "none": "nothing to choose it on",
    }
    temperature = training.get("trained_temperature") or training["temperature"]
    calibrated = f"Probabilities are calibrated: temperature {temperature:.3g}."
    if choice is not None and choice["method"] == "none":
        calibrated = (
            "Probabilities are not calibrated, since nothing was held out: temperature "
            f"{temperature:.3g} is that of zero-shot."
        )
    reason = "given" if choice is None else how[choice["method"]]
    if among is None or among == training["strength"]:
        lines = [f"Strength {training['strength']:g} ({reason})."]
    else:
        lines = [
            f"Strength {among:g} among learned classes, {training['strength']:g} where some are new "
            f"({reason})."
        ]
    return lines if choice is None else [*lines, calibrated]
