"""The report of one run: zero-shot and adapted side by side, on one self-contained page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rada.core.output import claim
from rada.evaluation.sharing import data_title, shareable, shown_name
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
    Verdict,
    render_page,
    thumbnail,
)
from rada.report.figures import training_curve
from rada.report.learned import learned_blocks, pair_blocks
from rada.report.problems import problem_blocks
from rada.report.rows import SeedSummary, main_row, name_of, over_seeds, why_epochs
from rada.report.tables import (
    class_blocks,
    confusion_blocks,
    result_table,
    shots_blocks,
)
from rada.report.text import count, interval, percent, points
from rada.report.verdict import cautions, verdict

__all__ = ["build_report", "write_report"]

_LABELS = ("dataset", "split", "encoder", "head", "shots", "seed", "seeds", "strength", "test_time")

_READING = (
    "Accuracy with its 95 % Wilson interval. Balanced accuracy is the mean over the classes, "
    "however many images each has. ECE, the expected calibration error, is the mean gap "
    "between confidence and accuracy in 15 bins: 0 is perfect. The difference to zero-shot is "
    "taken on the same images, with the interval of Agresti and Min for paired proportions."
)


def write_report(
    directory: str | Path,
    result: Mapping[str, Any],
    *,
    examples: Sequence[Mapping[str, Any]] = (),
    curve: Sequence[Mapping[str, Any]] = (),
    runs: Sequence[Mapping[str, Any]] = (),
    learned: Mapping[str, Any] | None = None,
    problems: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> Path:
    """Write `index.html`, one page that needs no network and no other file.

    Args:
        directory: Where to write; made if need be.
        result: The dictionary of `rada.evaluation.compare`, and whatever of this is known:
            "dataset", "encoder", "head", "shots", "seed" or "seeds", "strength", "config",
            "environment", "timing", "command" (to run it again) and "summary" (one sentence
            instead of the one composed of these). Folders are shown by their names: a page is
            handed on, and where the data lies is nobody's business.
        examples: Images to show, as from `report_examples`.
        curve: The training history, one mapping an epoch with "loss", "max_deviation", "accuracy".
        runs: Runs with several shots and seeds, over which the headline is averaged, such as
            `{"method": "rada", "shots": 4, "seed": 1, "accuracy": 0.6, "balanced_accuracy": 0.5}`.
        learned: What the model learned as a whole, as from `rada.explain.what_was_learned`, with "mask"
            where there is a head.
        problems: What is still wrong, as from `find_problems`; `examples` are then those that changed.
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
    page = build_report(
        result,
        examples=examples,
        curve=curve,
        runs=runs,
        learned=learned,
        problems=problems,
        title=title,
    )
    with claim(directory, "report") as out:
        return out.write_bytes("index.html", render_page(page).encode())


def build_report(
    result: Mapping[str, Any],
    *,
    examples: Sequence[Mapping[str, Any]] = (),
    curve: Sequence[Mapping[str, Any]] = (),
    runs: Sequence[Mapping[str, Any]] = (),
    learned: Mapping[str, Any] | None = None,
    problems: Mapping[str, Any] | None = None,
    title: str | None = None,
) -> Page:
    """Return the page of `write_report` without writing it; arguments are the same."""
    result = shareable(result)
    seeds = over_seeds(runs, result)
    one: list[Block] = [] if seeds is None else [Text(_one_of_the_runs(result))]
    sections = [
        Section("Results", [*one, result_table(result), Text(_READING, note=True)]),
        Section("Accuracy per class", class_blocks(result)),
        Section("Confusion", [*confusion_blocks(result), *pair_blocks(learned or {})]),
    ]
    if runs:
        place = 1 if seeds is None else 0  # what speaks of all seeds comes before one of them
        sections.insert(place, Section("Accuracy by number of shots", shots_blocks(runs, result)))
    if problems is not None:
        sections.insert(-2, Section("What is still wrong", problem_blocks(problems, result)))
    if learned is not None:
        sections.append(Section("What the model learned", learned_blocks(learned)))
    figure = training_curve(curve)
    if figure is not None:
        sections.append(Section("Training", [figure]))
    if examples:
        heading = "Examples" if problems is None else "What changed"
        galleries = _galleries(examples, result, wrong=problems is None)
        sections.append(Section(heading, galleries))
    provenance = _provenance(result, len(curve))
    if provenance:
        sections.append(Section("Run it again", provenance))
    date = str(result.get("environment", {}).get("date", ""))[:10]
    return Page(
        title=title or _title(result),
        lead=str(result.get("summary") or _summary(result)),
        verdict=[Verdict(verdict(result, seeds), cautions(result))],
        top=[_headline(result) if seeds is None else _seeds_headline(result, seeds)],
        sections=sections,
        eyebrow=f"rada report · {date}" if date else "rada report",
        footer="Written by rada. This page needs no network and no other file.",
    )


