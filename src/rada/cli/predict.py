"""`rada predict`: name the class of images, as a stream."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from rada.cli.options import (
    EncoderOption,
    Extracting,
    JsonLinesFlag,
    ModelFolder,
    Names,
    OnlyModel,
    Strength,
    TestTime,
    grouped,
)
from rada.core.terminal import echo

if TYPE_CHECKING:
    from rada.classifier import Classifier
    from rada.cli.answer_lines import Explained
    from rada.data.images import ImageLike
    from rada.features import Features, FeatureStore
    from rada.predictions import Prediction, StreamAnswer
    from rada.test_time_adapter import TestTimeAdapter

    Answer = tuple[StreamAnswer, Explained | None]


@grouped
def predict(
    model_folder: ModelFolder,
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            help="Images, folders, URLs or tables, or one features file; - reads an image, or one path a "
            "line, from stdin."
        ),
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="Classes to name for each image.")] = 1,
    classes: Annotated[
        list[str] | None,
        typer.Option("--class", help="Candidate class instead of the model's; repeat."),
    ] = None,
    model: OnlyModel = None,
    encoder: EncoderOption = None,
    explain: Annotated[
        bool,
        typer.Option(
            "--explain",
            help="Say in a few lines why; with --test-time rada also which views were kept.",
        ),
    ] = False,
    strength: Strength = None,
    out: Annotated[
        Path | None, typer.Option(help="File to write; standard output if none.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,
    json: JsonLinesFlag = False,
    *,
    names: Names,
    test_time: TestTime,
    reading: Extracting,
) -> None:
    """Name the class of each image: CSV, or JSON lines with --json, as predictions come."""
    from rada.cli.answer_lines import AnswerLines
    from rada.cli.opening import (
        check_test_time,
        named_classes,
        open_classifier,
        split_arguments,
        test_time_adapter,
    )
    from rada.cli.places import Places, features_of
    from rada.core.errors import DataError
    from rada.core.output import check_file
    from rada.core.storage import atomic_path

    check_test_time(test_time)
    first, places = split_arguments(model_folder, paths or [], model)
    if not places:
        raise DataError("there is nothing to predict: name images, folders, tables or -")
    if out is not None:
        check_file(out, overwrite=overwrite, inputs=places)
    features = features_of(places)
    images = Places(places, skip_bad=reading.skip_bad) if features is None else features
    classifier = open_classifier(
        first,
        is_model=model is not None,
        encoder=encoder,
        classes=named_classes(classes, names.class_names),
        templates=names.template,
        data=places[0] if len(places) == 1 else "-",
        **reading.options(),
    )
    adapter = test_time_adapter(test_time, classifier, strength, names.template)
    if adapter is not None:
        # Too few views: say so before the first line.
        adapter.method.check_config(adapter.config_used())
    if features is None:
        classifier.inputs.slot.get()  # and whatever is wrong with the encoder
    asked = _kept(images, out) if out is not None and isinstance(images, Places) else images
    if explain:
        answers = _explained(_explainer(adapter, classifier), asked, top_k, reading.skip_bad)
    else:
        found = (adapter or classifier).predict_stream(asked, top_k)
        answers = ((answer, None) for answer in found)
    with nullcontext() if out is None else atomic_path(out, overwrite=overwrite) as temporary:
        stream = sys.stdout if temporary is None else temporary.open("w", encoding="utf-8")
        try:
            lines = AnswerLines(stream, min(top_k, len(classifier.candidates())), json=json)
            for answer, explanation in answers:
                lines.write(answer, explanation)
            lines.begin()
        finally:
            if temporary is not None:
                stream.close()
    _tell_skipped(lines.skipped)


def _tell_skipped(number: int) -> None:
    """Say how many images were left out, if any."""
    from rada.report.text import count

    if number:
        echo(f"{count(number, 'unreadable image')} left out", err=True)


def _kept(found: Iterable[ImageLike], out: Path) -> Iterator[ImageLike]:
    """Pass on what is read; an image is never replaced by what is said of it."""
    from rada.core.output import check_file

    for entry in found:
        check_file(out, overwrite=True, inputs=[entry])
        yield entry


def _explainer(
    adapter: TestTimeAdapter | None, classifier: Classifier
) -> Callable[[ImageLike | Features], tuple[list[Prediction], Explained]]:
    """Return what predicts and explains one image."""
    from rada.explain import ExplainConfig, Explainer
    from rada.features import Features
    from rada.predictions import Prediction

    if adapter is not None:

        def adapted(image: ImageLike | Features) -> tuple[list[Prediction], Explained]:
            found = adapter.explain(image)
            return [Prediction(entry.name, entry.after) for entry in found.classes], found

        return adapted
    explainer = Explainer(classifier, ExplainConfig(where="none", neighbours=0))

    def plain(image: ImageLike | Features) -> tuple[list[Prediction], Explained]:
        one = image if isinstance(image, Features) else [image]
        ranked = classifier.predict(one, top_k=len(classifier.candidates()))[0]
        return ranked, explainer.explain(one)

    return plain


def _explained(
    explain: Callable[[ImageLike | Features], tuple[list[Prediction], Explained]],
    found: Iterable[ImageLike] | Features | FeatureStore,
    top_k: int,
    skip_bad: bool,
) -> Iterator[Answer]:
    """Yield predictions with their explanations, image by image."""
    from rada.core.errors import DataError
    from rada.features import Features, FeatureStore
    from rada.predictions import StreamAnswer

    images: Iterable[ImageLike | Features] = (
        _rows(found) if isinstance(found, Features | FeatureStore) else found
    )
    for index, image in enumerate(images):
        name = str(image) if isinstance(image, str | Path) else f"image {index}"
        if isinstance(image, Features):
            name = image.ids[0]
        try:
            ranked, explanation = explain(image)
        except DataError as error:
            if not skip_bad:
                raise
            yield StreamAnswer(name, None, str(error)), None
            continue
        yield StreamAnswer(name, ranked[:top_k], ""), explanation


def _rows(features: Features | FeatureStore) -> Iterator[Features]:
    """Yield the features of each image alone."""
    for part in features.parts():
        for index in range(len(part)):
            yield part.subset([index])
