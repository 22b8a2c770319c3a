"""Running a plan: every cell once, however many processes work on the folder."""

from __future__ import annotations

import contextlib
import shutil
import time
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from rada.bench.cells import Cell, Folder
from rada.bench.locks import Locks
from rada.bench.memory import PeakMemory
from rada.bench.plan import Plan
from rada.bench.protocols import Part, set_up
from rada.bench.sources import Source, open_source
from rada.core.errors import RadaError, StorageError
from rada.core.output import STATE_FOLDER, check_apart
from rada.core.progress import progress_bar
from rada.data import Naming
from rada.encoders.slot import EncoderSlot
from rada.evaluation import Timer, environment, harmonic_mean
from rada.evaluation.metrics import Counts, checked
from rada.features import ClassSet, FeatureCache, Features, extract_features
from rada.methods import AdaptedModel, Run, UnknownClassError, get_method
from rada.test_time import TestTimeMethod, ViewConfig, get_test_time_method
from rada.test_time.base import predict_data_set
from rada.test_time.views import pixels_of, view_transform

__all__ = ["RunSummary", "run_cell", "run_plan"]

_POLL = 1.0  # seconds between looks at cells that another process has


@dataclass
class RunSummary:
    """What became of a plan.

    Attributes:
        done: Cells that this process finished.
        skipped: Cells that were finished before, or by another process.
        failed: Cells that failed, with the reason.
        seconds: Time taken.
    """

    done: int = 0
    skipped: int = 0
    failed: list[tuple[Cell, str]] = field(default_factory=list)
    seconds: float = 0.0

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON."""
        failed = [{"cell": cell.to_dict(), "reason": reason} for cell, reason in self.failed]
        return {
            "done": self.done,
            "skipped": self.skipped,
            "failed": failed,
            "seconds": self.seconds,
        }

    def __str__(self) -> str:
        return (
            f"{self.done} cells run, {self.skipped} there before, {len(self.failed)} failed, "
            f"{self.seconds:.0f} s"
        )


class Sources:
    """The data sets of a plan, opened as they are needed."""

    def __init__(
        self,
        plan: Plan,
        locks: Locks,
        cache: FeatureCache | Literal[False] | None,
        device: str | None,
        progress: bool | None,
    ) -> None:
        self.plan, self.locks, self.cache, self.progress = plan, locks, cache, progress
        self.encoder = EncoderSlot(plan.model, device, check=lambda encoder: encoder.freeze())
        self.naming = Naming.of(plan.class_names or None)
        self._open: dict[str, Source] = {}

    def get(self, cell: Cell) -> dict[str, Source]:
        """Return the data sets of a cell; those of other cells are let go."""
        wanted = (cell.dataset, *cell.targets)
        self._open = {spec: source for spec, source in self._open.items() if spec in wanted}
        for spec in wanted:
            if spec not in self._open:
                self._open[spec] = self._new(spec)
        return dict(self._open)

    def identities(self, cell: Cell) -> dict[str, Any] | None:
        """Return the identity of each data set of a cell; None where one cannot be opened.

        A result of data that is gone stands; running such a cell says what is wrong.
        """
        try:
            return identities_of(cell, self.get(cell))
        except RadaError:
            return None

    def _new(self, spec: str) -> Source:
        return open_source(
            spec,
            self.encoder,
            templates=self.plan.templates,
            naming=self.naming,
            cache=self.cache,
            progress=self.progress,
        )

    @contextlib.contextmanager
    def alone(self, cell: Cell) -> Iterator[None]:
        """Keep other processes from encoding the same images: they read the cache afterwards."""
        with self.locks.claim(f"data {cell.dataset}", wait=True):
            yield


def run_plan(
    plan: Plan,
    out: str | Path,
    *,
    cache: FeatureCache | Literal[False] | None = None,
    device: str | None = None,
    progress: bool | None = None,
    say: Callable[[str], None] = lambda text: None,
) -> RunSummary:
    """Run all cells of a plan that have no result yet.

    Several processes may do so on one folder: they share the cells between them. The cell at which a
    process is killed goes on from the state of its training, if its method keeps one.

    Args:
        plan: What to run.
        out: The folder of the results.
        cache: The feature cache; None for the default one, False for none.
        device: Where the encoder runs.
        progress: Show bars; None on a terminal only.
        say: Called with a line about each failure.

    Raises:
        ConfigError: If the folder holds other results.
        OutputError: If the folder is used for something else, lies in the data or around it.
        StorageError: If results cannot be written.
    """
    began = time.time()
    cells = plan.cells()
    check_apart(out, [spec for cell in cells for spec in (cell.dataset, *cell.targets)])
    folder = Folder(out)
    naming = Naming.of(plan.class_names or None)
    shared = {
        "model": plan.model,
        "templates": list(plan.templates),
        "class_names": (naming.classes and list(naming.classes)) or dict(naming.aliases),
    }
    folder.open(shared | ({"recipe": plan.recipe} if plan.recipe else {}))
    with contextlib.ExitStack() as stack:
        locks = Locks(folder.root / STATE_FOLDER / "cells")
        sources = Sources(plan, locks, cache, device, False if progress is None else progress)
        waiting = [cell for cell in cells if not _has_result(cell, folder, sources)]
        summary = RunSummary(skipped=len(cells) - len(waiting))
        advance = stack.enter_context(
            progress_bar("Benchmark", len(waiting), enabled=progress, unit="cells")
        )
        while waiting:
            busy = []
            for cell in waiting:
                with locks.claim(cell.path) as mine:
                    if not mine:
                        busy.append(cell)
                        continue
                    _settle(cell, folder, sources, summary, began, say)
                advance(1)
            if len(busy) == len(waiting):
                time.sleep(_POLL)
            waiting = busy
    summary.seconds = time.time() - began
    return summary


def identities_of(cell: Cell, sources: dict[str, Source]) -> dict[str, Any]:
    """Return the identity of what a cell takes from each of its data sets."""
    return {
        spec: source.identity(cell.shots, cell.seed)
        if spec == cell.dataset and not (cell.protocol == "shift" and spec in cell.targets)
        else source.identity(0, 0, whole=True)
        for spec, source in sources.items()
    }


def _has_result(cell: Cell, folder: Folder, sources: Sources) -> bool:
    """Whether a cell has the result of its data as it is now."""
    return folder.finished(cell) and folder.finished(cell, sources.identities(cell))


def _settle(
    cell: Cell,
    folder: Folder,
    sources: Sources,
    summary: RunSummary,
    began: float,
    say: Callable[[str], None],
) -> None:
    """Run a claimed cell unless another process has done so in the meantime."""
    if _has_result(cell, folder, sources):
        summary.skipped += 1
        return
    failure = folder.failure_path(cell)
    if failure.exists() and failure.stat().st_mtime > began:
        summary.failed.append((cell, "it failed in another process"))
        return
    try:
        training = folder.training_path(cell)
        result = run_cell(cell, sources.get(cell), sources.alone, training)
        folder.write(cell, result)
        shutil.rmtree(training, ignore_errors=True)
        summary.done += 1
    except StorageError:  # a full disk fails every cell, and nothing could be written about it
        raise
    except Exception as error:  # one cell must not end the others
        folder.write_failure(cell, error, traceback.format_exc())
        reason = f"{type(error).__name__}: {error}"
        summary.failed.append((cell, reason))
        say(f"failed: {cell}: {reason}")


def run_cell(
    cell: Cell,
    sources: dict[str, Source],
    alone: Callable[[Cell], contextlib.AbstractContextManager[None]] | None = None,
    state_dir: Path | None = None,
) -> dict[str, Any]:
    """Run one cell.

    Args:
        cell: The cell.
        sources: Its data sets by specification.
        alone: Guards the encoding of images.
        state_dir: Folder for the states of training, from which the same call goes on.

    Returns:
        Its result as plain JSON, without the cell itself.
    """
    method = get_method(cell.method)
    config = method.config.from_dict(dict(cell.options))
    test_time = _test_time(cell)
    source = sources[cell.dataset]
    # An encoder that is trained makes its own views of the test images, later.
    views = None if test_time is None or method.train_encoder else test_time[1]
    with alone(cell) if alone is not None else contextlib.nullcontext():
        setup = set_up(cell, method, config, sources, views)
    run = Run(seed=cell.seed, encoder=source.encoder, state_dir=state_dir)
    choice = None
    if source.choose and source.encoder is not None:
        setup, choice = setup.choose_templates(source.encoder, cell.seed)
    train = setup.train if choice else method.with_templates(setup.train, source.encoder)
    if test_time is not None:  # what cannot start from this method is refused before it is trained
        method.check(setup.train, config, run)
        test_time[0].check(method.start(setup.train, config, run))
    with PeakMemory() as memory:
        with Timer() as fitting:
            model = method.fit(train, config, run)
        with Timer() as predicting:
            parts = [_evaluated(model, part, test_time) for part in setup.parts]
    if choice is not None:
        model.record["template_choice"] = choice.to_dict()
    result: dict[str, Any] = {
        "parts": {part["name"]: part for part in parts},
        "config": config.to_dict(),
        "trainable_parameters": model.trainable_parameters(),
        "fit_seconds": model.record.pop("seconds"),
        "fit_cpu_seconds": fitting.cpu_seconds,
        "predict_seconds": predicting.seconds,
        "predict_cpu_seconds": predicting.cpu_seconds,
        "memory": memory.bytes,
        "images": len(setup.train) if method.learns else 0,
        "data": source.name,
        "strength": model.strength.to_dict(),
        "identities": identities_of(cell, sources),
        "record": model.record,
        "environment": environment(),
    }
    if test_time is not None:
        result["test_time_config"] = test_time[1].to_dict()
    if cell.protocol == "base-to-new":  # a target of others may be called so, too
        base, new = (result["parts"][name]["accuracy"] for name in ("base", "new"))
        if base is not None and new is not None:
            result["harmonic_mean"] = harmonic_mean(base, new)
    return result


def _test_time(cell: Cell) -> tuple[TestTimeMethod, ViewConfig] | None:
    if not cell.test_time:
        return None
    method = get_test_time_method(cell.test_time)
    config = method.config.from_dict(dict(cell.test_time_options))
    if not get_method(cell.method).learns:
        config = method.from_templates(config, None)  # the plan's templates are in the options
    return method, config


def _evaluated(
    model: AdaptedModel, part: Part, test_time: tuple[TestTimeMethod, ViewConfig] | None
) -> dict[str, Any]:
    """Return the metrics of one part, or why there are none."""
    data = part.data
    facts = {"name": part.name, "images": len(data), "classes": len(data.classes)}
    counts = Counts(len(data.classes))
    try:
        for some in data.parts():
            logits = part.merge(_logits(model, some, part.classes, test_time))
            counts.add(*checked(logits, some.labels, data.classes))
    except UnknownClassError as error:
        return facts | {"accuracy": None, "reason": str(error)}
    metrics = counts.metrics(data.classes)
    return facts | {
        "accuracy": metrics.accuracy,
        "balanced_accuracy": metrics.balanced_accuracy,
        "ece": metrics.ece,
        "interval": list(metrics.interval),
        "right": round(metrics.accuracy * metrics.images),
    }


def _logits(
    model: AdaptedModel,
    data: Features,
    classes: ClassSet,
    test_time: tuple[TestTimeMethod, ViewConfig] | None,
) -> Tensor:
    """Return logits of test images; those of a method that trains an encoder are encoded anew."""
    if test_time is None:
        return model.logits(model.features_of(data), classes)
    method, config = test_time
    method.check(model)
    if model.method.train_encoder:
        assert model.encoder is not None
        options: dict[str, Any] = {"cache": False, "workers": 0, "progress": False}
        options |= {"views": config.views, "seed": config.seed}
        options["view_transform"] = view_transform(model.encoder, config)
        images = data.labelled_images()
        data = extract_features(model.encoder, images, **options)
    pixels = pixels_of(method, model, data, config)
    return predict_data_set(method.predictor(model, classes, config), data, config.seed, pixels)
