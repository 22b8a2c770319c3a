"""How a command ends before its end: by wrong words, by Ctrl-C, or by an output that takes no more."""

from __future__ import annotations

import contextlib
import difflib
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import typer

from rada.core.errors import ConfigError, RadaError, StorageError
from rada.core.printable import shortened
from rada.core.terminal import echo

__all__ = ["resumable", "told"]

# Typer brings the classes of click along, or a copy of its own, and names only this one of them.
_UsageError: Any = typer.BadParameter.__base__
_KINDS = {int: "an integer", float: "a number"}
_SHOWN = 60


@contextlib.contextmanager
def told(context: Any = None) -> Iterator[None]:
    """Let a command that does not end well say why in one line.

    A reader of the output that has gone away, as `head` does, is no failure.

    Args:
        context: Typer's context of the program, once its own words are read.

    Raises:
        typer.Exit: When interrupted, or when nobody reads the output any more.
        ConfigError: If the command line cannot be understood.
        StorageError: If standard output cannot be written.
    """
    try:
        yield
    except BrokenPipeError as error:  # typer would call it a failure
        _drop_output()
        raise typer.Exit(0) from error
    except KeyboardInterrupt as stopped:  # typer would end without a word
        echo(str(stopped) or "interrupted", err=True)
        raise typer.Exit(128 + getattr(stopped, "signal", signal.SIGINT)) from stopped
    except _UsageError as error:
        if type(error).__name__ == "NoArgsIsHelpError":  # it is the help, not an error
            raise
        raise ConfigError(_usage_line(error, context)) from error
    except OSError as error:
        if isinstance(error, RadaError) or error.filename is not None or not _is_output_broken():
            raise
        from rada.core.storage import cause_of

        _drop_output()
        raise StorageError(f"cannot write standard output: {cause_of(error)}") from error


def _cached(given: Mapping[str, Any]) -> bool:
    return not given.get("no_cache")


def resumable(
    command: Callable[..., None], *, keeps: Callable[[Mapping[str, Any]], bool] = _cached
) -> Callable[..., None]:
    """Let a command say after Ctrl-C that it goes on where it stopped.

    Args:
        command: The command.
        keeps: Whether it has kept what was done before training, by its options; the cache does.
    """

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> None:
        try:
            command(*args, **given)
        except KeyboardInterrupt as stopped:
            said = str(stopped)
            if hasattr(stopped, "signal") or not (said or keeps(given)):
                raise
            raise KeyboardInterrupt(
                f"{said or 'interrupted'}; the same command goes on from there"
            ) from stopped

    return run


def _drop_output() -> None:
    """Send what is still to be written nowhere: at its exit Python would complain about it."""
    with contextlib.suppress(OSError):  # an output that is no file
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, sys.stdout.fileno())
        os.close(nowhere)


def _is_output_broken() -> bool:
    """Whether standard output is what could not be written."""
    try:
        sys.stdout.flush()  # a buffer may still hold what did not go out
        sys.stdout.write("\n")
        sys.stdout.flush()
    except OSError:
        return True
    return False


def _usage_line(error: Any, context: Any) -> str:
    """Say what is wrong with the command line, and where its help is."""
    path = "rada"
    if error.ctx is not None:
        path = error.ctx.command_path
    elif context is not None:  # the parser does not say of which command
        path = f"{context.command_path} {context.invoked_subcommand or ''}".strip()
    said = _wrong_option(error) or _bad_value(error)
    if said is None:
        said = " ".join(error.format_message().split()).removesuffix(".")
        said = said[:1].lower() + said[1:]
    return f"{said} ({path} --help)"


def _wrong_option(error: Any) -> str | None:
    """Return which option there is not, and which one is meant; None for other errors."""
    if not hasattr(error, "possibilities"):
        return None
    near = difflib.get_close_matches(error.option_name, error.possibilities or (), n=1, cutoff=0.7)
    hint = f": did you mean {near[0]}?" if near else ""
    return f"there is no option {error.option_name}{hint}"


def _bad_value(error: Any) -> str | None:
    """Return which option has which value, and what it should be; None for other errors."""
    param, found = getattr(error, "param", None), getattr(error.__cause__, "errors", None)
    if param is None:
        return None
    is_option = param.param_type_name == "option"
    name = param.opts[0] if is_option else (param.metavar or param.name.upper())
    if not error.message:
        return f"the {'option' if is_option else 'argument'} {name} is missing"
    if found is None:  # an older typer names the value, but not its option
        return f"{name}: {error.message.removesuffix('.')}"
    shown = shortened(found()[0]["input"], _SHOWN)
    descriptor = param.type_descriptor
    kind = _KINDS.get(descriptor.annotation)
    if kind is None:
        return f"{name} cannot be {shown}: {error.message}"
    least, most = descriptor.parameter_info.min, descriptor.parameter_info.max
    if least is not None:
        kind += f", {least} or more" if most is None else f" from {least} to {most}"
    return f"{name} should be {kind}, not {shown}"
