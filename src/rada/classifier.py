"""`RAdaClassifier`: from pictures and class names to a classifier, in the manner of scikit-learn."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from rada.convert import images_to_predict
from rada.core.config import Config, EFTConfig
from rada.core.errors import CheckpointError, ConfigError, DataError, EncoderError, FeatureError
from rada.core.output import OutputFolder, claim
from rada.core.printable import escape
from rada.core.threads import one_thread
from rada.core.values import check_count, check_scale, check_seed
from rada.data import ImageSplit, Naming, few_shot, fold_name, readable_shots
from rada.data.checks import check_labelled
from rada.data.prompts import (
    DEFAULT_TEMPLATE,
    ClassNamesSource,
    check_class_names,
    load_templates,
)
from rada.encoders import DualEncoder, load_encoder
from rada.evaluation import compare, evaluate_logits
from rada.evaluation.seen import image_keys, remembered, seen_images
from rada.features import FeatureCache, Features, extract_features
from rada.head import RAdaHead
from rada.inputs import (
    FEATURE_FILES,
    TEST_SPLITS,
    TRAIN_SPLITS,
    Data,
    Opened,
    data_name,
    open_labelled,
)
from rada.predictions import (
    Prediction,
    StreamAnswer,
    finite_logits,
    rank,
    stream_answers,
    warn_of_one_class,
)
from rada.pretrained import (
    CONFIG_FILE,
    ENCODER_FOLDER,
    ClassVectors,
    HeadConfig,
    SavedParts,
    load_head,
    load_parts,
    resolve_directory,
    write_parts,
)
from rada.training.eft import HeadTrainer, TrainedHead, describe
from rada.training.strength import StrengthChoice

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rada.data.images import ImageLike

__all__ = ["FEATURE_FILES", "TEST_SPLITS", "Data", "Evaluated", "RAdaClassifier"]

_SMALL_HEAD = 1 << 19
"""Images times classes times width below which a batch takes one thread some 35 ms at most."""


class RAdaClassifier:
    """A dual encoder with a RAda head, on your own classes.

    Before `fit` it is the zero-shot model.

    Args:
        encoder: Name of a dual encoder (`rada models` lists them), a loaded one, anything else that
            `load_encoder` takes, or None to work on features alone.
        classes: Candidate class names, which the data's are matched with by name, or a mapping from
            names of the data (folders, labels) to class names; see `rada.data.Naming`. None takes
            the names from the data on `fit`.
        templates: Prompt templates with `{}` for the class name; several are averaged. None takes the
            data's own, or "a photo of a {}.".
        config: Configuration of `fit`; the defaults of `EFTConfig` when None.
        scale: Overrides the encoder's exponentiated logit scale.
        device: Where the encoder runs; the CPU when None.
        dtype: Type that the encoder computes in; features are float32 always.
        cache: A `FeatureCache`, None for the default one, or False for none.
        workers: Processes that decode pictures; chosen by the machine when None.
        skip_bad: Leave out pictures that cannot be read, with a warning, instead of stopping.
        progress: Show bars; None shows them on a terminal only.

    Attributes:
        config: The configuration that the model was trained with, or will be by `fit`. After loading a
            fine-tuned model it is an `FFTConfig`, and `fit` takes the defaults of `EFTConfig`.
        encoder: The loaded encoder, or None.
        trained: What `fit` learned, a `TrainedHead`; None before.
        train_split: The labelled pictures of the last `fit`, or None.

    Raises:
        EncoderError: If the encoder cannot be loaded.
        DataError: If class names or templates cannot be used.

    Example:
        >>> import torch
        >>> from rada import EFTConfig, Features
        >>> features = Features(
        ...     torch.eye(4).repeat(4, 1), [0, 1, 2, 3] * 4, ("ant", "bee", "cat", "dog"),
        ...     text_features=torch.eye(4).roll(1, 0), scale=10.0,
        ... )
        >>> config = EFTConfig(epochs=2, num_heads=2, strength=1.0)
        >>> classifier = RAdaClassifier(encoder=None, config=config, progress=False)
        >>> classifier.zero_shot_score(features)
        0.0
        >>> classifier.fit(features, shots=2, seed=1).score(features) >= 0.0
        True
    """

    def __init__(
        self,
        encoder: str | Path | DualEncoder | None = "embedded",
        classes: Sequence[str] | Mapping[str, str] | None = None,
        *,
        templates: str | Sequence[str] | None = None,
        config: EFTConfig | None = None,
        scale: float | None = None,
        device: str | torch.device | None = None,
        dtype: str | torch.dtype | None = None,
        cache: FeatureCache | Literal[False] | None = None,
        workers: int | None = None,
        skip_bad: bool = False,
        progress: bool | None = None,
    ) -> None:
        self.config: Config = config or EFTConfig()
        self._scale = None if scale is None else check_scale(scale)
        self.encoder: DualEncoder | None = None
        if encoder is not None:
            self.encoder = load_encoder(encoder, device=device, dtype=dtype)
        self.templates = None if templates is None else load_templates(templates)
        self.cache, self.workers, self.skip_bad = cache, workers, skip_bad
        self.progress = progress
        self.trained: TrainedHead | None = None
        self.train_split: ImageSplit | None = None
        self.aliases: dict[str, str] = {}
        self._classes: tuple[str, ...] | None = None
        self._vectors: dict[
            str, Tensor
        ] = {}  # learned by fine-tuning: the model has no other classes
        self._biases: dict[str, Tensor] = {}  # of these vectors
        self._rows: dict[str, Tensor] = {}  # class features of a features file
        self._rows_templates: tuple[str, ...] = ()
        self._tuned = False  # whether the encoder belongs to the model and is saved with it
        self._text: dict[tuple[tuple[str, ...], tuple[str, ...]], Tensor] = {}
        self._record: dict[str, Any] = {}
        if isinstance(classes, Mapping):  # the data decides which of them there are
            self.aliases = dict(Naming.of(classes).aliases)
        elif classes is not None:
            self.classes = classes

    # -- names -----------------------------------------------------------------------------------

    @property
    def classes(self) -> tuple[str, ...]:
        """The candidate classes; assign others to classify among them with the same head.

        Raises:
            DataError: If they are not known yet, or, on assignment, blank or doubled.
        """
        if self._classes is None and not self.aliases:
            raise DataError("the classes are not known yet: name them, or fit the classifier first")
        return self._classes or tuple(self.aliases.values())

    @classes.setter
    def classes(self, names: Iterable[str]) -> None:
        self._classes = check_class_names(names)

    @property
    def record(self) -> dict[str, Any]:
        """What the last `fit` was: data, seed, configuration, strength and training curve."""
        return {key: value for key, value in self._record.items() if key != "image_keys"}

    @property
    def scale(self) -> float:
        """The exponentiated logit scale in use.

        Raises:
            ConfigError: If neither the encoder nor the features say it.
        """
        if self._scale is None and self.encoder is not None:
            return float(self.encoder.scale)
        if self._scale is None:
            raise ConfigError("the logit scale is not known: pass scale=, 100 for CLIP models")
        return self._scale

    @property
    def closed(self) -> bool:
        """Whether the model learned one vector a class, so that it can choose among these alone."""
        return bool(self._vectors)

    @property
    def strength(self) -> float:
        """Mask strength at inference; 0 before `fit`, which is the zero-shot model.

        It serves wherever some of the candidates are new to the head; see `strength_for`. Setting it
        sets it for all candidates.
        """
        return 0.0 if self.trained is None else self.trained.strength

    @strength.setter
    def strength(self, value: float) -> None:
        if not 0 <= value <= 1:
            raise ConfigError(f"strength should be in [0, 1], not {value!r}")
        trained = self._require_trained()
        trained.strength, trained.trained_strength = float(value), None
        self._record |= {"strength": float(value), "trained_strength": None}

    def strength_for(self, classes: Iterable[str]) -> float:
        """Return the mask strength for candidate classes.

        Where the head was trained on all of them that is another one than for new classes, both chosen
        on the training shots.
        """
        if self.trained is None:
            return 0.0
        chosen = self.trained.trained_strength
        known = self._record.get("trained_classes", ())
        return self.strength if chosen is None or not set(classes) <= set(known) else chosen

    def text_features(self, classes: Sequence[str] | None = None) -> Tensor:
        """Return the class features `(K, D)` of the classifier's classes, or of others.

        Raises:
            FeatureError: If there is no encoder to make them.
            DataError: If the model learned one vector a class, and a name is none of its classes.
        """
        names = self.classes if classes is None else tuple(classes)
        if self._vectors:
            strangers = [name for name in names if name not in self._vectors]
            if strangers:
                raise DataError(
                    f"the model learned one vector for each of its {len(self._vectors)} classes, and "
                    f"{strangers[0]!r} is none of them"
                )
            return torch.stack([self._vectors[name] for name in names])
        return self._text_features(names, self._templates())

    def _text_features(self, names: tuple[str, ...], templates: tuple[str, ...]) -> Tensor:
        """Return `(K, D)`: the rows of the features file behind the head, else by the encoder."""
        known = self._rows if templates == self._rows_templates else {}
        if known and all(name in known for name in names):
            return torch.stack([known[name] for name in names])
        if self.encoder is None:
            raise FeatureError(
                "there is no encoder to embed class names: give features with text_features, "
                "or a classifier with an encoder" + self._origin_hint()
            )
        key = (names, templates)
        if key not in self._text:
            self._text[key] = self.encoder.encode_classes(names, templates)
        return self._text[key]

    def _origin_hint(self) -> str:
        name = self._record.get("origin_name")
        return f"; the head's features come from the encoder {name!r}" if name else ""

    def _templates(self, own: tuple[str, ...] | None = None) -> tuple[str, ...]:
        """Return the templates in use, with the data's `own` where none were chosen."""
        return self.templates or own or (DEFAULT_TEMPLATE,)

    # -- data ------------------------------------------------------------------------------------

    def _open(
        self, data: Data, splits: Sequence[str], naming: Naming, *, embed: bool = False
    ) -> Opened:
        """Return the first of `splits` under the names that are wanted."""
        opened = open_labelled(
            data, splits, naming, skip_bad=self.skip_bad, embed=embed, known=self._classes
        )
        check_class_names(opened.found.classes)
        return opened

    def _encode(self, found: ImageSplit | Features, views: int = 1, seed: int = 0) -> Features:
        """Return features of pictures; features pass through, if they are this encoder's."""
        if isinstance(found, Features):
            self.check_origin(found)
            return found
        return extract_features(
            self._require_encoder(),
            found,
            views=views,
            seed=seed,
            cache=self.cache,
            workers=self.workers,
            progress=self.progress,
            skip_bad=self.skip_bad,
        )

    def check_origin(self, features: Features) -> None:
        """Check that features come from the encoder of this model.

        Raises:
            FeatureError: If they do not; the message names both.
        """
        if self.trained is not None and features.dim != self.trained.head.dim:
            raise FeatureError(
                f"the features have the width {features.dim}, the head has {self.trained.head.dim}: "
                "both must come from the same encoder"
            )
        given = features.encoder_fingerprint
        origin: str | None = self._record.get("origin")
        same = not origin or not given or given == origin
        if self.encoder is not None:
            origin = self.encoder.fingerprint
            same = not given or self.encoder.has_fingerprint(given)
        if not same:
            raise FeatureError(
                f"the features come from the encoder {features.encoder!r} "
                f"({given}), but {origin} is needed: encode them again"
            )

    def candidates(self, features: Features) -> Tensor:
        """Return the class features `(K, D)` of `classes` that go with features to predict."""
        called = {fold_name(key): name for key, name in self.aliases.items()}
        shown = [called.get(fold_name(name), name) for name in features.classes]
        return self._candidates(features, self.classes, features.templates or None, shown)

    def _candidates(
        self,
        features: Features,
        names: tuple[str, ...],
        own: tuple[str, ...] | None = None,
        shown: Sequence[str] | None = None,
    ) -> Tensor:
        """Return the class features `(K, D)` of candidates that features are compared with.

        Args:
            features: Their own class features serve, unless the model has others for these names:
                vectors that it learned, or an encoder and other templates.
            names: The candidates.
            own: Templates that the data names.
            shown: What the classes of the features are called here; None for their own names.
        """
        if self._vectors:
            return self.text_features(names)
        templates = self._templates(own)
        if features.text_features is not None and self._may_use(features, templates):
            shown = features.classes if shown is None else shown
            rows = dict(zip(shown, features.text_features, strict=True))
            if len(rows) == len(shown) and all(name in rows for name in names):
                return torch.stack([rows[name] for name in names])
        return self._text_features(names, templates)

    def _may_use(self, features: Features, templates: tuple[str, ...]) -> bool:
        """Whether the class features of a features file are those that are wanted."""
        return self.encoder is None or not features.templates or features.templates == templates

    # -- training --------------------------------------------------------------------------------

    def fit(
        self,
        data: Data,
        shots: int | None = None,
        seed: int = 0,
        *,
        allow_fewer: bool = False,
        output_dir: str | Path | None = None,
        overwrite: bool = False,
    ) -> RAdaClassifier:
        """Train the head on labelled pictures, the encoders frozen.

        Args:
            data: A folder with a sub-folder for each class (`train/` above them is used if it is there),
                a table, the name of a data set, a features file, any of these loaded, `(X, y)`, or a data
                set of torch, torchvision, Hugging Face or pandas; see `rada.convert.ACCEPTED`.
            shots: Pictures of each class to use; None for all.
            seed: Chooses the shots and everything random in training.
            allow_fewer: Go on where a class has fewer pictures than `shots`.
            output_dir: Folder for the finished head. Until then it holds the training state: the same
                call after an interruption goes on from there, bit for bit, and after the end loads
                the head.
            overwrite: Replace another head in `output_dir`.

        Returns:
            The classifier itself.

        Raises:
            DataError: If the data cannot be used; the message names the file or class.
            FeatureError: If features cannot be used.
            CheckpointError: If `output_dir` holds another head and `overwrite` is off.
            OutputError: If `output_dir` holds what rada did not write, lies in the data or around it, or
                another process writes to it.
            TrainingInterrupted: On Ctrl-C.
        """
        seed = check_seed(seed)
        shots = None if shots is None else check_count(shots, "shots", error=DataError)
        owned = (
            contextlib.nullcontext()
            if output_dir is None
            else claim(output_dir, "model", inputs=[data])
        )
        with owned as out, _unchanged_on_failure(self):
            self._fit(data, shots, seed, allow_fewer, out, overwrite)
        return self

    def _fit(
        self,
        data: Data,
        shots: int | None,
        seed: int,
        allow_fewer: bool,
        out: OutputFolder | None,
        overwrite: bool,
    ) -> None:
        found, aliases, own = self._open(
            data,
            TRAIN_SPLITS,
            Naming(self._classes, self.aliases),
            embed=self.encoder is not None,
        )
        classes = found.classes
        self.config = config = self.config if isinstance(self.config, EFTConfig) else EFTConfig()
        # What an earlier fit left is not this one's; a tuned encoder and given names stay.
        self.trained, self._record, self._vectors, self._rows = None, {}, {}, {}
        self._biases = {}
        chosen, skipped = self._draw(found, shots, seed, allow_fewer)
        features = self._encode(chosen, views=config.views, seed=seed)
        check_labelled(features.labels, features.ids, "training")
        self._scale = self.scale_for(features) if self.encoder is None else self._scale
        text = self._training_text(features, own)
        self.templates = self.templates or own
        trainer = HeadTrainer(
            features.image_features,
            features.labels,
            text,
            self.scale,
            config,
            seed,
        )
        self._classes = classes
        self.aliases = self.aliases | aliases
        self.train_split = chosen if isinstance(chosen, ImageSplit) else None
        if out is not None and self._finished(out, trainer.key, overwrite):
            return
        self.trained = _trained(trainer, out, overwrite, self.progress)
        self._record = {
            "setting": "eft",
            "images": len(features),
            "shots": shots,
            "data": data_name(data),
            "data_fingerprint": features.fingerprint,
            "skipped": [list(map(escape, entry)) for entry in (*skipped, *features.skipped)],
            "trained_classes": [classes[label] for label in trainer.labels.unique().tolist()],
            "origin": features.encoder_fingerprint,
            "origin_name": features.encoder,
            "on_features": isinstance(found, Features),
            "image_keys": remembered(image_keys(chosen)),
            **describe(self.trained),
        }
        if out is not None:
            self.save_pretrained(out.path)
            out.clear_training()

    def _training_text(self, features: Features, own: tuple[str, ...] | None) -> Tensor:
        """Return `(K, D)` to train with; what comes from a features file is kept with the head."""
        templates = self._templates(own)
        if self.encoder is None and self.templates not in (None, features.templates):
            held = list(features.templates) or "templates that it does not name"
            raise FeatureError(
                f"the templates {list(templates)} are wanted, but the features hold class features of "
                f"{held}, and there is no encoder to make others: give the encoder "
                f"{features.encoder or 'that made the features'!r} (--model), or leave the templates out"
            )
        text = self._candidates(features, features.classes, own)
        if features.text_features is not None and self._may_use(features, templates):
            self._rows = dict(zip(features.classes, text, strict=True))
            self._rows_templates = templates
        return text

    def _draw(
        self, found: ImageSplit | Features, shots: int | None, seed: int, allow_fewer: bool
    ) -> tuple[ImageSplit | Features, list[list[str]]]:
        """Return `shots` pictures of each class, or all, and the bad ones that were passed over."""
        if shots is None:
            return found, []
        if isinstance(found, Features):
            return found.few_shot(shots, seed, allow_fewer=allow_fewer), []
        if not self.skip_bad:
            return few_shot(found, shots, seed, allow_fewer=allow_fewer), []
        good, bad = readable_shots(
            found, shots, seed, allow_fewer=allow_fewer, progress=self.progress
        )
        return good, [[entry.id, entry.reason] for entry in bad]

    def _finished(self, out: OutputFolder, key: str, overwrite: bool) -> bool:
        """Take over the head in a folder if it is of this very run; refuse to replace another."""
        if (out.training / "run.json").exists():
            if not overwrite:
                raise CheckpointError(
                    f"{str(out.path)!r} holds a fine-tuning run that is not finished: choose another "
                    "folder, or replace it with --overwrite (overwrite=True)"
                )
            out.clear_training()
        if not (out.path / CONFIG_FILE).exists():
            return False
        try:
            head, saved = load_head(out.path)
            if (saved.training.get("fingerprint"), saved.training.get("config")) == (
                key,
                self.config.to_dict(),
            ):
                self._take(head, saved)
                out.clear_training()
                return True
            told = "the head of another run"
        except CheckpointError as error:
            told = f"a head that cannot be used ({error})"
        if not overwrite:
            raise CheckpointError(
                f"{str(out.path)!r} holds {told}: choose another folder, "
                "or replace it with --overwrite (overwrite=True)"
            )
        return False

    def scale_for(self, features: Features) -> float:
        """Return the scale in use; that of a features file where nothing else says it."""
        if self._scale is None and self.encoder is None and features.scale is not None:
            return features.scale
        return self.scale

    def _require_trained(self) -> TrainedHead:
        if self.trained is None:
            raise ConfigError("the classifier has no head yet: call fit first")
        return self.trained

    # -- prediction ------------------------------------------------------------------------------

    def logits(
        self,
        image_features: Tensor,
        text_features: Tensor,
        *,
        strength: float | None = None,
        scale: float | None = None,
        classes: Sequence[str] | None = None,
    ) -> Tensor:
        """Return logits `(N, K)` of features `(N, D)`.

        Args:
            image_features: `(N, D)`.
            text_features: `(K, D)`.
            strength: None is the classifier's own for such class features; `strength_for` tells it from
                the names of the classes.
            scale: None is the classifier's own.
            classes: The names behind `text_features`, the classifier's own classes when None. A model that
                learned one vector a class has learned a bias for each of them, too.

        Raises:
            FeatureError: If logits are not finite; probabilities would be NaN.
        """
        scale = self.scale if scale is None else scale
        if self.trained is None or strength == 0:
            logits = scale * image_features @ text_features.T
            if self._biases:
                names = self.classes if classes is None else classes
                logits = logits + torch.stack([self._biases[name] for name in names])
            return finite_logits(logits)
        if strength is None and self.trained.class_features is None and self.encoder is not None:
            known = self._record.get("trained_classes", ())  # a loaded head does not bring them
            self.trained.class_features = self.text_features(known) if known else None
        return finite_logits(self.trained(image_features, text_features, scale, strength).logits)

    def predict_proba(self, images: Any) -> NDArray[np.float32]:
        """Return softmax probabilities `(N, K)` over `classes`.

        Args:
            images: A path, folder, URL, image in memory (Pillow, numpy, torch, bytes, a file object), a list
                of these, `Features`, or a data set; see `rada.convert.ACCEPTED_IMAGES`.

        Raises:
            DataError: If a picture cannot be read; the message names it.
        """
        warn_of_one_class(self.classes)
        features = self._features_to_predict(images)
        if features is None:
            return np.zeros((0, len(self.classes)), np.float32)
        text = self.candidates(features)
        logits = self.logits(
            features.plain(),
            text,
            strength=self.strength_for(self.classes),
            scale=self.scale_for(features),
            classes=self.classes,
        )
        result: NDArray[np.float32] = logits.softmax(-1).numpy()
        return result

    @overload
    def predict(self, images: Any, top_k: None = None) -> list[str]: ...
    @overload
    def predict(self, images: Any, top_k: int) -> list[list[Prediction]]: ...
    def predict(self, images: Any, top_k: int | None = None) -> list[str] | list[list[Prediction]]:
        """Name the class of each picture.

        Args:
            images: As for `predict_proba`.
            top_k: None for the best name alone; a number for so many `Prediction(name, probability)` a
                picture, best first.

        Returns:
            One entry for each picture.
        """
        if top_k is not None:
            top_k = check_count(top_k, "top_k")
        probabilities = torch.from_numpy(self.predict_proba(images))
        ranked = rank(probabilities, self.classes, top_k or 1)
        return ranked if top_k is not None else [row[0].name for row in ranked]

    def predict_stream(
        self, pictures: Iterable[ImageLike], top_k: int = 1
    ) -> Iterator[StreamAnswer]:
        """Name the class of each picture of a stream, in order, in bounded memory.

        Args:
            pictures: What `rada.data.open_image` takes, consumed as answers are taken.
            top_k: Classes to name for each, best first.

        Yields:
            `StreamAnswer(name, predictions, reason)`.

        Raises:
            DataError: If a picture cannot be read and the classifier does not skip bad ones.
        """
        self._require_encoder()
        text = self.text_features()
        strength = self.strength_for(self.classes)

        def answer(views: Tensor) -> Tensor:
            # threads of a small head would wait for the cores that are encoding the next pictures
            with one_thread(views.device.type == "cpu" and len(views) * text.numel() < _SMALL_HEAD):
                return self.logits(views[:, 0], text, strength=strength)

        yield from self.stream(pictures, answer, top_k)

    def stream(
        self,
        pictures: Iterable[ImageLike],
        answer: Callable[[Tensor], Tensor],
        top_k: int = 1,
        **options: Any,
    ) -> Iterator[StreamAnswer]:
        """Do what `predict_stream` does with another way from views `(n, V, D)` to logits `(n, K)`.

        Args:
            pictures: What `rada.data.open_image` takes, consumed as answers are taken.
            answer: Makes the logits.
            top_k: Classes to name for each, best first.
            options: `views`, `seed`, `batch_size` and `view_transform`, as for `iter_features`.
        """
        return stream_answers(
            self._require_encoder(),
            pictures,
            answer,
            self.classes,
            top_k,
            workers=self.workers,
            cache=self.cache,
            skip_bad=self.skip_bad,
            **options,
        )

    def _require_encoder(self) -> DualEncoder:
        if self.encoder is None:
            raise FeatureError(
                "images need an encoder: give one, or features instead of images"
                + self._origin_hint()
            )
        return self.encoder

    def _features_to_predict(self, images: Any) -> Features | None:
        """Return features of what is to be predicted; None for no images at all."""
        found = images_to_predict(images, self.classes)
        if found is None:
            self._require_encoder()
            return None
        return self._encode(found)

    # -- evaluation ------------------------------------------------------------------------------

    def score(self, data: Data) -> float:
        """Return the accuracy on labelled data among the classifier's classes, in [0, 1]."""
        return self._accuracy(data, None)

    def zero_shot_score(self, data: Data) -> float:
        """Return the accuracy of the model before any training, in [0, 1]."""
        if self._record.get("setting") == "fft":  # without a head it would still be a tuned model
            base = self.pretrained()
            base._classes, base.aliases = self._classes, self.aliases
            return base.score(data)
        return self._accuracy(data, 0.0)

    def _accuracy(self, data: Data, strength: float | None) -> float:
        known = self.classes if self._classes or self.aliases else None
        found, _, own = self._open(
            data, TEST_SPLITS, Naming(known, self.aliases), embed=self.encoder is not None
        )
        check_labelled(found.labels, found.ids, "the accuracy")
        features = self._encode(found)
        classes = found.classes
        text = self._candidates(features, classes, own)
        if strength is None:
            strength = self.strength_for(classes)
        scale = self.scale_for(features)
        logits = self.logits(
            features.plain(), text, strength=strength, scale=scale, classes=classes
        )
        return evaluate_logits(logits, features.labels, classes).accuracy

    def evaluate(
        self,
        data: Data,
        *,
        split: str | None = None,
        class_names: ClassNamesSource | None = None,
    ) -> tuple[dict[str, Any], Evaluated]:
        """Judge the zero-shot and the adapted model side by side, among the classes of the data.

        The classes may be ones that the head never saw.

        Args:
            data: As for `fit`; the split `test` is used if it is there, else `val`, else all.
            split: Name of the split to use instead.
            class_names: Names for the classes of the data, as for `open_dataset`. Default: what they were
                called in training, else their own.

        Returns:
            The result as plain JSON values, and the logits behind it.
        """
        opened = self.open_to_evaluate(data, split, class_names)
        return self.evaluate_opened(opened, data_name(data))

    def open_to_evaluate(
        self, data: Data, split: str | None = None, class_names: ClassNamesSource | None = None
    ) -> Opened:
        """Open data as `evaluate` does, and check that every image has a label."""
        naming = Naming.of(class_names)
        if class_names is None:
            naming = Naming(aliases=self.aliases, lenient=True)
        embed = class_names is not None and self.encoder is not None
        opened = self._open(data, TEST_SPLITS if split is None else (split,), naming, embed=embed)
        check_labelled(opened.found.labels, opened.found.ids, "an evaluation")
        return opened

    def evaluate_opened(self, opened: Opened, name: str | None) -> tuple[dict[str, Any], Evaluated]:
        """Do what `evaluate` does with data that is open already and is called `name`."""
        found, _, own = opened
        features = self._encode(found)
        classes = found.classes
        text = self._candidates(features, classes, own)
        scale, strength = self.scale_for(features), self.strength_for(classes)
        zero_shot, row_names = self._before_training(found, features, text)
        adapted = None  # without a head or tuning there is nothing to compare
        if self.trained is not None or self._record.get("setting") == "fft":
            adapted = self.logits(
                features.plain(), text, strength=strength, scale=scale, classes=classes
            )
        result = compare(zero_shot, adapted, features.labels, classes)
        result |= {
            "skipped": [list(entry) for entry in features.skipped],
            "strength": strength,
            "scale": scale,
            "templates": list(self._templates(own)),
            "encoder": None
            if self.encoder is None
            else {"name": self.encoder.name, "fingerprint": self.encoder.fingerprint},
            "data": name,
            "data_fingerprint": features.fingerprint,
            "training": {
                k: v for k, v in self._record.items() if k not in ("history", "image_keys")
            },
            "row_names": row_names,
            "trained_classes": sum(name in self._trained_names() for name in classes),
            "seen_in_training": self._warn_of_seen(found),
        }
        pictures = found if isinstance(found, ImageSplit) else None
        return result, Evaluated(features, classes, text, zero_shot, adapted, pictures)

    def _before_training(
        self, found: ImageSplit | Features, features: Features, text: Tensor
    ) -> tuple[Tensor, dict[str, str]]:
        """Return logits of the model as it was before any training, and other names for the rows."""
        if self._record.get("setting") != "fft":
            return self.logits(
                features.plain(), text, strength=0.0, scale=self.scale_for(features)
            ), {}
        names = {"adapted": "Tuned"}
        try:
            if isinstance(found, Features):
                raise FeatureError("the features are those of the tuned encoder")
            base = self.pretrained()
            before = base.features_of(found)
            return base.logits(before.plain(), base.text_features(features.classes)), names
        except (EncoderError, FeatureError) as error:
            warnings.warn(
                f"the zero-shot accuracy cannot be measured: {error}", UserWarning, stacklevel=3
            )
        names["zero_shot"] = "Tuned, no head" if self.trained is not None else "Tuned (no baseline)"
        logits = self.logits(
            features.plain(),
            text,
            strength=0.0,
            scale=self.scale_for(features),
            classes=found.classes,
        )
        return logits, names

    def pretrained(self) -> RAdaClassifier:
        """Return the zero-shot classifier that a fine-tuned model was before training.

        Raises:
            EncoderError: If that is not known, or cannot be loaded any more.
        """
        known = self._record.get("pretrained")
        if not isinstance(known, dict) or not isinstance(known.get("name"), str):
            raise EncoderError("the model does not say which encoder was tuned: tune it again")
        encoder = load_encoder(known["name"], device=self._require_encoder().device)
        if not encoder.has_fingerprint(str(known.get("fingerprint"))):
            raise EncoderError(
                f"the encoder {known['name']!r} is not the one that was tuned: its fingerprint is "
                f"{encoder.fingerprint}, not {known.get('fingerprint')}"
            )
        return RAdaClassifier(
            encoder,
            templates=self._templates(),
            cache=self.cache,
            workers=self.workers,
            skip_bad=self.skip_bad,
            progress=self.progress,
        )

    def features_of(self, images: ImageSplit) -> Features:
        """Return the features of images, through the cache."""
        return self._encode(images)

    def _trained_names(self) -> set[str]:
        """Return the classes that the model was trained on; none for a zero-shot model."""
        known = self._record.get("trained_classes", ())
        return set(known) if known or not self._tuned else set(self.classes)

    def _warn_of_seen(self, found: ImageSplit | Features) -> int:
        """Return how many images of an evaluation were trained on; warn if any were."""
        seen = seen_images(found, self._record.get("image_keys"))
        if seen:
            warnings.warn(
                f"{seen} of the {len(found)} test images are images that the model was trained on, so "
                "its accuracy says little: evaluate on others (a test/ folder, or --split)",
                UserWarning,
                stacklevel=4,
            )
        return seen

    # -- on disk ---------------------------------------------------------------------------------

    def save_pretrained(self, directory: str | Path) -> None:
        """Write the model and all that is known of it (`config.json`).

        That is the head (`head.safetensors`), the class features that belong to it
        (`classes.safetensors`: learned ones, or those of a features file), and the encoder where it was
        fine-tuned.

        Files that rada wrote there before are replaced, all in one step.

        Raises:
            ConfigError: If there is nothing learned yet.
            EncoderError: If the tuned encoder's family cannot be written.
            OutputError: If the folder holds what rada did not write, or another process writes to it.
            StorageError: If the place cannot be written.
        """
        with claim(directory, "model") as out, out.saving() as stage:
            self.write(stage)

    def write(self, folder: Path) -> None:
        """Write the files of `save_pretrained` into an existing folder, one after the other."""
        head, vectors, _, config = self._parts()
        write_parts(folder, head, vectors, config)
        if self._tuned:
            encoder = self._require_encoder()
            encoder.require("save")
            (folder / ENCODER_FOLDER).mkdir()
            encoder.write(folder / ENCODER_FOLDER)

    def _parts(self) -> SavedParts:
        if not (self._vectors or self._tuned):
            self._require_trained()
        known = self._vectors or self._rows
        vectors = None
        if known and all(name in known for name in self.classes):
            rows = torch.stack([known[name] for name in self.classes])
            biases = [self._biases[name] for name in self.classes if name in self._biases]
            vectors = ClassVectors(rows, torch.stack(biases) if biases else None)
        head = None if self.trained is None else self.trained.head
        encoder = self.encoder if self._tuned else None
        parts = {ENCODER_FOLDER: encoder, "head": head, "classes": vectors}
        config = HeadConfig(
            dim=head.dim if head is not None else self._require_encoder().dim,
            num_heads=1 if head is None else head.num_heads,
            temperature=1.0 if head is None else head.temperature,
            scale=self.scale,
            strength=self.strength,
            encoder=self._encoder_facts(),
            classes=list(self.classes),
            # A features file may not say what its class features were made of.
            templates=list(self.templates or (() if self._rows else self._templates())),
            aliases=self.aliases,
            training=self._record,
            parts=[name for name, part in parts.items() if part is not None],
        )
        return SavedParts(head, vectors, None, config)

    def _encoder_facts(self) -> dict[str, Any] | None:
        """Return name and fingerprint of the encoder, or of that behind the features."""
        if self.encoder is not None:
            name = ENCODER_FOLDER if self._tuned else self.encoder.name
            return {"name": name, "fingerprint": self.encoder.fingerprint}
        origin = {"name": "origin_name", "fingerprint": "origin"}
        facts = {key: self._record.get(known) for key, known in origin.items()}
        return facts if all(facts.values()) else None

    @classmethod
    def from_pretrained(
        cls,
        directory: str | Path,
        *,
        encoder: str | Path | DualEncoder | None = None,
        device: str | torch.device | None = None,
        **options: Any,
    ) -> RAdaClassifier:
        """Load a saved classifier; nothing in the folder is trusted or executed.

        Args:
            directory: A local folder, or `owner/name` on the Hugging Face hub.
            encoder: The encoder, if not by the name that the head was saved with.
            device: Where the encoder runs.
            options: `cache`, `workers`, `skip_bad`, `progress` as for the class.

        Raises:
            CheckpointError: If the folder is damaged, or the encoder is not the one that the head was
                trained with; the message names the difference.
            EncoderError: If the encoder cannot be loaded.
        """
        found = load_parts(resolve_directory(directory))
        saved = found.config
        classifier = cls(
            _encoder_of(found, encoder, device),
            saved.classes,
            templates=saved.templates or None,
            scale=saved.scale,
            device=device,
            **options,
        )
        classifier.adopt(found)
        return classifier

    def adopt(self, found: SavedParts) -> None:
        """Take over what was saved, or fine-tuned: a head, class features, and what is known of them.

        A classifier whose class features were learned can predict among these classes alone.
        """
        saved, training = found.config, found.config.training
        self.config = _training_config(training)
        self.aliases, self._record = dict(saved.aliases), training
        self._tuned = found.encoder is not None
        if found.vectors is not None:
            rows = dict(zip(saved.classes, found.vectors.vectors, strict=True))
            if training.get("setting", "eft") == "eft":
                self._rows, self._rows_templates = rows, self._templates()
            else:
                self._vectors = rows
            if found.vectors.biases is not None:
                self._biases = dict(zip(saved.classes, found.vectors.biases, strict=True))
        if found.head is not None:
            self._take(found.head, saved)

    def _take(self, head: RAdaHead, saved: HeadConfig) -> None:
        """Take over a loaded head."""
        training = saved.training
        choice = training.get("strength_choice")
        self._record = training
        self.trained = TrainedHead(
            head,
            saved.strength,
            self.config,
            training.get("seed", 0),
            list(training.get("history", [])),
            None if choice is None else StrengthChoice(**choice),
            training.get("fingerprint", ""),
            training.get("trained_strength"),
        )


