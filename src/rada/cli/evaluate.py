"""`rada evaluate`: zero-shot and adapted model side by side on labelled pictures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

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
    print_json,
)
from rada.core.terminal import bold, screen

if TYPE_CHECKING:
    from rada.classifier import Evaluated, RAdaClassifier


def evaluate(
    head: HeadOrModel,
    data: Annotated[
        str | None,
        typer.Argument(
            help="Labelled pictures, as for fit; their classes may be ones the head never saw."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to use: test, else val, else all, if not given.")
    ] = None,
    strength: Annotated[
        float | None, typer.Option(help="Mask strength in [0, 1] instead of the head's.")
    ] = None,
    class_names: ClassNames = None,
    template: Templates = None,
    model: OnlyModel = None,
    encoder: Encoder = None,
    test_time: TestTime = False,
    views: TestTimeViews = None,
    online: TestTimeOnline = False,
    test_time_config: TestTimeConfig = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a report in HTML.")] = None,
    skip_bad: SkipBad = False,
    no_cache: NoCache = False,
    workers: Workers = None,
    device: Device = None,
    json: JsonFlag = False,
) -> None:
    """Judge a head: accuracy, per class, confusion and calibration, beside zero-shot."""
    from rada.cli.test_time import (
        TestTimeOptions,
        open_classifier,
        split_arguments,
    )
    from rada.core.errors import DataError
    from rada.core.output import claim
    from rada.evaluation import Timer, environment
    from rada.evaluation.provenance import command_line
    from rada.inputs import check_named

    options = TestTimeOptions(test_time, test_time_config, views, online, strength)
    head_or_model, places = split_arguments(head, [] if data is None else [data], model)
    if len(places) != 1:
        raise DataError("one folder, table or data set is evaluated: rada evaluate HEAD DATA")
    check_named(places[0])
    if report is not None:
        with claim(report, "report", inputs=places):  # refused before the work, not after it
            pass
    with Timer() as timer:
        classifier = open_classifier(
            head_or_model,
            is_model=model is not None,
            encoder=encoder,
            templates=template,
            device=device,
            cache=cache_option(no_cache),
            workers=workers,
            skip_bad=skip_bad,
        )
        judge = options.adapter(classifier) or classifier
        result, evaluated = judge.evaluate(places[0], split=split, class_names=class_names)
    result |= {
        "head": None if classifier.trained is None else head_or_model,
        "environment": environment(),
        "timing": timer.to_dict(),
        "command": command_line(),
    }
    page = None if report is None else write(report, result, classifier, evaluated)
    if json:
        print_json(result)
        return
    _print(result, page)


def write(
    directory: Path, result: dict[str, Any], classifier: RAdaClassifier, evaluated: Evaluated
) -> Path:
    """Write the report page and, beside it, the result as JSON."""
    from rada.core.output import claim
    from rada.evaluation import shareable
    from rada.report import report_examples, write_report

    examples: list[dict[str, Any]] = []
    if evaluated.pictures is not None and not evaluated.features.skipped:
        pictures = evaluated.pictures.rename(evaluated.classes)
        examples = report_examples(pictures, evaluated.zero_shot, evaluated.adapted)
    history = [] if classifier.trained is None else classifier.trained.history
    training = result.get("training", {})
    facts = {
        "dataset": result["data"],
        "encoder": (result["encoder"] or {}).get("name"),
        "shots": training.get("shots"),
        "seed": training.get("seed"),
        "config": training.get("config", {}),
    }
    with claim(directory, "report") as folder:
        folder.take("index.html", "result.json")
        page = write_report(directory, result | facts, examples=examples, curve=history)
        folder.write_json("result.json", shareable(result))
    return page


def _print(result: dict[str, Any], page: Path | None) -> None:
    from rada.cli.tables import class_table, comparison_table
    from rada.report.rows import failures
    from rada.report.text import count

    terminal = screen()
    terminal.print(comparison_table(result))
    if len(result["classes"]) <= 30:
        terminal.print(class_table(result))
    lines = [*failures(result), *_head_lines(result)]
    if result["skipped"]:
        lines.append(f"{count(len(result['skipped']), 'unreadable image')} left out.")
    for line in lines:
        terminal.print(line, soft_wrap=True)
    if page is not None:
        terminal.print("Report: ", bold(page), sep="", soft_wrap=True)


def _head_lines(result: dict[str, Any]) -> list[str]:
    """Say what training changed, how many of the classes it saw and with what strength."""
    from rada.report.text import count

    changed = result["changed"]
    if changed is None:
        return []
    classes = count(len(result["classes"]), "class", "classes")
    strength = "" if result["head"] is None else f" Mask strength {result['strength']:g}."
    return [
        f"{changed['wrong_to_right']} images went from wrong to right, "
        f"{changed['right_to_wrong']} from right to wrong.",
        f"The model was trained on {result['trained_classes']} of these {classes}.{strength}",
    ]
