"""`rada explain`: why images are given their classes, on one page."""

from __future__ import annotations

import itertools
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rada.cli.options import (
    EncoderOption,
    JsonFlag,
    ModelFolder,
    Names,
    OnlyModel,
    Reading,
    Strength,
    configured,
    grouped,
    print_json,
)
from rada.core.terminal import bold, echo, screen

if TYPE_CHECKING:
    from rada.data.images import ImageLike
    from rada.explain import Explainer, ImageExplanation

MOST_IMAGES = 100
"""More would make a page that no browser likes."""


@grouped
def explain(
    model_folder: ModelFolder,
    paths: Annotated[
        list[str] | None,
        typer.Argument(help="Images, folders, URLs or tables; - reads one path a line from stdin."),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="Folder for the page, in HTML.")] = None,
    train: Annotated[
        str | None,
        typer.Option(
            help="The images that the model was trained on, to show the most similar ones."
        ),
    ] = None,
    target: Annotated[
        str | None, typer.Option(help="Class to explain instead of the predicted one.")
    ] = None,
    against: Annotated[
        str | None, typer.Option(help="Class to compare it with; the best other one if not given.")
    ] = None,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Candidate class instead of the model's; repeat."),
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="What to say: classes, dimensions, words, where (occlusion, gradients, both, none), "
            "difference, grid, steps, neighbours; repeat.",
        ),
    ] = None,
    model: OnlyModel = None,
    encoder: EncoderOption = None,
    strength: Strength = None,
    json: JsonFlag = False,
    *,
    names: Names,
    reading: Reading,
) -> None:
    """Explain predictions: the exact sum behind them, plain words, heat maps, similar images."""
    from rada.cli.opening import named_classes, open_classifier, split_arguments
    from rada.cli.places import Places
    from rada.core.errors import ConfigError, DataError
    from rada.core.output import claim
    from rada.evaluation import environment
    from rada.evaluation.provenance import command_line
    from rada.explain import ExplainConfig, Explainer
    from rada.explain.page import write_explanations

    first, places = split_arguments(model_folder, paths or [], model)
    if not places:
        raise DataError("there is nothing to explain: name images, folders, tables or -")
    if out is None and not json:
        raise ConfigError(
            "the page needs a folder: --out DIR; --json prints the explanations instead"
        )
    config = configured(ExplainConfig, None, settings)
    if out is not None:
        with claim(out, "explanation", inputs=[*places, train]):  # refused before the work
            pass
    classifier = open_classifier(
        first,
        is_model=model is not None,
        encoder=encoder,
        classes=named_classes(classes, names.class_names),
        templates=names.template,
        data=places[0] if len(places) == 1 else "-",
        **reading.options(),
    )
    if strength is not None:
        if not classifier.is_fitted:
            raise ConfigError("--strength belongs to a saved model: an encoder alone has none")
        classifier.strength = strength
    explainer = Explainer(classifier, config, train=train)
    found = _explained(
        explainer, Places(places, skip_bad=reading.skip_bad), target, against, reading.skip_bad
    )
    if not found:
        raise DataError("no image could be explained: all of them were left out")
    if out is not None:
        facts = {"command": command_line(), "environment": environment()}
        page = write_explanations(out, found, head=first, config=config.to_dict(), **facts)
    if json:
        print_json({"explanations": [entry.to_dict() for entry in found]})
        return
    for entry in found:
        echo(entry.name)
        for line in entry.lines():
            echo(f"  {line}")
    screen().print("Page: ", bold(page), sep="", soft_wrap=True)


def _explained(
    explainer: Explainer,
    images: Iterable[ImageLike],
    target: str | None,
    against: str | None,
    skip_bad: bool,
) -> list[ImageExplanation]:
    """Explain images one by one, unless there are too many for one page."""
    from rada.core.errors import DataError
    from rada.core.progress import progress_bar

    found: list[ImageExplanation] = []
    asked = list(itertools.islice(images, MOST_IMAGES + 1))
    if len(asked) > MOST_IMAGES:
        raise DataError(
            f"there are more than {MOST_IMAGES} images, too many for one page: name fewer of them"
        )
    with progress_bar("Explaining", len(asked), enabled=None, unit="img") as advance:
        for image in asked:
            try:
                found.append(explainer.explain([image], target=target, against=against))
            except DataError as error:
                if not skip_bad:
                    raise
                echo(f"skipped: {error}", err=True)
            advance(1)
    return found
