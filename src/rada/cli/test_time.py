"""What `predict` and `evaluate` share: a head or a model as the first argument, `--test-time`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rada.core.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from rada.classifier import RAdaClassifier
    from rada.test_time_adapter import TestTimeAdapter

__all__ = [
    "TestTimeOptions",
    "named_classes",
    "open_classifier",
    "renamed_classes",
    "split_arguments",
]


def split_arguments(first: str, others: Sequence[str], model: str | None) -> tuple[str, list[str]]:
    """Return the head or model, and the other arguments: with `--model` all of them are others.

    Example:
        >>> split_arguments("cat.jpg", [], "embedded")
        ('embedded', ['cat.jpg'])
    """
    if model is None:
        return first, list(others)
    return model, [first, *others]


def named_classes(
    classes: list[str] | None, class_names: str | None
) -> Sequence[str] | Mapping[str, str] | None:
    """Return the candidate classes of `--class` or `--class-names`, or None.

    Raises:
        ConfigError: If both are given.
    """
    from rada.data import load_class_names

    if classes and class_names is not None:
        raise ConfigError("give the classes with --class or with --class-names, not both")
    return load_class_names(class_names) if class_names is not None else classes or None


def open_classifier(
    head_or_model: str,
    *,
    is_model: bool,
    encoder: str | None = None,
    classes: Sequence[str] | Mapping[str, str] | None = None,
    templates: list[str] | None = None,
    data: str | None = None,
    device: str | None = None,
    **options: Any,
) -> RAdaClassifier:
    """Load a saved head, or a model without one.

    Args:
        head_or_model: Folder or hub name of a head, or name or folder of a model.
        is_model: Whether it is certainly a model.
        encoder: Where the head's encoder is, if not where the head says.
        classes: Candidate classes instead of the head's, or a mapping that gives some of these other
            names; a model needs them.
        templates: Prompt templates of a model.
        data: Where a model takes its classes from if `classes` is None; None for nowhere.
        device: Where the encoder runs.
        options: As for `RAdaClassifier`.

    Raises:
        RadaError: If it cannot be loaded; `DataError` if a model's classes cannot be told;
            `ConfigError` if an encoder is given for a model without a head.
    """
    from rada.classifier import RAdaClassifier
    from rada.data import load_templates

    if not is_model and not _names_model(head_or_model):
        classifier = RAdaClassifier.from_pretrained(
            _head_folder(head_or_model), encoder=encoder, device=device, **options
        )
        if classes is not None:
            classifier.classes = renamed_classes(classifier, classes)
        if templates and classifier.encoder is None:
            raise ConfigError(
                "--template needs the encoder to make class features, and this head has none: leave "
                "it out"
            )
        if templates:
            classifier.templates = load_templates(templates)
        return classifier
    if encoder is not None:
        raise ConfigError(
            f"--encoder {encoder!r} belongs to a saved head, and {head_or_model!r} is a model without one: "
            "leave one of them out"
        )
    if classes is None and data is not None:
        classes, found = _classes_of(data)
        templates = templates or list(found)
    return RAdaClassifier(head_or_model, classes, templates=templates, device=device, **options)


def renamed_classes(
    classifier: RAdaClassifier, given: Sequence[str] | Mapping[str, str]
) -> tuple[str, ...]:
    """Return the candidates: a list as it is, a mapping over the names of a saved classifier.

    A mapping that knows none of them is one for other data, whose classes are the candidates.
    """
    from rada.data import Naming, fold_name

    naming = Naming.of(given)
    if naming.classes is not None:
        return naming.classes
    called = {name: key for key, name in classifier.aliases.items()}
    keys = [called.get(name, name) for name in classifier.classes]
    known = {fold_name(name) for name in (*keys, *classifier.classes)}
    if not known & {fold_name(key) for key in naming.aliases}:
        return tuple(naming.aliases.values())
    return naming.match(classifier.classes, keys).classes


def _names_model(name: str) -> bool:
    """Whether a name is a model's rather than a head's."""
    from rada.encoders import list_models
    from rada.pretrained import CONFIG_FILE, WEIGHTS_FILE

    folder = Path(name)
    if folder.is_dir():
        config = folder / CONFIG_FILE
        written_by_us = config.is_file() and b'"rada_version"' in config.read_bytes()
        return not (folder / WEIGHTS_FILE).exists() and not written_by_us
    return ":" in name or name in {model.name for model in list_models()}


def _head_folder(name: str) -> Path:
    """Return the folder of a head; where there is none, ask whether a model was meant.

    Raises:
        CheckpointError: If there is no such folder, here or on the hub.
    """
    from rada.encoders.suggest import did_you_mean, suggestions
    from rada.pretrained import resolve_directory

    found = [] if Path(name).expanduser().exists() else suggestions(name)
    hint = f"; {did_you_mean(name)}" if found else ""
    if found and found[0] != f"hf:{name}":
        raise CheckpointError(f"{name!r} is no folder with a saved head, nor a model's name{hint}")
    try:
        return resolve_directory(name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{hint}") from error


def _classes_of(data: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from rada.data import open_dataset

    try:
        dataset = open_dataset(data)
    except DataError as error:
        raise DataError(
            f"a model without a head needs the candidate classes, which {data!r} does not tell "
            f"({error}): name them with --class, or give a --class-names file"
        ) from error
    return dataset.classes, dataset.templates


class TestTimeOptions:
    """The options of `--test-time`, checked against each other.

    Args:
        wanted: `--test-time`.
        file: `--test-time-config`.
        views: `--views`.
        online: `--online`.
        strength: `--strength`.
        explain: `--explain`.

    Raises:
        ConfigError: If an option is given without `--test-time`, or a value is out of range.
    """

    __test__ = False

    def __init__(
        self,
        wanted: bool,
        file: Path | None,
        views: int | None,
        online: bool,
        strength: float | None,
        explain: bool = False,
    ) -> None:
        if not wanted:
            given = {
                "--test-time-config": file is not None,
                "--views": views is not None,
                "--online": online,
                "--explain": explain,
            }
            for name, value in given.items():
                if value:
                    raise ConfigError(f"{name} belongs to --test-time: add --test-time")
        self.wanted, self.strength = wanted, strength
        self._fields: dict[str, Any] = {}
        self._file = file
        if views is not None:
            self._fields["views"] = views
        if online:
            self._fields["episodic"] = False
        if strength is not None:
            self._fields["strength"] = float(strength)

    def adapter(self, classifier: RAdaClassifier) -> TestTimeAdapter | None:
        """Return the adapter, or None without `--test-time`; set the strength."""
        from rada.core.storage import read_json
        from rada.test_time.config import TTTConfig
        from rada.test_time_adapter import TestTimeAdapter

        if self.strength is not None and (classifier.trained is not None or not self.wanted):
            classifier.strength = self.strength
        if not self.wanted:
            return None
        values: dict[str, Any] = {}
        if self._file is not None:
            values = read_json(self._file, error=ConfigError, what="the configuration")
        if not isinstance(values, dict):
            raise ConfigError(f"{str(self._file)!r} should hold a JSON object")
        return TestTimeAdapter(classifier, TTTConfig.from_dict(values | self._fields))
