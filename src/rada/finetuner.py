"""`FineTuner`: any method on images, evaluated in and out of distribution."""

from __future__ import annotations

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch

from rada.core.config import Config
from rada.core.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    OutputError,
    StorageError,
)
from rada.core.extras import check_extra, needed_for
from rada.core.output import OutputFolder, claim, training_folder
from rada.core.printable import escape
from rada.core.processes import gather_rows, process_count, process_rank
from rada.core.records import ResultRecord, check_record
from rada.core.storage import read_json, write_json
from rada.core.values import check_count, check_seed
from rada.core.warn import warn
from rada.data import ImageSplit, data_identity
from rada.data.bad import warn_of_bad
from rada.data.prompts import ClassNamesSource, load_templates
from rada.encoders import DualEncoder, load_encoder
from rada.evaluation import Timer, environment
from rada.evaluation.provenance import command_line
from rada.evaluation.robustness import RobustnessEvaluator
from rada.features import FeatureCache, Features, extract_features
from rada.fitting import as_fitted, given_templates
from rada.inputs import Data, data_name
from rada.methods import AdaptedModel, Run, get_method
from rada.methods.finetune.model import TunedModel
from rada.pretrained import CONFIG_FILE, EncoderId, Fitted, Record, load_model, write_model
from rada.report.robustness import accuracies, draw_robustness
from rada.run_data import RunData, open_sets
from rada.training.checkpoints import Checkpoints, differences
from rada.training.distributed import make_accelerator
from rada.training.tracking import check_trackers
from rada.training.wise_ft import check_alphas

if TYPE_CHECKING:
    from accelerate import Accelerator

    from rada.classifier import Classifier

__all__ = ["FineTuner"]

LOG_FILE = "log.jsonl"
RESULT_FILE = "result.json"
FIGURE_FILE = "robustness.svg"


