"""The report of one run: zero-shot and adapted side by side, on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rada.output import claim
from rada.report.blocks import (
    Block,
    Card,
    Command,
    Details,
    Gallery,
    Headline,
    HeadlineNumber,
    Page,
    Pairs,
    Section,
    SideBySide,
    Text,
    Tone,
    render_page,
    thumbnail,
)
from rada.report.figures import training_curve
from rada.report.tables import (
    class_blocks,
    confusion_blocks,
    result_table,
    shots_blocks,
)
from rada.report.text import count, interval, percent, points, row_name

__all__ = ["build_report", "write_report"]

_LABELS = ("dataset", "split", "encoder", "head", "shots", "seed", "seeds", "strength", "test_time")

_READING = (
    "Accuracy with its 95 % Wilson interval. Balanced accuracy is the mean over the classes, "
    "however many pictures each has. ECE, the expected calibration error, is the mean gap "
    "between confidence and accuracy in 15 bins: 0 is perfect. The difference to zero-shot is "
    "taken on the same pictures, with the interval of Agresti and Min for paired proportions."
)


def write_report(
    directory: str | Path,
    result: Mapping[str, Any],
    *,
    examples: Sequence[Mapping[str, Any]] = (),
    curve: Sequence[Mapping[str, Any]] = (),
    runs: Sequence[Mapping[str, Any]] = (),
    title: str | None = None,
) -> Path:
    """Write `index.html`, one page that needs no network and no other file.

    Args:
        directory: Where to write; made if need be.
        result: The dictionary of `rada.evaluation.compare`, and whatever of this is known:
            "dataset", "encoder", "head", "shots", "seed" or "seeds", "strength", "config",
            "environment", "timing", "command" (to run it again) and "summary" (one sentence
            instead of the one composed of these).
        examples: Pictures that changed, as from `changed_examples`.
        curve: The training history, one mapping an epoch with "loss", "max_deviation", "accuracy".
        runs: Runs with several shots and seeds, such as `{"method": "rada", "shots": 4, "seed": 1,
            "accuracy": 0.6, "balanced_accuracy": 0.5}`.
        title: Heading of the page.

    Returns:
        The path of the page.

    Raises:
        OutputError: If the folder holds what rada did not write as a report.
        StorageError: If the place cannot be written; a page from before stays whole.

    Example:
        >>> import tempfile
        >>> from rada.evaluation import compare
        >>> before, after = [[2.0, 1.0], [2.0, 1.0]], [[2.0, 1.0], [1.0, 2.0]]
        >>> result = compare(before, after, [0, 1], ["cat", "dog"])
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_report(folder, result, title="Cats and dogs").name
        'index.html'
    """
    page = build_report(result, examples=examples, curve=curve, runs=runs, title=title)
    with claim(directory, "report") as out:
        return out.write_bytes("index.html", render_page(page).encode())


def build_report(
    result: Mapping[str, Any],
    *,
    examples: Sequence[Mapping[str, Any]] = (),
    curve: Sequence[Mapping[str, Any]] = (),
    runs: Sequence[Mapping[str, Any]] = (),
    title: str | None = None,
) -> Page:
    """Return the page of `write_report` without writing it; arguments are the same."""
    sections = [
        Section("Results", [result_table(result), Text(_READING, note=True)]),
        Section("Accuracy per class", class_blocks(result)),
        Section("Confusion", confusion_blocks(result)),
    ]
    if runs:
        sections.insert(1, Section("Accuracy by number of shots", shots_blocks(runs, result)))
    figure = training_curve(curve)
    if figure is not None:
        sections.append(Section("Training", [figure]))
    if examples:
        sections.append(
            Section("Pictures that changed", _galleries(examples, result.get("row_names")))
        )
    provenance = _provenance(result)
    if provenance:
        sections.append(Section("Run it again", provenance))
    dataset = result.get("dataset")
    date = str(result.get("environment", {}).get("date", ""))[:10]
    return Page(
        title=title or (f"RAda on {dataset}" if dataset else "RAda beside zero-shot"),
        lead=str(result.get("summary") or _summary(result)),
        top=[_headline(result)],
        sections=sections,
        eyebrow=f"rada report · {date}" if date else "rada report",
        footer="Written by rada. This page needs no network and no other file.",
    )


def _summary(result: Mapping[str, Any]) -> str:
    """Say in one sentence what was run, from what the result tells."""
    training = ""
    if result.get("shots"):
        training = f" trained on {count(result['shots'], 'picture')} a class"
    encoder = f" on the frozen encoder “{result['encoder']}”" if result.get("encoder") else ""
    place = f" of “{result['dataset']}”" if result.get("dataset") else ""
    strength = (
        f", at mask strength {result['strength']:g}" if _number(result.get("strength")) else ""
    )
    return (
        f"A RAda head{training}{encoder}{strength}, compared with the zero-shot model on "
        f"{count(result['images'], 'test picture')}{place} in "
        f"{count(len(result['classes']), 'class', 'classes')}."
    )


def _headline(result: Mapping[str, Any]) -> Headline:
    changed = result["changed"]
    low, high = (points(bound) for bound in changed["interval"])
    tone: Tone = (
        "gain" if changed["interval"][0] > 0 else "loss" if changed["interval"][1] < 0 else ""
    )
    zero_shot, adapted, names = result["zero_shot"], result["adapted"], result.get("row_names")
    return Headline(
        [
            HeadlineNumber(
                f"{row_name('zero_shot', names)} accuracy",
                percent(zero_shot["accuracy"]),
                f"95 % interval {interval(zero_shot['interval'])}",
            ),
            HeadlineNumber(
                f"{row_name('adapted', names)} accuracy",
                percent(adapted["accuracy"]),
                f"95 % interval {interval(adapted['interval'])}",
                "accent",
            ),
            HeadlineNumber(
                "Difference, in points",
                points(changed["difference"]),
                f"95 % interval {low} to {high}",
                tone,
            ),
            HeadlineNumber(
                "Wrong to right",
                f"{changed['wrong_to_right']:,}",
                f"and {changed['right_to_wrong']:,} from right to wrong",
            ),
        ]
    )


def _galleries(
    examples: Sequence[Mapping[str, Any]], names: Mapping[str, str] | None
) -> list[Block]:
    gained = [one for one in examples if one["adapted"]["class"] == one["true"]]
    lost = [one for one in examples if one["adapted"]["class"] != one["true"]]
    return [
        Text("Those where the probability of the true class moved most, class by class in turn."),
        Gallery("From wrong to right", [_card(one, "gain", names) for one in gained]),
        Gallery("From right to wrong", [_card(one, "loss", names) for one in lost]),
    ]


def _card(example: Mapping[str, Any], tone: Tone, names: Mapping[str, str] | None) -> Card:
    def spelled(prediction: Mapping[str, Any]) -> tuple[str, str]:
        return str(prediction["class"]), percent(prediction["probability"])

    return Card(
        image=thumbnail(example["image"]),
        alt=f"Picture {example['id']}, a {example['true']}",
        lines=[
            ("True class", str(example["true"]), "", ""),
            (row_name("zero_shot", names), *spelled(example["zero_shot"]), ""),
            (row_name("adapted", names), *spelled(example["adapted"]), tone),
        ],
        footer=str(example["id"]),
    )


def _provenance(result: Mapping[str, Any]) -> list[Block]:
    blocks: list[Block] = []
    if result.get("command"):
        blocks.append(Command(str(result["command"])))
    what = {name: result[name] for name in _LABELS if result.get(name) is not None}
    parts = [
        Pairs("What was run", what),
        Pairs("Configuration", result.get("config") or {}),
        Pairs("Time and memory", _spelled_timing(result.get("timing") or {})),
    ]
    shown = [part for part in parts if part.values]
    environment = dict(result.get("environment") or {})
    versions = environment.pop("versions", {})
    if versions:
        environment = {"python": environment.pop("python", None)} | environment
        shown.append(Pairs("Libraries", versions))
    if environment:
        shown.append(Pairs("Machine", environment))
    if shown:
        blocks.append(SideBySide(shown[:2]))
    if shown[2:]:
        blocks.append(Details("Libraries, machine, time", [SideBySide(shown[2:])]))
    return blocks


def _spelled_timing(timing: Mapping[str, Any]) -> dict[str, Any]:
    """Write times and memory with their units."""
    spelled: dict[str, Any] = {}
    for name, value in timing.items():
        if name.endswith("_bytes") and _number(value):
            spelled[name.removesuffix("_bytes")] = f"{value / 2**20:,.0f} MiB"
        elif name.endswith("seconds") and _number(value):
            spelled[name.removesuffix("_seconds")] = f"{value:,.1f} s"
        else:
            spelled[name] = value
    return spelled


def _number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
