"""Class names and prompt templates: where they come from and what they must be."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from rada.core.errors import DataError
from rada.core.storage import parse_json, read_json, read_lines
from rada.data.align import fold_name, without_invisible
from rada.data.sources import id_bytes
from rada.data.templates import asks_for_choice
from rada.data.wordnet import IMAGENET, imagenet_names

__all__ = [
    "DEFAULT_TEMPLATE",
    "ClassNamesSource",
    "build_prompts",
    "check_class_names",
    "display_name",
    "load_class_names",
    "load_templates",
]

DEFAULT_TEMPLATE = "a photo of a {}."
_LINES = (".txt", ".text", ".lst", "")
_SHOWN = 80

ClassNamesSource = str | Path | Sequence[str] | Mapping[str, str]
"""Class names as a user gives them: a list, a mapping, or a file or JSON text with either."""


def display_name(folder: str) -> str:
    """Return the class name that a folder or label stands for.

    Example:
        >>> display_name("golden_retriever")
        'golden retriever'
    """
    # A tokenizer takes no lone surrogates, which stand for bytes of a name that are no Unicode, and
    # reads an accented letter otherwise when a file system has taken it apart.
    text = unicodedata.normalize("NFC", id_bytes(folder).decode("utf-8", "replace"))
    return " ".join(without_invisible(text).replace("_", " ").split())


def check_class_names(names: Iterable[str]) -> tuple[str, ...]:
    """Return the names, checked.

    Raises:
        DataError: If there are none, one is blank or no text, or two are the same but for case,
            spaces and underscores.

    Example:
        >>> check_class_names(["cat", "dog"])
        ('cat', 'dog')
    """
    if isinstance(names, str):
        raise DataError(f"class names should be a list of names, not the text {names!r}")
    checked = tuple(names)
    if not checked:
        raise DataError("there are no class names: give at least one")
    seen: dict[str, str] = {}
    for index, name in enumerate(checked):
        if not isinstance(name, str) or not _visible(name):
            raise DataError(f"class name number {index} is {name!r}: give every class a name")
        folded = fold_name(name)
        if folded in seen:
            other = seen[folded]
            detail = "twice" if other == name else f"and {other!r}, which differ in spelling only"
            raise DataError(f"the class names hold {name!r} {detail}: give each class its own name")
        seen[folded] = name
    return checked


def _visible(name: str) -> str:
    return "".join(letter for letter in name if unicodedata.category(letter) != "Cf").strip()


def load_class_names(source: ClassNamesSource) -> dict[str, str] | tuple[str, ...]:
    """Read class names: a list, or a mapping from names of the data to class names.

    Args:
        source: The value itself, JSON text of it, a JSON file with it, or a text file with one name a line;
            "imagenet" stands for the names of ImageNet's classes by WordNet id.

    Returns:
        A tuple of names, or a dict from folder name to class name.

    Raises:
        DataError: If the file cannot be read, or the names cannot be used.

    Example:
        >>> load_class_names({"n02123045": "tabby"})
        {'n02123045': 'tabby'}
    """
    if isinstance(source, str) and source.lstrip()[:1] in ("{", "["):
        source = _parsed(source)
    if str(source) == IMAGENET and not Path(IMAGENET).exists():
        return dict(imagenet_names())
    if isinstance(source, str | Path):
        source = _read(str(source))
    if isinstance(source, Mapping):
        check_class_names(source.values())
        return {str(key): value for key, value in source.items()}
    if isinstance(source, Sequence) and not isinstance(source, str):
        return check_class_names(source)
    raise DataError(
        "class names should be a list of names or an object {folder name: class name}, "
        f"not {type(source).__name__}"
    )


def _read(name: str) -> Any:
    """Return what a file of class names holds: JSON, or one name a line."""
    try:
        exists = Path(name).exists()
    except (OSError, ValueError):  # far too long for a path, or with a NUL
        exists = False
    if not exists:
        raise DataError(
            f"the file of class names {_shortened(name)} does not exist: name one, or write JSON, such as "
            """'["cat", "dog"]' or '{"folder name": "class name"}'"""
        )
    if Path(name).suffix.lower() not in _LINES:
        return read_json(name, error=DataError, what="the file of class names")
    lines = read_lines(name, error=DataError, what="the file of class names")
    if lines and lines[0][:1] in ("{", "["):  # it is JSON, whatever it is called
        return read_json(name, error=DataError, what="the file of class names")
    return lines


def _shortened(text: str) -> str:
    return repr(text) if len(text) <= _SHOWN else f"{text[:_SHOWN]!r}..."


def _parsed(text: str) -> Any:
    try:
        return parse_json(text)
    except (ValueError, RecursionError) as error:
        raise DataError(f"the class names {_shortened(text)} are not JSON: {error}") from error


def load_templates(source: str | Path | Sequence[str] | None) -> tuple[str, ...]:
    """Read prompt templates.

    Args:
        source: One template, several, a JSON file with either, or None for the default.

    Raises:
        DataError: If there are none, or one does not have `{}` exactly once.

    Example:
        >>> load_templates(None)
        ('a photo of a {}.',)
    """
    if source is None:
        return (DEFAULT_TEMPLATE,)
    if isinstance(source, Path) or (isinstance(source, str) and source.endswith(".json")):
        source = read_json(source, error=DataError, what="the file of templates")
    templates = [source] if isinstance(source, str) else source
    if not isinstance(templates, Sequence) or not templates:
        raise DataError(f"templates should be a text or a list of texts, not {templates!r}")
    if asks_for_choice(templates):
        raise DataError(
            "the templates 'auto' are chosen on the labelled images of a fit: use `rada fit --template auto` "
            "(any method) or Classifier(..., templates='auto').fit(data), or write the templates out"
        )
    for template in templates:
        if not isinstance(template, str) or template.count("{}") != 1:
            raise DataError(
                f"the template {template!r} should have {{}} once, where the class name goes"
            )
    return tuple(templates)


def build_prompts(
    classes: Sequence[str], templates: str | Path | Sequence[str] | None = None
) -> list[list[str]]:
    """Return the prompts of each class, one for each template.

    Raises:
        DataError: If class names or templates cannot be used.

    Example:
        >>> build_prompts(["cat"], ["a {}.", "the {}."])
        [['a cat.', 'the cat.']]
    """
    patterns = load_templates(templates)
    return [
        [pattern.replace("{}", name) for pattern in patterns] for name in check_class_names(classes)
    ]
