"""What a result tells when it is handed on: names of data and models, not where they lie."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from typing import Any

from rada.data.splits import split_name

__all__ = ["data_title", "shareable", "shown_name"]

_ENDING = re.compile(r"\.[a-zA-Z][a-zA-Z0-9]{1,11}$")
_URL = re.compile(r"(\w+://)(?:[^/@]*@)?([^?#]*).*", re.DOTALL)


def shown_name(place: str) -> str:
    """Return the name of a file or folder without the private folders above it.

    Names, relative paths and URLs stay; a URL loses its user and its query, which may hold a key. The
    folder of a split says what data it is of.

    Example:
        >>> shown_name("/home/ann/clients/acme/birds"), shown_name("/home/ann/birds/test")
        ('birds', 'birds/test')
        >>> shown_name("photos/test"), shown_name("https://me:key@host/a.tar?token=1")
        ('photos/test', 'https://host/a.tar')
    """
    url = _URL.fullmatch(place)
    if url is not None:
        return "".join(url.groups())
    path: PurePath = PurePosixPath(place)
    windows = PureWindowsPath(place)
    if windows.drive:
        path = windows
    if not path.is_absolute() and not place.startswith("~") and ".." not in path.parts:
        return place
    parts = [part for part in path.parts if part not in (path.anchor, "..", "~")]
    last = 2 if parts and split_name(parts[-1]) is not None else 1
    return "/".join(parts[-last:]) or place


def data_title(place: str) -> str:
    """Return what data is called in a title: a name, not a path.

    Example:
        >>> data_title("/home/ann/birds/test"), data_title("photos/of/birds.csv"), data_title("textiles")
        ('birds', 'birds', 'textiles')
        >>> data_title("https://me:key@host/a/birds.tar?token=1"), data_title("v1.5")
        ('birds', 'v1.5')
    """
    parts = [part for part in re.split(r"[/\\]", shown_name(place)) if part not in ("", ".")]
    if len(parts) > 1 and split_name(parts[-1]) is not None:
        parts.pop()
    name = parts[-1] if parts else place
    return name[: -len(found[0])] if (found := _ENDING.search(name)) and found.start() else name


def shareable(result: Mapping[str, Any]) -> dict[str, Any]:
    """Return a result in which every place that it names is written as `shown_name` does.

    Example:
        >>> shareable({"command": "rada evaluate /tmp/head /home/ann/birds/test"})
        {'command': 'rada evaluate head birds/test'}
    """
    names = {place: shown_name(place) for place in _places(result)}
    names |= {str(Path.home()): "~"} if len(str(Path.home())) > 1 else {}
    patterns = [
        (re.compile(rf"(?<![\w.~/\\-]){re.escape(place)}(?![\w-])"), name)
        for place, name in sorted(names.items(), key=lambda pair: -len(pair[0]))
        if place != name
    ]

    def rewritten(value: Any) -> Any:
        if isinstance(value, str):
            for pattern, name in patterns:
                # A backslash of a name is no group reference.
                value = pattern.sub(name.replace("\\", r"\\"), value)
            return value
        if isinstance(value, Mapping):
            return {rewritten(key): rewritten(entry) for key, entry in value.items()}
        if isinstance(value, list | tuple):
            return type(value)(map(rewritten, value))
        return value

    shared: dict[str, Any] = rewritten(result)
    if isinstance(result.get("command"), str):
        shared["command"] = _shared_command(result["command"], rewritten)
    return shared


def _shared_command(command: str, rewritten: Any) -> str:
    # Word by word: quoting hides a path from a search in the text.
    return shlex.join(rewritten(word) for word in _words(command))


def _words(command: str) -> list[str]:
    try:
        return shlex.split(command)
    except ValueError:  # not a shell's
        return [command]


def _places(result: Mapping[str, Any]) -> Iterator[str]:
    """Yield all that may be a path of this result: the arguments of its command, data, head, models."""
    for word in _words(str(result.get("command") or "")):
        yield word
        yield word.partition("=")[2]
    for key in ("data", "dataset", "head", "encoder"):
        yield from _strings(result.get(key))
    yield from _strings((result.get("training") or {}).get("data"))


def _strings(value: object) -> Iterator[str]:
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping) and isinstance(value.get("name"), str):
        yield value["name"]