class FineTuner:
    """Adapts a dual encoder by any method and evaluates it under shift.

    Args:
        encoder: Name of a dual encoder, or a loaded one. Methods that train an encoder train a copy; only
            functions of your own (`CustomEncoder`), which cannot be copied, are trained in place.
        method: Name of a method (`rada methods`), such as "rada-ft", "ft", "flyp", "l2-sp", "lp-ft",
            "rada" or "linear-probe".
        config: Its configuration; the defaults when None.
        classes: Class names or a mapping, as for `open_dataset`; None takes the data's.
        templates: Prompt templates with `{}`; None takes the data's.
        device: "cpu", or None for what Accelerate finds or the launcher says.
        cache: A `FeatureCache` for features of the pretrained encoder, None for the default one, or
            False for none.
        workers: Processes that decode training images; None for none on a CPU, else up to 8.
        skip_bad: Go on without images that cannot be read.
        trackers: "tensorboard", "wandb" or "trackio", besides `log.jsonl`.
        progress: Show bars; None on a terminal only.

    Attributes:
        encoder: The pretrained encoder.
        model: The `AdaptedModel` after `fit`, or None.
        result: What `fit` returned last.
        is_main_process: Whether this process is the one that writes and prints.

    Raises:
        ConfigError: If the method is unknown, or the configuration is another method's.
        EncoderError: If the encoder cannot be loaded, or lacks what the method needs.

    Example:
        >>> tuner = FineTuner("embedded", "rada-ft", FFTConfig(epochs=1))  # doctest: +SKIP
        >>> result = tuner.fit("pacs/photo", ood={"sketch": "pacs/sketch"}, seed=1)  # doctest: +SKIP
        >>> result["tuned"]["out_of_distribution"]["mean"]  # doctest: +SKIP
        0.38
    """

    def __init__(
        self,
        encoder: str | Path | DualEncoder = "embedded",
        method: str = "rada-ft",
        config: Config | None = None,
        *,
        classes: ClassNamesSource | None = None,
        templates: str | Sequence[str] | None = None,
        device: str | torch.device | None = None,
        cache: FeatureCache | Literal[False] | None = None,
        workers: int | None = None,
        skip_bad: bool = False,
        trackers: Sequence[str] = (),
        progress: bool | None = None,
    ) -> None:
        self.method = get_method(method)
        self.config = self.method.checked(config)
        check_trackers(tuple(trackers))
        self.method.check_packages()
        self.encoder = load_encoder(encoder, device=device)
        for capability in sorted(self.method.capabilities(self.config)):
            self.encoder.require(capability)
        self.class_names = classes
        self.templates = None if templates is None else load_templates(templates)
        self.device, self.cache, self.workers = device, cache, workers
        self.skip_bad, self.trackers, self.progress = skip_bad, tuple(trackers), progress
        self.model: AdaptedModel | None = None
        self._fitted: Fitted | None = None
        self.result: dict[str, Any] = {}
        self.is_main_process = True

    # -- the run ---------------------------------------------------------------------------------

    def fit(
        self,
        data: Data,
        ood: Mapping[str, Data] | None = None,
        shots: int | None = None,
        seed: int = 0,
        *,
        allow_fewer: bool = False,
        wise: Sequence[float] = (),
        output_dir: str | Path | None = None,
        overwrite: bool = False,
    ) -> dict[str, Any]:
        """Train, evaluate and save.

        Args:
            data: A folder, a table, WebDataset shards, or the name of a data set; its `train` split is
                learned, its `test` split is in distribution, its `val` split selects.
            ood: Further test sets by name.
            shots: Training images of each class; None for all.
            seed: Seed of everything random.
            allow_fewer: Go on where a class has fewer images than `shots`.
            wise: Points between the pretrained model (0) and the adapted one (1) that are evaluated:
                averages of the weights (WiSE-FT) for methods that train an encoder, strengths for
                the others.
            output_dir: Folder for model, checkpoints, log and result. The same call goes on where it
                stopped, and after the end returns the result.
            overwrite: Replace another run in `output_dir`.

        Returns:
            The result as plain JSON: `zero_shot` and `tuned`, each with `in_distribution.accuracy`,
            `out_of_distribution.NAME.accuracy` and `out_of_distribution.mean`; `history`, `wise` and
            all that is needed to run it again. The tuned numbers stand at the top level, too.

        Raises:
            ConfigError: If the seed or a point of `wise` is out of range.
            DataError: If images, classes or the number of shots cannot be used.
            CheckpointError: If `output_dir` holds another run, or a damaged checkpoint.
            OutputError: If `output_dir` holds what rada did not write, lies in the data or around it, or
                another process writes to it.
            FineTuningStopped: On Ctrl-C or SIGTERM, after a checkpoint.
            TrainingDivergedError: If the loss is not finite.
            OutOfMemoryError: If a step does not fit into memory.
        """
        seed = check_seed(seed)
        shots = None if shots is None else check_count(shots, "shots", error=DataError)
        wise = check_alphas(wise)
        out = None if output_dir is None else Path(output_dir)
        if out is not None and ood:
            check_extra("report", "the figure of robustness")
        if out is not None and self.method.saves_encoder:
            self.encoder.require("save")
        if isinstance(self.model, TunedModel) and self.model.encoder is self.encoder:
            self.model.load_tuned(self.model.pretrained)  # it was trained in place
        accelerator = make_accelerator(self.device, getattr(self.config, "precision", None))
        self.is_main_process = bool(accelerator.is_main_process)
        with _owned(out, accelerator, [data, *(ood or {}).values()]) as folder:
            # What one process indexes or downloads, all find.
            with accelerator.main_process_first():
                sets = open_sets(
                    data,
                    ood or {},
                    self.class_names,
                    shots=shots,
                    seed=seed,
                    allow_fewer=allow_fewer,
                    skip_bad=self.skip_bad,
                    select=getattr(self.config, "select", "last") == "best",
                )
            templates = tuple(self.templates or self.method.templates(sets.templates))
            run = _described(self, data, ood or {}, sets, templates, shots, seed, wise)
            if out is not None:
                finished = _finished(self, out, run, overwrite)
                if finished is not None:
                    self._fitted, self.result = finished
                    self.model = self._fitted.model
                    return dict(self.result)
                if folder is not None:
                    Checkpoints(training_folder(out), run, keep=1).claim(overwrite=overwrite)
                    folder.take(LOG_FILE)
                accelerator.wait_for_everyone()
            self.result = self._adapted(
                run, sets, templates, wise, folder, out, overwrite, accelerator
            )
            if folder is not None:
                self.save(folder.path)
                folder.clear_training()
            accelerator.wait_for_everyone()
        accelerator.end_training()
        return self.result

    def _adapted(
        self,
        run: dict[str, Any],
        sets: RunData,
        templates: tuple[str, ...],
        wise: Sequence[float],
        folder: OutputFolder | None,
        out: Path | None,
        overwrite: bool,
        accelerator: Accelerator,
    ) -> dict[str, Any]:
        """Train and evaluate the run that is described; return its result."""
        seed = run["seed"]
        with Timer() as timer:
            self.encoder.model.to(accelerator.device)
            data = _training_features(
                self.encoder,
                sets.train,
                templates,
                views=self.method.views(self.config),
                seed=seed,
                cache=self.cache,
                workers=self.workers,
                skip_bad=self.skip_bad,
                progress=self.progress if self.is_main_process else False,
            )
            evaluate = RobustnessEvaluator(
                sets.tests,
                self.encoder,
                data.class_set(),
                cache=self.cache,
                workers=self.workers,
                skip_bad=self.skip_bad,
            )
            zero_shot = evaluate(get_method("zero_shot").fit(data))
            skipped = (*sets.skipped, *data.skipped)
            if self.is_main_process:
                _warn_of_bad(skipped, zero_shot)
            options = _run_options(self, sets, evaluate, seed, out)
            try:
                model = self.method.fit(data, self.config, options)
            except CheckpointError:  # a state is damaged
                if not overwrite:
                    raise
                if folder is not None:
                    folder.clear_training()
                accelerator.wait_for_everyone()
                model = self.method.fit(data, self.config, options)
            tuned = evaluate(model)
            curve = _curve(model, evaluate, wise, zero_shot, tuned)
        self.model, self._fitted = model, _fitted(self, model, data, sets.aliases, run, skipped)
        return (
            run
            | tuned
            | {"zero_shot": zero_shot, "tuned": tuned, "wise": curve}
            | {
                **_facts(model),
                "classes": list(data.classes),
                "skipped": [[escape(str(name)), escape(reason)] for name, reason in skipped],
                "processes": process_count(),
                "notes": [test.note for test in sets.tests if test.note],
                "environment": environment(),
                "command": command_line(),
                **timer.to_dict(),
            }
        )

    # -- what comes out --------------------------------------------------------------------------

    @property
    def fitted(self) -> Fitted:
        """The adapted model with all that is needed to use it.

        Raises:
            ConfigError: If nothing was fitted yet.
        """
        if self._fitted is None:
            raise ConfigError("there is no adapted model yet: call fit first")
        return self._fitted

    def classifier(self) -> Classifier:
        """Return the adapted model as a `Classifier`, which shares its weights.

        Raises:
            ConfigError: If nothing was fitted yet.
        """
        from rada.classifier import Classifier

        found = Classifier(
            self.encoder,
            self.method.name,
            config=self.config,
            device=self.device,
            cache=self.cache,
            workers=self.workers,
            skip_bad=self.skip_bad,
            progress=self.progress,
        )
        found.adopt(self.fitted)
        return found

    def save(self, directory: str | Path) -> None:
        """Write model, figure and result; a reader sees the old files or the new ones.

        Raises:
            ConfigError: If nothing was fitted yet.
            OutputError: If the folder holds what rada did not write, or another process writes to it.
            StorageError: If the place cannot be written.
        """
        fitted = self.fitted
        with claim(directory, "model") as out, out.saving(keep=(LOG_FILE,)) as stage:
            write_model(stage, fitted)
            _draw(stage / FIGURE_FILE, self.method.title, self.result)
            write_json(stage / RESULT_FILE, self.result)


