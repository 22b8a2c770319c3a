"""`FineTuner`: encoders and head together, judged in and out of distribution."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch

from rada.core.errors import CheckpointError, ConfigError, DataError, OutputError, StorageError
from rada.core.output import OutputFolder, claim, training_folder
from rada.core.records import ResultRecord, check_record
from rada.core.storage import read_json
from rada.core.values import check_count, check_seed
from rada.data import ImageSplit, data_identity
from rada.data.prompts import load_templates
from rada.encoders import DualEncoder, load_encoder
from rada.encoders.memory import keep_freed_memory
from rada.evaluation import Timer, environment
from rada.evaluation.provenance import command_line
from rada.evaluation.robustness import Judge, TestSet
from rada.evaluation.seen import image_keys, remembered
from rada.features import FeatureCache, Features, extract_features
from rada.inputs import data_name
from rada.methods.finetune import FirstStage, get_fft_method
from rada.methods.finetune.config import FFTConfig
from rada.methods.finetune.model import TunedModel
from rada.methods.finetune.saving import LOG_FILE, RESULT_FILE, save_tuned, strength_facts
from rada.methods.finetune.sets import Data, RunData, open_sets
from rada.methods.finetune.strength import choose_tuned_strength
from rada.pretrained import CONFIG_FILE, load_parts
from rada.training.batches import Order, StepData, training_transform
from rada.training.best_epoch import BestEpoch
from rada.training.checkpoints import Checkpoints, RunState, differences
from rada.training.encoder_loop import FineTuningStopped, TowerTraining
from rada.training.signals import listening
from rada.training.tracking import check_trackers, start_trackers
from rada.training.wise_ft import interpolate

if TYPE_CHECKING:
    from accelerate import Accelerator
    from torch import Tensor

    from rada.classifier import RAdaClassifier

__all__ = ["FineTuner"]

# How Accelerate may share the work; others cut the model itself into pieces.
_KINDS = ("NO", "MULTI_CPU", "MULTI_GPU", "MULTI_XPU", "MULTI_NPU", "MULTI_MLU", "MULTI_HPU")
_CLASSES_PER_STEP = 64


class FineTuner:
    """Fine-tunes a dual encoder, with or without a RAda head, and judges it under shift.

    Args:
        encoder: Name of a dual encoder, or a loaded one, whose weights are then trained in place.
        method: "rada-ft", "rada", "ft", "flyp", "l2-sp", "lp-ft" or "linear-probe".
        config: Hyper-parameters; the defaults of `FFTConfig` when None.
        classes: Class names, or a mapping from the data's names to them; None takes the data's.
        templates: Prompt templates with `{}`; None takes the data's.
        device: "cpu", or None for what Accelerate finds or the launcher says.
        cache: A `FeatureCache` for features of the pretrained encoder, None for the default one, or
            False for none.
        workers: Processes that decode training pictures; None for none on a CPU, else up to 8.
        skip_bad: Go on without pictures that cannot be read.
        trackers: "tensorboard", "wandb" or "trackio", besides `log.jsonl`.
        progress: Show bars; None on a terminal only.

    Attributes:
        encoder: The encoder.
        model: The `TunedModel` after `fit`, or None.
        result: What `fit` returned last.
        is_main_process: Whether this process is the one that writes and prints.

    Raises:
        ConfigError: If the method is unknown or cannot train what the configuration asks for.
        EncoderError: If the encoder cannot be loaded.

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
        config: FFTConfig | None = None,
        *,
        classes: Sequence[str] | Mapping[str, str] | None = None,
        templates: str | Sequence[str] | None = None,
        device: str | torch.device | None = None,
        cache: FeatureCache | Literal[False] | None = None,
        workers: int | None = None,
        skip_bad: bool = False,
        trackers: Sequence[str] = (),
        progress: bool | None = None,
    ) -> None:
        self.method = get_fft_method(method)
        self.config = self.method.resolve(config or FFTConfig())
        check_trackers(tuple(trackers))
        self.encoder = load_encoder(encoder, device=device)
        for part in ("image", "text"):
            if self.config.train in (part, "both"):
                self.encoder.require(f"{part}_gradients")
        self.class_names = classes
        self.templates = None if templates is None else load_templates(templates)
        self.device, self.cache, self.workers = device, cache, workers
        self.skip_bad, self.trackers, self.progress = skip_bad, tuple(trackers), progress
        self.model: TunedModel | None = None
        self.result: dict[str, Any] = {}
        self.is_main_process = True
        self._judge: Judge | None = None
        self._image_keys: list[str] = []

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
        """Train, judge and save.

        Args:
            data: A folder, a table, WebDataset shards, or the name of a data set; its `train` split is
                learned, its `test` split is in distribution, its `val` split selects.
            ood: Further test sets by name.
            shots: Training pictures of each class; None for all.
            seed: Seed of everything random.
            allow_fewer: Go on where a class has fewer pictures than `shots`.
            wise: Weights of the tuned model at which the line to the pretrained one is judged.
            output_dir: Folder for model, checkpoints, log and result. The same call goes on where it
                stopped, and after the end returns the result.
            overwrite: Replace another run in `output_dir`.

        Returns:
            The result as plain JSON: `zero_shot` and `tuned`, each with `in_distribution.accuracy`,
            `out_of_distribution.NAME.accuracy` and `out_of_distribution.mean`; `history`, `wise` and
            all that is needed to run it again. The tuned numbers stand at the top level, too.

        Raises:
            ConfigError: If the seed is out of range.
            DataError: If pictures, classes or the number of shots cannot be used.
            CheckpointError: If `output_dir` holds another run, or a damaged checkpoint.
            OutputError: If `output_dir` holds what rada did not write, lies in the data or around it, or
                another process writes to it.
            FineTuningStopped: On Ctrl-C or SIGTERM, after a checkpoint.
            TrainingDivergedError: If the loss is not finite.
            OutOfMemoryError: If a step does not fit into memory.
        """
        seed = check_seed(seed)
        shots = None if shots is None else check_count(shots, "shots", error=DataError)
        out = None if output_dir is None else Path(output_dir)
        if out is not None:
            self.encoder.require("save")
        if self.model is not None:  # a second fit starts from the pretrained weights, too
            self.model.load_tuned(self.model.start)
        accelerator = self._accelerator(out)
        with _owned(out, accelerator, [data, *(ood or {}).values()]) as folder:
            start_trackers(accelerator, self.trackers, self.config.to_dict())
            return self._fit(
                accelerator, folder, data, ood, shots, seed, allow_fewer, wise, out, overwrite
            )

    def _fit(
        self,
        accelerator: Accelerator,
        folder: OutputFolder | None,
        data: Data,
        ood: Mapping[str, Data] | None,
        shots: int | None,
        seed: int,
        allow_fewer: bool,
        wise: Sequence[float],
        out: Path | None,
        overwrite: bool,
    ) -> dict[str, Any]:
        """Do what `fit` says; `folder` is `out`, owned by the main process alone."""
        with accelerator.main_process_first():  # what one process indexes or downloads, all find
            opened = open_sets(
                data,
                ood or {},
                self.class_names,
                shots=shots,
                seed=seed,
                allow_fewer=allow_fewer,
                skip_bad=self.skip_bad,
                select=self.config.select == "best",
            )
        train, validation = opened.train, opened.validation
        self._image_keys = remembered(image_keys(train))
        self._judge = judge = Judge(
            opened.tests,
            cache=self.cache,
            workers=self.workers,
            skip_bad=self.skip_bad,
        )
        classes = train.classes
        templates = self.templates or self.method.templates(opened.templates)
        run = self._describe(data, ood, opened, templates, shots, seed, wise)
        checkpoints = None
        if out is not None:
            checkpoints = Checkpoints(training_folder(out), run, self.config.keep_checkpoints)
            finished = self._finished(out, run, accelerator, checkpoints, overwrite)
            if finished is not None:
                return finished
        with Timer() as timer:
            text = self.encoder.encode_classes(classes, templates)
            self._place(accelerator)
            model = TunedModel(
                self.encoder, self.method, self.config, classes, templates, text, seed
            )
            self.model = model
            zero_shot = judge(model, pretrained=True)
            log = None if out is None else out / LOG_FILE
            if folder is not None:
                folder.take(LOG_FILE)
            state = self._train(
                model, train, accelerator, checkpoints, log, seed, judge, validation
            )
            tuned = model.tuned()
            model.load_tuned(interpolate(model.start, tuned, self.config.wise_alpha))
            found = self._judged(model, judge)
            ends = {0.0: zero_shot, self.config.wise_alpha: found}
            curve = self._curve(model, judge, tuned, wise, ends)
        result = (
            run
            | found
            | {
                "zero_shot": zero_shot,
                "tuned": found,
                "wise": curve,
                "history": state.history,
                "best": state.best,
                "effective": model.effective,
                **strength_facts(model),
                "classes": list(classes),
                "templates": list(templates),
                "trainable_parameters": sum(
                    p.numel() for p in model.parameters() if p.requires_grad
                ),
                "processes": accelerator.num_processes,
                "notes": [test.note for test in judge.sets if test.note],
                "environment": environment(),
                "command": command_line(),
                **timer.to_dict(),
            }
        )
        self.result = result
        if out is not None:
            if folder is not None:
                save_tuned(out, self.classifier(), self.method.title, result)
                folder.clear_training()
            accelerator.wait_for_everyone()
        accelerator.end_training()
        return result

    def learn(
        self,
        model: TunedModel,
        pictures: ImageSplit,
        seed: int,
        *,
        checkpoints: Checkpoints | None = None,
    ) -> list[dict[str, Any]]:
        """Train a model of this encoder on pictures, without judging it.

        Args:
            model: The model, changed in place.
            pictures: Their labels count in `model.classes`.
            seed: Seed of everything random.
            checkpoints: Where states go; None for none.

        Returns:
            One entry for each epoch.

        Raises:
            FineTuningStopped: On Ctrl-C or SIGTERM, after a checkpoint.
        """
        accelerator = self._accelerator(None)
        start_trackers(accelerator, self.trackers, self.config.to_dict())
        self._place(accelerator)
        state = self._train(model, pictures, accelerator, checkpoints, None, seed, None, None)
        return state.history

    def _train(
        self,
        model: TunedModel,
        train: ImageSplit,
        accelerator: Accelerator,
        checkpoints: Checkpoints | None,
        log_path: Path | None,
        seed: int,
        judge: Judge | None,
        validation: TestSet | None,
    ) -> RunState:
        if self.config.select == "best" and validation is None:
            raise ConfigError(
                "select='best' needs a validation split (val), and the data has none: nothing is ever "
                "selected on test pictures; give one, or keep the last weights"
            )
        model.learned = tuple(train.classes[label] for label in sorted({*train.labels.tolist()}))
        if model.head is not None and model.trained_towers and self.config.strength == "auto":
            steps = self.config.epochs * math.ceil(len(train) / self.config.batch_size)
            model.strength = choose_tuned_strength(
                model,
                train,
                lambda fold, images, states: self._learn(
                    fold, images, states, accelerator, seed, steps=steps
                ),
                accelerator,
                checkpoints=checkpoints,
                seed=seed,
                skip_bad=self.skip_bad,
            )
        return self._learn(
            model,
            train,
            checkpoints,
            accelerator,
            seed,
            log_path=log_path,
            judge=judge,
            validation=validation,
        )

    def _learn(
        self,
        model: TunedModel,
        train: ImageSplit,
        checkpoints: Checkpoints | None,
        accelerator: Accelerator,
        seed: int,
        *,
        steps: int | None = None,
        log_path: Path | None = None,
        judge: Judge | None = None,
        validation: TestSet | None = None,
    ) -> RunState:
        """Train once, for `steps` or else the configuration's epochs."""
        main = accelerator.is_main_process
        if checkpoints is None or not checkpoints.all():
            folder = None if checkpoints is None or not main else checkpoints.folder / "first-stage"
            shown = self.progress if main else False
            stage = FirstStage(lambda: self._features(train), seed, folder, shown)
            self.method.first(model, stage)
        if not model.trained_towers:
            return RunState()
        labels = torch.from_numpy(train.labels.copy())
        subset = self.config.classes_per_step if model.head is not None else 0
        if subset is None:
            subset = min(_CLASSES_PER_STEP, len(train.classes))
        order = Order(
            labels, len(train.classes), self.config.batch_size, subset, len(model.templates), seed
        )
        data = StepData(
            train,
            order,
            training_transform(self.encoder, self.config),
            workers=self._workers(accelerator),
            templates=model.templates,
            captions=self.method.captions,
            parts=self.config.accumulate,
            skip_bad=self.skip_bad,
            rank=accelerator.process_index,
            processes=accelerator.num_processes,
            device=accelerator.device,
        )
        best = None
        if judge is not None and validation is not None:
            best = BestEpoch(model, validation, judge, checkpoints)

        def after_epoch(epoch: int, state: RunState) -> dict[str, Any]:
            entry: dict[str, Any] = {}
            if best is not None:
                entry["validation"] = best(epoch, state, accelerator)
            every = self.config.evaluate_every
            last = epoch + 1 == self.config.epochs
            if judge is not None and every and (epoch + 1) % every == 0 and not last:
                entry |= self._judged(model, judge)
            return entry

        with listening() as stop:
            training = TowerTraining(
                model,
                order,
                data,
                accelerator,
                checkpoints=checkpoints,
                log_path=log_path,
                after_epoch=after_epoch,
                stop=stop,
                progress=self.progress,
                steps=steps,
            )
            state = training.run()
            model.effective = {"epochs": training.epochs, "steps": state.step}
            if stop.signal:  # it came with the last step: everything but the judging is done
                raise FineTuningStopped(stop.signal, state.step)
        accelerator.free_memory()
        if best is not None:
            best.restore()
        return state

    def _judged(self, model: TunedModel, judge: Judge) -> dict[str, Any]:
        model.eval()
        return judge(model, pretrained="image" not in model.trained_towers)

    def _curve(
        self,
        model: TunedModel,
        judge: Judge,
        tuned: dict[str, Tensor],
        alphas: Sequence[float],
        known: Mapping[float, dict[str, Any]],
    ) -> list[dict[str, Any]]:
        """Judge the points of the line to the pretrained model that are not `known` yet."""
        points = []
        for alpha in sorted(set(alphas)):
            if alpha in known:
                points.append({"alpha": alpha, **known[alpha]})
                continue
            with model.holding(interpolate(model.start, tuned, alpha)):
                points.append({"alpha": alpha, **self._judged(model, judge)})
        return points

    # -- what goes in ----------------------------------------------------------------------------

    def _accelerator(self, out: Path | None) -> Accelerator:
        from accelerate import Accelerator, DistributedDataParallelKwargs

        accelerator = Accelerator(
            # Without a GPU Accelerate must be told, or it takes each process for the only one.
            cpu=str(self.device) == "cpu" or not torch.accelerator.is_available(),
            mixed_precision=self.config.precision,
            log_with=list(self.trackers) or None,
            project_dir=out,
            # Towers have parts that no loss reaches, such as a pooler.
            kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)],
        )
        self.is_main_process = bool(accelerator.is_main_process)
        if accelerator.distributed_type not in _KINDS:
            raise ConfigError(
                f"{accelerator.distributed_type.value} cannot be used: CLIP's scale is a scalar, which "
                "torch does not shard, and models are judged whole. Use one process a GPU with "
                "--precision bf16 and --accumulate"
            )
        return accelerator

    def _place(self, accelerator: Accelerator) -> None:
        """Put the towers where they learn, as convolutions like them."""
        keep_freed_memory()
        self.encoder.model.to(accelerator.device)
        if self.config.train in ("image", "both"):
            self.encoder.model.to(memory_format=torch.channels_last)

    def _workers(self, accelerator: Accelerator) -> int:
        if self.workers is not None:
            return self.workers
        if accelerator.device.type == "cpu":  # the towers want the cores
            return 0
        import os

        return min(8, (os.cpu_count() or 1) // int(accelerator.num_processes))

    def _features(self, split: ImageSplit) -> Features:
        """Return features of the plain training pictures, by the pretrained encoder."""
        return extract_features(
            self.encoder,
            split,
            cache=self.cache,
            workers=self.workers,
            skip_bad=self.skip_bad,
            progress=self.progress,
        )

    # -- what tells runs apart -------------------------------------------------------------------

    def _describe(
        self,
        data: Data,
        ood: Mapping[str, Data] | None,
        opened: RunData,
        templates: Sequence[str],
        shots: int | None,
        seed: int,
        wise: Sequence[float],
    ) -> dict[str, Any]:
        """Return all that decides the result; the main process reads the images for all of them."""
        from accelerate.utils import broadcast_object_list

        told: list[dict[str, Any]] = [{}]
        if self.is_main_process:
            selects = opened.validation
            told[0] = {
                "data_fingerprint": self._identity(opened.train),
                "test_fingerprints": {t.name: self._identity(t.split) for t in opened.tests},
                "validation_fingerprint": selects and self._identity(selects.split),
            }
        broadcast_object_list(told)
        return told[0] | {
            "setting": "fft",
            "method": self.method.name,
            "config": self.config.to_dict(),
            "seed": seed,
            "shots": shots,
            "encoder": {"name": self.encoder.name, "fingerprint": self.encoder.fingerprint},
            "data": data_name(data),
            "images": len(opened.train),
            "templates": list(templates),
            "wise_alphas": sorted(set(wise)),
            "out_of_distribution_data": {k: data_name(v) for k, v in (ood or {}).items()},
        }

    def _identity(self, split: ImageSplit) -> str:
        return data_identity(split, progress=self.progress)

    def _finished(
        self,
        out: Path,
        run: dict[str, Any],
        accelerator: Accelerator,
        checkpoints: Checkpoints,
        overwrite: bool,
    ) -> dict[str, Any] | None:
        """Return the result of this very run if it is there; refuse to replace another."""
        if (out / RESULT_FILE).exists() or (out / CONFIG_FILE).exists():
            found, told = _saved_run(out, run)
            if found is not None and not told:
                self.result = found
                return dict(found)
            if not overwrite:
                raise CheckpointError(
                    f"{str(out)!r} holds the result of another run ({'; '.join(told[:3])}): choose "
                    "another folder, or replace it with --overwrite (overwrite=True)"
                )
        if accelerator.is_main_process:
            checkpoints.claim(overwrite=overwrite)
        accelerator.wait_for_everyone()
        return None

    # -- what comes out --------------------------------------------------------------------------

    def classifier(self) -> RAdaClassifier:
        """Return the tuned model as a `RAdaClassifier`.

        Raises:
            ConfigError: If nothing was fitted yet.
        """
        from rada.methods.finetune.saving import as_classifier

        return as_classifier(
            self._require_model(),
            self.result,
            self._image_keys,
            cache=self.cache,
            workers=self.workers,
            skip_bad=self.skip_bad,
            progress=self.progress,
        )

    def save(self, directory: str | Path) -> None:
        """Write encoder, head and result.

        Raises:
            ConfigError: If nothing was fitted yet.
            StorageError: If the place cannot be written.
        """
        save_tuned(Path(directory), self.classifier(), self.method.title, self.result)

    def _require_model(self) -> TunedModel:
        if self.model is None:
            raise ConfigError("there is no tuned model yet: call fit first")
        return self.model


@contextlib.contextmanager
def _owned(
    out: Path | None, accelerator: Accelerator, inputs: Sequence[Any]
) -> Iterator[OutputFolder | None]:
    """Own the output folder in the main process; if it may not be had, all processes fail."""
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
        told = broadcast_object_list([None if refused is None else str(refused)])
        if told[0] is not None:
            raise refused or OutputError(told[0])
        yield folder


def _saved_run(out: Path, run: dict[str, Any]) -> tuple[dict[str, Any] | None, list[str]]:
    """Return the saved result, and what is another or damaged about it and its model."""
    try:
        found = read_json(out / RESULT_FILE, error=CheckpointError, what="the result")
        what = f"'{out / RESULT_FILE}'"
        check_record(ResultRecord, found, error=CheckpointError, what=what)
        told = differences({key: found.get(key) for key in run}, run)
        if not told:
            load_parts(out)
        return found, told
    except CheckpointError as error:
        return None, [str(error)]
