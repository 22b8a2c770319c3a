"""`rada predict`: name the class of pictures, as a stream."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rada.cli.options import (
    ClassNames,
    Device,
    Encoder,
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
    from rada.data.images import ImageLike
    from rada.predictions import StreamAnswer
    from rada.test_time import Explanation
    from rada.test_time_adapter import TestTimeAdapter

    Answer = tuple[StreamAnswer, Explanation | None]


def predict(
    head: HeadOrModel,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders, URLs or tables; - reads an image, or one path a line, from stdin."
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
    encoder: Encoder = None,
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
    from rada.cli.answer_lines import AnswerLines
    from rada.cli.places import Places
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
    images = Places(places)
    classifier = open_classifier(
        head_or_model,
        is_model=model is not None,
        encoder=encoder,
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
    asked = images if out is None else _kept(images, out)
    if explain and adapter is not None:
        answers = _explained(adapter, asked, top_k, skip_bad)
    else:
        found = (adapter or classifier).predict_stream(asked, top_k)
        answers = ((answer, None) for answer in found)
    with nullcontext() if out is None else atomic_path(out, overwrite=overwrite) as temporary:
        stream = sys.stdout if temporary is None else temporary.open("w", encoding="utf-8")
        try:
            lines = AnswerLines(stream, min(top_k, len(classifier.classes)), json=json)
            for answer, explanation in answers:
                lines.write(answer, explanation)
            lines.begin()
        finally:
            if temporary is not None:
                stream.close()
    if lines.skipped:
        echo(f"{lines.skipped} unreadable images were left out", err=True)


def _kept(found: Iterable[ImageLike], out: Path) -> Iterator[ImageLike]:
    """Pass on what is read; a picture is never replaced by what is said of it."""
    from rada.core.output import check_file

    for entry in found:
        check_file(out, overwrite=True, inputs=[entry])
        yield entry


def _explained(
    adapter: TestTimeAdapter, found: Iterable[ImageLike], top_k: int, skip_bad: bool
) -> Iterator[Answer]:
    """Yield answers with their explanations, picture by picture."""
    from rada.core.errors import DataError
    from rada.predictions import Prediction, StreamAnswer

    for index, picture in enumerate(found):
        name = str(picture) if isinstance(picture, str | Path) else f"picture {index}"
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