@contextlib.contextmanager
def _owned(
    out: Path | None, accelerator: Accelerator, inputs: Sequence[Any]
) -> Iterator[OutputFolder | None]:
    """Own the output folder in the main process; if it may not be had, all processes fail."""
    with needed_for("fine-tuning"):
        from accelerate.utils import broadcast_object_list

    if out is None:
        yield None
        return
    with contextlib.ExitStack() as stack:
        folder, refused = None, None
        if accelerator.is_main_process:
            try:
                folder = stack.enter_context(claim(out, "model", inputs=inputs))
            except StorageError as error:
                refused = error
        message = broadcast_object_list([None if refused is None else str(refused)])[0]
        if message is not None:
            raise refused or OutputError(message)
        yield folder


def _finished(
    tuner: FineTuner, out: Path, run: dict[str, Any], overwrite: bool
) -> tuple[Fitted, dict[str, Any]] | None:
    """Return model and result of this very run if they are there; refuse to replace another."""
    if not (out / RESULT_FILE).exists() and not (out / CONFIG_FILE).exists():
        return None
    try:
        found = read_json(out / RESULT_FILE, error=CheckpointError, what="the result")
        what = f"'{out / RESULT_FILE}'"
        check_record(ResultRecord, found, error=CheckpointError, what=what)
        different = differences({key: found.get(key) for key in run}, run)
        if not different:
            return load_model(out, encoder=tuner.encoder, device=tuner.device), found
    except CheckpointError as error:
        different = [str(error)]
    if not overwrite:
        raise CheckpointError(
            f"{str(out)!r} holds the result of another run ({'; '.join(different[:3])}): choose "
            "another folder, or replace it with --overwrite (overwrite=True)"
        )
    return None


