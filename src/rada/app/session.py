"""One person's work: images, class names, labels, the model that came of them."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import threading
import zipfile
from collections.abc import Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Literal

import numpy as np
import torch
from numpy.typing import NDArray

from rada.app.album import Album, Intake, Role
from rada.app.brain import Brain
from rada.app.config import AppConfig
from rada.app.ordering import most_useful
from rada.app.training import Job, Taught, teach
from rada.core.errors import DataError, RadaError
from rada.core.extras import is_installed
from rada.data import ImageSplit
from rada.data.prompts import check_class_names
from rada.explain import ExplainConfig, Explainer
from rada.features import Features

if TYPE_CHECKING:
    from rada.classifier import Classifier
    from rada.explain import ImageExplanation

__all__ = ["Answer", "Session"]

ENCODED_AT_ONCE = 8
LONGEST_CLASS_NAME = 200


@dataclasses.dataclass(frozen=True)
class Answer:
    """What the model says of an image.

    Attributes:
        name: The best class.
        probability: Its probability among all classes.
    """

    name: str
    probability: float


class Session:
    """Everything that one browser does.

    Args:
        folder: Its own folder.
        brain: The shared encoder.
        config: The bounds.
    """

    def __init__(self, folder: Path, brain: Brain, config: AppConfig) -> None:
        self.album = Album(folder / "images", config)
        self.folder, self.brain, self.config = folder, brain, config
        self.classes: tuple[str, ...] = ()
        if brain.start.is_fitted:
            self.classes = brain.start.candidates()
        self.labels: dict[int, str] = {}
        self.taught: Taught | None = None
        self.history: list[tuple[int, float, str]] = []
        self.job: Job | None = None
        self.refused: str | None = None
        self.intake = Intake()
        self.version = 0
        self._rows = np.zeros((0, brain.encoder.dim), np.float32)
        self._probabilities: NDArray[np.float32] | None = None
        self._lock = threading.RLock()
        self._encoding = threading.Lock()

    # -- images ----------------------------------------------------------------------------------

    def add(self, content: bytes, name: str, role: Role) -> None:
        """Take an image in; `intake` says what became of it."""
        self.album.add(content, name, role, self.intake)
        self.version += 1

    def add_archive(self, path: Path, name: str, role: Role) -> None:
        """Take the images of a zip archive in; `intake` says what became of them."""
        try:
            self.album.add_archive(path, role, self.intake)
        except DataError as error:
            self.intake.refuse(name, str(error))
        self.version += 1

    @property
    def encoded(self) -> int:
        """How many images were looked at; they are so in the order of their numbers."""
        return len(self._rows)

    def encode_some(self) -> int:
        """Look at the next few images, and return how many there were."""
        with self._encoding:
            first = self.encoded
            numbers = range(first, min(first + ENCODED_AT_ONCE, len(self.album)))
            if not numbers:
                return 0
            rows = self.brain.encode([self.album.path(number) for number in numbers]).numpy()
            with self._lock:
                self._rows = np.concatenate([self._rows, rows.astype(np.float32)])
                self._probabilities = None
                self.version += 1
        return len(numbers)

    # -- classes and labels ----------------------------------------------------------------------

    def name_classes(self, text: str) -> None:
        """Take class names, one a line; labels of names that are gone are dropped.

        Raises:
            DataError: If names are blank, doubled, too many or too few; nothing changes then.
        """
        names = tuple(line.strip() for line in text.splitlines() if line.strip())
        if len(names) < 2:
            raise DataError("name at least two classes, each on a line of its own")
        if len(names) > self.config.max_classes:
            raise DataError(f"{len(names)} classes are too many: {self.config.max_classes} at most")
        long = next((name for name in names if len(name) > LONGEST_CLASS_NAME), None)
        if long is not None:
            raise DataError(
                f"the class name {long[:40]!r}... has {len(long):,} characters, more than "
                f"{LONGEST_CLASS_NAME}: shorten it"
            )
        check_class_names(names)
        self.brain.class_set(names)
        with self._lock:
            if names == self.classes:
                return
            self.classes = names
            self.labels = {row: name for row, name in self.labels.items() if name in names}
            self.taught, self._probabilities = None, None
            self.version += 1

    def label(self, number: int, name: str | None) -> None:
        """Give an image a label, or take it away; an image that was tried is then learned from.

        Raises:
            DataError: If there is no such image or class.
        """
        with self._lock:
            self.refused = None
            if not 0 <= number < len(self.album):
                raise DataError(f"there is no image {number}")
            if name is None:
                self.labels.pop(number, None)
            elif name not in self.classes:
                raise DataError(f"{name!r} is no class; the classes are {', '.join(self.classes)}")
            else:
                self.labels[number] = name

    def counts(self) -> dict[str, int]:
        """Return the number of labels of each class."""
        labels = list(self.labels.values())
        return {name: labels.count(name) for name in self.classes}

    def to_label(self, count: int) -> list[int]:
        """Return the numbers of images to label next, the most useful first."""
        with self._lock:
            numbers = [n for n in self.album.numbers("learn") if n < self.encoded]
            if not numbers:
                return []
            chances = None if not self.classes else self._chances()[numbers]
            place = {number: row for row, number in enumerate(numbers)}
            labelled = [place[number] for number in self.labels if number in place]
            chosen = most_useful(self._rows[numbers], chances, labelled, count)
        return [numbers[row] for row in chosen]

    # -- the model -------------------------------------------------------------------------------

    @property
    def classifier(self) -> Classifier:
        """The model that answers: what was taught, what the app began with, or zero-shot."""
        if self.taught is not None:
            return self.taught.classifier
        start = self.brain.start
        if start.is_fitted and self.classes == start.candidates():
            return start
        found = self.brain.classifier("zero_shot")
        found.classes = list(self.classes)
        return found

    @property
    def model_name(self) -> str:
        """What the model that answers is called."""
        model = self.classifier.model_
        return "zero-shot" if model is None else model.method.title

    def answers(self, numbers: Sequence[int]) -> dict[int, Answer]:
        """Return what the model says of images; those that were not looked at yet are left out."""
        if not self.classes:
            return {}
        with self._lock:
            chances, known = self._chances(), self.encoded
            found = {}
            for number in numbers:
                if number < known:
                    best = int(chances[number].argmax())
                    found[number] = Answer(self.classes[best], float(chances[number, best]))
        return found

    def _chances(self) -> NDArray[np.float32]:
        if self._probabilities is None or len(self._probabilities) != self.encoded:
            classifier, classes = self.classifier, self.brain.class_set(self.classes)
            logits = classifier.model_logits(torch.from_numpy(self._rows), classes)
            self._probabilities = logits.softmax(dim=1).numpy().astype(np.float32)
        return self._probabilities

    def labelled(self) -> Features:
        """Return the labelled images as features.

        Raises:
            DataError: If fewer than two classes have labels.
        """
        with self._lock:
            rows = sorted(number for number in self.labels if number < self.encoded)
            names = tuple(name for name in self.classes if name in self.labels.values())
            if len(names) < 2:
                raise DataError(
                    f"label images of at least two classes first; so far it is {len(names)}"
                )
            labels = [names.index(self.labels[number]) for number in rows]
            classes = self.brain.class_set(self.classes)
            own = [self.classes.index(name) for name in names]
            images = ImageSplit(names, np.asarray(labels), self.album.source(rows))
            encoder = self.brain.encoder
            return Features(
                torch.from_numpy(self._rows[rows]),
                torch.tensor(labels),
                names,
                ids=images.ids,
                text_features=classes.text_features[own],
                scale=self.brain.scale,
                encoder=encoder.name,
                encoder_fingerprint=encoder.fingerprint,
                templates=classes.templates,
                images=images,
            )

    def teach(self, method: str | None = None) -> Job:
        """Begin to teach the model, or return the teaching that goes on.

        Raises:
            DataError: If fewer than two classes have labels.
            ConfigError: If there is no such method.
        """
        with self._lock:
            if self.job is not None and self.job.running:
                return self.job
            name = method or self.config.method
            try:
                self.brain.classifier(name)
                data, classes = self.labelled(), self.brain.class_set(self.classes)
            except RadaError as error:
                self.refused = str(error)
                raise
            self.refused = None

            def done(found: Taught) -> None:
                with self._lock:
                    if self.classes != classes.names:
                        return  # other names were given meanwhile
                    self.taught, self._probabilities = found, None
                    if found.accuracy is not None:
                        self.history.append((found.labels, found.accuracy, found.method))
                    self.version += 1

            self.job = Job(
                lambda advance: teach(
                    lambda: self.brain.classifier(name),
                    data,
                    classes,
                    folds=self.config.folds,
                    seed=self.config.seed,
                    advance=advance,
                ),
                done,
            )
            return self.job

    def explain(self, number: int) -> ImageExplanation:
        """Tell why the model says what it says of an image.

        Raises:
            DataError: If there is no such image, or fewer than two classes are named.
        """
        if not 0 <= number < len(self.album):
            raise DataError(f"there is no image {number}")
        if len(self.classes) < 2:
            raise DataError("name at least two classes first")
        classifier = self.classifier
        where: Literal["occlusion", "none"] = "occlusion" if is_installed("captum") else "none"
        # Only a model that was taught here knows its training images.
        config = ExplainConfig(where=where, neighbours=4 if self.taught else 0)
        found = Explainer(classifier, config).explain([str(self.album.path(number))])
        return dataclasses.replace(found, name=self.album.pictures[number].name)

    # -- to take away ----------------------------------------------------------------------------

    def model_archive(self) -> bytes:
        """Return the model as a zip of the folder that `rada predict` takes.

        Raises:
            DataError: If nothing was taught yet.
        """
        if self.taught is None:
            raise DataError("nothing is taught yet: train first")
        buffer = io.BytesIO()
        with TemporaryDirectory(dir=self.folder) as place:
            self.taught.classifier.save_pretrained(Path(place) / "model")
            with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
                for path in sorted((Path(place) / "model").rglob("*")):
                    relative = path.relative_to(place)
                    if path.is_file() and not any(part.startswith(".") for part in relative.parts):
                        archive.write(path, relative.as_posix())
        return buffer.getvalue()

    def report(self) -> str:
        """Return the report of the cross-validation, one page.

        Raises:
            DataError: If nothing was taught yet, or there were too few labels to hold some out.
            MissingExtraError: If matplotlib is not installed.
        """
        taught = self.taught
        if taught is None or taught.evaluation is None:
            raise DataError("there is no report yet: label two images of a class, and train")
        from rada.evaluation import environment
        from rada.explain import what_was_learned
        from rada.report import changed_examples, find_problems, render_page
        from rada.report.html import build_report

        found = taught.evaluation
        facts = {
            "dataset": "your photos",
            "encoder": self.brain.encoder.name,
            "environment": environment(),
            "summary": f"{taught.method} on {taught.labels} labelled images. Each was predicted by a model "
            f"that had not seen it: cross-validation in {taught.folds} parts.",
        }
        assert found.images is not None and found.features is not None
        learned = None
        with contextlib.suppress(RadaError):  # of a method whose logits are no sum
            confusion = found["adapted"]["confusion"]
            whole = what_was_learned(taught.classifier, found.features, confusion=confusion)
            learned = whole.to_dict() | {"mask": whole.mask}
        page = build_report(
            found.result | facts,
            examples=changed_examples(found.images, *found.logits.values()),
            learned=learned,
            problems=find_problems(found),
        )
        return render_page(page)

    def close(self) -> None:
        """Stop what runs, and delete everything."""
        if self.job is not None:
            self.job.stop()
        self.album.forget()
