"""Output folders: one owner at a time, and nothing is replaced or deleted but what rada wrote.

A folder that rada writes to holds `.rada-state/manifest.json`, which names every file that rada put
there. A folder with anything in it but without that marker is somebody else's and is refused before
anything is written; so is a file that the marker does not name. A lock beside the marker keeps a second
process out. Files of one save become visible together: they are written to a folder beside the marker, the
marker names that folder in one step, and whoever comes next finishes what a killed process left half done.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
import tempfile
import threading
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from rada.core.errors import OutputError
from rada.core.legacy import written_before
from rada.core.storage import (
    follow_umask,
    read_json,
    storage_errors,
    umask,
    write_bytes,
    write_json,
)

__all__ = [
    "STATE_FOLDER",
    "OutputFolder",
    "check_apart",
    "check_file",
    "claim",
    "finish_save",
    "training_folder",
]

Kind = Literal["model", "report", "bench", "demo", "encoder", "explanation", "export", "features"]

STATE_FOLDER = ".rada-state"
"""Name of the hidden folder with the marker, the lock and the state of a run."""

_MANIFEST, _LOCK, _TRAINING = "manifest.json", "lock", "training"
_FORMAT = "rada-output-1"
_KINDS = {
    "model": "a model",
    "report": "a report",
    "bench": "a benchmark",
    "demo": "a demo",
    "encoder": "an encoder",
    "explanation": "explanations",
    "export": "an exported model",
    "features": "a feature store",
}
_STAGE = re.compile(r"next-[A-Za-z0-9_]+")
_READER_WAIT = 30.0
_held = threading.local()


@dataclass
class _Manifest:
    """What rada wrote into a folder; names that end in / stand for all below a sub-folder."""

    kind: str
    files: set[str] = field(default_factory=set)
    pending: str | None = None
    stale: set[str] = field(default_factory=set)

    @classmethod
    def read(cls, path: Path) -> _Manifest | None:
        """Return the manifest of a folder, or None where there is none.

        Raises:
            OutputError: If it is damaged or hostile.
        """
        place = path / STATE_FOLDER / _MANIFEST
        if not os.path.lexists(place):
            return None
        try:
            found = read_json(place, error=OutputError, what="the list of rada's own files")
        except OutputError as error:
            raise _unknown_owner(path) from error
        values = found if isinstance(found, dict) else {}
        kind, pending = values.get("kind"), values.get("pending")
        names, stale = values.get("files"), values.get("stale", [])
        if not (
            values.get("format") == _FORMAT
            and isinstance(kind, str)
            and kind in _KINDS
            and all(
                isinstance(entry, list) and all(map(_is_inside, entry)) for entry in (names, stale)
            )
            and (pending is None or (isinstance(pending, str) and _STAGE.fullmatch(pending)))
        ):
            raise _unknown_owner(path)
        return cls(kind, set(names or ()), pending, set(stale))

    def write(self, path: Path) -> None:
        values: dict[str, Any] = {"format": _FORMAT, "kind": self.kind, "files": sorted(self.files)}
        if self.pending is not None:
            values |= {"pending": self.pending, "stale": sorted(self.stale)}
        write_json(path / STATE_FOLDER / _MANIFEST, values)

    def owns(self, name: str) -> bool:
        parents = (f"{parent}/" for parent in PurePosixPath(name).parents)
        return name in self.files or any(parent in self.files for parent in parents)


def _unknown_owner(path: Path) -> OutputError:
    """Return the error of a folder whose list is damaged: rada deletes nothing there, its user may."""
    return OutputError(
        f"{str(path / STATE_FOLDER / _MANIFEST)!r} is damaged, so rada cannot tell which files are its own: "
        f"choose another folder, or delete {str(path)!r} yourself, once nothing in it is needed any more"
    )


def _is_inside(name: object) -> bool:
    """Whether a name of a manifest is a plain relative one, outside the state folder."""
    if not isinstance(name, str) or not name or "\0" in name or "\\" in name:
        return False
    parts = PurePosixPath(name).parts
    return (
        bool(parts) and not name.startswith("/") and ".." not in parts and parts[0] != STATE_FOLDER
    )


def training_folder(path: Path) -> Path:
    """Return the folder for the state of a training run in an output folder."""
    return path / STATE_FOLDER / _TRAINING


class OutputFolder:
    """A folder that this process owns until the block of `claim` ends.

    Attributes:
        path: The folder.
        state: Hidden folder inside it.
        training: Folder for the state of a training run; `clear_training` deletes it.
    """

    def __init__(self, path: Path, manifest: _Manifest) -> None:
        self.path, self._manifest = path, manifest
        self.state = path / STATE_FOLDER
        self.training = training_folder(path)

    @property
    def kind(self) -> str:
        """What is in the folder."""
        return self._manifest.kind

    def take(self, *names: str) -> None:
        """Note the names of files, or of whole sub-folders (`name/`), that are about to be written.

        Raises:
            OutputError: If one is there that rada did not write; nothing is changed then.
        """
        new = [name for name in names if not self._manifest.owns(name)]
        for name in names:
            place = self._place(name)
            if name in new and os.path.lexists(place):
                raise OutputError(
                    f"{str(place)!r} exists, and rada did not write it: move it away, or choose another "
                    "folder"
                )
        if new:
            self._manifest.files.update(new)
            self._manifest.write(self.path)

    def write_bytes(self, name: str, content: bytes) -> Path:
        """Write one file in one step and return its path.

        Raises:
            OutputError: If there is such a file, and rada did not write it.
            StorageError: If the place cannot be written.
        """
        self.take(name)
        write_bytes(self.path / name, content)
        return self.path / name

    def write_json(self, name: str, value: Any) -> Path:
        """Write one JSON file, as `write_bytes` does."""
        self.take(name)
        write_json(self.path / name, value)
        return self.path / name

    def discard(self, pattern: str, *, keep: Collection[str] = ()) -> None:
        """Delete files of rada's own.

        Args:
            pattern: What their names match, such as `*.txt`.
            keep: Names that stay.
        """
        old = {
            name
            for name in self._manifest.files
            if PurePosixPath(name).match(pattern) and name not in keep
        }
        for name in old:
            self._place(name).unlink(missing_ok=True)
        if old:
            self._manifest.files -= old
            self._manifest.write(self.path)

    @contextlib.contextmanager
    def saving(self, *, keep: Collection[str] = ()) -> Iterator[Path]:
        """Yield an empty folder; when the block ends well, its files replace rada's own in one step.

        Args:
            keep: Names of rada's files that stay though they are not among the new ones.

        Raises:
            OutputError: If a file is in the way that rada did not write.
            StorageError: If the place cannot be written; the old files stay then.
        """
        with storage_errors(self.path):
            stage = Path(tempfile.mkdtemp(prefix="next-", dir=self.state))
            try:
                yield stage
                follow_umask(stage)
                names = {path.relative_to(stage).as_posix() for path in _files_below(stage)}
                before = {name for name in self._manifest.files if not name.endswith("/")}
                self.take(*names)
                self._manifest.stale = before - names - set(keep)
                self._manifest.pending = stage.name
                self._manifest.write(self.path)
                self._finish()
            except BaseException:
                # Once the manifest on disk names the stage, it is needed to finish the save.
                on_disk = _Manifest.read(self.path)
                if on_disk is None or on_disk.pending != stage.name:
                    self._manifest.pending = None
                    shutil.rmtree(stage, ignore_errors=True)
                raise

    def clear_training(self) -> None:
        """Delete the state of the training run."""
        shutil.rmtree(self.training, ignore_errors=True)

    def _place(self, name: str) -> Path:
        """Return the path of a name; folders that are links elsewhere are refused."""
        place = self.path / name
        if place.parent.resolve() != self.path.resolve() / PurePosixPath(name).parent:
            raise OutputError(
                f"{str(place.parent)!r} leads out of the output folder: choose another folder"
            )
        return place

    def _finish(self) -> None:
        """Do what the manifest says is pending; doing a part of it again is harmless."""
        manifest = self._manifest
        if manifest.pending is None:
            return
        stage = self.state / manifest.pending
        for path in _files_below(stage):
            place = self._place(path.relative_to(stage).as_posix())
            place.parent.mkdir(parents=True, exist_ok=True)
            path.replace(place)
        for name in sorted(manifest.stale):
            place = self._place(name)
            if place.is_symlink() or place.is_file():
                place.unlink()
            with contextlib.suppress(OSError):  # it is not empty, or was never there
                if place.parent != self.path:
                    place.parent.rmdir()
        manifest.files -= manifest.stale
        manifest.pending, manifest.stale = None, set()
        manifest.write(self.path)
        shutil.rmtree(stage, ignore_errors=True)

    def recover(self) -> None:
        """Finish a save that counted, drop those that did not, and put the marker."""
        self._finish()
        for stage in self.state.glob("next-*"):
            if _STAGE.fullmatch(stage.name) and not stage.is_symlink():
                shutil.rmtree(stage, ignore_errors=True)
        for half in self.state.glob(f".{_MANIFEST}.*.tmp"):
            half.unlink()
        self._manifest.write(self.path)

    def is_unused(self) -> bool:
        """Whether nothing was written here."""
        with contextlib.suppress(OSError):
            names = {entry.name for entry in self.state.iterdir()}
            return not self._manifest.files and names <= {_MANIFEST, _LOCK}
        return False


def _files_below(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_symlink() or not path.is_dir())


@contextlib.contextmanager
def claim(
    path: str | Path, kind: Kind, *, inputs: Iterable[object] = (), wait: float = 0.0
) -> Iterator[OutputFolder]:
    """Own an output folder for the time of the block; a claim inside a claim is the same one.

    Args:
        path: The folder. It is made where there is none; a new one that nothing was written to is
            removed again.
        kind: What is to be in it.
        inputs: What is read; paths among them may not lie in the folder, nor the folder in them.
        wait: Seconds to wait for another owner.

    Raises:
        OutputError: If it holds something that is not rada's, something of another kind, or has another
            owner; nothing is changed then.
        StorageError: If the place cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with claim(Path(folder) / "out", "report") as out:
        ...         _ = out.write_bytes("index.html", b"...")
        ...     sorted(path.name for path in (Path(folder) / "out").iterdir())
        ['.rada-state', 'index.html']
    """
    path = Path(path)
    check_apart(path, inputs)
    mine: dict[str, OutputFolder] = _held.__dict__
    key = str(path.resolve())
    if key in mine:
        _check_kind(mine[key].path, mine[key].kind, kind)
        yield mine[key]
        return
    with _locked(path, kind, wait) as folder:
        mine[key] = folder
        try:
            yield folder
        finally:
            del mine[key]


@contextlib.contextmanager
def _locked(path: Path, kind: Kind, wait: float) -> Iterator[OutputFolder]:
    """Take the lock of a folder, and what a killed owner left half done to its end."""
    from filelock import FileLock, Timeout

    _examine(path, kind)
    made = [folder for folder in (path, *path.parents) if not folder.exists()]
    state = path / STATE_FOLDER
    with storage_errors(path):
        state.mkdir(parents=True, exist_ok=True)
        lock = FileLock(state / _LOCK, timeout=wait, mode=0o666 & ~umask())
        try:
            lock.acquire()
        except Timeout as error:
            raise OutputError(
                f"another rada process is writing to {str(path)!r}: wait for it, or choose another folder"
            ) from error
        except NotImplementedError as error:
            raise OutputError(
                f"{str(path)!r} is on a file system without locks: choose another folder"
            ) from error
    folder = None
    try:
        folder = OutputFolder(path, _examine(path, kind))  # again: now nobody else can change it
        with storage_errors(path):
            folder.recover()
        yield folder
    finally:
        unused = folder is not None and folder.is_unused()
        if unused:
            (state / _MANIFEST).unlink(missing_ok=True)
        lock.release()
        if unused:
            with contextlib.suppress(OSError):  # somebody else came, or it is not empty
                (state / _LOCK).unlink(missing_ok=True)
                for emptied in (state, *made):
                    emptied.rmdir()


def _examine(path: Path, kind: Kind) -> _Manifest:
    """Return the manifest of a folder, a new one for an empty folder; refuse any other."""
    if not os.path.lexists(path):
        return _Manifest(kind)
    if not path.is_dir():
        raise OutputError(f"{str(path)!r} is not a folder: choose another name")
    with storage_errors(path):
        names = {entry.name for entry in path.iterdir()}
    state = path / STATE_FOLDER
    if state.is_symlink() or (STATE_FOLDER in names and not state.is_dir()):
        raise OutputError(f"{str(state)!r} is not a folder of rada's own: choose another folder")
    found = _Manifest.read(path)
    if found is not None:
        _check_kind(path, found.kind, kind)
        return found
    if names <= {STATE_FOLDER}:
        return _Manifest(kind)
    proven = written_before(path, kind)
    if not proven:
        others = sorted(names - {STATE_FOLDER})
        raise OutputError(
            f"{str(path)!r} holds {others[0]!r}"
            + (f" and {len(others) - 1} more" if len(others) > 1 else "")
            + f", which rada did not write as {_KINDS[kind]}: choose a new or an empty folder"
        )
    return _Manifest(kind, proven)


def _check_kind(path: Path, found: str, wanted: str) -> None:
    if found != wanted:
        raise OutputError(
            f"{str(path)!r} holds {_KINDS[found]} of rada's, not {_KINDS[wanted]}: choose another folder"
        )


def finish_save(path: str | Path) -> None:
    """Finish a save that was killed half way, if there is one in the folder; for readers.

    Raises:
        OutputError: If it is needed and another process holds the folder for long.
        StorageError: If it is needed and the place cannot be written.
    """
    path = Path(path)
    try:
        found = _Manifest.read(path)
    except OutputError:  # not a folder of rada's, and nothing to finish
        return
    if found is not None and found.pending is not None:
        with claim(path, found.kind, wait=_READER_WAIT):  # type: ignore[arg-type]
            pass


def check_apart(path: str | Path, inputs: Iterable[object]) -> None:
    """Check that an output folder and what is read are apart.

    Args:
        path: The folder.
        inputs: What is read; anything but an existing path is passed over.

    Raises:
        OutputError: If they are the same, or one lies in the other.
    """
    out = Path(path).resolve()
    for entry in _existing(inputs):
        found = entry.resolve()
        if out == found or out.is_relative_to(found) or found.is_relative_to(out):
            how = "are the same folder" if out == found else "lie in one another"
            raise OutputError(
                f"the output {str(path)!r} and the data {str(entry)!r} {how}: choose a folder "
                "outside the data"
            )


def _existing(inputs: Iterable[object]) -> Iterator[Path]:
    """Yield the existing paths among what is read, which may be names of data sets or objects."""
    for entry in inputs:
        if isinstance(entry, str | Path):
            found = False
            with contextlib.suppress(OSError, ValueError):  # far too long for a path, or with a NUL
                found = Path(entry).exists()
            if found:
                yield Path(entry)


def check_file(path: str | Path, *, overwrite: bool, inputs: Iterable[object] = ()) -> None:
    """Check that one file may be written.

    Args:
        path: The file.
        overwrite: Whether a file of that name may be replaced.
        inputs: Paths that are read, which are never replaced.

    Raises:
        OutputError: If it exists and may not be replaced.
    """
    path = Path(path)
    if not os.path.lexists(path):
        return
    if path.is_dir() or (path.exists() and not path.is_file()):
        raise OutputError(f"{str(path)!r} is not a regular file: choose another name")
    if any(path.exists() and path.samefile(entry) for entry in _existing(inputs)):
        raise OutputError(
            f"{str(path)!r} is read by this command, so it is not replaced: choose another name"
        )
    owner = _Manifest.read(path.parent)
    if owner is not None and owner.owns(path.name):
        raise OutputError(
            f"{str(path)!r} is a part of {_KINDS[owner.kind]} of rada's: choose another name"
        )
    if not overwrite:
        raise OutputError(
            f"{str(path)!r} exists: choose another name, or replace it with --overwrite"
        )