def _run_options(
    tuner: FineTuner, sets: RunData, evaluate: RobustnessEvaluator, seed: int, out: Path | None
) -> Run:
    """Return how the method runs."""
    every, epochs = getattr(tuner.config, "evaluate_every", 0), getattr(tuner.config, "epochs", 0)
    validation = sets.validation

    def after_epoch(model: AdaptedModel, done: int) -> dict[str, Any]:
        return evaluate(model) if every and done % every == 0 and done < epochs else {}

    def select(model: AdaptedModel) -> dict[str, Any]:
        assert validation is not None
        return evaluate.evaluate(model, validation)

    # All processes go on from the checkpoints of an encoder; other states have one writer.
    keeps = tuner.method.train_encoder or tuner.is_main_process
    return Run(
        seed=seed,
        encoder=tuner.encoder,
        state_dir=training_folder(out) if out is not None and keeps else None,
        progress=tuner.progress if tuner.is_main_process else False,
        workers=tuner.workers,
        skip_bad=tuner.skip_bad,
        device=tuner.device,
        after_epoch=after_epoch,
        select=None if validation is None else select,
        log_path=None if out is None else out / LOG_FILE,
        trackers=tuner.trackers,
    )


def _fitted(
    tuner: FineTuner,
    model: AdaptedModel,
    data: Features,
    aliases: Mapping[str, str],
    run: dict[str, Any],
    skipped: Sequence[tuple[str, str]],
) -> Fitted:
    """Return a model with all that is needed to use it."""
    assert data.images is not None
    if tuner.templates is not None:
        model.record["template_choice"] = given_templates(tuner.templates)
    record = Record(**{key: run[key] for key in ("seed", "shots", "data", "data_fingerprint")})
    encoder = EncoderId.of(tuner.encoder)
    return as_fitted(model, data, data.images, aliases, encoder, record, skipped)


def _warn_of_bad(skipped: Sequence[tuple[str, str]], evaluated: dict[str, Any]) -> None:
    """Count the images of training and of each test set that were left out."""
    warn_of_bad(skipped, "training images", stacklevel=5)
    sets = {"the test set": evaluated["in_distribution"], **evaluated["out_of_distribution"]}
    for name, entry in sets.items():
        if isinstance(entry, dict) and entry.get("left_out"):
            warn(
                f"{entry['left_out']} of the images of {name} left out as unreadable",
                UserWarning,
                stacklevel=4,
            )


