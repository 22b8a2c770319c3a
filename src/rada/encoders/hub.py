"""Files of models on the Hugging Face hub: from the local cache first, downloaded otherwise."""

from __future__ import annotations

from pathlib import Path

from rada.core.errors import EncoderError, one_line
from rada.core.extras import needed_for
from rada.encoders.suggest import suggestions

__all__ = ["cached_file", "cached_snapshot", "file", "open_clip_snapshot", "snapshot"]

_SMALL = ["*.json", "*.txt", "*.model"]  # configuration, vocabulary, sentencepiece
_WEIGHTS = ("*.safetensors", "*.bin")
_TIMEOUT = 5.0  # seconds for the first answer


def cached_snapshot(repository: str, config: str = "config.json") -> Path | None:
    """Return the folder of a repository that was downloaded before, weights included."""
    with needed_for("a model on the hub"):
        from huggingface_hub import snapshot_download
        from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, local_files_only=True))
    except LocalEntryNotFoundError:
        return None
    except HFValidationError as error:
        raise _bad_name(repository) from error
    whole = (folder / config).is_file() and any(
        next(folder.glob(pattern), None) for pattern in _WEIGHTS
    )
    return folder if whole else None


def open_clip_snapshot(repository: str) -> Path:
    """Return the folder of a repository with a model of open_clip, downloading it if need be."""
    return snapshot(repository, "open_clip_config.json")


def snapshot(repository: str, config: str = "config.json") -> Path:
    """Return the folder of a repository, downloading what a model needs.

    Raises:
        EncoderError: If the hub cannot be reached or has no such repository.
    """
    with needed_for("a model on the hub"):
        from huggingface_hub import HfApi, snapshot_download

    found = cached_snapshot(repository, config)
    if found is not None:
        return found
    try:
        names = [
            s.rfilename for s in HfApi().model_info(repository, timeout=_TIMEOUT).siblings or ()
        ]
        safe = any(name.endswith(".safetensors") for name in names)
        patterns = [*_SMALL, _WEIGHTS[0] if safe else _WEIGHTS[1]]
        return Path(snapshot_download(repository, allow_patterns=patterns, etag_timeout=_TIMEOUT))
    except Exception as error:
        raise _unreachable(repository, error) from error


def cached_file(repository: str, names: list[str]) -> Path | None:
    """Return the first of some files of a repository that was downloaded before."""
    with needed_for("a model on the hub"):
        from huggingface_hub import try_to_load_from_cache

    for name in names:
        found = try_to_load_from_cache(repository, name)
        if isinstance(found, str):
            return Path(found)
    return None


def file(repository: str, names: list[str]) -> Path:
    """Return the first of some files that the repository has, downloading it if need be.

    Raises:
        EncoderError: If the hub cannot be reached or has none of them.
    """
    with needed_for("a model on the hub"):
        from huggingface_hub import HfApi, hf_hub_download

    found = cached_file(repository, names)
    if found is not None:
        return found
    try:
        # Asked first because it fails at once without a network, where a download tries for long.
        siblings = HfApi().model_info(repository, timeout=_TIMEOUT).siblings or ()
        held = {sibling.rfilename for sibling in siblings}
        chosen = next((name for name in names if name in held), None)
        if chosen is not None:
            return Path(hf_hub_download(repository, chosen, etag_timeout=_TIMEOUT))
    except Exception as error:
        raise _unreachable(repository, error) from error
    raise EncoderError(f"the hub's repository {repository!r} has none of {', '.join(names)}")


def _bad_name(repository: str) -> EncoderError:
    return EncoderError(
        f"{repository!r} is neither a directory on this machine nor a name of the form ORG/NAME"
    )


def _unreachable(repository: str, error: Exception) -> EncoderError:
    with needed_for("a model on the hub"):
        from huggingface_hub.errors import HFValidationError, RepositoryNotFoundError

    if isinstance(error, HFValidationError):
        return _bad_name(repository)
    if isinstance(error, RepositoryNotFoundError):
        return EncoderError(
            f"the model hub has no repository {repository!r}, or it is private; check the name, or "
            f"log in with `hf auth login`{_hint(repository)}"
        )
    return EncoderError(
        f"model {repository!r} is not on this machine and the model hub cannot be reached "
        f"({one_line(error)}); "
        "download it elsewhere and give its directory, or use 'embedded', which needs no hub"
        f"{_hint(repository)}"
    )


def _hint(repository: str) -> str:
    """Ask about known models with a similar name; those of open_clip are no repositories."""
    found = [name for name in suggestions(f"hf:{repository}") if name.startswith("hf:")]
    return f" (did you mean {found[0]!r}?)" if found else ""