def _title(result: Mapping[str, Any]) -> str:
    dataset, key = result.get("dataset"), main_row(result)
    if dataset:
        return f"{name_of(result, key)} on {data_title(str(dataset))}"
    return name_of(result, key) + (" beside zero-shot" if key != "zero_shot" else "")


def _tuned(result: Mapping[str, Any]) -> bool:
    """Whether the result is of a model whose encoder was tuned."""
    return bool(result.get("tuned"))


def _one_of_the_runs(result: Mapping[str, Any]) -> str:
    seed = f" of seed {result['seed']}" if result.get("seed") is not None else ""
    changed = result[main_row(result)]["against_zero_shot"]
    return (
        f"From here on: the one head{seed} that was saved, not the mean over the seeds. It turned "
        f"{count(changed['wrong_to_right'], 'image')} from wrong to right and "
        f"{changed['right_to_wrong']:,} from right to wrong."
    )


def _summary(result: Mapping[str, Any]) -> str:
    """Say in one sentence what was run, from what the result tells."""
    training = ""
    if result.get("shots"):
        training = f" trained on {count(result['shots'], 'image')} a class"
    kind = "tuned" if _tuned(result) else "frozen"
    named = result.get("encoder")
    if isinstance(named, Mapping):  # as `Classifier.evaluate` tells it, with the fingerprint
        named = named.get("name")
    encoder = f" on the {kind} encoder “{named}”" if named else ""
    place = f" of “{result['dataset']}”" if result.get("dataset") else ""
    strength = (
        f", at mask strength {result['strength']:g}" if _number(result.get("strength")) else ""
    )
    if main_row(result) == "zero_shot":
        model = f"The zero-shot model{encoder.replace(' frozen', '')}"
        classes = count(len(result["classes"]), "class", "classes")
        return f"{model} on {count(result['images'], 'test image')}{place} in {classes}."
    return (
        f"{name_of(result, main_row(result))}{training}{encoder}{strength}, compared with the "
        f"zero-shot model on {count(result['images'], 'test image')}{place} in "
        f"{count(len(result['classes']), 'class', 'classes')}."
    )


