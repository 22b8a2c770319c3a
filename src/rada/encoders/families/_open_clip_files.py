"""Where the weights of open_clip's models are."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rada.core.errors import EncoderError
from rada.core.extras import needed_for
from rada.core.network import socket_timeout

__all__ = ["checkpoint", "directory_checkpoint", "is_local", "tag_settings"]

_SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".npz")
_DEFAULT = "open_clip_pytorch_model.bin"


def checkpoint(name: str, pretrained: str) -> tuple[Path, dict[str, Any]]:
    """Find the weights for an architecture.

    Args:
        name: Architecture.
        pretrained: A tag that open_clip knows, a file, or a directory with one.

    Returns:
        The file, and the settings for `open_clip.create_model` that belong to the tag.

    Raises:
        EncoderError: If there is no such tag or file, or it cannot be downloaded.
    """
    settings = tag_settings(name, pretrained)
    if settings is not None:
        return _download(name, settings), _overrides(settings)
    path = Path(pretrained).expanduser()
    return directory_checkpoint(path) if path.is_dir() else path, {}


def tag_settings(name: str, tag: str) -> dict[str, Any] | None:
    """Return what open_clip knows of the weights that a tag names; None for a file or directory.

    Raises:
        EncoderError: If there is none of them; the message lists the tags that there are.
    """
    with needed_for("a model of open_clip"):
        from open_clip.pretrained import get_pretrained_cfg, list_pretrained_tags_by_model

    settings: dict[str, Any] = get_pretrained_cfg(name, tag) if tag else {}
    if settings:
        return settings
    if tag and Path(tag).expanduser().exists():
        return None
    tags = list_pretrained_tags_by_model(name)
    what = f"{tag!r} is neither a tag of it nor a file" if tag else "none was named"
    raise EncoderError(
        f"open_clip's {name!r} needs weights and {what}; give open_clip:{name}/TAG with one of: "
        f"{', '.join(tags) or 'none'}; or open_clip:MODEL/PATH"
    )


def directory_checkpoint(directory: Path) -> Path:
    """Return the weights in a directory, safetensors first.

    Raises:
        EncoderError: If there are none.
    """
    for suffix in _SUFFIXES:
        found = sorted(directory.glob(f"*{suffix}"))
        if found:
            return found[0]
    raise EncoderError(
        f"the model directory {str(directory)!r} holds no weights (*{', *'.join(_SUFFIXES)}); they "
        "would be random"
    )


def is_local(name: str, tag: str) -> bool:
    """Whether the weights of a tag are on this machine."""
    with needed_for("a model of open_clip"):
        from open_clip.pretrained import get_pretrained_cfg

    from rada.encoders.hub import cached_file

    settings = get_pretrained_cfg(name, tag)
    if "file" in settings:
        return Path(settings["file"]).is_file()
    source = settings.get("hf_hub", "")
    if source:
        repository, names = _hub_names(source)
        return cached_file(repository, names) is not None
    return _url_cache(settings.get("url", "")).is_file()


def _hub_names(source: str) -> tuple[str, list[str]]:
    """Split "ORG/NAME/FILE", in which FILE may be missing; a safetensors twin is tried first."""
    repository, _, name = source.rpartition("/")
    name = name or _DEFAULT
    if name == _DEFAULT:
        return repository, ["open_clip_model.safetensors", name]
    return repository, [str(Path(name).with_suffix(".safetensors")), name]


def _url_cache(url: str) -> Path:
    return Path("~/.cache/clip").expanduser() / Path(url).name


def _download(name: str, settings: dict[str, Any]) -> Path:
    with needed_for("a model of open_clip"):
        from open_clip.pretrained import download_pretrained_from_url

    from rada.encoders.hub import file

    if settings.get("file"):
        return Path(settings["file"])
    source = settings.get("hf_hub", "")
    if source:
        return file(*_hub_names(source))
    url = settings.get("url", "")
    if _url_cache(url).is_file():
        return _url_cache(url)
    try:
        with socket_timeout():
            return Path(download_pretrained_from_url(url))
    except Exception as error:
        raise EncoderError(
            f"the weights of open_clip's {name!r} cannot be fetched from {url!r}: {error}; "
            "download them elsewhere and give open_clip:MODEL/PATH"
        ) from error


def _overrides(settings: dict[str, Any]) -> dict[str, Any]:
    """Return what a tag changes: with the file alone, open_clip would not know."""
    keys = ("mean", "std", "interpolation", "resize_mode")
    preprocess = {key: settings[key] for key in keys if settings.get(key) is not None}
    overrides: dict[str, Any] = {"force_preprocess_cfg": preprocess}
    if settings.get("quick_gelu"):
        overrides["force_quick_gelu"] = True
    return overrides
