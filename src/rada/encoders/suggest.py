"""Did you mean: the spelling of a model's name that would work."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator

from rada.encoders.registry import list_models
from rada.encoders.spec import SCHEMES

__all__ = ["did_you_mean", "suggestions"]

_HUB_ADDRESS = re.compile(r"^https?://(www\.)?(huggingface\.co|hf\.co)/", re.IGNORECASE)
_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_SHOWN = 3


def did_you_mean(text: str) -> str:
    """Return a question with the known names that a text may stand for; "" where there are none.

    Example:
        >>> did_you_mean("ViT-B/32")
        "did you mean 'open_clip:ViT-B-32/openai', 'open_clip:ViT-B-32/laion400m_e31' or \
'open_clip:ViT-B-32/laion400m_e32'?"
    """
    found = [repr(name) for name in suggestions(text)]
    if not found:
        return ""
    *most, last = found
    return f"did you mean {', '.join(most)}{' or ' if most else ''}{last}?"


def suggestions(text: str) -> list[str]:
    """Return at most three names that a text may stand for, the likeliest first.

    Names with the same letters and digits come before similar ones, and these before names that
    contain the text. A repository that is not known is offered as both libraries spell it.

    Example:
        >>> suggestions("open_clip:hf-hub:timm/ViT-B-16-SigLIP")
        ['hf-hub:timm/ViT-B-16-SigLIP']
        >>> suggestions("openai/clip-vit-base-patch32")
        ['hf:openai/clip-vit-base-patch32']
        >>> suggestions("embeded")
        ['embedded']
    """
    scheme, bare = _without_scheme(_HUB_ADDRESS.sub("", text.strip()).rstrip("/"))
    schemes = scheme.split(":")[:-1]
    if "local-dir" in schemes:  # open_clip's word for what is a plain path here
        return [bare]
    if (
        len(schemes) > 1 and schemes[-1] in SCHEMES
    ):  # one scheme before another: the second is meant
        return [f"{schemes[-1]}:{bare}"]
    keys: dict[str, list[str]] = {}
    for model in list_models():
        for key in _keys(model.name):
            keys.setdefault(key, []).append(model.name)
    wanted = _folded(bare)
    found = keys.get(wanted) or _similar(wanted, keys)
    repository = _REPOSITORY.fullmatch(bare)
    if not found and repository and scheme in ("", "open_clip:"):
        return [f"hf:{bare}", f"hf-hub:{bare}"]
    return [name for name in dict.fromkeys(found) if name != text][:_SHOWN]


def _similar(wanted: str, keys: dict[str, list[str]]) -> list[str]:
    close = difflib.get_close_matches(wanted, keys, n=_SHOWN, cutoff=0.8)
    if not close and len(wanted) > 3:
        close = [key for key in keys if wanted in key]
    return [name for key in close for name in keys[key][:_SHOWN]]


def _without_scheme(text: str) -> tuple[str, str]:
    """Split "open_clip:hf-hub:ORG/NAME" into "open_clip:hf-hub:" and the rest."""
    match = re.match(r"([A-Za-z][\w.-]*:)*", text)
    scheme = match[0] if match is not None else ""
    return scheme.lower(), text[len(scheme) :]


def _keys(name: str) -> Iterator[str]:
    """Yield what a known name may be called: without scheme, tag or owner, or turned around."""
    bare = name.partition(":")[2] or name
    yield _folded(bare)
    first, slash, second = bare.partition("/")
    if slash:
        yield _folded(second if name.startswith("hf") else first)
        yield _folded(f"{second}/{first}")


def _folded(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "", text.lower())
