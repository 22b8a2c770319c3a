"""`rada serve`: models as an HTTP service."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.options import EncoderOption, Names, grouped
from rada.core.errors import ConfigError
from rada.core.terminal import echo

if TYPE_CHECKING:
    from rada.classifier import Classifier
    from rada.serving import ServeSettings

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,99}")


@grouped
def serve(
    heads: Annotated[
        list[str],
        typer.Argument(
            metavar="MODEL...",
            help="Folders of saved models, or names on the hub, or encoders; NAME=MODEL names one. The first "
            "is asked where a request names none.",
        ),
    ],
    host: Annotated[
        str, typer.Option(help="Address to listen at; others than 127.0.0.1 need a token.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    token_file: Annotated[
        Path | None,
        typer.Option(
            help="File with the secret that requests send as `Authorization: Bearer SECRET`; or the "
            "environment variable RADA_SERVE_TOKEN."
        ),
    ] = None,
    allow_urls: Annotated[
        bool, typer.Option("--allow-urls", help="Read images at public http and https URLs.")
    ] = False,
    allow_host: Annotated[
        list[str] | None,
        typer.Option(help="Another name that requests call this host by; repeat."),
    ] = None,
    max_body_mb: Annotated[float, typer.Option(help="Most megabytes of a request.")] = 32.0,
    max_pixels: Annotated[int, typer.Option(help="Most pixels of an image.")] = 2**26,
    max_images: Annotated[int, typer.Option(help="Most images of a request.")] = 64,
    max_classes: Annotated[int, typer.Option(help="Most classes of a request.")] = 1000,
    max_waiting: Annotated[
        int, typer.Option(help="Most images that wait; further requests are answered 503.")
    ] = 256,
    timeout: Annotated[float, typer.Option(help="Most seconds for a request.")] = 30.0,
    batch_size: Annotated[int, typer.Option(help="Most images that are encoded at once.")] = 16,
    batch_wait_ms: Annotated[
        float, typer.Option(help="Milliseconds that an image waits for others.")
    ] = 2.0,
    processes: Annotated[
        int | None,
        typer.Option(
            help="Processes that read and encode images on a CPU, 0 for threads alone; one for each core if "
            "none is given."
        ),
    ] = None,
    threads: Annotated[
        int | None, typer.Option(help="Threads that encode, instead of processes.")
    ] = None,
    drain: Annotated[
        float, typer.Option(help="Seconds for what is in flight when told to stop.")
    ] = 30.0,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Candidate class instead of the models' own; repeat."),
    ] = None,
    encoder: EncoderOption = None,
    device: Annotated[
        str | None, typer.Option(help="Where the encoders run, such as cuda or mps.")
    ] = None,
    *,
    names: Names,
) -> None:
    """Answer HTTP requests for the class of images: files, base64, URLs; several models; dynamic batches.

    The page /docs shows the interface, /metrics counts for Prometheus.
    """
    from rada.core.extras import check_extra

    check_extra("serve", "rada serve")
    settings = _settings(
        host=host,
        port=port,
        hosts=tuple(allow_host or ()),
        allow_urls=allow_urls,
        max_body=_bytes(max_body_mb),
        max_pixels=max_pixels,
        max_images=max_images,
        max_classes=max_classes,
        max_waiting=max_waiting,
        timeout=timeout,
        batch_size=batch_size,
        batch_wait=batch_wait_ms / 1000,
        processes=processes,
        threads=threads,
        drain=drain,
    )
    token = _token(token_file)
    _run(_open(heads, classes, names, encoder=encoder, device=device), settings, token)


def _run(opened: dict[str, Classifier], settings: ServeSettings, token: str | None) -> None:
    """Serve until told to stop, and say where."""
    from rada.serving import serve

    def started(address: str) -> None:
        for name, classifier in opened.items():
            echo(f"model {name}: {classifier!r}")
        echo(f"Serving at {address}; the interface is at {address}/docs; Ctrl-C stops")

    serve(opened, settings, token, started=started)
    echo("stopped")


def _settings(**values: Any) -> ServeSettings:
    """Return settings whose errors name the options."""
    from rada.serving import ServeSettings

    names = {"max_body": "--max-body-mb, in bytes,", "batch_wait": "--batch-wait-ms, in seconds,"}
    names["hosts"] = "--allow-host"

    class Options(ServeSettings):
        def label(self, field: str) -> str:
            return names.get(field, f"--{field.replace('_', '-')}")

    return Options(**values)


def _bytes(megabytes: float) -> int:
    if not math.isfinite(megabytes * 2**20):
        raise ConfigError(f"--max-body-mb should be a finite number, such as 32, not {megabytes!r}")
    return round(megabytes * 2**20)


def _token(path: Path | None) -> str | None:
    """Return the secret of a file or of the environment; None where there is none."""
    import os

    if path is None:
        return os.environ.get("RADA_SERVE_TOKEN") or None
    try:
        return path.read_text(encoding="utf-8")[:10_000].strip()
    except (OSError, UnicodeError) as error:
        raise ConfigError(
            f"the token's file {str(path)!r} cannot be read: {error}; write the secret into it"
        ) from error


def _open(
    heads: list[str], classes: list[str] | None, names: Names, **options: Any
) -> dict[str, Classifier]:
    """Return the models by name.

    Raises:
        ConfigError: If two have one name, or several are to have one encoder.
        RadaError: If one cannot be loaded.
    """
    from rada.cli.opening import named_classes, open_classifier

    if options["encoder"] is not None and len(heads) > 1:
        raise ConfigError("--encoder belongs to one model: serve it alone, or leave it out")
    found: dict[str, Classifier] = {}
    given = named_classes(classes, names.class_names)
    for text in heads:
        name, place = _named(text)
        if name in found:
            raise ConfigError(
                f"two models are called {name!r}: give each a name of its own, as in OTHER={place}"
            )
        found[name] = open_classifier(
            place, is_model=False, classes=given, templates=names.template, **options
        )
    return found


def _named(text: str) -> tuple[str, str]:
    """Return the name of a model, and where it is.

    Raises:
        ConfigError: If the name cannot stand in a request.

    Example:
        >>> _named("pets=runs/7"), _named("runs/my-model/"), _named("owner/model")
        (('pets', 'runs/7'), ('my-model', 'runs/my-model/'), ('model', 'owner/model'))
    """
    name, equals, place = text.partition("=")
    if not equals or Path(text).exists():
        place = text
        name = (
            Path(text).resolve().name
            if Path(text).exists()
            else text.rstrip("/").rpartition("/")[2]
        )
        name = re.sub(r"[^\w.-]+", "-", name).strip("-.")
    if not _NAME.fullmatch(name) or not place:
        raise ConfigError(
            f"{text!r} gives no name that a request can use: write NAME=MODEL, with letters, digits, '-', "
            "'.' and '_' in the name"
        )
    return name, place
