"""`rada cache`: where features are kept, how much, and how to let go of them."""

from __future__ import annotations

from typing import Annotated

import typer

from rada.cli.options import JsonFlag, print_json

app = typer.Typer(help="The cache of image features.", no_args_is_help=True)


@app.command("path")
def path() -> None:
    """Print the folder of the cache ($RADA_CACHE, or the platform's)."""
    from rada.features import FeatureCache

    typer.echo(FeatureCache().root)


@app.command("list")
def list_entries(json: JsonFlag = False) -> None:
    """List what the cache holds, by encoder."""
    import dataclasses
    import datetime

    from rada.cli.tables import console, plain_table
    from rada.features import FeatureCache

    entries = FeatureCache().list()
    if json:
        print_json([dataclasses.asdict(entry) for entry in entries])
        return
    if not entries:
        typer.echo("the cache is empty")
        return
    table = plain_table(None, "encoder", "pictures", "MB", "last used")
    for entry in entries:
        used = f"{datetime.datetime.fromtimestamp(entry.last_used):%Y-%m-%d %H:%M}"
        table.add_row(entry.encoder, str(entry.pictures), f"{entry.bytes / 1e6:.1f}", used)
    console().print(table)


@app.command("clear")
def clear(
    older_than: Annotated[
        float | None, typer.Option(help="Only what was not used for so many days.")
    ] = None,
) -> None:
    """Delete cached features; they are made again when they are needed."""
    from rada.features import FeatureCache

    seconds = None if older_than is None else older_than * 86_400
    freed = FeatureCache().clear(older_than=seconds)
    typer.echo(f"freed {freed / 1e6:.1f} MB")
