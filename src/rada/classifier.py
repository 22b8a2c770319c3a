"""`Classifier`: from images and class names to a classifier, by any method, as in scikit-learn."""

from __future__ import annotations

import contextlib
import dataclasses
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import torch

from rada.classifier_answers import ClassifierAnswers
from rada.core.errors import DataError, FeatureError
from rada.core.output import claim
from rada.core.values import check_count, check_seed
from rada.data import Naming
from rada.data.prompts import ClassNamesSource
from rada.encoders.slot import EncoderSlot
from rada.evaluating import accuracy, evaluate, share_right
from rada.evaluation import Evaluation
from rada.fitting import FitPlan, fit_model, given_templates
from rada.inputs import Data
from rada.methods import Run
from rada.pretrained import Fitted, load_model, resolve_directory, save_model
from rada.publishing import push_folder

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["Classifier"]


class Classifier(ClassifierAnswers):
    """A dual encoder, adapted to your own classes by a method.

    Before `fit` it is the zero-shot model. Nothing is loaded before it is needed.

    Args:
        encoder: Name of a dual encoder (`rada models` lists them), a loaded one, anything else that
            `load_encoder` takes, or None to work on features alone.
        method: Name of a method (`rada methods` lists them), or a method's configuration. None takes
            the method of `config`, or else the default, `rada_probe`.
        classes: Candidate class names, which the data's are matched with by name, or a mapping from
            names of the data (folders, labels) to class names; see `rada.data.Naming`. None takes
            the names from the data on `fit`. Assign others after `fit` to classify among them.
        config: The method's configuration where `method` is a name; its defaults when None.
        templates: Prompt templates with `{}` for the class name; several are averaged. None takes the
            data's own, or "a photo of a {}."; "auto" chooses on the labelled images of `fit`, as
            `rada.features.template_choice.choose_templates` says.
        text_features: Class features by class name, for work on features alone. Without any, features
            `fit(X, y)` take the mean of each class.
        scale: Overrides the encoder's exponentiated logit scale.
        device: Where the encoder runs; the CPU when None.
        dtype: Type that the encoder computes in, or "auto" for bfloat16 where that is faster (see
            `load_encoder`); float32 when None. Features are float32 always.
        cache: A `FeatureCache`, None for the default one, or False for none.
        workers: Processes that decode images; chosen by the machine when None.
        skip_bad: Leave out images that cannot be read, with a warning, instead of stopping.
        progress: Show bars; None shows them on a terminal only.
        exact_decoding: Decode JPEGs of 8 megapixels and more whole, not at 1/2, 1/4 or 1/8 of their size,
            which takes several times as long (`docs/performance.md`).

    Raises:
        RadaError: When it is used: if the encoder cannot be loaded, or a parameter cannot be used.

    Example:
        >>> import torch
        >>> from rada import EFTConfig, Features
        >>> features = Features(
        ...     torch.eye(4).repeat(4, 1), [0, 1, 2, 3] * 4, ("ant", "bee", "cat", "dog"),
        ...     text_features=torch.eye(4).roll(1, 0), scale=10.0,
        ... )
        >>> config = EFTConfig(epochs=2, num_heads=2, strength=1.0)
        >>> classifier = Classifier(None, config, progress=False)
        >>> classifier.zero_shot_score(features)
        0.0
        >>> classifier.fit(features, shots=2, seed=1).score(features) >= 0.0
        True
        >>> classifier
        Classifier(encoder=None, method='rada', classes=4, fitted)
    """

    other_splits_: tuple[str, ...] = ()
    """The splits of the data that the last `fit` did not learn from."""

    # -- training --------------------------------------------------------------------------------

    def fit(
        self,
        data: Data,
        y: Any = None,
        *,
        shots: int | None = None,
        seed: int = 0,
        allow_fewer: bool = False,
        output_dir: str | Path | None = None,
        overwrite: bool = False,
        run: Run | None = None,
    ) -> Self:
        """Learn from labelled images or features. A fit that fails changes nothing.

        Args:
            data: A folder with a sub-folder for each class (`train/` above them is used if it is there),
                a table, the name of a data set, a features file, any of these loaded, or features
                `(N, D)` beside `y`.
            y: Labels `(N,)` of any type.
            shots: Images of each class to use; None for all.
            seed: Chooses the shots and everything random in training.
            allow_fewer: Go on where a class has fewer images than `shots`.
            output_dir: Folder for the finished model. Until then it holds the states of training: the
                same call after an interruption goes on from there, bit for bit, and after the end
                loads the model.
            overwrite: Replace another model in `output_dir`.
            run: What else the method may use, such as `after_epoch`; seed and folder are set here.

        Returns:
            The classifier itself.

        Raises:
            DataError: If the data cannot be used; the message names the file or class.
            FeatureError: If features cannot be used.
            ConfigError: If the method cannot be used with this encoder or data.
            CheckpointError: If `output_dir` holds another model and `overwrite` is off.
            OutputError: If `output_dir` holds what rada did not write, lies in the data or around it, or
                another process writes to it.
            TrainingDivergedError: If a loss or a weight is not finite.
            TrainingInterrupted: On Ctrl-C.
        """
        values = None
        if y is not None:
            data, values = self.arrays(data, y)
        plan = FitPlan(
            *self.resolved(),
            self.fresh_inputs,
            Naming.of(self.classes),
            dataclasses.replace(
                run or Run(),
                seed=check_seed(seed),
                progress=self.progress,
                workers=self.workers,
                skip_bad=self.skip_bad,
                device=self.device,
            ),
            None if shots is None else check_count(shots, "shots", error=DataError),
            allow_fewer,
            overwrite,
        )
        owned = (
            contextlib.nullcontext()
            if output_dir is None
            else claim(output_dir, "model", inputs=[data])
        )
        # whatever the caller has switched off: learning needs gradients
        with owned as out, torch.inference_mode(False), torch.enable_grad():
            fitted, features, others = fit_model(plan, data, out)
        self.adopt(fitted)
        self.train_features_, self._values, self.other_splits_ = features, values, others
        if values is not None:
            self.n_features_in_ = features.dim
        return self

    # -- evaluation ------------------------------------------------------------------------------

    def score(self, data: Data, y: Any = None) -> float:
        """Return the accuracy on labelled data among the classifier's candidates, in [0, 1]."""
        return (
            accuracy(self, data) if y is None else share_right(self.predict(data), y, self.classes_)
        )

    def zero_shot_score(self, data: Data) -> float:
        """Return the accuracy of the model without adaptation, in [0, 1]."""
        return accuracy(self, data, zero_shot=True)

    def evaluate(
        self,
        data: Data,
        *,
        split: str | None = None,
        class_names: ClassNamesSource | None = None,
        ood: Mapping[str, Data] | None = None,
        train: Data | None = None,
    ) -> Evaluation:
        """Evaluate the zero-shot and the adapted model side by side, among the classes of the data.

        The classes may be ones that the model never saw, if its method can score them.

        Args:
            data: As for `fit`; the split `test` is used if it is there, else `val`, else all.
            split: Name of the split to use instead.
            class_names: Names for the classes of the data, as for `open_dataset`. Default: what they were
                called in training, else their own.
            ood: Further data by name, out of distribution.
            train: The training images, in which near duplicates of test images are looked for; those in
                memory since `fit` when None.

        Returns:
            Metrics of both, the logits behind them, and the test images.
        """
        return evaluate(self, data, split, class_names, ood or {}, train)

    # -- on disk ---------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model and all that is known of it; the encoder too, where it was tuned.

        Raises:
            ConfigError: If nothing is fitted yet.
            EncoderError: If the tuned encoder's family cannot be written.
            FeatureError: If other templates were set than those of the fit, and there is no encoder.
            OutputError: If the folder holds what rada did not write, or another process writes to it.
            StorageError: If the place cannot be written.
        """
        save_model(directory, self._as_used())

    def _as_used(self) -> Fitted:
        """Return the model with the candidates and templates that it predicts with now."""
        fitted, chosen = self.fitted_, self.candidates()
        templates = self.inputs.templates or fitted.templates
        if (chosen, templates) == (fitted.classes, fitted.templates):
            return fitted
        details, features = dict(fitted.record.details), None
        if templates != fitted.templates:
            details["template_choice"] = given_templates(templates)
        if not fitted.model.method.train_encoder:
            # New names are saved without an encoder to embed them; new templates would leave nothing to use.
            same = templates == fitted.templates
            with contextlib.suppress(FeatureError) if same else contextlib.nullcontext():
                known = self.class_set()
                features, templates = known.text_features, known.templates
        return dataclasses.replace(
            fitted,
            classes=chosen,
            class_features=features,
            templates=templates,
            record=dataclasses.replace(fitted.record, details=details),
        )

    def push_to_hub(self, repository: str, **options: Any) -> str:
        """Send the model to the Hugging Face hub, with a card, and return its address.

        Args:
            repository: `owner/name`; it is made, private, if there is none.
            options: `private`, `result`, `license`, `message`, `token`, as for
                `rada.publishing.push_folder`.

        Raises:
            RadaError: As for `save_pretrained` and `rada.publishing.push_folder`.
        """
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(Path(folder) / "model")
            return push_folder(Path(folder) / "model", repository, **options).url

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        encoder: str | Path | DualEncoder | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        **options: Any,
    ) -> Self:
        """Load a saved classifier of any method; nothing in the folder is trusted or executed.

        Args:
            directory: A local folder, or `owner/name` on the Hugging Face hub.
            encoder: The encoder, if not by the name that the model was saved with.
            device: Where the encoder runs.
            dtype: Type that it computes in; None for that of the training, which it has to be.
            options: `cache`, `workers`, `skip_bad`, `progress`, `exact_decoding` as for the class.

        Raises:
            CheckpointError: If the folder is damaged, or, when it is needed, the encoder is not the one
                that the model was trained with; the message names the difference.
            EncoderError: If an encoder cannot be loaded.
        """
        given = EncoderSlot(encoder, device, dtype)
        fitted = load_model(
            resolve_directory(directory), encoder=given.get() if given else None, device=device
        )
        saved, model = fitted.encoder, fitted.model
        name = encoder if encoder is not None or saved is None else saved.name
        if dtype is None and saved is not None:
            dtype = saved.dtype
        options |= {"config": model.config, "device": device, "dtype": dtype}
        found = cls(name, model.method.name, **options)
        slot = EncoderSlot(name, device, dtype, saved=encoder is None)
        found.adopt(fitted, slot)
        if encoder is not None:
            found.checked_slot.get()  # what was given is checked at once
        return found
