"""`rada bench paper`: the tables of RAda's paper, run on data that the user has."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.bench_options import (
    Seeds,
    Settings,
    Shots,
    listed,
    numbers,
    print_table,
    read_settings,
)
from rada.cli.endings import resumable
from rada.cli.options import Encoding, JsonFlag, grouped, print_json
from rada.core.terminal import bold, echo, screen

if TYPE_CHECKING:
    from rada.bench import Plan

__all__ = ["paper"]

EXIT_SOMETHING_MISSING = 1


@resumable
@grouped
def paper(
    table: Annotated[
        list[str] | None,
        typer.Option(help="eft, fft or ttt, separated by commas; all three if none is named."),
    ] = None,
    data_root: Annotated[str, typer.Option(help="Folder of the real data sets.")] = "data",
    out: Annotated[
        Path, typer.Option(help="Folder of the results; used again, it is completed.")
    ] = Path("rada-bench-paper"),
    methods: Annotated[
        list[str] | None,
        typer.Option(help="Instead of the table's; `all` for every other one that fits, too."),
    ] = None,
    datasets: Annotated[
        list[str] | None, typer.Option(help="Some of the 11 sets, or of the shifted ones.")
    ] = None,
    seeds: Seeds = None,
    shots: Shots = None,
    model: Annotated[str | None, typer.Option(help="Instead of OpenAI's CLIP ViT-B/16.")] = None,
    settings: Settings = None,
    json: JsonFlag = False,
    *,
    encoding: Encoding,
) -> None:
    """Run the tables of RAda's paper, and print what comes out beside what the paper prints.

    eft: base to new classes on 11 sets; fft: full fine-tuning on ImageNet, tested on shifted sets; ttt:
    test-time training on shifted sets. Data sets that are missing are named with what belongs where,
    and the rest is run; the same command goes on later. What each needs: docs/benchmark.md.
    """
    from rada.bench.paper import PAPER, paper_plan, present, without
    from rada.core.extras import check_extra

    check_extra("report", "the page of a benchmark")
    given: dict[str, Any] = {
        "seeds": numbers("seeds", seeds),
        "shots": numbers("shots", shots),
        "model": model,
        "options": read_settings(settings),
    }
    changes = {key: value for key, value in given.items() if value is not None}
    chosen = listed(table) or tuple(PAPER)
    plans = {
        name: paper_plan(
            name,
            data_root,
            methods=listed(methods) or (),
            datasets=listed(datasets) or (),
            **changes,
        )
        for name in chosen
    }
    wanted = dict.fromkeys(spec for plan in plans.values() for spec in _specs(plan))
    _, missing = present(tuple(wanted))
    for text in missing.values():
        echo(f"missing: {text}", err=True)
    facts: dict[str, dict[str, Any] | None] = {}
    ended_well = True
    for name, plan in plans.items():
        rest = without(plan, missing)
        if rest is None:
            echo(f"{name}: nothing can be run, for all of its data is missing", err=True)
            facts[name] = None
            ended_well = False
            continue
        found = _run(name, rest, out / name, encoding, json)
        ended_well &= not found["failed"]
        facts[name] = found
    if json:
        print_json({"missing": missing, "tables": facts})
    if not ended_well:
        raise typer.Exit(EXIT_SOMETHING_MISSING)


def _specs(plan: Plan) -> tuple[str, ...]:
    return (*plan.datasets, *plan.targets)


def _run(name: str, plan: Plan, out: Path, encoding: Encoding, json: bool) -> dict[str, Any]:
    """Run one table, write its files and print it; return what became of it."""
    from rada.bench import run_plan
    from rada.bench.page import write_files
    from rada.bench.paper_results import paper_table
    from rada.bench.tables import load_runs

    summary = run_plan(plan, out, **encoding.options(), say=lambda text: echo(text, err=True))
    files: dict[str, Path] = {}
    if (out / "cells").exists():
        files = write_files(out, "zero_shot")
        found = paper_table(load_runs(out))
        if found is not None and not json:
            print_table(found)
            screen().print(found.note, soft_wrap=True)
    if not json:
        screen().print(f"{name}: {summary}")
        if files:
            screen().print("Page: ", bold(files["html"]), sep="", soft_wrap=True)
    return summary.to_dict() | {"files": {key: str(path) for key, path in files.items()}}
