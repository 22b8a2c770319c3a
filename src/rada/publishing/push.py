"""A saved model's folder, as one commit on the hub."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from rada.core.errors import CheckpointError, ConfigError, OutputError
from rada.core.extras import needed_for
from rada.core.warn import warn
from rada.pretrained import (
    CONFIG_FILE,
    ENCODER_FOLDER,
    WEIGHTS_FILE,
    is_saved_model,
    load_model,
)
from rada.publishing.card import MARK, model_card, needs_own_encoder

if TYPE_CHECKING:
    from huggingface_hub import HfApi

__all__ = ["Prepared", "Pushed", "check_repository", "prepare", "push_folder"]

_NAME = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}")
_CARD = "README.md"


class Prepared(NamedTuple):
    """What would be sent.

    Attributes:
        repository: `owner/name`.
        files: The files, with the card as the last.
        card: The text of the card.
    """

    repository: str
    files: tuple[str, ...]
    card: str


class Pushed(NamedTuple):
    """What became of a push.

    Attributes:
        url: Where the model is.
        files: The files that were sent.
        card_kept: Whether a card of somebody's own was left as it is.
    """

    url: str
    files: tuple[str, ...]
    card_kept: bool


def check_repository(name: str) -> str:
    """Return the name of a repository.

    Raises:
        ConfigError: If it is none.

    Example:
        >>> check_repository("me/my-model")
        'me/my-model'
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name or name.endswith((".git", ".")):
        raise ConfigError(
            f"{name!r} is no name of a repository on the hub: write OWNER/NAME, of letters, digits, '-', '_' "
            "and '.'"
        )
    return name


def prepare(
    folder: str | Path,
    repository: str,
    *,
    result: Mapping[str, Any] | None = None,
    license: str | None = None,
) -> Prepared:
    """Check a saved model and write its card; nothing is sent.

    Args:
        folder: As for `push_folder`.
        repository: `owner/name`.
        result: An evaluation for the card; see `model_card`.
        license: The license of the model, by the hub's name.

    Raises:
        RadaError: As for `push_folder`, but for what the hub may answer.
    """
    check_repository(repository)
    place = Path(folder)
    if not place.is_dir() or not is_saved_model(place):
        raise CheckpointError(
            f"{str(folder)!r} is not a folder with a saved model: push what save_pretrained or rada fit wrote"
        )
    fitted = load_model(place)  # whole, undamaged, and of one run
    card = model_card(fitted, repository, result=result, license=license)
    if fitted.encoder is not None and needs_own_encoder(fitted):
        warn(
            f"nobody else can load this model without its encoder {fitted.encoder.name!r}, which is on this "
            "machine alone and is not sent: give it to them, too; they name it with --encoder",
            stacklevel=3,
        )
    return Prepared(repository, (*_own_files(place), _CARD), card)


def push_folder(
    folder: str | Path,
    repository: str,
    *,
    private: bool = True,
    result: Mapping[str, Any] | None = None,
    license: str | None = None,
    message: str = "A model of rada",
    token: str | None = None,
) -> Pushed:
    """Send a saved model to the hub, all in one commit: rada's own files of the folder, and a card.

    Args:
        folder: A folder that `save_pretrained` or `rada fit` wrote; its weights are checked first.
        repository: `owner/name`; it is made if there is none.
        private: Whether a repository that is made now is private; one that exists keeps what it is.
        result: An evaluation for the card; see `model_card`.
        license: The license of the model, by the hub's name.
        message: What the commit is called.
        token: The hub's token; None takes the one of `hf auth login` or of `HF_TOKEN`.

    Raises:
        ConfigError: If the name is none of a repository.
        CheckpointError: If the folder is not a saved model, or is damaged.
        DataError: If the result is of another model.
        OutputError: If the hub refuses or cannot be reached, or the repository holds what rada did not write.
    """
    prepared = prepare(folder, repository, result=result, license=license)
    place, files = Path(folder), list(prepared.files[:-1])
    with needed_for("rada push"):
        from huggingface_hub import HfApi

    api = HfApi(token=token)
    try:
        url = str(api.create_repo(repository, private=private, exist_ok=True))
        there = set(api.list_repo_files(repository))
        _check_theirs(api, repository, there)
        kept = _CARD in there and not _is_ours(api, repository)
        sent = _commit(
            api, repository, place, files, there, None if kept else prepared.card, message
        )
    except (CheckpointError, OutputError):
        raise
    except Exception as error:  # the hub's client raises dozens of unrelated types
        _refuse(repository, error)
    return Pushed(url, sent, kept)


def _own_files(place: Path) -> list[str]:
    """Return the files of a model in its folder; links that lead out of it are refused."""
    encoder = place / ENCODER_FOLDER
    paths = [place / CONFIG_FILE, place / WEIGHTS_FILE]
    paths += sorted(path for path in encoder.rglob("*") if path.is_file())
    for path in paths:
        if not path.is_file() or not path.resolve().is_relative_to(place.resolve()):
            raise CheckpointError(
                f"{str(path)!r} is missing, or a link out of its folder: save the model again"
            )
    return [path.relative_to(place).as_posix() for path in paths]


def _check_theirs(api: HfApi, repository: str, there: set[str]) -> None:
    """Refuse a repository with somebody's files that a model would replace."""
    config = _content(api, repository, CONFIG_FILE) if CONFIG_FILE in there else b""
    foreign = CONFIG_FILE in there and b'"rada_version"' not in config
    if foreign or (WEIGHTS_FILE in there and CONFIG_FILE not in there):
        raise OutputError(
            f"the repository {repository!r} holds a model that rada did not write: choose another name"
        )


def _is_ours(api: HfApi, repository: str) -> bool:
    return MARK.encode() in _content(api, repository, _CARD)


def _content(api: HfApi, repository: str, name: str) -> bytes:
    return Path(api.hf_hub_download(repository, name)).read_bytes()


def _commit(
    api: HfApi,
    repository: str,
    place: Path,
    files: list[str],
    there: set[str],
    card: str | None,
    message: str,
) -> tuple[str, ...]:
    """Send the files; those of an earlier model's encoder that are no longer needed go."""
    with needed_for("rada push"):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete

    added = [CommitOperationAdd(name, place / name) for name in files]
    if card is not None:
        added.append(CommitOperationAdd(_CARD, card.encode()))
    old = {name for name in there if name.startswith(f"{ENCODER_FOLDER}/")} - set(files)
    deleted = [CommitOperationDelete(name) for name in sorted(old)]
    api.create_commit(repository, [*added, *deleted], commit_message=message)
    return tuple(entry.path_in_repo for entry in added)


def _refuse(repository: str, error: Exception) -> NoReturn:
    """Say what the hub answered, without its text: that may repeat what was sent to it."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    hints = {
        401: "log in with `hf auth login`, or set HF_TOKEN to a token that may write",
        403: "the token may not write there: make one that may, or choose a name of your own",
        404: "there is no such owner, or the token does not reach it",
        409: "somebody else changed the repository meanwhile: try again",
    }
    cause = type(error).__name__ if status is None else f"status {status}"
    hint = hints.get(
        status or 0, "check the network, HF_ENDPOINT and HF_HUB_OFFLINE, and try again"
    )
    raise OutputError(f"the model cannot be pushed to {repository!r} ({cause}): {hint}") from None
