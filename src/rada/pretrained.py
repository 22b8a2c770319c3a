"""A head on disk: `head.safetensors` beside `config.json`, loaded without trusting either."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rada._version import __version__
from rada.core.errors import CheckpointError, ConfigError
from rada.core.hashing import fingerprint_tensors
from rada.core.output import claim, finish_save
from rada.core.records import HeadRecord, check_record
from rada.core.storage import read_json
from rada.head import RAdaHead

__all__ = [
    "CONFIG_FILE",
    "ENCODER_FOLDER",
    "ClassVectors",
    "HeadConfig",
    "SavedParts",
    "load_head",
    "load_parts",
    "resolve_directory",
    "save_head",
    "save_parts",
    "write_parts",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "head.safetensors"
_MAX_CONFIG_BYTES = 64 << 20
CLASSES_FILE = "classes.safetensors"
ENCODER_FOLDER = "encoder"
_PATTERNS = [CONFIG_FILE, "head.safetensors", CLASSES_FILE, f"{ENCODER_FOLDER}/*"]
_TYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LAYERS = ("query_image", "query_text", "query_rational", "key", "value", "out")


@dataclass(frozen=True)
class HeadConfig:
    """What a saved head says of itself.

    Attributes:
        dim: Width D of the features.
        num_heads: Attention heads.
        temperature: Temperature of the joint softmax.
        scale: The exponentiated logit scale that the head was trained with.
        strength: Mask strength at inference.
        encoder: `{"name", "fingerprint"}` of the encoder, or None where features do not say it.
        classes: Names of the candidate classes.
        templates: Prompt templates; none where the features that the head was fitted on do not name them.
        aliases: Display names by the folder or label names of the data.
        training: Configuration, seed, history and data of the run.
        weights_hash: Hash of the weights, which ties the two files together; "" is not checked.
        rada_version: Version of the library that wrote it.
        parts: What is in the folder: "head", "classes" (a vector of each class: learned by fine-tuning,
            or the class features of the features file that the head was fitted on), "encoder" (a
            tuned encoder in the format of its own library).
    """

    dim: int
    num_heads: int
    temperature: float
    scale: float
    strength: float
    encoder: dict[str, Any] | None
    classes: list[str]
    templates: list[str]
    aliases: dict[str, str] = field(default_factory=dict)
    training: dict[str, Any] = field(default_factory=dict)
    weights_hash: str = ""
    rada_version: str = __version__
    parts: list[str] = field(default_factory=lambda: ["head"])

    def __post_init__(self) -> None:
        values = {entry.name: getattr(self, entry.name) for entry in dataclasses.fields(self)}
        check_record(HeadRecord, values, error=ConfigError, what="the description of a head")

    @classmethod
    def from_dict(cls, values: object) -> HeadConfig:
        """Build from parsed JSON.

        Raises:
            ConfigError: If a field is unknown, missing or ill-typed; the message names it.
        """
        if not isinstance(values, dict):
            raise ConfigError(f"a JSON object is needed, not {type(values).__name__}")
        fields = {entry.name: entry for entry in dataclasses.fields(cls)}
        unknown = sorted(map(str, set(values) - set(fields)))
        missing = [
            name
            for name, entry in fields.items()
            if name not in values
            and entry.default is dataclasses.MISSING
            and entry.default_factory is dataclasses.MISSING
        ]
        if unknown or missing:
            told = [f"unknown field {name!r}" for name in unknown]
            told += [f"missing field {name!r}" for name in missing]
            version = values.get("rada_version")
            hint = f" (written by rada {version}, this is {__version__})" if version else ""
            raise ConfigError(", ".join(told) + hint)
        return cls(**values)


class ClassVectors(NamedTuple):
    """What a model learned for each of its K classes.

    Attributes:
        vectors: `(K, D)`, for the class features.
        biases: `(K,)`, added to the logits; None for nothing.
    """

    vectors: Tensor
    biases: Tensor | None = None


def save_head(directory: str | Path, head: RAdaHead, config: HeadConfig) -> None:
    """Write a head; a reader sees the old files or the new ones, never some of both.

    Raises:
        OutputError: If the folder holds what rada did not write, or another process writes to it.
        StorageError: If the place cannot be written.
    """
    save_parts(directory, head, None, config)


def save_parts(
    directory: str | Path, head: RAdaHead | None, vectors: ClassVectors | None, config: HeadConfig
) -> None:
    """Write what there is of a head and of vectors of the classes, as `save_head` does.

    Raises:
        OutputError: If the folder holds what rada did not write, or another process writes to it.
        StorageError: If the place cannot be written.
    """
    with claim(directory, "model") as out, out.saving() as stage:
        write_parts(stage, head, vectors, config)


def write_parts(
    folder: Path, head: RAdaHead | None, vectors: ClassVectors | None, config: HeadConfig
) -> None:
    """Write the files of `save_parts` into an existing folder, one after the other."""
    states: dict[str, dict[str, Tensor]] = {}
    if head is not None:
        states[WEIGHTS_FILE] = head.state_dict()
    if vectors is not None:
        found = vectors._asdict()
        states[CLASSES_FILE] = {name: value for name, value in found.items() if value is not None}
    states = {
        name: {key: value.detach().cpu().contiguous() for key, value in state.items()}
        for name, state in states.items()
    }
    hashed = _hash({key: value for state in states.values() for key, value in state.items()})
    config = dataclasses.replace(
        config, weights_hash=hashed if states else "", rada_version=__version__
    )
    text = json.dumps(dataclasses.asdict(config), indent=2, ensure_ascii=False, allow_nan=False)
    for name, state in states.items():
        # One entry of metadata: safetensors writes several in random order, and equal heads should
        # be equal files.
        save_file(state, folder / name, metadata={"format": "pt"})
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


class SavedParts(NamedTuple):
    """What a folder holds.

    Attributes:
        head: The head in evaluation mode, or None.
        vectors: Vectors and biases of the classes, or None.
        encoder: Folder of a tuned encoder, or None.
        config: What is known of them.
    """

    head: RAdaHead | None
    vectors: ClassVectors | None
    encoder: Path | None
    config: HeadConfig


def load_head(directory: str | Path) -> tuple[RAdaHead, HeadConfig]:
    """Read a head that anybody may have written.

    Args:
        directory: A local folder.

    Returns:
        The head in evaluation mode, and its configuration.

    Raises:
        CheckpointError: As for `load_parts`, or if there is no head.
    """
    found = load_parts(directory)
    if found.head is None:
        raise CheckpointError(f"{str(directory)!r} holds a tuned model without a head")
    return found.head, found.config


def load_parts(directory: str | Path) -> SavedParts:
    """Read a folder that anybody may have written.

    Only `config.json`, `head.safetensors` and `classes.safetensors` inside the folder are opened. The
    shapes in a file's header are compared with the configuration before anything is allocated.

    Args:
        directory: A local folder.

    Raises:
        CheckpointError: If a file is missing, damaged, leads outside the folder or does not fit the
            configuration.
    """
    folder = Path(directory)
    finish_save(folder)
    config_path = _inside(folder, CONFIG_FILE)
    raw = read_json(
        config_path, error=CheckpointError, what="the configuration", limit=_MAX_CONFIG_BYTES
    )
    try:
        config = HeadConfig.from_dict(raw)
    except (ConfigError, TypeError) as error:
        raise CheckpointError(
            f"{str(config_path)!r} is not a head's configuration: {error}"
        ) from error
    state: dict[str, Tensor] = {}
    head, encoder = None, None
    if "head" in config.parts:
        state |= _read_tensors(_inside(folder, WEIGHTS_FILE), _head_shapes(config.dim))
    if "classes" in config.parts:
        count = len(config.classes)
        shapes: dict[str, tuple[int, ...]] = {"vectors": (count, config.dim), "biases": (count,)}
        # Class features of a features file have no biases, nor have models of former versions.
        state |= _read_tensors(_inside(folder, CLASSES_FILE), shapes, optional=("biases",))
    if config.weights_hash and config.weights_hash != _hash(state):
        raise CheckpointError(
            f"{str(folder)!r} holds other weights than its configuration was written for "
            f"(hash {_hash(state)}, not {config.weights_hash}): the files are of different runs"
        )
    vectors = None
    if "classes" in config.parts:
        vectors = ClassVectors(state.pop("vectors"), state.pop("biases", None))
    if "head" in config.parts:
        head = RAdaHead(config.dim, config.num_heads, config.temperature)
        head.to(state["out.weight"].dtype).load_state_dict(state)
        head.eval()
        _check_finite(head, config, folder)
    if ENCODER_FOLDER in config.parts:
        encoder = folder / ENCODER_FOLDER
        if not encoder.is_dir() or not encoder.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(f"{str(folder)!r} lacks the tuned encoder in {ENCODER_FOLDER}/")
    return SavedParts(head, vectors, encoder, config)


def _head_shapes(dim: int) -> dict[str, tuple[int, ...]]:
    shapes: dict[str, tuple[int, ...]] = {f"{layer}.weight": (dim, dim) for layer in _LAYERS}
    return shapes | {f"{layer}.bias": (dim,) for layer in _LAYERS}


def _read_tensors(
    path: Path, wanted: dict[str, tuple[int, ...]], *, optional: Collection[str] = ()
) -> dict[str, Tensor]:
    try:
        with safe_open(path, framework="pt") as stream:
            names = set(stream.keys())
            found = {name: tuple(stream.get_slice(name).get_shape()) for name in names}
            absent = set(optional) - names
            if found != {name: shape for name, shape in wanted.items() if name not in absent}:
                raise CheckpointError(_difference(path, found, wanted))
            state = {name: stream.get_tensor(name) for name in names}
    except (SafetensorError, OSError, KeyError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged: {error}") from error
    for name, value in state.items():
        if value.dtype not in _TYPES:
            raise CheckpointError(
                f"{str(path)!r} holds {name!r} as {value.dtype}: float16, bfloat16, float32 or float64 "
                "is needed"
            )
        if not value.isfinite().all():
            raise CheckpointError(f"{str(path)!r} holds NaN or Inf in {name!r}")
    return state


def _check_finite(head: RAdaHead, config: HeadConfig, folder: Path) -> None:
    """Refuse weights so large that logits overflow, which would name the first class always."""
    rows = torch.randn(5, config.dim, generator=torch.Generator().manual_seed(0))
    rows = torch.nn.functional.normalize(rows, dim=-1).to(head.out.weight)
    with torch.no_grad():
        logits = head(rows[:3], rows[3:], config.scale, config.strength or 1.0).logits
    if not logits.isfinite().all():
        raise CheckpointError(
            f"the head in {str(folder)!r} gives logits that are not finite: its weights are far too "
            "large (did its training diverge?); fit it again"
        )


def _hash(state: dict[str, Tensor]) -> str:
    return fingerprint_tensors(*(state[name].float() for name in sorted(state)))


def _inside(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise CheckpointError(f"{str(folder)!r} is not a folder with a saved head")
    path = folder / name
    if not path.is_file():
        raise CheckpointError(
            f"{str(folder)!r} has no {name}: it is not a head that save_pretrained or rada fit wrote"
        )
    # The hub's cache keeps snapshots as links into a folder of blobs two levels up.
    allowed = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    if not any(path.resolve().is_relative_to(root) for root in allowed):
        raise CheckpointError(f"{str(path)!r} is a link out of its folder, which is refused")
    return path


def _difference(path: Path, found: dict[str, Any], wanted: dict[str, Any]) -> str:
    for name in sorted(wanted.keys() | found.keys()):
        if found.get(name) != wanted.get(name):
            return (
                f"{str(path)!r} does not fit its configuration: {name!r} has the shape "
                f"{found.get(name)}, {wanted.get(name)} is needed"
            )
    return f"{str(path)!r} does not fit its configuration"


def resolve_directory(name: str | Path) -> Path:
    """Return the local folder of a saved head, downloading `owner/name` from the Hugging Face hub.

    Raises:
        CheckpointError: If there is no such folder and the hub has none or is out of reach.
    """
    path = Path(name)
    if path.exists() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        return path.expanduser()
    from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=_PATTERNS))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise CheckpointError(
            f"{str(name)!r} is neither a local folder nor reachable on the Hugging Face hub "
            f"({type(error).__name__})"
        ) from error
