"""Reading and writing features files; what is read is not trusted.

The layout is that of `docs/features.md`: a safetensors file with `image_features`, `labels`,
`text_features` and `ids`, and names as JSON in the metadata. `.npz` files with plain arrays of
the same names are read too.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from rada.core.errors import FeatureError, OutputError
from rada.core.hashing import fingerprint_tensors
from rada.core.storage import atomic_path

__all__ = ["SUFFIXES", "checksum", "file_key", "is_whole", "load_features", "save_features"]

FORMAT = "rada-features-1"
SUFFIXES = (".safetensors", ".npz")
"""How the names of features files end."""
_METADATA = "rada_features"
_FIELDS = ("classes", "scale", "encoder", "encoder_fingerprint", "templates", "skipped", "decoding")
_TENSORS = ("image_features", "labels", "text_features", "ids", "scale", "classes")
# A deflated table of features hardly shrinks; sorted labels do. Above this a member is a bomb.
_LARGEST_RATIO = 20
_SMALL = 64 << 20

Made = TypeVar("Made")


def save_features(
    values: Mapping[str, Any],
    path: str | Path,
    *,
    overwrite: bool | None = None,
    extra: Mapping[str, str] | None = None,
) -> Path:
    """Write features to the safetensors file `path` in one step and return the path.

    Args:
        values: The fields of a `Features` by name; the images behind them are not saved.
        path: The file.
        overwrite: Whether to replace a file that is there; None replaces a features file alone.
        extra: What else the metadata are to say, which readers pass over.

    Raises:
        OutputError: If there is a file that is not to be replaced.
        StorageError: If the place cannot be written.
    """
    from safetensors.torch import save_file

    tensors = {
        name: values[name].contiguous()
        for name in ("image_features", "labels", "text_features")
        if values.get(name) is not None
    }
    # A million ids would exceed what a safetensors header may hold, so they are a tensor.
    ids = json.dumps(values["ids"]).encode()
    tensors["ids"] = torch.frombuffer(bytearray(ids), dtype=torch.uint8)
    fields = {"format": FORMAT} | {name: values.get(name) for name in _FIELDS}
    # One entry, since safetensors keeps no order of several: equal features give equal files.
    known = {key: value for key, value in fields.items() if value not in (None, ())}
    known |= dict(extra or {})
    path = Path(path)
    if overwrite is None and path.exists() and _METADATA not in (_metadata(path) or {}):
        raise OutputError(
            f"{str(path)!r} is there already and no features file: choose another name, or replace it with "
            "overwrite=True"
        )
    with atomic_path(path, overwrite=overwrite is not False) as temporary:
        save_file(tensors, temporary, metadata={_METADATA: json.dumps(known)})
    return path


def _metadata(path: Path) -> dict[str, str] | None:
    """Return the metadata of a safetensors file; None of anything else, or where it is cut off."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            return file.metadata() or {}
    except (SafetensorError, OSError):
        return None


def file_key(path: Path) -> str | None:
    """Return the key that a file was saved with (`extra`); "" for none, None where there is no sound file."""
    known = _metadata(path)
    if known is None:
        return None
    key = _fields_of(known).get("key", "")
    return key if isinstance(key, str) else ""


def checksum(values: Mapping[str, Any]) -> str:
    """Return a hash of rows, labels and ids of features, by which damage on the disk is seen."""
    rows, labels = values["image_features"], values["labels"]
    return fingerprint_tensors(rows, labels, extra=list(values["ids"]))


def is_whole(path: Path) -> bool:
    """Whether the rows of a file are those that it was saved with, if it was saved with their `checksum`."""
    from safetensors.torch import load_file

    wanted = _fields_of(_metadata(path) or {}).get("checksum")
    if wanted is None:
        return True  # of a rada that wrote none
    try:
        found: dict[str, Any] = load_file(path)
        found["ids"] = json.loads(found["ids"].numpy().tobytes())
        return bool(checksum(found) == wanted)
    except Exception:  # whatever safetensors and torch say of a damaged file
        return False


def _fields_of(metadata: Mapping[str, str]) -> dict[str, Any]:
    """Return what rada wrote into metadata."""
    try:
        found = json.loads(metadata.get(_METADATA, "{}"))
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def load_features(path: str | Path, make: Callable[..., Made]) -> Made:
    """Read a features file, `.npz` by its suffix and safetensors otherwise.

    Args:
        path: The file.
        make: Makes the features of the fields of a `Features`, by name.

    Raises:
        FeatureError: If it is missing, damaged, or holds what features cannot be; the message
            begins with the path.
    """
    path = Path(path)
    if not path.is_file():
        what = "is a folder" if path.is_dir() else "does not exist"
        raise FeatureError(f"features file {str(path)!r} {what}: give a .safetensors or .npz file")
    try:
        read = _read_npz if path.suffix.lower() == ".npz" else _read_safetensors
        return make(**_checked(*read(path)))
    except FeatureError as error:
        raise FeatureError(f"features file {str(path)!r}: {error}") from error
    except (OSError, MemoryError) as error:
        raise FeatureError(f"features file {str(path)!r} cannot be read: {error}") from error


