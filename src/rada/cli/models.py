"""`rada models` and `rada datasets`: what there is to choose from."""

from __future__ import annotations

from typing import Annotated

import typer

from rada.cli.options import JsonFlag, print_json
from rada.core.terminal import echo, screen


def models(
    name: Annotated[str | None, typer.Argument(help="Describe this one.")] = None,
    json: JsonFlag = False,
) -> None:
    """List the dual encoders, or describe one."""
    from rada.cli.tables import plain_table
    from rada.encoders import describe_model, list_models

    if name is not None:
        facts = describe_model(name).to_dict()
        if json:
            print_json(facts)
        else:
            for key, value in facts.items():
                echo(f"{key:>14}: {value}")
        return
    entries = [entry.to_dict() for entry in list_models()]
    if json:
        print_json(entries)
        return
    table = plain_table(None, "model", "family", "width", "parameters", "on this machine")
    for entry in entries:
        table.add_row(
            entry["name"],
            entry["family"],
            str(entry["dim"] or "-"),
            f"{entry['parameters'] / 1e6:.0f} M" if entry["parameters"] else "-",
            "yes" if entry["local"] else "no",
        )
    screen().print(table)


def datasets(json: JsonFlag = False) -> None:
    """List the kinds of data that fit, evaluate and encode accept."""
    import dataclasses

    from rada.cli.tables import plain_table
    from rada.data import list_datasets

    entries = [dataclasses.asdict(entry) for entry in list_datasets()]
    if json:
        print_json(entries)
        return
    table = plain_table(None, "data")
    table.add_column("what it is")
    for entry in entries:
        table.add_row(entry["name"], entry["description"])
    screen().print(table)
