"""Writing files so that nothing is lost: to a temporary name first, then renamed."""

from __future__ import annotations

import contextlib
import errno
import json
import math
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from rada.core.errors import OutputError, StorageError
from rada.core.printable import exact_json

__all__ = [
    "atomic_path",
    "cause_of",
    "follow_umask",
    "not_utf8",
    "parse_json",
    "read_json",
    "read_lines",
    "umask",
    "whole_directory",
    "write_bytes",
    "write_json",
]

_LARGEST_TEXT = 64 << 20
_CAUSES = {
    errno.ENOSPC: "the disk is full; free some space",
    errno.EDQUOT: "the disk quota is used up; free some space",
    errno.EROFS: "the file system is read-only; choose another place",
    errno.EACCES: "no permission to write there; choose another place or change its mode",
    errno.EPERM: "no permission to write there; choose another place or change its mode",
    errno.ENOTDIR: "a part of the path is a file, not a folder",
    errno.EISDIR: "a folder of that name exists",
}


def cause_of(error: OSError) -> str:
    """Say why something could not be written, and what to do.

    Example:
        >>> cause_of(OSError(errno.ENOSPC, "No space left on device"))
        'the disk is full; free some space'
    """
    return _CAUSES.get(error.errno or 0, error.strerror or str(error))


@contextlib.contextmanager
def storage_errors(path: Path) -> Iterator[None]:
    """Turn what fails while `path` is written into a `StorageError` that says what to do."""
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        raise StorageError(f"cannot write {str(path)!r}: {cause_of(error)}") from error
    except SafetensorError as error:  # how its library tells of a full disk
        raise StorageError(f"cannot write {str(path)!r}: {error}") from error


@contextlib.contextmanager
def atomic_path(path: str | Path, *, overwrite: bool = True) -> Iterator[Path]:
    """Yield a temporary name beside `path`; it becomes `path` when the block ends well.

    Parents are made. Whatever stood at `path` stays untouched until the rename.

    Args:
        path: The file.
        overwrite: Replace what is there by then.

    Raises:
        OutputError: If there is such a file, and `overwrite` is off.
        StorageError: If the place cannot be written (full, read-only, no permission).

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with atomic_path(Path(folder) / "a.txt") as temporary:
        ...         _ = temporary.write_text("whole")
        ...     (Path(folder) / "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            prefix=f".{path.name[:100]}.", suffix=".tmp", dir=path.parent
        )
        os.close(handle)
        temporary = Path(name)
        try:
            yield temporary
            with temporary.open("rb") as stream:
                os.fsync(stream.fileno())
            # mkstemp makes private files; the result gets the mode that open() would have given.
            temporary.chmod(0o666 & ~umask())
            if not overwrite:
                _link_new(temporary, path)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def _link_new(temporary: Path, path: Path) -> None:
    """Give a file its name, unless another process was there first."""
    taken = OutputError(f"{str(path)!r} exists by now: choose another name")
    try:
        path.hardlink_to(temporary)
    except FileExistsError as error:
        raise taken from error
    except OSError as error:  # a file system without links
        if os.path.lexists(path):
            raise taken from error


def umask() -> int:
    """Return the permissions that new files lack, as the shell command `umask` does."""
    mask = os.umask(0)
    os.umask(mask)
    return mask


def follow_umask(folder: Path) -> None:
    """Bring all below a private folder safely to disk, with the modes that open() would have given.

    Some libraries write private files (mode 0600) whatever the umask says.
    """
    mask = umask()
    for entry in (folder, *folder.rglob("*")):
        if entry.is_symlink():
            continue
        if entry.is_file():
            with entry.open("rb") as stream:
                os.fsync(stream.fileno())
            entry.chmod(0o666 & ~mask)
        else:
            entry.chmod(0o777 & ~mask)


@contextlib.contextmanager
def whole_directory(path: str | Path) -> Iterator[Path]:
    """Yield a temporary folder beside `path`; it becomes `path` when the block ends well.

    A reader sees the whole new folder or the old one, and what a full disk interrupts leaves the old one
    alone.

    Raises:
        StorageError: If the place cannot be written.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with whole_directory(Path(folder) / "model") as temporary:
        ...         _ = (temporary / "a.txt").write_text("whole")
        ...     (Path(folder) / "model" / "a.txt").read_text()
        'whole'
    """
    path = Path(path)
    with storage_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
        try:
            yield temporary
            follow_umask(temporary)
            if path.exists():
                old = Path(tempfile.mkdtemp(prefix=f".{path.name[:100]}.", dir=path.parent))
                path.replace(old)
                temporary.replace(path)
                shutil.rmtree(old, ignore_errors=True)
            else:
                temporary.replace(path)
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def write_bytes(path: str | Path, content: bytes) -> None:
    """Write `content` to `path` in one step.

    Raises:
        StorageError: If the place cannot be written.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(content)


