"""`rada bench`: methods, data sets, shots and seeds in one table and on one page."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.bench_options import Listed, Seeds, Settings, Shots, listed, numbers, read_settings
from rada.cli.bench_paper import paper
from rada.cli.endings import resumable
from rada.cli.options import Encoding, JsonFlag, Names, grouped, print_json
from rada.core.terminal import bold, echo, screen

if TYPE_CHECKING:
    from rada.bench import Plan, RunSummary

app = typer.Typer(
    help="Compare methods on data sets, over shots and seeds, with resume and one page.",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"]},
)
EXIT_SOME_FAILED = 1

Reference = Annotated[str, typer.Option(help="The method that differences are taken against.")]


@app.callback()
@resumable
@grouped
def bench(
    context: typer.Context,
    methods: Listed = None,
    datasets: Listed = None,
    targets: Listed = None,
    protocol: Listed = None,
    shots: Shots = None,
    seeds: Seeds = None,
    model: Annotated[str | None, typer.Option(help="The dual encoder for images.")] = None,
    settings: Settings = None,
    allow_fewer: Annotated[
        bool, typer.Option("--allow-fewer", help="Go on where a class has too few images.")
    ] = False,
    plan: Annotated[Path | None, typer.Option(help="TOML or YAML file with the same.")] = None,
    out: Annotated[Path | None, typer.Option(help="Folder of the results.")] = None,
    reference: Reference = "zero_shot",
    json: JsonFlag = False,
    *,
    names: Names,
    encoding: Encoding,
) -> None:
    """Run every method on every data set, or finish what was begun in --out.

    METHOD+TEST_TIME, such as zero_shot+tpt, predicts with a test-time method. Protocols: few-shot
    (default), base-to-new, cross-dataset, domain, shift. Finished cells are skipped; several processes may
    share one --out.
    """
    if context.invoked_subcommand is not None:
        return
    from rada.bench import Plan, load_plan
    from rada.core.errors import ConfigError

    given: dict[str, Any] = {
        "methods": listed(methods),
        "datasets": listed(datasets),
        "targets": listed(targets),
        "protocols": listed(protocol),
        "shots": numbers("shots", shots),
        "seeds": numbers("seeds", seeds),
        "model": model,
        "templates": tuple(names.template) if names.template else None,
        "class_names": names.class_names,
        "allow_fewer": allow_fewer or None,
        "options": read_settings(settings),
    }
    changes = {key: value for key, value in given.items() if value is not None}
    if plan is None and not ("methods" in changes and "datasets" in changes):
        raise ConfigError(
            "say --methods and --datasets, or --plan FILE; `rada bench quick` needs neither"
        )
    if out is None:
        raise ConfigError("say where the results go: --out DIR")
    wanted = Plan.from_dict(changes) if plan is None else load_plan(plan, changes)
    _go(wanted, out, reference, encoding, json)


def _add_recipe(name: str, folder: str, text: str) -> None:
    """Add a command that runs a recipe."""

    @resumable
    @grouped
    def command(
        out: Annotated[
            Path, typer.Option(help="Folder of the results; used again, it is completed.")
        ] = Path(folder),
        data_root: Annotated[str, typer.Option(help="Folder of the real data sets.")] = "data",
        seeds: Seeds = None,
        reference: Reference = "zero_shot",
        json: JsonFlag = False,
        *,
        encoding: Encoding,
    ) -> None:
        import dataclasses

        from rada.bench.recipes import recipe

        plan = recipe(name, data_root)
        chosen = numbers("seeds", seeds)
        if chosen is not None:
            plan = dataclasses.replace(plan, seeds=chosen)
        _go(plan, out, reference, encoding, json)

    app.command(name, help=text)(command)


for _name, _folder, _text in (
    (
        "quick",
        "rada-bench-quick",
        "Compare all methods on features, with the embedded model and data; some minutes.",
    ),
    (
        "paper-cross",
        "rada-bench-cross",
        "Learn ImageNet, test on the other ten sets, with CLIP ViT-B/16.",
    ),
    (
        "paper-dg",
        "rada-bench-dg",
        "Learn ImageNet, test on V2, R, A, Sketch and ObjectNet, with CLIP ViT-B/16.",
    ),
):
    _add_recipe(_name, _folder, _text)
app.command("paper")(paper)


@app.command("report")
def report(
    directory: Annotated[Path, typer.Argument(help="A folder that `rada bench` filled.")],
    reference: Reference = "zero_shot",
    json: JsonFlag = False,
) -> None:
    """Make CSV, Markdown, LaTeX and one HTML page from the results."""
    from rada.bench.page import write_files

    files = write_files(directory, reference)
    if json:
        print_json({name: str(path) for name, path in files.items()})
    else:
        for path in files.values():
            echo(path)


def _go(plan: Plan, out: Path, reference: str, encoding: Encoding, json: bool) -> None:
    from rada.bench import run_plan
    from rada.bench.page import write_files
    from rada.bench.tables import check_reference
    from rada.core.extras import check_extra

    check_extra("report", "the page of a benchmark")
    check_reference(reference, plan.methods)
    summary = run_plan(plan, out, **encoding.options(), say=lambda text: echo(text, err=True))
    files = write_files(out, reference) if (out / "cells").exists() else {}
    if json:
        print_json(summary.to_dict() | {"files": {name: str(path) for name, path in files.items()}})
    else:
        _print(out, reference, summary, files)
    if summary.failed:
        raise typer.Exit(EXIT_SOME_FAILED)


def _print(out: Path, reference: str, summary: RunSummary, files: dict[str, Path]) -> None:
    from rada.bench.tables import load_runs, result_tables
    from rada.cli.bench_options import print_table

    terminal = screen()
    for found in result_tables(load_runs(out), reference) if files else []:
        print_table(found)
    terminal.print(str(summary))
    if "html" in files:
        terminal.print("Page: ", bold(files["html"]), sep="", soft_wrap=True)