def _read_safetensors(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the tensors and the fields of the metadata; sizes are checked by safetensors itself."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt") as file:
            names = set(file.keys())
            tensors = {name: file.get_tensor(name) for name in _TENSORS if name in names}
            metadata = file.metadata() or {}
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise FeatureError(f"not a whole safetensors file ({error}): write it again") from error
    fields: dict[str, Any] = {}
    if _METADATA in metadata:
        fields = _parse(metadata[_METADATA], _METADATA)
        if not isinstance(fields, dict) or fields.get("format") != FORMAT:
            raise FeatureError(f"'{_METADATA}' does not say {FORMAT!r}: another version wrote it")
    fields |= {name: _parse(metadata[name], name) for name in _FIELDS if name in metadata}
    if "ids" in tensors:
        fields["ids"] = _parse(_text(tensors.pop("ids")), "ids")
    return tensors, fields


def _text(ids: Tensor) -> bytes:
    if ids.dtype is not torch.uint8 or ids.ndim != 1:
        raise FeatureError(
            f"'ids' is {ids.dtype} of shape {tuple(ids.shape)}, not the bytes of a JSON list"
        )
    return bytes(ids.numpy())


def _parse(text: str | bytes, name: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FeatureError(f"'{name}' should be JSON, but is {text[:80]!r}") from error


def _read_npz(path: Path) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return the arrays of a NumPy archive; nothing in it is ever unpickled."""
    arrays: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in _TENSORS:
                if f"{name}.npy" in archive.namelist():
                    arrays[name] = _read_member(archive, f"{name}.npy")
    except (zipfile.BadZipFile, ValueError, EOFError, NotImplementedError, RuntimeError) as error:
        raise FeatureError(f"it is not a whole NumPy archive ({error}): write it again") from error
    fields: dict[str, Any] = {}
    for name in ("classes", "ids"):
        if name in arrays:
            fields[name] = arrays.pop(name).tolist()
    return {
        name: array if name == "scale" else torch.from_numpy(_native(array, name))
        for name, array in arrays.items()
    }, fields


def _read_member(archive: zipfile.ZipFile, name: str) -> np.ndarray:
    info = archive.getinfo(name)
    if info.file_size > max(_SMALL, _LARGEST_RATIO * info.compress_size):
        raise FeatureError(
            f"'{name}' claims {info.file_size} bytes in {info.compress_size} compressed ones, "
            "which no features do: the file is damaged or hostile"
        )
    with archive.open(info) as stream:
        version = np.lib.format.read_magic(stream)
        header: Callable[..., Any] = (
            np.lib.format.read_array_header_1_0
            if version == (1, 0)
            else np.lib.format.read_array_header_2_0
        )
        shape, _, dtype = header(stream)
        size = dtype.itemsize
        for length in shape:
            size *= length
        if dtype.hasobject:
            raise FeatureError(f"'{name}' holds Python objects, never read: save plain arrays")
        if size + stream.tell() != info.file_size:
            raise FeatureError(f"'{name}' has {info.file_size} bytes, but its header claims {size}")
    with archive.open(info) as stream:
        return np.asarray(np.lib.format.read_array(stream, allow_pickle=False))


def _native(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype.kind not in "fiu":
        raise FeatureError(f"'{name}' is of type {array.dtype}: give numbers")
    return np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("="))


def _checked(tensors: Mapping[str, Any], fields: Mapping[str, Any]) -> dict[str, Any]:
    if "image_features" not in tensors:
        raise FeatureError("it has no 'image_features'")
    images, texts = tensors["image_features"], tensors.get("text_features")
    labels = tensors.get("labels")
    if labels is None:
        labels = torch.full(images.shape[:1], -1)
    scale = tensors["scale"] if "scale" in tensors else fields.get("scale")
    return {
        "image_features": images,
        "labels": labels,
        "classes": _class_names(fields.get("classes"), texts, labels),
        "ids": _strings(fields.get("ids"), "ids"),
        "text_features": texts,
        "scale": None if scale is None else _number(scale),
        "encoder": _string(fields.get("encoder"), "encoder"),
        "encoder_fingerprint": _string(fields.get("encoder_fingerprint"), "encoder_fingerprint"),
        "templates": _strings(fields.get("templates"), "templates"),
        "skipped": _pairs(fields.get("skipped")),
        "decoding": _string(fields.get("decoding"), "decoding"),
    }


def _class_names(names: Any, texts: Any, labels: Tensor) -> tuple[str, ...]:
    """Return the class names; where there are none, number the classes."""
    if names is not None:
        classes = _strings(names, "classes")
        blank = [name for name in classes if not name.strip()]
        if not classes or blank or len(set(classes)) != len(classes):
            raise FeatureError("'classes' should be different names that are not blank")
        return classes
    if texts is not None:
        return tuple(f"class {index}" for index in range(len(texts)))
    largest = int(labels.max()) if labels.numel() and not labels.is_floating_point() else 0
    if largest > max(labels.numel(), 1_000_000):
        raise FeatureError(f"label {largest} is out of range: name the classes")
    return tuple(f"class {index}" for index in range(largest + 1))


def _strings(values: Any, name: str) -> tuple[str, ...]:
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(value, str) for value in values):
        raise FeatureError(f"'{name}' should be a list of strings")
    return tuple(values)


def _string(value: Any, name: str) -> str | None:
    if value is not None and not isinstance(value, str):
        raise FeatureError(f"'{name}' should be a string, not {value!r}")
    return value


def _pairs(values: Any) -> tuple[tuple[str, str], ...]:
    if values is None:
        return ()
    if not isinstance(values, list) or not all(isinstance(v, list) and len(v) == 2 for v in values):
        raise FeatureError("'skipped' should be a list of [id, reason]")
    return tuple((key, reason) for key, reason in (_strings(pair, "skipped") for pair in values))


def _number(value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise FeatureError(f"'scale' should be one number, not {value!r}") from error
