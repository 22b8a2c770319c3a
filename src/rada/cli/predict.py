"""`rada predict`: name the class of pictures, as a stream."""

from __future__ import annotations

import csv
import io
import json as jsonlib
import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TextIO, cast

import typer

from rada.cli.options import (
    ClassNames,
    Device,
    HeadOrModel,
    JsonFlag,
    NoCache,
    OnlyModel,
    SkipBad,
    Templates,
    TestTime,
    TestTimeConfig,
    TestTimeOnline,
    TestTimeViews,
    Workers,
    cache_option,
)
from rada.core.terminal import echo

if TYPE_CHECKING:
    from PIL.Image import Image

    from rada.predictions import StreamAnswer
    from rada.test_time import Explanation
    from rada.test_time.adapter import TestTimeAdapter

    Answer = tuple[StreamAnswer, Explanation | None]


TABLES = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")


def predict(
    head: HeadOrModel,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Pictures, folders or tables; - reads a picture, or one path a line, from stdin."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to name for each picture.")] = 1,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Candidate class instead of the head's; repeat."),
    ] = None,
    class_names: ClassNames = None,
    template: Templates = None,
    model: OnlyModel = None,
    test_time: TestTime = False,
    views: TestTimeViews = None,
    online: TestTimeOnline = False,
    test_time_config: TestTimeConfig = None,
    explain: Annotated[
        bool,
        typer.Option("--explain", help="With --test-time: tell views kept and what changed."),
    ] = False,
    strength: Annotated[
        float | None, typer.Option(help="Mask strength in [0, 1] instead of the head's.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; standard output if none.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    skip_bad: SkipBad = False,
    no_cache: NoCache = False,
    workers: Workers = None,
    device: Device = None,
    json: JsonFlag = False,
) -> None:
    """Name the class of each picture: CSV, or JSON lines with --json, as answers come."""
    from rada.cli.test_time import (
        TestTimeOptions,
        named_classes,
        open_classifier,
        split_arguments,
    )
    from rada.core.errors import DataError
    from rada.core.output import check_file
    from rada.core.storage import atomic_path

    options = TestTimeOptions(test_time, test_time_config, views, online, strength, explain)
    head_or_model, places = split_arguments(head, paths or [], model)
    if not places:
        raise DataError("there is nothing to predict: name pictures, folders, tables or -")
    if out is not None:
        check_file(out, overwrite=overwrite, inputs=places)
    classifier = open_classifier(
        head_or_model,
        is_model=model is not None,
        classes=named_classes(classes, class_names),
        templates=template,
        data=places[0] if len(places) == 1 else "-",
        device=device,
        cache=cache_option(no_cache),
        workers=workers,
        skip_bad=skip_bad,
    )
    adapter = options.adapter(classifier)
    if adapter is not None:
        adapter.config.kept(adapter.config.views)  # too few views: say so before the first line
    asked = pictures(places) if out is None else _kept(pictures(places), out)
    if explain and adapter is not None:
        answers = _explained(adapter, asked, top_k, skip_bad)
    else:
        found = (adapter or classifier).predict_stream(asked, top_k)
        answers = ((answer, None) for answer in found)
    with nullcontext() if out is None else atomic_path(out, overwrite=overwrite) as temporary:
        stream = sys.stdout if temporary is None else temporary.open("w", encoding="utf-8")
        try:
            columns = min(top_k, len(classifier.classes))
            skipped = _write_answers(answers, columns, stream, json)
        finally:
            if temporary is not None:
                stream.close()
    if skipped:
        echo(f"{skipped} unreadable pictures were left out", err=True)


def _kept(found: Iterable[Path | Image], out: Path) -> Iterator[Path | Image]:
    """Pass on what is read; a picture is never replaced by what is said of it."""
    from rada.core.output import check_file

    for entry in found:
        check_file(out, overwrite=True, inputs=[entry])
        yield entry


def _explained(
    adapter: TestTimeAdapter, found: Iterable[Path | Image], top_k: int, skip_bad: bool
) -> Iterator[Answer]:
    """Yield answers with their explanations, picture by picture."""
    from rada.core.errors import DataError
    from rada.predictions import Prediction, StreamAnswer

    for index, picture in enumerate(found):
        name = str(picture) if isinstance(picture, Path) else f"picture {index}"
        try:
            explanation = adapter.explain(picture)
        except DataError as error:
            if not skip_bad:
                raise
            yield StreamAnswer(name, None, str(error)), None
            continue
        best = explanation.classes[:top_k]
        ranked = [Prediction(entry.name, entry.after) for entry in best]
        yield StreamAnswer(name, ranked, ""), explanation


def _write_answers(answers: Iterable[Answer], columns: int, stream: TextIO, json: bool) -> int:
    if not json:
        stream.write(_csv_line(["path", *_columns(columns)]))
    skipped = 0
    for (name, ranked, reason), explanation in answers:
        if ranked is None:
            skipped += 1
            echo(f"skipped: {reason}", err=True)
        elif json:
            answer: dict[str, Any] = {
                "path": name,
                "predictions": [entry._asdict() for entry in ranked],
            }
            if explanation is not None:
                answer["explanation"] = explanation.to_dict()
            stream.write(jsonlib.dumps(answer, ensure_ascii=False) + "\n")
        else:
            cells = [cell for entry in ranked for cell in (entry.name, f"{entry.probability:.4f}")]
            stream.write(_csv_line([name, *cells]))
            if explanation is not None:
                # Beside the table, which stays one for programs.
                echo("\n".join(f"  {line}" for line in explanation.lines()), err=True)
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
        elif Path(path).suffix.lower() in TABLES:
            yield from _table(path)
        else:
            yield from expand_pictures(path)


def _table(path: str) -> Iterator[Path | Image]:
    """Yield the pictures of all splits of a table."""
    from rada.data import open_dataset

    for split in open_dataset(path).splits.values():
        for index in range(len(split)):
            yield split.path(index) or split.load(index)


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
