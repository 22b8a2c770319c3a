"""`rada evaluate`: zero-shot and adapted model side by side on labelled images."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.options import (
    EncoderOption,
    Extracting,
    JsonFlag,
    ModelFolder,
    Names,
    OnlyModel,
    OutOfDistribution,
    Strength,
    TestTime,
    grouped,
    named_data,
    print_json,
)
from rada.core.terminal import bold, screen

if TYPE_CHECKING:
    from rada.classifier import Classifier
    from rada.evaluation import Evaluation
    from rada.explain import Learned


@grouped
def evaluate(
    model_folder: ModelFolder,
    data: Annotated[
        str | None,
        typer.Argument(
            help="Labelled images, as for fit; their classes may be ones the model never saw."
        ),
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="Split to use: test, else val, else all, if not given.")
    ] = None,
    ood: OutOfDistribution = None,
    train: Annotated[
        str | None,
        typer.Option(help="The training images, to look for near duplicates of test images."),
    ] = None,
    strength: Strength = None,
    model: OnlyModel = None,
    encoder: EncoderOption = None,
    report: Annotated[Path | None, typer.Option(help="Folder for a report in HTML.")] = None,
    json: JsonFlag = False,
    *,
    names: Names,
    test_time: TestTime,
    reading: Extracting,
) -> None:
    """Evaluate a model: accuracy, per class, confusion and calibration, beside zero-shot."""
    from rada.cli.opening import (
        check_test_time,
        open_classifier,
        split_arguments,
        test_time_adapter,
    )
    from rada.core.errors import ConfigError, DataError
    from rada.core.extras import check_extra
    from rada.core.output import claim
    from rada.evaluation import Timer, environment
    from rada.evaluation.provenance import command_line
    from rada.inputs import check_named

    check_test_time(test_time)
    first, places = split_arguments(model_folder, [] if data is None else [data], model)
    if len(places) != 1:
        raise DataError("one folder, table or data set is evaluated: rada evaluate MODEL DATA")
    others = named_data(ood)
    if others and test_time.test_time is not None:
        raise ConfigError(
            f"--ood {next(iter(others))!r} is not evaluated with --test-time: evaluate that data in a run of "
            "its own, or leave one of them out"
        )
    for spec in (places[0], *others.values(), *([] if train is None else [train])):
        check_named(spec)
    if report is not None:
        check_extra("report", "--report")
        with claim(report, "report", inputs=places):  # refused before the work, not after it
            pass
    with Timer() as timer:
        classifier = open_classifier(
            first,
            is_model=model is not None,
            encoder=encoder,
            templates=names.template,
            **reading.options(),
        )
        adapter = test_time_adapter(test_time, classifier, strength, names.template)
        if adapter is not None:
            found = adapter.evaluate(
                places[0], split=split, class_names=names.class_names, train=train
            )
        else:
            found = classifier.evaluate(
                places[0], split=split, class_names=names.class_names, ood=others, train=train
            )
    result = found.result | {
        "head": first if classifier.is_fitted else None,
        "environment": environment(),
        "timing": timer.to_dict(),
        "command": command_line(),
    }
    page = None if report is None else write(report, result, classifier, found)
    if json:
        print_json(result)
        return
    _print(result, page)


def write(
    directory: Path,
    result: dict[str, Any],
    classifier: Classifier,
    found: Evaluation,
    runs: Sequence[Mapping[str, Any]] = (),
) -> Path:
    """Write the report page and, beside it, the result as JSON.

    Args:
        directory: Folder of the report.
        result: The result.
        classifier: What was evaluated.
        found: What its evaluation returned.
        runs: Further runs with other methods, shots and seeds, for a figure and a table of them.
    """
    from rada.core.output import claim
    from rada.evaluation import shareable
    from rada.report import changed_examples, find_problems, write_report

    examples: list[dict[str, Any]] = []
    after = found.logits.get("adapted")
    if found.images is not None and after is not None:
        images = found.images.rename(found.classes)
        examples = changed_examples(images, found.logits["zero_shot"], after)
    problems = find_problems(found)
    history = classifier.fitted_.record.history if classifier.is_fitted else []
    learned = None if runs else _learned(classifier, found)
    if learned is not None:
        result = result | {"learned": learned.to_dict()}
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
        page = write_report(
            directory,
            result | facts,
            examples=examples,
            curve=history,
            runs=runs,
            problems=problems,
            learned=None if learned is None else learned.to_dict() | {"mask": learned.mask},
        )
        folder.write_json("result.json", shareable(result))
    return page


def _learned(classifier: Classifier, found: Evaluation) -> Learned | None:
    """Return what the model learned; None where nothing can be said."""
    from rada.core.errors import ConfigError
    from rada.core.warn import warn
    from rada.explain import what_was_learned

    if not classifier.is_fitted or not classifier.fitted_.model.method.learns:
        return None
    if found.features is None:  # a store: the classes are looked at, the images are not
        return None
    try:
        row = found["adapted"] or {}
        return what_was_learned(classifier, found.features, confusion=row.get("confusion"))
    except ConfigError as error:
        warn(f"the report does not say what the model learned: {error}", UserWarning, stacklevel=2)
        return None


def _print(result: dict[str, Any], page: Path | None) -> None:
    from rada.cli.tables import class_table, comparison_table
    from rada.report.rows import failures
    from rada.report.text import count
    from rada.report.verdict import verdict

    terminal = screen()
    terminal.print(comparison_table(result))
    if len(result["classes"]) <= 30:
        terminal.print(class_table(result))
    lines = [*failures(result), *_head_lines(result)]
    if result["skipped"]:
        lines.append(f"{count(len(result['skipped']), 'unreadable image')} left out.")
    for line in [verdict(result | {"shots": result["training"].get("shots")}), *lines]:
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
    strength = "" if result["head"] is None else f" Strength {result['strength']:g}."
    return [
        f"{count(changed['wrong_to_right'], 'image')} went from wrong to right, "
        f"{changed['right_to_wrong']} from right to wrong.",
        f"The model was trained on {result['trained_classes']} of these {classes}.{strength}",
    ]
