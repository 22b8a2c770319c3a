"""The `rada` program: its commands, and how errors and warnings are shown."""

from __future__ import annotations

import io
import logging
import os
import sys
import warnings
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperGroup

from rada._version import __version__
from rada.cli import (
    bench,
    browser_app,
    cache,
    demo,
    doctor,
    encode,
    evaluate,
    explain,
    export,
    finetune,
    fit,
    methods,
    models,
    predict,
    push,
    serve,
)
from rada.cli.endings import told
from rada.cli.options import TakesSettings
from rada.core.errors import RadaError
from rada.core.terminal import echo

__all__ = ["app", "main"]

EXIT_BAD_INPUT = 2
EXIT_INTERRUPTED = 130


class _Commands(TyperGroup):
    """The commands, and how they end before their end."""

    def make_context(self, *args: Any, **options: Any) -> Any:
        """Read the words before the command's name."""
        with told():
            return super().make_context(*args, **options)

    def invoke(self, ctx: Any) -> Any:
        """Run a command."""
        with told(ctx):
            return super().invoke(ctx)


app = typer.Typer(
    name="rada",
    cls=_Commands,
    help="Adapt a vision-language model to your own classes with one small attention layer.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command("demo")(demo.demo)
app.command("fit", cls=TakesSettings)(fit.fit)
app.command("finetune", cls=TakesSettings)(finetune.finetune)
app.command("evaluate")(evaluate.evaluate)
app.command("predict")(predict.predict)
app.command("explain")(explain.explain)
app.command("app")(browser_app.app)
app.command("export")(export.export)
app.command("serve")(serve.serve)
app.command("push")(push.push)
app.command("encode")(encode.encode)
app.command("methods")(methods.methods)
app.command("models")(models.models)
app.command("datasets")(models.datasets)
app.command("doctor")(doctor.doctor)
app.add_typer(cache.app, name="cache")
app.add_typer(bench.app, name="bench")


def _version(wanted: bool) -> None:
    if wanted:
        echo(f"rada {__version__}")
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Adapt a vision-language model to your own classes with one small attention layer."""


def _show_warning(message: Warning | str, category: type[Warning], *_: object) -> None:
    # Libraries warn about themselves; only what concerns the user's input is worth a line.
    if category is UserWarning or category.__module__.startswith("rada"):
        echo(f"warning: {message}", err=True)


class _OnStandardError(logging.Handler):
    """Shows what the library tells of its work."""

    def emit(self, record: logging.LogRecord) -> None:
        echo(record.getMessage(), err=True)


def _show_messages() -> None:
    logger = logging.getLogger("rada")
    logger.setLevel(logging.INFO)
    if not any(isinstance(handler, _OnStandardError) for handler in logger.handlers):
        logger.addHandler(_OnStandardError())


def main() -> NoReturn:
    """Run the command line and exit: 0 well, 2 for bad input, 130 when interrupted."""
    _show_messages()
    warnings.showwarning = _show_warning  # type: ignore[assignment]
    for name in ("stdout", "stderr"):
        if getattr(sys, name) is None:  # closed, as by `>&-`: the next file would take its number
            setattr(sys, name, Path(os.devnull).open("w", encoding="utf-8"))  # noqa: SIM115
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a name may be none of the terminal's code page
            stream.reconfigure(errors="backslashreplace")
    try:
        app(prog_name="rada")
    except RadaError as error:
        echo(f"error: {error}", err=True)
        sys.exit(EXIT_BAD_INPUT)
    except KeyboardInterrupt:
        echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    sys.exit(0)
