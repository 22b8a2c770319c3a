"""`rada demo`: the main job on the embedded model and data, measured."""

from __future__ import annotations

import contextlib
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.options import JsonFlag, print_json
from rada.core.terminal import bold, echo, screen

if TYPE_CHECKING:
    from rada.classifier import RAdaClassifier
    from rada.core.output import OutputFolder
    from rada.data import ImageDataset
    from rada.features import Features

DATASET = "textiles"
SHOTS = (1, 2, 4, 8, 16)
METHODS = ("rada", "linear_probe")
SAVED_SEED = 1
"""The seed of the head that the demo leaves behind: the first one, not the best."""


def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the head, the results and the report.")
    ] = Path("rada-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1, 2, ... to average over.")] = 3,
    json: JsonFlag = False,
) -> None:
    """Adapt the embedded model to the embedded pictures and show that it became better.

    After Ctrl-C or a crash the same command goes on where it stopped.
    """
    from rada.core.output import claim

    with claim(out, "demo") as folder:
        result, dataset, page = _run_all(folder, seeds, json)
    if json:
        print_json(result)
    else:
        _print(result, dataset, out, page)


def _run_all(
    folder: OutputFolder, seeds: int, json: bool
) -> tuple[dict[str, Any], ImageDataset, Path]:
    """Do what the demo does; return the result, the data set and the report's page."""
    from rada.classifier import RAdaClassifier
    from rada.data import open_dataset
    from rada.evaluation import Timer, environment
    from rada.evaluation.provenance import command_line
    from rada.features import extract_features

    out = folder.path
    with Timer() as timer:
        dataset = open_dataset(DATASET)
        classifier = RAdaClassifier("embedded", templates=dataset.templates)
        encoder = classifier.encoder
        assert encoder is not None
        _say(f"Encoding the {DATASET} pictures with {encoder.name} ...", json)
        train, test = (extract_features(encoder, dataset.split(name)) for name in ("train", "test"))
        text = encoder.encode_classes(dataset.classes, dataset.templates)
        train, test = (
            dataclasses.replace(part, text_features=text, scale=float(encoder.scale))
            for part in (train, test)
        )
        runs = _runs(train, test, seeds, folder, json)
        result = _finish(classifier, dataset, out, test, train)
    result |= {
        "runs": runs,
        "seeds": list(range(1, seeds + 1)),
        "environment": environment(),
        "timing": timer.to_dict(),
        "command": command_line(),
    }
    return result, dataset, _report(result, classifier, dataset, test, folder)


def _say(text: str, quiet: bool) -> None:
    echo(text, err=quiet)


def _runs(
    train: Features, test: Features, seeds: int, folder: OutputFolder, quiet: bool
) -> list[dict[str, Any]]:
    """Train and judge every method, number of shots and seed; finished runs are read back."""
    from rada.core.progress import track

    cells = [
        (method, shots, seed)
        for shots in SHOTS
        for seed in range(1, seeds + 1)
        for method in METHODS
    ]
    _say(f"Training {len(cells)} heads and probes on 1 to {max(SHOTS)} pictures a class ...", quiet)
    return [_run(train, test, *cell, folder) for cell in track(cells, "Training", unit="run")]


def _run(
    train: Features, test: Features, method: str, shots: int, seed: int, folder: OutputFolder
) -> dict[str, Any]:
    from rada.core.config import EFTConfig
    from rada.core.errors import CheckpointError
    from rada.core.storage import read_json
    from rada.evaluation import evaluate_logits
    from rada.methods import linear_probe
    from rada.training import train_head

    config = EFTConfig()
    facts = {
        "method": method,
        "shots": shots,
        "seed": seed,
        "data": [train.fingerprint, test.fingerprint],
        "config": config.to_dict() if method == "rada" else None,
    }
    name = f"runs/{method}-{shots}-shots-seed-{seed}.json"
    folder.take(name)
    with contextlib.suppress(CheckpointError):  # there is none, or a damaged one
        saved = read_json(folder.path / name, error=CheckpointError, what="the result")
        if isinstance(saved, dict) and all(saved.get(key) == facts[key] for key in facts):
            return saved
    chosen = train.few_shot(shots, seed)
    text, scale = train.text_features, train.scale
    assert text is not None and scale is not None
    if method == "linear_probe":
        probed = linear_probe(chosen.plain(), chosen.labels, test.plain(), len(text), seed)
        strength, logits = None, probed
    else:
        trained = train_head(
            chosen.image_features, chosen.labels, text, scale, config, seed, progress=False
        )
        strength, logits = trained.strength, trained(test.plain(), text, scale).logits
    metrics = evaluate_logits(logits, test.labels, test.classes)
    run = facts | {
        "accuracy": metrics.accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "strength": strength,
    }
    folder.write_json(name, run)
    return run