class Evaluated(NamedTuple):
    """What `RAdaClassifier.evaluate` computed its result from.

    Attributes:
        features: The encoded test images.
        classes: Candidate class names.
        text_features: Their class features, `(K, D)`.
        zero_shot: Logits `(N, K)` without the head.
        adapted: Logits `(N, K)` with it; None where there is no head.
        pictures: The pictures, where the data has them.
    """

    features: Features
    classes: tuple[str, ...]
    text_features: Tensor
    zero_shot: Tensor
    adapted: Tensor | None
    pictures: ImageSplit | None


def _trained(
    trainer: HeadTrainer, out: OutputFolder | None, overwrite: bool, progress: bool | None
) -> TrainedHead:
    """Train, from the state in an output folder if there is one."""
    if out is None:
        return trainer.train(None, progress=progress)
    try:
        return trainer.train(out.training, progress=progress)
    except CheckpointError:  # the state is damaged
        if not overwrite:
            raise
        out.clear_training()
        return trainer.train(out.training, progress=progress)


def _check_encoder(encoder: DualEncoder, saved: HeadConfig) -> None:
    wanted = saved.encoder or {}
    if encoder.dim != saved.dim:
        raise CheckpointError(
            f"the head has the width {saved.dim}, the encoder {encoder.name!r} has {encoder.dim}: "
            f"load it with the encoder {wanted.get('name')!r}"
        )
    if not encoder.has_fingerprint(str(wanted.get("fingerprint"))):
        raise CheckpointError(
            f"the head was trained with the encoder {wanted.get('name')!r}, fingerprint "
            f"{wanted.get('fingerprint')}; {encoder.name!r} has {encoder.fingerprint}: its weights, "
            "architecture, preprocessing or tokenizer differ. Load it with the same encoder, or fit again"
        )


