"""`rada predict`: name the class of pictures, as a stream."""

from __future__ import annotations

import csv
import io
import json as jsonlib
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

from rada.cli.options import Device, JsonFlag, NoCache, SkipBad, Workers, cache_option

if TYPE_CHECKING:
    from PIL.Image import Image

    from rada.classifier import RAdaClassifier


def predict(
    head: Annotated[str, typer.Argument(help="Folder of a saved head.")],
    paths: Annotated[
        list[str],
        typer.Argument(
            help="Pictures or folders; - reads a picture, or one path a line, from stdin."
        ),
    ],
    top_k: Annotated[int, typer.Option(min=1, help="Classes to name for each picture.")] = 1,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Candidate class instead of the head's; repeat."),
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Mask strength in [0, 1] instead of the head's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; standard output if none.")
    ] = None,
    skip_bad: SkipBad = False,
    no_cache: NoCache = False,
    workers: Workers = None,
    device: Device = None,
    json: JsonFlag = False,
) -> None:
    """Name the class of each picture: CSV, or JSON lines with --json, as answers come."""
    from rada.classifier import RAdaClassifier
    from rada.storage import atomic_path

    classifier = RAdaClassifier.from_pretrained(
        head, device=device, cache=cache_option(no_cache), workers=workers, skip_bad=skip_bad
    )
    if classes:
        classifier.classes = classes
    if strength is not None:
        classifier.strength = strength
    with nullcontext() if out is None else atomic_path(out) as temporary:
        stream = sys.stdout if temporary is None else temporary.open("w", encoding="utf-8")
        try:
            skipped = _write_answers(classifier, paths, top_k, stream, json)
        finally:
            if temporary is not None:
                stream.close()
    if skipped:
        typer.echo(f"{skipped} unreadable pictures were left out", err=True)


def _write_answers(
    classifier: RAdaClassifier, paths: list[str], top_k: int, stream: TextIO, json: bool
) -> int:
    if not json:
        stream.write(_csv_line(["path", *_columns(min(top_k, len(classifier.classes)))]))
    skipped = 0
    for name, ranked, reason in classifier.predict_stream(pictures(paths), top_k):
        if ranked is None:
            skipped += 1
            typer.echo(f"skipped: {reason}", err=True)
        elif json:
            answer = {"path": name, "predictions": [entry._asdict() for entry in ranked]}
            stream.write(jsonlib.dumps(answer, ensure_ascii=False) + "\n")
        else:
            cells = [cell for entry in ranked for cell in (entry.name, f"{entry.probability:.4f}")]
            stream.write(_csv_line([name, *cells]))
        stream.flush()
    return skipped


def _columns(top_k: int) -> list[str]:
    if top_k == 1:
        return ["class", "probability"]
    return [f"{name}_{rank}" for rank in range(1, top_k + 1) for name in ("class", "probability")]


def _csv_line(cells: list[Any]) -> str:
    line = io.StringIO()
    csv.writer(line, lineterminator="\n").writerow(cells)
    return line.getvalue()


def pictures(paths: list[str]) -> Iterator[Path | Image]:
    """Yield the pictures that the arguments name, one by one; folders in a stable order.

    Raises:
        DataError: If a path does not exist or a folder holds no picture.
    """
    from rada.data import expand_pictures

    for path in paths:
        if path == "-":
            yield from _standard_input()
        else:
            yield from expand_pictures(path)


def _standard_input() -> Iterator[Path | Image]:
    """Yield the picture on standard input, or the pictures whose paths stand there line by line."""
    from rada.data import open_image

    stream = cast(io.BufferedReader, sys.stdin.buffer)
    start = stream.peek(16)[:16]
    # Text paths hold no control bytes; every picture format begins with some.
    if any(byte < 9 or byte > 126 for byte in start) or start.startswith((b"GIF8", b"RIFF")):
        yield open_image(io.BytesIO(stream.read()))
        return
    for line in stream:
        path = line.decode(errors="surrogateescape").strip()
        if path:
            yield Path(path)