def _headline(result: Mapping[str, Any]) -> Headline:
    zero_shot, key = result["zero_shot"], main_row(result)
    first = HeadlineNumber(
        f"{name_of(result, 'zero_shot')} accuracy",
        percent(zero_shot["accuracy"]),
        f"95 % interval {interval(zero_shot['interval'])}",
    )
    if key == "zero_shot":
        return Headline([first])
    adapted = result[key]
    changed = adapted["against_zero_shot"]
    low, high = (points(bound) for bound in changed["interval"])
    tone: Tone = (
        "gain" if changed["interval"][0] > 0 else "loss" if changed["interval"][1] < 0 else ""
    )
    return Headline(
        [
            first,
            HeadlineNumber(
                f"{name_of(result, key)} accuracy",
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


def _seeds_headline(result: Mapping[str, Any], seeds: SeedSummary) -> Headline:
    """Put mean and deviation over the seeds first; one seed may be the best or the worst of them."""
    zero_shot = result["zero_shot"]["accuracy"]
    ahead = sum(value > zero_shot for value in seeds.values)
    tone: Tone = "gain" if ahead == len(seeds.values) else "loss" if not ahead else ""
    low, high = (percent(end(seeds.values), sign=False) for end in (min, max))
    deviation = percent(seeds.accuracy["std"], sign=False)
    return Headline(
        [
            HeadlineNumber("Zero-shot accuracy", percent(zero_shot)),
            HeadlineNumber(
                f"{name_of(result, main_row(result))}, mean of {count(len(seeds.values), 'seed')}",
                percent(seeds.accuracy["mean"]),
                f"± {deviation}, from {low} to {high}; {count(seeds.shots, 'image')} a class",
                "accent",
            ),
            HeadlineNumber(
                "Difference, in points",
                points(seeds.accuracy["mean"] - zero_shot),
                f"± {deviation} over the seeds",
                tone,
            ),
            HeadlineNumber("Ahead of zero-shot", f"{ahead} of {len(seeds.values)}", "seeds"),
        ]
    )


def _galleries(
    examples: Sequence[Mapping[str, Any]], result: Mapping[str, Any], *, wrong: bool
) -> list[Block]:
    adapted = [one for one in examples if "adapted" in one]
    gained = [one for one in adapted if one["adapted"]["class"] == one["true"]]
    lost = [one for one in adapted if one["zero_shot"]["class"] == one["true"]]
    others = [one for one in examples if one not in gained and one not in lost]
    changed = [
        Text("Where the probability of the true class moved most, class by class in turn."),
        Gallery("From wrong to right", [_card(one, "gain", result) for one in gained]),
        Gallery("From right to wrong", [_card(one, "loss", result) for one in lost]),
    ]
    if not wrong:
        return changed
    return [
        *(changed if adapted else []),
        Gallery(
            "Still wrong" if adapted else "Wrong", [_card(one, "loss", result) for one in others]
        ),
        Text("Of the wrong ones those of which the model is most certain.", note=True),
    ]


def _card(example: Mapping[str, Any], tone: Tone, result: Mapping[str, Any]) -> Card:
    def spelled(prediction: Mapping[str, Any]) -> tuple[str, str]:
        return str(prediction["class"]), percent(prediction["probability"])

    adapted, name = "adapted" in example, shown_name(str(example["id"]))
    return Card(
        image=thumbnail(example["image"]),
        alt=f"Image {name}, a {example['true']}",
        lines=[
            ("True class", str(example["true"]), "", ""),
            (name_of(result, "zero_shot"), *spelled(example["zero_shot"]), "" if adapted else tone),
            *(
                [(name_of(result, "adapted"), *spelled(example["adapted"]), tone)]
                if adapted
                else []
            ),
        ],
        footer=name,
    )


def _provenance(result: Mapping[str, Any], epochs: int) -> list[Block]:
    blocks: list[Block] = []
    if result.get("command"):
        blocks.append(Command(str(result["command"])))
    what = {name: result[name] for name in _LABELS if result.get(name) is not None}
    parts = [
        Pairs("What was run", what),
        Pairs("Configuration", _effective(result, epochs)),
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


def _effective(result: Mapping[str, Any], epochs: int) -> dict[str, Any]:
    """Return the configuration with what came of it where that is another number."""
    config = dict(result.get("config") or {})
    training = result.get("training") or {}
    why = why_epochs(config, training.get("effective"), epochs) if epochs else ""
    if why:
        config["epochs"] = f"{epochs} ({why})"
    images, batch = training.get("images"), config.get("batch_size")
    if isinstance(images, int) and isinstance(batch, int) and images < batch:
        config["batch_size"] = f"{images}, all images ({batch} asked for)"
    if config.get("strength") == "auto" and _number(result.get("strength")):
        config["strength"] = f"{result['strength']:g} (auto)"
    return config


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
