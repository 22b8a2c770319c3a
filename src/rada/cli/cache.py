"""`rada cache`: where features are kept, how much, and how to let go of them."""

from __future__ import annotations

from typing import Annotated

import typer

from rada.cli.options import JsonFlag, print_json
from rada.core.terminal import echo, screen

app = typer.Typer(
    help="The cache: image features, and what else can be made again.", no_args_is_help=True
)


@app.command("path")
def path() -> None:
    """Print the folder of the cache ($RADA_CACHE, or the platform's)."""
    from rada.core.caches import cache_root

    typer.echo(cache_root())  # for programs: exact


@app.command("list")
def list_entries(json: JsonFlag = False) -> None:
    """List what the cache holds: features by encoder, then the rest."""
    import dataclasses
    import datetime

    from rada.cli.tables import plain_table
    from rada.core.caches import list_parts
    from rada.features import FeatureCache

    features, others = FeatureCache().list(), list_parts()
    if json:
        print_json(
            {
                "features": [dataclasses.asdict(entry) for entry in features],
                "others": [dataclasses.asdict(entry) for entry in others],
            }
        )
        return
    if not features and not others:
        echo("the cache is empty")
        return
    for head, rows in (
        (("encoder", "images"), [(e.encoder, e.images, e) for e in features]),
        (("other", "files"), [(e.name, e.files, e) for e in others]),
    ):
        table = plain_table(None, *head, "MB", "last used")
        for name, count, entry in rows:
            used = f"{datetime.datetime.fromtimestamp(entry.last_used):%Y-%m-%d %H:%M}"
            table.add_row(name, str(count), f"{entry.bytes / 1e6:.1f}", used)
        if rows:
            screen().print(table)


@app.command("clear")
def clear(
    older_than: Annotated[
        float | None, typer.Option(help="Only what was not used for so many days.")
    ] = None,
) -> None:
    """Delete what is cached; it is made, or copied, again when it is needed."""
    from rada.core.caches import clear_parts
    from rada.features import FeatureCache

    seconds = None if older_than is None else older_than * 86_400
    freed = FeatureCache().clear(older_than=seconds) + clear_parts(older_than=seconds)
    echo(f"freed {freed / 1e6:.1f} MB")