def write_json(path: str | Path, value: Any) -> None:
    """Write `value` as indented JSON in one step; NaN is refused, since JSON has none.

    Raises:
        StorageError: If the place cannot be written.
        ValueError: If `value` holds NaN or an infinity.
    """
    text = exact_json(value, indent=2)
    write_bytes(path, (text + "\n").encode())


def read_json(
    path: str | Path,
    *,
    error: type[Exception],
    what: str,
    limit: int = 64 << 20,
    finite: bool = True,
) -> Any:
    """Read JSON that somebody handed over.

    Args:
        path: The file.
        error: The type of error to raise, of `rada.core.errors`.
        what: What the file is, for the message.
        limit: Largest size that is read, in bytes.
        finite: Refuse NaN, infinities and numbers beyond float64, which JSON does not have.

    Returns:
        The parsed value.

    Raises:
        Exception: Of type `error`, if the file is missing, too large, or not JSON.
    """
    path = Path(path)
    try:
        size = path.stat().st_size
        if size <= limit:
            return parse_json(path.read_text(encoding="utf-8-sig"), finite=finite)
    except FileNotFoundError as cause:
        raise error(f"{what} {str(path)!r} does not exist") from cause
    except UnicodeError as cause:
        raise error(f"{what} {str(path)!r} {not_utf8(cause)}") from cause
    except (OSError, ValueError, RecursionError) as cause:
        raise error(f"{what} {str(path)!r} cannot be read as JSON: {cause}") from cause
    raise error(f"{what} {str(path)!r} has {size} bytes, more than the {limit} allowed")


def read_lines(path: str | Path, *, error: type[Exception], what: str) -> list[str]:
    """Read the lines of a text file that somebody handed over, without blanks around them.

    Empty ones are left out.

    Raises:
        Exception: Of type `error`, if the file is missing, too large or not UTF-8.
    """
    path = Path(path)
    try:
        if path.stat().st_size > _LARGEST_TEXT:
            raise error(f"{what} {str(path)!r} is too large")
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeError as cause:
        raise error(f"{what} {str(path)!r} {not_utf8(cause)}") from cause
    except OSError as cause:
        raise error(f"{what} {str(path)!r} cannot be read: {cause.strerror or cause}") from cause
    return [line.strip() for line in lines if line.strip()]


def parse_json(text: str | bytes, *, finite: bool = False) -> Any:
    """Parse JSON that somebody handed over.

    Args:
        text: The JSON.
        finite: Refuse NaN, infinities and numbers beyond float64.

    Raises:
        ValueError: If it is not JSON, holds half a Unicode character (a lone surrogate), or an object has
            a key twice: readers keep the last without a word.
        RecursionError: If it is nested too deeply.
    """
    number = _finite if finite else None
    value = json.loads(text, object_pairs_hook=_once, parse_constant=number, parse_float=number)
    escape, lower = ("\\ud", text.lower()) if isinstance(text, str) else (b"\\ud", text.lower())
    if escape in lower:  # type: ignore[operator]
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError as error:
            raise ValueError(f"it holds half a Unicode character ({error.reason})") from None
    return value


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):
        raise ValueError(f"{text[:40]} is not a finite number")
    return value


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        keys = [key for key, _ in pairs]
        doubled = next(key for key in found if keys.count(key) > 1)
        raise ValueError(f"the key {doubled!r} stands twice in one object: remove one")
    return found


def not_utf8(error: UnicodeError | None) -> str:
    """Say what is wrong with a text file that is not UTF-8, and what to do; follows its name.

    Example:
        >>> not_utf8(None)[:16]
        'is not in UTF-8:'
    """
    where = ""
    if isinstance(error, UnicodeDecodeError):
        where = f" (byte 0x{error.object[error.start]:02x} cannot stand where it is)"
    return (
        f"is not in UTF-8{where}: save it as UTF-8 (in Excel: CSV UTF-8), or convert it, as in "
        "iconv -f LATIN1 -t UTF-8 OLD > NEW (UTF-16 instead of LATIN1, if it is that)"
    )