def _curve(
    model: AdaptedModel,
    evaluate: RobustnessEvaluator,
    points: Sequence[float],
    zero_shot: dict[str, Any],
    tuned: dict[str, Any],
) -> list[dict[str, Any]]:
    """Evaluate points between the pretrained and the adapted model."""
    curve = []
    for alpha in points:
        if alpha == 0:
            found = zero_shot
        elif not isinstance(model, TunedModel):
            found = evaluate(model, strength=alpha)
        elif alpha == model.config.wise_alpha:
            found = tuned
        else:
            with model.averaged(alpha):
                found = evaluate(model)
        curve.append({"alpha": alpha, **found})
    return curve


def _draw(path: Path, title: str, result: dict[str, Any]) -> None:
    """Draw the robustness of the run, where it was evaluated in and out of distribution."""
    before, after = accuracies(result["zero_shot"]), accuracies(result["tuned"])
    if before is None or after is None:
        return
    points = [accuracies(entry) for entry in result["wise"]]
    curve = [point for point in points if point is not None]
    draw_robustness(path, before, {title: after}, {title: curve})


def _training_features(
    encoder: DualEncoder, split: ImageSplit, templates: tuple[str, ...], **options: Any
) -> Features:
    """Return training images with their features by the pretrained encoder, and the classes'.

    Each process encodes its share, and all get all of them.
    """
    if process_count() == 1:
        found = extract_features(encoder, split, **options)
    else:
        rows = np.arange(len(split))[process_rank() :: process_count()]
        found = _all_rows(split, rows, extract_features(encoder, split.subset(rows), **options))
    text = encoder.encode_classes(found.classes, templates)
    return dataclasses.replace(found, text_features=text, scale=encoder.scale, templates=templates)


def _all_rows(split: ImageSplit, rows: np.ndarray, own: Features) -> Features:
    """Return the features of all processes, each of which has those of its `rows`."""
    skipped = {name for name, _ in own.skipped}
    kept = torch.tensor([row for row in rows.tolist() if split.ids[row] not in skipped])
    places, features = gather_rows(kept), gather_rows(own.image_features)
    order = places.argsort()
    images = split.subset(places[order].numpy())
    return dataclasses.replace(
        own,
        image_features=features[order],
        labels=torch.from_numpy(images.labels.copy()),
        ids=tuple(images.ids),
        images=images,
    )


def _facts(model: AdaptedModel) -> dict[str, Any]:
    """Return what the training tells, as plain JSON; of the strength where there is a head."""
    record = model.record
    found = {
        "history": record.get("history", []),
        "best": record.get("best", {}),
        "effective": record.get("effective", {}),
        "trainable_parameters": model.trainable_parameters(),
    }
    if model.head is not None:
        found |= {
            "strength": model.strength.value,
            "trained_strength": model.strength.trained,
            "strength_choice": record.get("strength_choice"),
        }
    return found


def _described(
    tuner: FineTuner,
    data: Data,
    ood: Mapping[str, Data],
    sets: RunData,
    templates: tuple[str, ...],
    shots: int | None,
    seed: int,
    wise: Sequence[float],
) -> dict[str, Any]:
    """Return all that decides the result, as JSON gives it back.

    The main process reads the images for all of them.
    """
    with needed_for("fine-tuning"):
        from accelerate.utils import broadcast_object_list

    def identity(split: ImageSplit) -> str:
        return data_identity(split, progress=tuner.progress)

    contents: list[Any] = [None]
    if tuner.is_main_process:
        selects = sets.validation
        contents[0] = {
            "data_fingerprint": identity(sets.train),
            "test_fingerprints": {test.name: identity(test.split) for test in sets.tests},
            "validation_fingerprint": selects and identity(selects.split),
        }
    broadcast_object_list(contents)
    encoder = tuner.encoder
    run = contents[0] | {
        "setting": "fft",
        "method": tuner.method.name,
        "config": tuner.config.to_dict(),
        "seed": seed,
        "shots": shots,
        "encoder": {"name": encoder.name, "fingerprint": encoder.fingerprint},
        "data": data_name(data),
        "images": len(sets.train),
        "templates": list(templates),
        "wise_alphas": list(wise),
        "out_of_distribution_data": {k: data_name(v) for k, v in ood.items()},
    }
    return dict(json.loads(json.dumps(run)))
