"""`rada fit`: train a head on labelled pictures."""

from __future__ import annotations

import dataclasses
import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.options import (
    ClassNames,
    Device,
    JsonFlag,
    Model,
    NoCache,
    SkipBad,
    Templates,
    Workers,
    cache_option,
    parse_strength,
    print_json,
)
from rada.core.terminal import bold, echo, screen

if TYPE_CHECKING:
    from rada.classifier import RAdaClassifier
    from rada.core.config import EFTConfig
    from rada.core.output import OutputFolder

IMAGES_FILE = "training_images.json"
RESULT_FILE = "result.json"


def fit(
    context: typer.Context,
    data: Annotated[
        str,
        typer.Argument(
            help="A folder with one sub-folder per class, a table (.csv, .jsonl), the name of a data set, "
            "or a features file."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for the head.")],
    model: Model = "embedded",
    shots: Annotated[int | None, typer.Option(min=1, help="Pictures of each class.")] = None,
    seed: Annotated[int, typer.Option(help="Chooses the shots and everything random.")] = 0,
    class_names: ClassNames = None,
    template: Templates = None,
    scale: Annotated[float | None, typer.Option(help="Overrides the model's logit scale.")] = None,
    config: Annotated[
        Path | None, typer.Option(help="JSON file with fields of the training configuration.")
    ] = None,
    epochs: Annotated[int | None, typer.Option(help="Passes over the pictures.")] = None,
    min_steps: Annotated[
        int | None, typer.Option(help="Least number of steps; few pictures get more epochs.")
    ] = None,
    batch_size: Annotated[int | None, typer.Option(help="Pictures a step.")] = None,
    learning_rate: Annotated[float | None, typer.Option(help="Peak learning rate.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Weight of the smoothness term.")] = None,
    views: Annotated[int | None, typer.Option(help="Random views of each picture.")] = None,
    strength: Annotated[
        str | None, typer.Option(help="Mask strength in [0, 1], or auto to choose it on the shots.")
    ] = None,
    allow_fewer: Annotated[
        bool, typer.Option("--allow-fewer", help="Go on where a class has too few pictures.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Replace another head in the folder.")
    ] = False,
    skip_bad: SkipBad = False,
    no_cache: NoCache = False,
    workers: Workers = None,
    device: Device = None,
    json: JsonFlag = False,
) -> None:
    """Train a head on labelled pictures, the model frozen.

    After Ctrl-C or a crash the same command goes on where it stopped.
    """
    from rada.classifier import FEATURE_FILES, RAdaClassifier
    from rada.core.output import claim
    from rada.core.values import check_seed
    from rada.data import load_class_names
    from rada.inputs import check_named
    from rada.training import TrainingInterrupted

    check_seed(seed)  # before anything is loaded
    check_named(data)
    given = {
        "epochs": epochs,
        "min_steps": min_steps,
        "batch_size": batch_size,
        "learning_rate": learning_rate,
        "alpha": alpha,
        "views": views,
        "strength": None if strength is None else parse_strength(strength),
    }
    settings = _config(config, {key: value for key, value in given.items() if value is not None})
    # A features file needs no model; one that is named makes the class features, by --template.
    source = context.get_parameter_source("model")
    named = source is not None and source.name != "DEFAULT"
    try:
        with claim(out, "model", inputs=[data]) as folder:
            classifier = RAdaClassifier(
                model if named or not data.lower().endswith(FEATURE_FILES) else None,
                None if class_names is None else load_class_names(class_names),
                templates=template,
                config=settings,
                scale=scale,
                device=device,
                cache=cache_option(no_cache),
                workers=workers,
                skip_bad=skip_bad,
            )
            classifier.fit(
                data, shots, seed, allow_fewer=allow_fewer, output_dir=out, overwrite=overwrite
            )
            result = _result(classifier, folder)
    except TrainingInterrupted as stopped:
        done = len(stopped.trained.history)
        echo(
            f"interrupted after {done} epochs; the same command goes on from there",
            err=True,
        )
        raise typer.Exit(130) from None
    if json:
        print_json(result)
    else:
        _print_summary(result, data, out)


def _config(path: Path | None, given: dict[str, Any]) -> EFTConfig:
    """Build the configuration: the file's fields, then the options' over them."""
    from rada.core.config import EFTConfig
    from rada.core.errors import ConfigError
    from rada.core.storage import read_json

    if path is None:
        return EFTConfig(**given)
    values = read_json(path, error=ConfigError, what="the configuration")
    return dataclasses.replace(EFTConfig.from_dict(values), **given)


def _result(classifier: RAdaClassifier, out: OutputFolder) -> dict[str, Any]:
    """Write what the run used beside the head, and return its result."""
    from rada.evaluation import environment
    from rada.evaluation.provenance import command_line, peak_memory
    from rada.training.held_out import held_out

    encoder = classifier.encoder
    result = {
        "head": str(out.path),
        "classes": list(classifier.classes),
        "strength": classifier.strength,
        "scale": classifier.scale,
        "encoder": encoder and {"name": encoder.name, "fingerprint": encoder.fingerprint},
        "training": classifier.record,
        "held_out": held_out(classifier.record.get("strength_choice")),
        "environment": environment(),
        "command": command_line(),
        "peak_memory_bytes": peak_memory(),
    }
    if classifier.train_split is not None:
        out.write_json(IMAGES_FILE, classifier.train_split.manifest())
    out.write_json(RESULT_FILE, result)
    return result


def _print_summary(result: dict[str, Any], data: str, out: Path) -> None:
    from rada.report.text import count

    training = result["training"]
    epochs, asked = len(training["history"]), training["config"]["epochs"]
    least = f" (min_steps asks for more than {asked})" if epochs > asked else ""
    folder = shlex.quote(str(out))
    screen().print(
        f"Learned {count(len(result['classes']), 'class', 'classes')} from "
        f"{count(training['images'], 'image')} in {count(epochs, 'epoch')}{least}.\n",
        "".join(f"{line}\n" for line in (*_held_out_lines(result), _strength_line(training))),
        "The head is in ",
        bold(out),
        f". Next:\n  rada evaluate {folder} {shlex.quote(data)}\n  rada predict {folder} IMAGE...",
        sep="",
        soft_wrap=True,
    )


def _held_out_lines(result: dict[str, Any]) -> list[str]:
    """Say how the head did on what it had not seen."""
    from rada.report.text import percent

    if not result["held_out"]:
        return [
            "Nothing was held out: `rada evaluate` compares with zero-shot on images of your own."
        ]
    return [
        f"On held-out {entry['what']} ({entry['part']}): zero-shot {percent(entry['zero_shot'])}, "
        f"RAda {percent(entry['adapted'])} at mask strength {entry['strength']:g}."
        for entry in result["held_out"]
    ]


def _strength_line(training: dict[str, Any]) -> str:
    """Say both strengths, the one that `evaluate` and `predict` take, and where they come from."""
    choice, among = training["strength_choice"], training.get("trained_strength")
    how = {
        "classes": "chosen by cross-validation over classes, on the same held-out shots",
        "shots": "chosen by cross-validation over shots, on the same held-out shots",
        "none": "nothing to choose it on",
    }
    reason = "given" if choice is None else how[choice["method"]]
    if among is None or among == training["strength"]:
        return f"Mask strength {training['strength']:g} ({reason})."
    return (
        f"Mask strength {among:g} among learned classes, {training['strength']:g} where some are new "
        f"({reason})."
    )
