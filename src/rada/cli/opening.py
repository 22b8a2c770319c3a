"""What `predict` and `evaluate` share: a saved model or an encoder as the first argument, `--test-time`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rada.cli.options import TestTime, configured
from rada.core.errors import CheckpointError, ConfigError, DataError

if TYPE_CHECKING:
    from rada.classifier import Classifier
    from rada.test_time_adapter import TestTimeAdapter

__all__ = [
    "check_test_time",
    "named_classes",
    "open_classifier",
    "renamed_classes",
    "split_arguments",
    "test_time_adapter",
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
) -> Classifier:
    """Load a saved head, or a model without one.

    Args:
        head_or_model: Folder or hub name of a head, or name or folder of a model.
        is_model: Whether it is certainly a model.
        encoder: Where the model's encoder is, if not where the model says.
        classes: Candidate classes instead of the head's, or a mapping that gives some of these other
            names; a model needs them.
        templates: Prompt templates of a model.
        data: Where a model takes its classes from if `classes` is None; None for nowhere.
        device: Where the encoder runs.
        options: As for `Classifier`.

    Raises:
        RadaError: If it cannot be loaded; `DataError` if a model's classes cannot be told;
            `ConfigError` if an encoder is given for a model without a head.
    """
    from rada.classifier import Classifier
    from rada.data import load_templates

    if not is_model and not _names_model(head_or_model):
        classifier = Classifier.from_pretrained(
            _head_folder(head_or_model), encoder=encoder, device=device, **options
        )
        if classes is not None:
            classifier.classes = renamed_classes(classifier, classes)
        if templates and not classifier.slot:
            raise ConfigError(
                "--template needs the encoder to make class features, and this model has none: leave "
                "it out"
            )
        if templates:
            classifier.templates = load_templates(templates)
        return classifier
    if encoder is not None:
        raise ConfigError(
            f"--encoder {encoder!r} belongs to a saved model, and {head_or_model!r} is an encoder without "
            "one: leave one of them out"
        )
    if classes is None and data is not None:
        classes, found = _classes_of(data)
        templates = templates or list(found)
    return Classifier(
        head_or_model, "zero_shot", classes, templates=templates, device=device, **options
    )


def renamed_classes(
    classifier: Classifier, given: Sequence[str] | Mapping[str, str]
) -> tuple[str, ...]:
    """Return the candidates: a list as it is, a mapping over the names of a saved classifier.

    A mapping that knows none of them is one for other data, whose classes are the candidates.
    """
    from rada.data import Naming, fold_name

    naming = Naming.of(given)
    if naming.classes is not None:
        return naming.classes
    called, own = (
        {name: key for key, name in classifier.fitted_.aliases.items()},
        classifier.candidates(),
    )
    keys = [called.get(name, name) for name in own]
    known = {fold_name(name) for name in (*keys, *own)}
    if not known & {fold_name(key) for key in naming.aliases}:
        return tuple(naming.aliases.values())
    return naming.match(own, keys).classes


def _names_model(name: str) -> bool:
    """Whether a name is an encoder's rather than a saved model's."""
    from rada.encoders import list_models
    from rada.pretrained import is_saved_model

    folder = Path(name)
    if folder.is_dir():
        return not is_saved_model(folder) and _may_be_encoder(folder)
    return ":" in name or name in {model.name for model in list_models()}


def _may_be_encoder(folder: Path) -> bool:
    """Whether a folder has what an encoder's has; one of photos, or a damaged model's, has not."""
    from rada.core.storage import read_json

    if (folder / "open_clip_config.json").is_file():
        return True
    try:
        return isinstance(read_json(folder / "config.json", error=DataError, what="it"), dict)
    except DataError:
        return False


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
        raise CheckpointError(
            f"{name!r} is no folder with a saved model, nor an encoder's name{hint}"
        )
    try:
        return resolve_directory(name)
    except CheckpointError as error:
        raise CheckpointError(f"{error}{hint}") from error


def _classes_of(data: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    from rada.data import open_dataset
    from rada.features import Features, FeatureStore, names_features

    if names_features(data):
        is_file = Path(data).is_file()
        features = Features.load(data) if is_file else FeatureStore.open(data)
        return features.classes, features.templates
    try:
        dataset = open_dataset(data)
    except DataError as error:
        raise DataError(
            f"a model without a head needs the candidate classes, which {data!r} does not tell "
            f"({error}): name them with --class, or give a --class-names file"
        ) from error
    return dataset.classes, dataset.templates


def test_time_adapter(
    group: TestTime,
    classifier: Classifier,
    strength: float | None,
    templates: Sequence[str] | None = None,
) -> TestTimeAdapter | None:
    """Return the adapter that `--test-time` asks for, or None; set the strength.

    Args:
        group: The options.
        classifier: The classifier to adapt.
        strength: `--strength`.
        templates: `--template`; without it those of a classifier are its data's.

    Raises:
        ConfigError: If an option is given without `--test-time`, or a value is out of range.
    """
    check_test_time(group)
    if strength is not None and classifier.is_fitted:
        classifier.strength = strength
    if group.test_time is None:
        if strength is not None and not classifier.is_fitted:
            raise ConfigError("--strength belongs to a saved model: an encoder alone has none")
        return None
    from rada.test_time import get_test_time_method
    from rada.test_time_adapter import TestTimeAdapter

    method = get_test_time_method(group.test_time)
    settings = list(group.test_time_set or ())
    if group.views is not None:
        settings.append(f"views={group.views}")
    if group.online:
        if not hasattr(method.config(), "episodic"):
            raise ConfigError(
                f"--online belongs to --test-time rada, not to {method.name} (tda always goes on from image "
                "to image): leave it out"
            )
        settings.append("episodic=false")
    if strength is not None and hasattr(method.config(), "strength"):
        settings.append(f"strength={strength}")
    config = configured(method.config, group.test_time_config, settings)
    if not templates and not classifier.is_fitted:
        config = method.from_templates(config, None)  # the words of the data are nobody's choice
    return TestTimeAdapter(classifier, method.name, config=config)


def check_test_time(group: TestTime) -> None:
    """Check that options of `--test-time` come with it, before anything is loaded."""
    given = {
        "--test-time-config": group.test_time_config is not None,
        "--test-time-set": bool(group.test_time_set),
        "--views": group.views is not None,
        "--online": group.online,
    }
    for name, value in given.items():
        if value and group.test_time is None:
            raise ConfigError(f"{name} belongs to --test-time: add --test-time NAME")


for _function in (test_time_adapter, check_test_time):
    setattr(_function, "__test__", False)  # noqa: B010  # pytest: these are no tests
