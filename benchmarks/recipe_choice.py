"""What the constants of the default should be, asked of the suite's `tune` half alone.

    python benchmarks/recipe_choice.py DIR --imagenet ../shared/data/clip_vitb32_imagenet.npz --features features --jobs 2
    python benchmarks/recipe_choice.py DIR --report [--out result.json]

The default's form has constants that no user sees: the variance of the probe's prior, by which power of the images a class it grows,
whether directions in which a class differs shrink (1, or 0 for not), how far the gate reaches, where
nothing can be held out the strength and the share, how firmly these draw the choice, and how cautious the strength for new classes
is, and how far temperatures may go. On every draw of every problem the heads (final and folds) are trained once; then one constant at a time is
changed, strengths are chosen again as `fit` chooses them, and the model is tested. The table holds the mean over six grounds of
equal weight (ImageNet groups' trained and new classes, PACS' own domain, its other domains, CIFAR-10, textiles in balanced accuracy) and the mean difference
to today's constants with its standard error over problems. One file a draw; the same command goes on where it stopped.
Features are made as `suite.py` says.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
from collections import defaultdict
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from suite import Cell, Places, Task, open_task, problems
from torch import Tensor
from torch.nn.functional import cross_entropy

from rada import Features
from rada.core.errors import DataError
from rada.core.storage import atomic_path, read_json, write_json
from rada.evaluation import environment
from rada.methods import Run, get_method, prior_probe
from rada.methods.rada_probe import ProbedHeadModel, RAdaProbeConfig, pulled_grid
from rada.training.strength import (
    AT_POINTS,
    LARGEST_NEW,
    OF_ZERO_SHOT,
    SHARE_OF_GAIN,
    Strength,
    StrengthChoice,
    TemperaturePrior,
    cautious_strength,
    choose_strength,
)


@dataclass(frozen=True)
class Constants:
    """Today's values are the defaults."""

    variance: float = RAdaProbeConfig.variance
    growth: float = 0.0
    shrink: float = 1.0
    reach: float = RAdaProbeConfig.reach
    strength: float = 1.0
    share: float = 0.5
    pull: float = 1.0
    gain: float = SHARE_OF_GAIN
    largest: float = LARGEST_NEW
    zero_lower: float = OF_ZERO_SHOT.lower
    zero_upper: float = OF_ZERO_SHOT.upper
    point_lower: float = AT_POINTS.lower
    point_upper: float = AT_POINTS.upper

    def of_zero_shot(self) -> TemperaturePrior:
        return TemperaturePrior(self.zero_lower, self.zero_upper)

    def at_points(self) -> TemperaturePrior:
        return TemperaturePrior(self.point_lower, self.point_upper)


TODAY = Constants()
EARLIER = Constants(growth=0.5, shrink=0.0)
CHANGES: dict[str, tuple[float, ...]] = {
    "variance": (1.0, 3.0, 5.0, 20.0, 50.0),
    "growth": (0.25, 0.5),
    "shrink": (0.0,),
    "reach": (0.25, 0.35, 0.5, 0.7, 1.5, 2.0, 100.0),
    "strength": (0.0, 0.25, 0.5, 0.75),
    "share": (0.0, 0.25, 0.75, 1.0),
    "pull": (0.0, 0.3, 3.0, 10.0),
    "gain": (0.5, 0.9, 1.0),
    "largest": (0.3, 0.7, 1.0),
    "zero_lower": (0.5, 1.0),
    "zero_upper": (0.5, 1.0),
    "point_lower": (0.25, 0.5, 1.0),
    "point_upper": (0.25, 1.0, 2.0),
}


def variants(only: Sequence[str] = ()) -> tuple[Constants, ...]:
    """Return today's constants, the form before, and today's with one changed: all in turn, or some alone."""
    found = [TODAY, EARLIER]
    for name, values in CHANGES.items():
        if not only or name in only:
            found += [replace(TODAY, **{name: value}) for value in values]
    return tuple(dict.fromkeys(found))


@contextlib.contextmanager
def shrinking(wanted: bool) -> Iterator[None]:
    """While the block runs, corrections shrink the directions in which a class differs, or do not."""
    kept = prior_probe._shrinking
    if not wanted:
        prior_probe._shrinking = lambda images, *_: torch.eye(images.shape[1]).to(images)
    try:
        yield
    finally:
        prior_probe._shrinking = kept


