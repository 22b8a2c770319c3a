"""What a user may call a model, taken apart."""

from __future__ import annotations

from pathlib import Path

from rada.core.errors import EncoderError
from rada.encoders.spec import SCHEMES, ModelSpec
from rada.encoders.suggest import did_you_mean

__all__ = ["parse_spec"]

_SPELLINGS = (
    "'embedded', 'open_clip:MODEL/PRETRAINED', 'hf-hub:ORG/NAME' (open_clip), 'hf:ORG/NAME' "
    "(transformers) or a local directory"
)


def parse_spec(text: str) -> ModelSpec:
    """Take a model's name apart.

    Raises:
        EncoderError: If it is none of the known spellings.

    Example:
        >>> parse_spec("open_clip:ViT-B-32/laion2b_s34b_b79k").target
        'ViT-B-32/laion2b_s34b_b79k'
    """
    if not text.strip() or "\0" in text:
        raise EncoderError(f"model name {text!r} is empty or holds a NUL; give {_SPELLINGS}")
    scheme, colon, target = text.partition(":")
    if scheme == "embedded" and not colon:
        return ModelSpec(text, "embedded", "")
    if colon and scheme in SCHEMES:
        if not target:
            raise EncoderError(f"model {text!r} names nothing after the colon; give {_SPELLINGS}")
        path = Path(target).expanduser()
        if scheme != "open_clip" and path.is_dir():
            return _directory(path)
        if ":" in target.partition("/")[0] or (scheme != "open_clip" and "/" not in target):
            raise EncoderError(_unknown(text))
        return ModelSpec(text, scheme, target)
    path = Path(text).expanduser()
    if path.is_dir():
        return _directory(path)
    raise EncoderError(_unknown(text))


def _unknown(text: str) -> str:
    if text.startswith((".", "/", "~")):
        return f"model {text!r}: there is no such directory"
    hint = did_you_mean(text)
    return (
        f"unknown model {text!r}; {hint}{' ' if hint else ''}A model is {_SPELLINGS}; "
        "`rada models` lists names"
    )


def _directory(path: Path) -> ModelSpec:
    """Tell the libraries' directories apart by the file that each of them writes.

    The name becomes the whole path: what remembers it may be used from another folder.
    """
    path = path.resolve()
    text = str(path)
    if (path / "open_clip_config.json").is_file():
        return ModelSpec(text, "hf-hub", text, path)
    if (path / "config.json").is_file():
        return ModelSpec(text, "hf", text, path)
    raise EncoderError(
        f"model directory {text!r} has neither config.json (transformers) nor "
        "open_clip_config.json (open_clip); a saved model has one of them"
    )
