"""`rada push`: a model on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from rada.cli.options import JsonFlag, print_json
from rada.core.terminal import echo


def push(
    head: Annotated[str, typer.Argument(metavar="MODEL", help="Folder of a saved model.")],
    repository: Annotated[
        str, typer.Argument(metavar="OWNER/NAME", help="The repository; made if there is none.")
    ],
    public: Annotated[
        bool, typer.Option("--public", help="Let everybody see a repository that is made now.")
    ] = False,
    result: Annotated[
        Path | None,
        typer.Option(help="What `rada evaluate MODEL DATA --json` printed, for the model's card."),
    ] = None,
    license: Annotated[
        str | None, typer.Option(help="License of the model, by the hub's name, as apache-2.0.")
    ] = None,
    message: Annotated[str, typer.Option(help="What the commit is called.")] = "A model of rada",
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Print the card, and send nothing.")
    ] = False,
    json: JsonFlag = False,
) -> None:
    """Send a model to the Hugging Face hub, with a card: data, shots, accuracy, what it is not for, code.

    A new repository is private unless --public is given. The token is that of `hf auth login`, or HF_TOKEN.
    """
    from rada.core.errors import DataError
    from rada.core.storage import read_json
    from rada.publishing import push_folder
    from rada.publishing.push import check_repository, prepare

    check_repository(repository)
    found = None if result is None else read_json(result, error=DataError, what="the result")
    if dry_run:
        prepared = prepare(head, repository, result=found, license=license)
        if json:
            print_json(prepared._asdict())
        else:
            echo(prepared.card)
        return
    pushed = push_folder(
        head,
        repository,
        private=not public,
        result=found,
        license=license,
        message=message,
    )
    if json:
        print_json(pushed._asdict())
        return
    echo(f"Pushed {', '.join(pushed.files)} to {pushed.url}")
    if pushed.card_kept:
        echo("The card there is not rada's and was left as it is; --dry-run prints rada's.")
    echo(f"Next:\n  rada predict {repository} IMAGE...")