class Heads:
    """Trained heads of one draw, by the images that they learned from; each is trained once and kept."""

    def __init__(self, whole: Features, seed: int, folder: Path) -> None:
        self.config = RAdaProbeConfig(strength=1.0)
        self.config = replace(self.config, min_steps=self.config.steps(len(whole)))
        self.seed, self.folder = seed, folder
        self.found: dict[str, tuple[ProbedHeadModel, dict[Any, dict[str, Tensor]]]] = {}

    def _trained(self, data: Features) -> ProbedHeadModel:
        path, run = self.folder / f"head-{data.fingerprint}.safetensors", Run(seed=self.seed)
        method = get_method("rada_probe")
        if path.exists():
            model = method.start(data, self.config, run)
            assert isinstance(model, ProbedHeadModel) and model.head is not None
            model.head.load_state_dict(load_file(path))
            model.correction.fit(data, self.config.probe())
        else:
            model = method.fit(data, self.config, run)
            assert isinstance(model, ProbedHeadModel) and model.head is not None
            path.parent.mkdir(parents=True, exist_ok=True)
            with atomic_path(path) as temporary:
                save_file(model.head.state_dict(), temporary)
        asked: dict[tuple[int, int], Tensor] = {}
        score = model.head_logits

        def head_logits(images: Tensor, classes: Any) -> Tensor:
            key = images.data_ptr(), len(images)
            if key not in asked:
                asked[key] = score(images, classes)
            return asked[key]

        model.head_logits = head_logits  # type: ignore[method-assign]
        return model

    def with_constants(self, data: Features, constants: Constants) -> ProbedHeadModel:
        """Return the model of these images, its correction solved for anew."""
        if data.fingerprint not in self.found:
            self.found[data.fingerprint] = self._trained(data), {}
        model, corrections = self.found[data.fingerprint]
        prior = constants.of_zero_shot()
        key = (constants.variance, constants.growth, constants.shrink, prior)
        if key not in corrections:
            each = len(data) / len(data.labels.unique())
            variance = constants.variance * each**constants.growth
            config = replace(self.config.probe(), variance=variance, reach=1.0)
            with shrinking(bool(constants.shrink)):
                model.correction.fit(data, config, prior)
            corrections[key] = {k: v.clone() for k, v in model.correction.state_dict().items()}
        for name, value in corrections[key].items():
            setattr(model.correction, name, value.clone())
        model.correction.radius *= constants.reach
        return model


def chosen(heads: Heads, data: Features, constants: Constants) -> ProbedHeadModel:
    """Return the model with these constants, as `fit` would."""
    grid = pulled_grid((constants.strength, constants.share), constants.pull)
    choice = choose_strength(
        lambda part, _: heads.with_constants(part, constants),
        data,
        heads.seed,
        grid=grid,
        of_zero_shot=constants.of_zero_shot(),
        at_points=constants.at_points(),
    )
    model = heads.with_constants(data, constants)
    model.keep_choice(replace(choice, strength=for_new(choice, constants)))
    return model


def for_new(choice: StrengthChoice, constants: Constants) -> float:
    """Return the strength for new classes by the same rule with other constants."""
    if not choice.new_likelihood:
        return min(choice.trained_strength or 0.0, constants.largest)
    losses = -torch.tensor(choice.new_likelihood)
    return cautious_strength(losses, constants.gain, constants.largest)


def tested(model: ProbedHeadModel, data: Features) -> list[float]:
    """Return accuracy, balanced accuracy and negative log-likelihood."""
    classes = data.class_set()
    logits = model.logits(data.plain(), classes).double()
    right = (logits.argmax(1) == data.labels).double()
    count = torch.bincount(data.labels, minlength=len(classes))
    each = torch.zeros(len(classes), dtype=torch.float64).index_add(0, data.labels, right)
    balanced = (each / count.clamp(min=1))[count > 0].mean()
    return [float(right.mean()), float(balanced), float(cross_entropy(logits, data.labels))]


def work(places: Places, cell: Cell, path: str, only: Sequence[str]) -> None:
    """Write the file of a draw."""
    torch.set_num_threads(1)
    task: Task = open_task(places, cell)
    heads = Heads(task.train, cell.seed, Path(path).parent)
    found = []
    for constants in variants(only):
        model = chosen(heads, task.train, constants)
        found.append(
            {
                "constants": asdict(constants),
                "strength": model.strength.value,
                "mixture": model.mixture.tolist(),
                "parts": {name: tested(model, data) for name, data in task.tests.items()},
            }
        )
    model.strength = Strength(0.0)
    zero_shot = {name: tested(model, data) for name, data in task.tests.items()}
    write_json(path, {"cell": asdict(cell), "variants": found, "zero_shot": zero_shot})


def run_all(options: argparse.Namespace) -> None:
    """Run the draws whose file is missing."""
    places = Places(options.imagenet, options.features)
    cells = [
        Cell("tune", problem, shots, seed, "recipe")
        for seed in options.seeds
        for _, problem, shots in problems(places, ("tune",))
    ]
    todo = [(cell, Path(options.folder) / cell.path) for cell in cells]
    todo = [(cell, path) for cell, path in todo if not path.exists()]
    print(f"{len(cells)} draws, {len(todo)} to run", flush=True)
    os.environ |= dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
    with ProcessPoolExecutor(options.jobs, get_context("spawn")) as pool:
        jobs = [pool.submit(work, places, cell, str(path), options.only) for cell, path in todo]
        for done, job in enumerate(as_completed(jobs), 1):
            job.result()
            print(f"{done} of {len(todo)}", flush=True)


