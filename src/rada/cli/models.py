"""`rada models` and `rada datasets`: what there is to choose from."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from rada.cli.options import JsonFlag, print_json
from rada.core.errors import ConfigError
from rada.core.terminal import echo, screen

if TYPE_CHECKING:
    from rada.encoders import ModelInfo


def models(
    name: Annotated[str | None, typer.Argument(help="Describe this one.")] = None,
    search: Annotated[
        list[str] | None,
        typer.Option(
            help="List names with this text in them, whatever the case; repeat for all of it."
        ),
    ] = None,
    family: Annotated[str | None, typer.Option(help="List models of this family.")] = None,
    local: Annotated[
        bool, typer.Option("--local", help="List models that are on this machine.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """List the dual encoders, or describe one."""
    from rada.encoders import describe_model

    if name is None:
        _print_models(_matching(search or [], family, local), json)
        return
    if search or family or local:
        raise ConfigError(f"--search, --family and --local filter the list: leave out {name!r}")
    facts = describe_model(name).to_dict()
    if json:
        print_json(facts)
        return
    for key, value in facts.items():
        echo(f"{key:>14}: {value}")


def _matching(search: list[str], family: str | None, local: bool) -> list[ModelInfo]:
    """Return the known models that pass the filters.

    Raises:
        ConfigError: If there is no such family, or no model passes.
    """
    from rada.encoders import list_families, list_models

    families = [entry.name for entry in list_families()]
    if family is not None and family not in families:
        raise ConfigError(f"there is no family {family!r}; the families are {', '.join(families)}")
    found = [
        entry
        for entry in list_models()
        if all(text.lower() in entry.name.lower() for text in search)
        and family in (None, entry.family)
        and (entry.local or not local)
    ]
    if not found:
        raise ConfigError("no known model passes the filters; `rada models` lists all of them")
    return found


def _print_models(entries: list[ModelInfo], json: bool) -> None:
    if json:
        print_json([entry.to_dict() for entry in entries])
        return
    # Plain lines with the name at the end, so that no width of the terminal cuts it.
    row = "{:<12}  {:>5}  {:>10}  {:<5}  {}"
    echo(row.format("family", "width", "parameters", "local", "model"))
    for entry in entries:
        count = f"{entry.parameters / 1e6:.0f} M" if entry.parameters else "-"
        here = "yes" if entry.local else "no"
        echo(row.format(entry.family, entry.dim or "-", count, here, entry.name))


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
