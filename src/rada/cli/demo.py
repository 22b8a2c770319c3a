"""`rada demo`: a recipe of `rada bench` on the embedded model and data, a saved model and a report."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from rada.cli.endings import resumable
from rada.cli.options import JsonFlag, print_json
from rada.core.terminal import bold, echo, screen

if TYPE_CHECKING:
    from rada.bench import Plan
    from rada.classifier import Classifier
    from rada.evaluation import Evaluation

SAVED_SEED = 1
"""The seed of the model that the demo leaves behind: the first one, not the best."""


@resumable
def demo(
    out: Annotated[
        Path, typer.Option(help="Folder for the model, the results and the report.")
    ] = Path("rada-demo"),
    seeds: Annotated[int, typer.Option(min=1, help="Seeds 1, 2, ... to average over.")] = 3,
    json: JsonFlag = False,
) -> None:
    """Adapt the embedded model to the embedded images and show that it became better.

    After Ctrl-C or a crash the same command goes on where it stopped.
    """
    from rada.bench.recipes import recipe
    from rada.cli.evaluate import write
    from rada.core.extras import check_extra
    from rada.core.output import claim
    from rada.evaluation import Timer, environment, shareable
    from rada.evaluation.provenance import command_line

    check_extra("report", "the demo")
    plan = dataclasses.replace(recipe("demo"), seeds=tuple(range(1, seeds + 1)))
    with claim(out, "demo") as folder:
        with Timer() as timer:
            runs = _runs(plan, out / "bench", json)
            classifier, found = _finish(plan, out / "head")
        result = found.result | {
            "head": str(out / "head"),
            "shots": max(plan.shots),
            "seed": SAVED_SEED,
            "runs": runs,
            "seeds": list(plan.seeds),
            "environment": environment(),
            "timing": timer.to_dict(),
            "command": command_line(),
        }
        folder.write_json("result.json", shareable(result))
        page = write(out / "report", result, classifier, found, runs)
    if json:
        print_json(result)
    else:
        _print(result, found, out, page)


def _runs(plan: Plan, out: Path, quiet: bool) -> list[dict[str, Any]]:
    """Run the benchmark, or what is left of it, and return what every trained model reached."""
    from rada.bench import run_plan
    from rada.bench.tables import load_runs
    from rada.core.errors import RadaError

    cells = plan.cells()
    echo(f"Encoding the {plan.datasets[0]} images with {plan.model} ...", err=quiet)
    echo(
        f"Training {sum(cell.shots > 0 for cell in cells)} heads and probes on {min(plan.shots)} to "
        f"{max(plan.shots)} images a class ...",
        err=quiet,
    )
    summary = run_plan(plan, out, say=lambda text: echo(text, err=True))
    if summary.failed:
        raise RadaError(
            f"{len(summary.failed)} of {len(cells)} runs failed: say the same command again to run them"
        )
    wanted = [cell.to_dict() for cell in cells if cell.shots]
    results = [entry for entry in load_runs(out).results if entry["cell"] in wanted]
    return [
        {key: entry["cell"][key] for key in ("method", "shots", "seed")}
        | {key: entry["parts"]["test"][key] for key in ("accuracy", "balanced_accuracy")}
        | {key: entry[key] for key in ("config", "strength")}
        for entry in sorted(results, key=lambda entry: wanted.index(entry["cell"]))
    ]


def _finish(plan: Plan, out: Path) -> tuple[Classifier, Evaluation]:
    """Fit and save the model that the demo leaves behind, and evaluate it beside a linear probe."""
    from rada.classifier import Classifier
    from rada.core.values import DEFAULT_METHOD

    data, shots = plan.datasets[0], max(plan.shots)
    classifier = Classifier(plan.model, plan.configs(DEFAULT_METHOD)[0])
    classifier.fit(data, shots=shots, seed=SAVED_SEED, output_dir=out, overwrite=True)
    return classifier, classifier.evaluate(data, split="test")


def _print(result: dict[str, Any], found: Evaluation, out: Path, page: Path) -> None:
    from rada.classifier import Classifier
    from rada.cli.tables import comparison_table, shots_table
    from rada.report.rows import failures

    terminal = screen()
    terminal.print(shots_table(result))
    terminal.print(f"\nThe model of seed {SAVED_SEED}, which was saved:")
    terminal.print(comparison_table(result))
    for sentence in failures(result):
        terminal.print(sentence, soft_wrap=True)
    loaded = Classifier.from_pretrained(out / "head", progress=False)
    test = found.images
    assert test is not None
    samples = [int((test.labels == label).nonzero()[0][0]) for label in range(len(test.classes))]
    paths = [str(test.path(index)) for index in samples]
    terminal.print("\nSingle images, with the model that was saved:")
    for index, ranked in zip(samples, loaded.predict(paths, top_k=2), strict=True):
        named = ", ".join(f"{entry.name} {entry.probability:.2f}" for entry in ranked)
        true = test.classes[test.labels[index]]
        terminal.print(f"  {test.ids[index]} (in truth {true}): {named}", soft_wrap=True)
    terminal.print(
        "\nReport: ",
        bold(page),
        f"   ({result['timing']['seconds']:.0f} s in all)\n\n"
        "The same with your own images, one folder for each class:\n"
        "  rada fit MY_IMAGES --shots 16 --out my-model\n"
        "  rada evaluate my-model MY_TEST_IMAGES --report my-report\n"
        "  rada predict my-model IMAGE...",
        sep="",
        soft_wrap=True,
    )