def _encoder_of(
    found: SavedParts, given: str | Path | DualEncoder | None, device: str | torch.device | None
) -> DualEncoder | None:
    """Load the encoder of a saved model and check that it is the one it was trained with.

    A head that was fitted on features works without its encoder, so one that cannot be had is a
    warning there.
    """
    saved = found.config
    name = given or found.encoder or (saved.encoder and saved.encoder["name"])
    if name is None:
        return None
    named = given is None and found.encoder is None
    spare = named and saved.training.get("on_features") is True
    try:
        encoder = _load_named(str(name), device) if named else load_encoder(name, device=device)
        if saved.encoder is not None:
            _check_encoder(encoder, saved)
    except (EncoderError, CheckpointError) as error:
        if not spare:
            raise
        warnings.warn(
            f"the encoder behind the head's features cannot be used, so it predicts features alone: "
            f"{error}",
            UserWarning,
            stacklevel=3,
        )
        return None
    return encoder


def _load_named(name: str, device: str | torch.device | None) -> DualEncoder:
    """Load the encoder that a head names."""
    try:
        return load_encoder(name, device=device)
    except EncoderError as error:
        raise EncoderError(
            f"the head's encoder cannot be loaded: {error}. If it was moved, say where it is: "
            "--encoder FOLDER on the command line, encoder=FOLDER in Python"
        ) from error


@contextlib.contextmanager
def _unchanged_on_failure(thing: object) -> Iterator[None]:
    """Give an object its attributes back if the block fails; none may be changed in place."""
    before = dict(vars(thing))
    try:
        yield
    except BaseException:
        vars(thing).clear()
        vars(thing).update(before)
        raise


def _training_config(training: dict[str, Any]) -> Config:
    """Return the configuration of the kind of training that a model went through."""
    kind: type[Config] = EFTConfig
    if training.get("setting", "eft") == "fft":
        from rada.methods.finetune.config import FFTConfig

        kind = FFTConfig
    try:
        return kind.from_dict(training.get("config", {}))
    except ConfigError as error:
        raise CheckpointError(f"the head's training configuration is damaged: {error}") from error
