"""`rada export`: a model for programs that have no rada."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from rada.cli.options import (
    EncoderOption,
    JsonFlag,
    ModelFolder,
    Names,
    OnlyModel,
    Strength,
    grouped,
    print_json,
)
from rada.core.terminal import bold, echo, screen


@grouped
def export(
    model_folder: ModelFolder = "",
    out: Annotated[Path | None, typer.Option(help="Folder for the graph.")] = None,
    format: Annotated[
        str, typer.Option("--format", help="onnx, or torch for torch.export.")
    ] = "onnx",
    source: Annotated[
        str | None,
        typer.Option(
            "--from",
            help="What goes in: pixels, or features of the model's encoder; pixels unless the model was "
            "trained on features.",
        ),
    ] = None,
    class_input: Annotated[
        bool,
        typer.Option(
            "--class-input", help="Take class features as an input instead of fixed classes."
        ),
    ] = False,
    dtype: Annotated[
        str, typer.Option(help="Type that the image encoder computes in: float32 or float16.")
    ] = "float32",
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Candidate class instead of the model's; repeat."),
    ] = None,
    model: OnlyModel = None,
    encoder: EncoderOption = None,
    strength: Strength = None,
    json: JsonFlag = False,
    *,
    names: Names,
) -> None:
    """Write a model as one graph, from pixels to probabilities, that runs without rada.

    The result is checked against rada before the command ends.
    """
    from rada.cli.opening import named_classes, open_classifier
    from rada.core.errors import ConfigError
    from rada.exporting import ExportSettings, export_model

    if out is None:
        raise ConfigError("say where the graph goes: --out DIR")
    if bool(model_folder) == bool(model):
        raise ConfigError("name the folder of a model, or an encoder with --model")
    classifier = open_classifier(
        model or model_folder,
        is_model=model is not None,
        encoder=encoder,
        classes=named_classes(classes, names.class_names),
        templates=names.template,
    )
    if source is None:
        source = "pixels" if classifier.slot else "features"
    settings = ExportSettings.from_dict(
        {
            "format": format,
            "source": source,
            "classes": "input" if class_input else "fixed",
            "dtype": dtype,
            "strength": strength,
        }
    )
    facts = export_model(classifier, out, settings)
    if json:
        print_json(facts)
    else:
        _print(facts, out)


def _print(facts: dict[str, Any], out: Path) -> None:
    screen().print("Written: ", bold(out / facts["file"]), sep="", soft_wrap=True)
    for name, entry in facts["inputs"].items():
        shape = ", ".join("any" if size is None else str(size) for size in entry["shape"])
        echo(f"input   {name}: {entry['dtype']} ({shape})")
    count = "any number of" if facts["classes"] is None else len(facts["classes"])
    echo(f"outputs {', '.join(facts['outputs'])}: {count} classes")
    echo(f"largest difference of a probability to rada: {facts['max_difference']:.1e}")