# -- the table ---------------------------------------------------------------------------------------

GROUNDS = ("groups, trained", "groups, new", "PACS own", "PACS others", "CIFAR-10", "textiles")


def ground(problem: str, part: str) -> str:
    if problem.startswith("pacs-"):
        return "PACS own" if part == "base" else "PACS others"
    if problem in ("cifar10", "textiles"):
        return {"cifar10": "CIFAR-10", "textiles": "textiles"}[problem]
    return "groups, trained" if part == "base" else "groups, new"


def collected(folder: str, only: Sequence[str]) -> tuple[dict[Any, Any], int]:
    """Return, by ground and problem with its shots, arrays `(draws, variants + 1, 2)`; zero-shot is last."""
    values: dict[Any, Any] = defaultdict(lambda: defaultdict(list))
    files = sorted(Path(folder).glob("tune/*/*/recipe.json"))
    for path in files:
        found = read_json(path, error=DataError, what="the draw")
        if [one["constants"] for one in found["variants"]] != [
            asdict(one) for one in variants(only)
        ]:
            raise DataError(f"{str(path)!r} has other variants: choose another folder")
        problem, shots = found["cell"]["problem"], found["cell"]["shots"]
        rows = [one["parts"] for one in found["variants"]] + [found["zero_shot"]]
        for part in found["zero_shot"]:
            place = ground(problem, part)
            which = 1 if place == "textiles" else 0
            numbers = [[100 * row[part][which], row[part][2]] for row in rows]
            values[place][problem, shots, part].append(numbers)
    return values, len(files)


def table(folder: str, only: Sequence[str]) -> dict[str, Any]:
    """Return what every variant gave, on every ground and in the mean."""
    values, draws = collected(folder, only)
    means, errors = {}, {}
    for place in GROUNDS:
        # of one problem draws and numbers of shots are no independent evidence
        by_problem: dict[str, list[Any]] = defaultdict(list)
        for (problem, _, _), rows in values[place].items():
            by_problem[problem].append(np.mean(rows, axis=0))
        each = np.stack([np.mean(rows, axis=0) for rows in by_problem.values()])
        means[place] = each.mean(0)
        change = each - each[:, :1]
        errors[place] = change.std(0, ddof=1) / len(each) ** 0.5 if len(each) > 1 else 0 * each[0]
    rows = []
    names = [*map(asdict, variants(only)), {"zero-shot": True}]
    for number, constants in enumerate(names):
        entry = {place: means[place][number].tolist() for place in GROUNDS}
        change = np.stack([means[place][number] - means[place][0] for place in GROUNDS])
        error = np.sqrt(sum(errors[place][number] ** 2 for place in GROUNDS)) / len(GROUNDS)
        rows.append(
            {
                "constants": constants,
                "grounds": entry,
                "change": change.mean(0).tolist(),
                "error": error.tolist(),
            }
        )
    return {"draws": draws, "environment": environment(), "rows": rows}


def shown(found: dict[str, Any]) -> str:
    lines = [
        f"{found['draws']} draws; accuracy in per cent, and differences to today's constants",
        f"| changed | {' | '.join(GROUNDS)} | mean difference | of the log-likelihood, in nats |",
        f"|:--|{'--:|' * (len(GROUNDS) + 2)}",
    ]
    today = asdict(TODAY)
    for row in found["rows"]:
        changed = [
            f"{k} {v:g}"
            for k, v in row["constants"].items()
            if today.get(k) != v and k != "zero-shot"
        ]
        name = "zero-shot" if "zero-shot" in row["constants"] else ", ".join(changed) or "today"
        cells = " | ".join(f"{row['grounds'][place][0]:.1f}" for place in GROUNDS)
        (accuracy, loss), (first, second) = row["change"], row["error"]
        lines.append(
            f"| {name} | {cells} | {accuracy:+.2f} ± {first:.2f} | {-loss:+.3f} ± {second:.3f} |"
        )
    return "\n".join(lines)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("folder", help="of the draws")
    parser.add_argument("--imagenet", help="file of CLIP features of ImageNet, .npz")
    parser.add_argument("--features", help="folder of files NAME-SPLIT.safetensors")
    parser.add_argument("--seeds", nargs="+", type=int, default=[1, 2, 3])
    parser.add_argument(
        "--only", nargs="+", choices=CHANGES, default=[], help="these constants alone"
    )
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    parser.add_argument("--report", action="store_true", help="print the table of what is there")
    parser.add_argument("--out", help="JSON file for the table")
    options = parser.parse_args()
    if not options.report:
        run_all(options)
    found = table(options.folder, options.only)
    print(shown(found))
    if options.out:
        write_json(options.out, found)
    return 0


if __name__ == "__main__":
    sys.exit(main())
