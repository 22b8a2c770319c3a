"""`rada finetune`: any method on images, evaluated in and out of distribution."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from rada.cli.endings import resumable
from rada.cli.options import (
    JsonFlag,
    Model,
    Names,
    OutOfDistribution,
    Reading,
    Training,
    grouped,
    named_data,
    print_json,
)
from rada.core.terminal import bold, screen


@resumable
@grouped
def finetune(
    data: Annotated[
        str,
        typer.Argument(
            help="Labelled images: a folder, a table, WebDataset shards or the name of a data set. "
            "Its train split is learned, its test split is in distribution, its val split selects."
        ),
    ],
    out: Annotated[Path, typer.Option(help="Folder for model, checkpoints, log and result.")],
    model: Model = "embedded",
    method: Annotated[
        str, typer.Option(help="rada-ft, ft, flyp, l2-sp, lp-ft or any other method.")
    ] = "rada-ft",
    ood: OutOfDistribution = None,
    wise: Annotated[
        str | None,
        typer.Option(
            help="Weights of the tuned model, such as 0,0.25,0.5,0.75,1, at which the line to the "
            "pretrained one is evaluated (WiSE-FT); all: 0, 0.1, ... 1."
        ),
    ] = None,
    track: Annotated[
        list[str] | None,
        typer.Option(help="tensorboard, wandb or trackio, besides log.jsonl; repeat for several."),
    ] = None,
    json: JsonFlag = False,
    *,
    training: Training,
    names: Names,
    reading: Reading,
) -> None:
    """Adapt a model, its encoder too where the method says so, and evaluate it under shift.

    After Ctrl-C, SIGTERM (exit code 143) or a kill the same command goes on where it stopped.
    Several processes: accelerate launch --num_processes 4 -m rada finetune ...
    """
    from rada.core.values import check_seed
    from rada.data import load_class_names
    from rada.finetuner import FineTuner
    from rada.inputs import check_named, refuse_features
    from rada.methods import get_method
    from rada.run_data import PURPOSE

    check_seed(training.seed)  # before anything is loaded
    points = _alphas(wise)
    others = named_data(ood)
    for spec in (data, *others.values()):
        check_named(spec)
        refuse_features(spec, PURPOSE)
    tuner = FineTuner(
        model,
        method,
        training.configured(get_method(method).config),
        classes=None if names.class_names is None else load_class_names(names.class_names),
        templates=names.template,
        trackers=track or (),
        **reading.options(),
    )
    result = tuner.fit(
        data,
        others,
        training.shots,
        training.seed,
        allow_fewer=training.allow_fewer,
        wise=points,
        output_dir=out,
        overwrite=training.overwrite,
    )
    if not tuner.is_main_process:
        return
    if json:
        print_json(result)
    else:
        _print_summary(result, out)


def _alphas(text: str | None) -> tuple[float, ...]:
    """Read `--wise`."""
    from rada.core.errors import ConfigError
    from rada.training.wise_ft import ALPHAS, check_alphas

    if text is None:
        return ()
    if text.strip() == "all":
        return ALPHAS
    try:
        found = [float(part) for part in text.split(",")]
    except ValueError as error:
        raise ConfigError(f"--wise takes numbers such as 0,0.5,1, or all, not {text!r}") from error
    return check_alphas(found)


def _print_summary(result: dict[str, Any], out: Path) -> None:
    from rada.cli.tables import plain_table
    from rada.report.text import percent

    title = f"{result['method']} on {result['data']}"
    table = plain_table(title, "test set", "images", "zero-shot", "tuned", "difference")
    for name, images, before, after in _rows(result):
        change = f"{100 * (after - before):+.1f}"
        table.add_row(name, images, percent(before), percent(after), change)
    terminal = screen()
    terminal.print(table)
    for point in result["wise"]:
        inside, outside = point["in_distribution"], point["out_of_distribution"].get("mean")
        parts = [] if inside is None else [f"in distribution {percent(inside['accuracy'])}"]
        parts += [] if outside is None else [f"out of distribution {percent(outside)}"]
        terminal.print(f"WiSE-FT {point['alpha']:g}: {', '.join(parts)}")
    folder = shlex.quote(str(out))
    terminal.print(
        "The model is in ",
        bold(out),
        f". Next:\n  rada evaluate {folder} DATA\n  rada predict {folder} IMAGE...",
        sep="",
        soft_wrap=True,
    )


def _rows(result: dict[str, Any]) -> list[tuple[str, str, float, float]]:
    before, after = result["zero_shot"], result["tuned"]
    rows = []
    if after["in_distribution"] is not None:
        inside = after["in_distribution"]
        first = before["in_distribution"]["accuracy"]
        rows.append(("in distribution", str(inside["images"]), first, inside["accuracy"]))
    outside = after["out_of_distribution"]
    for name, entry in outside.items():
        if name != "mean":
            first = before["out_of_distribution"][name]["accuracy"]
            rows.append((name, str(entry["images"]), first, entry["accuracy"]))
    if len(outside) > 2:
        mean = before["out_of_distribution"]["mean"]
        rows.append(("mean out of distribution", "", mean, outside["mean"]))
    return rows
