"""`rada methods`: what there is to adapt with."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.options import JsonFlag, print_json
from rada.core.terminal import echo, screen

if TYPE_CHECKING:
    from rada.methods import Method
    from rada.test_time import TestTimeMethod


def methods(
    name: Annotated[
        str | None, typer.Argument(help="Describe this one, with its configuration.")
    ] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the tables of docs/methods.md.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """List the methods, or describe one: what it trains, what it needs, what it costs, its source."""
    from rich.table import Table

    from rada.cli.tables import plain_table
    from rada.methods import get_method

    if name is not None:
        facts = method_facts(get_method(name))
        if json:
            print_json(facts)
            return
        for key, value in facts.items():
            if key != "config":
                echo(f"{key:>12}: {value}")
        echo("      --set:")
        for key, value in facts["config"].items():
            echo(f"{'':14}{key}={value}")
        return
    entries, others = all_facts()
    if json:
        print_json({"methods": entries, "test_time": others})
        return
    if markdown:
        echo(markdown_tables())
        return
    table = Table()
    table.add_column("method", no_wrap=True)  # a name is copied whole
    for column in ("trains", "needs", "runs in a step", "new classes"):
        table.add_column(column, overflow="fold")
    for entry in entries:
        table.add_row(
            *(_cell(entry, key) for key in ("name", "trains", "needs", "cost", "new_classes"))
        )
    screen().print(table)
    table = plain_table(None, "test-time method (--test-time)")
    table.add_column("source")
    for entry in others:
        table.add_row(entry["name"], entry["source"])
    screen().print(table)
    echo("Sources and settings: rada methods NAME")


def all_facts() -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """Return the facts of all methods, and of all test-time methods."""
    from rada.methods import list_methods
    from rada.test_time import list_test_time_methods

    return (
        [method_facts(method) for method in list_methods()],
        [test_time_facts(method) for method in list_test_time_methods()],
    )


def method_facts(method: Method) -> dict[str, Any]:
    """Return what a table says of a method, as plain JSON."""
    return {
        "name": method.name,
        "title": method.title,
        "trains": method.trains,
        "needs": sorted(method.needs),
        "cost": method.cost,
        "new_classes": method.new_classes,
        "source": method.source,
        "config": method.config().to_dict(),
    }


def test_time_facts(method: TestTimeMethod) -> dict[str, Any]:
    """Return the same of a test-time method."""
    return {
        "name": method.name,
        "title": method.title,
        "needs": sorted(method.needs),
        "source": method.source,
        "config": method.config().to_dict(),
    }


test_time_facts.__test__ = False  # type: ignore[attr-defined]  # pytest: this is no test


def _cell(entry: dict[str, Any], key: str) -> str:
    value = entry[key]
    if isinstance(value, bool):
        return "yes" if value else "no"
    return (", ".join(value) or "-") if isinstance(value, list) else str(value)


def markdown_tables() -> str:
    """Return the tables of `docs/methods.md`."""
    entries, others = all_facts()
    lines = [
        "| `--method` | name | trains | needs | runs in a step | new classes | source |",
        "|---|---|---|---|---|---|---|",
    ]
    keys: tuple[str, ...] = ("title", "trains", "needs", "cost", "new_classes", "source")
    lines += [
        f"| `{e['name']}` | " + " | ".join(_cell(e, key) for key in keys) + " |" for e in entries
    ]
    lines += ["", "| `--test-time` | name | needs | source |", "|---|---|---|---|"]
    keys = ("title", "needs", "source")
    lines += [
        f"| `{e['name']}` | " + " | ".join(_cell(e, key) for key in keys) + " |" for e in others
    ]
    return "\n".join(lines)