def _finish(
    classifier: RAdaClassifier, dataset: ImageDataset, out: Path, test: Features, train: Features
) -> dict[str, Any]:
    """Fit and save the head that the demo leaves behind, and judge it."""
    from rada.evaluation import compare
    from rada.methods import linear_probe

    shots = max(SHOTS)
    classifier.fit(
        dataset.split("train"), shots, seed=SAVED_SEED, output_dir=out / "head", overwrite=True
    )
    result, evaluated = classifier.evaluate(dataset, split="test")
    chosen = train.few_shot(shots, SAVED_SEED)
    probe = linear_probe(
        chosen.plain(), chosen.labels, test.plain(), len(dataset.classes), SAVED_SEED
    )
    compared = compare(
        evaluated.zero_shot,
        evaluated.adapted,
        evaluated.features.labels,
        evaluated.classes,
        extra={"linear_probe": probe},
    )
    return (
        result
        | compared
        | {"data": DATASET, "head": str(out / "head"), "shots": shots, "seed": SAVED_SEED}
    )


def _report(
    result: dict[str, Any],
    classifier: RAdaClassifier,
    dataset: ImageDataset,
    test: Features,
    folder: OutputFolder,
) -> Path:
    from rada.evaluation import shareable
    from rada.report import report_examples, write_report

    assert test.text_features is not None and classifier.trained is not None
    logits = [
        classifier.logits(test.plain(), test.text_features, strength=strength)
        for strength in (0.0, None)
    ]
    facts = {
        "dataset": DATASET,
        "encoder": result["encoder"]["name"],
        "config": result["training"]["config"],
    }
    folder.write_json("result.json", shareable(result))
    return write_report(
        folder.path / "report",
        result | facts,
        examples=report_examples(dataset.split("test"), *logits),
        curve=classifier.trained.history,
        runs=result["runs"],
    )


def _print(result: dict[str, Any], dataset: ImageDataset, out: Path, page: Path) -> None:
    from rada.classifier import RAdaClassifier
    from rada.cli.tables import comparison_table
    from rada.report.rows import failures

    terminal = screen()
    terminal.print(_shots_table(result))
    terminal.print(f"\nThe head of seed {SAVED_SEED}, which was saved:")
    terminal.print(comparison_table(result))
    for sentence in failures(result):
        terminal.print(sentence, soft_wrap=True)
    loaded = RAdaClassifier.from_pretrained(out / "head", progress=False)
    test = dataset.split("test")
    samples = [int((test.labels == label).nonzero()[0][0]) for label in range(len(test.classes))]
    paths = [str(test.path(index)) for index in samples]
    terminal.print("\nSingle pictures, with the head that was saved:")
    for index, ranked in zip(samples, loaded.predict(paths, top_k=2), strict=True):
        answer = ", ".join(f"{entry.name} {entry.probability:.2f}" for entry in ranked)
        true = test.classes[test.labels[index]]
        terminal.print(f"  {test.ids[index]} (in truth {true}): {answer}", soft_wrap=True)
    terminal.print(
        "\nReport: ",
        bold(page),
        f"   ({result['timing']['seconds']:.0f} s in all)\n\n"
        "The same with your own pictures, one folder for each class:\n"
        "  rada fit MY_PICTURES --shots 16 --out my-head\n"
        "  rada evaluate my-head MY_TEST_PICTURES --report my-report\n"
        "  rada predict my-head PICTURE...",
        sep="",
        soft_wrap=True,
    )


def _shots_table(result: dict[str, Any]) -> Any:
    from rada.cli.tables import plain_table
    from rada.evaluation import aggregate_runs
    from rada.report.text import count, percent, row_name, spread

    zero_shot = result["zero_shot"]
    table = plain_table(
        f"{count(result['images'], 'test picture')}; mean and deviation over "
        f"{count(len(result['seeds']), 'seed')}; in per cent",
        "",
        "pictures a class",
        "accuracy",
        "balanced accuracy",
    )
    chance = percent(result["chance"], sign=False)
    table.add_row("Chance", "", chance, chance)
    values = [percent(zero_shot[key], sign=False) for key in ("accuracy", "balanced_accuracy")]
    table.add_row("Zero-shot", "0", *values)
    for row in aggregate_runs(result["runs"]):
        cells = [spread(row[key]) for key in ("accuracy", "balanced_accuracy")]
        table.add_row(row_name(row["method"]), str(row["shots"]), *cells)
    return table
