"""One folder format for every method, loaded without trusting it.

`config.json` says what the model is (method, its configuration, classes, encoder, how it was trained),
`model.safetensors` holds its weights and class features, and `encoder/` the encoder where it was tuned, in
the format of its own library. Nothing in a folder is executed or unpickled.
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from rada._version import __version__
from rada.core.config import Config
from rada.core.errors import CheckpointError, ConfigError, RadaError, one_line
from rada.core.extras import needed_for
from rada.core.hashing import fingerprint_tensors
from rada.core.output import claim, finish_save
from rada.core.records import DetailsRecord, check_record
from rada.core.storage import read_json
from rada.data.prompts import check_class_names
from rada.encoders import load_encoder
from rada.encoders.slot import EncoderSlot
from rada.methods import AdaptedModel, Facts, Method, get_method
from rada.pretrained_0_1 import OLD_WEIGHTS_FILE, modernised, weights_hash
from rada.training.strength import Strength

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = [
    "CONFIG_FILE",
    "ENCODER_FOLDER",
    "WEIGHTS_FILE",
    "EncoderId",
    "Fitted",
    "Record",
    "check_encoder",
    "is_saved_model",
    "load_model",
    "resolve_directory",
    "save_model",
    "write_model",
]

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
ENCODER_FOLDER = "encoder"
FORMAT = "rada-model-2"
_CLASS_FEATURES = "class_features"
_BASELINE = ("baseline.weight", "baseline.bias")
_MAX_CONFIG_BYTES = 64 << 20
_PATTERNS = [CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE, f"{ENCODER_FOLDER}/*"]
_MEND = "copy the folder again from where it is whole, or fit again with --overwrite"
"""What to do about a damaged model."""
_FLOATS = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_LARGEST_WEIGHT = 1e6
"""Far above any trained weight; beyond it logits are infinite or no numbers."""


@dataclass(frozen=True)
class EncoderId(Config):
    """Which encoder made features.

    Attributes:
        name: What `load_encoder` takes.
        fingerprint: Hash of its weights, architecture, preprocessing and tokenizer.
        dtype: Its precision; None for float32.
    """

    name: str
    fingerprint: str
    dtype: str | None = None

    @classmethod
    def of(cls, encoder: DualEncoder) -> EncoderId:
        """Return which encoder this is."""
        half = None if encoder.dtype is torch.float32 else str(encoder.dtype).removeprefix("torch.")
        return cls(encoder.name, encoder.fingerprint, half)

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values; float32, which is usual, is left out."""
        return {key: value for key, value in super().to_dict().items() if value is not None}


@dataclass(frozen=True)
class Record(Config):
    """How a model was trained.

    Attributes:
        seed: Seed of everything random.
        shots: Images of each class; None for all.
        images: Training images.
        data: What the data is called.
        data_fingerprint: Hash of the training data.
        skipped: Identifier and reason of each image that was left out.
        image_keys: Which images it saw, as hashes (`rada.evaluation.seen`).
        details: What the method tells: the curve `history`, `strength_choice`, `seconds`, ...
        key: Hash of everything that determines the run.
    """

    seed: int = 0
    shots: int | None = None
    images: int = 0
    data: str | None = None
    data_fingerprint: str | None = None
    skipped: tuple[tuple[str, ...], ...] = ()
    image_keys: tuple[str, ...] = ()
    details: dict[str, Any] = field(default_factory=dict)
    key: str = ""

    def validate(self) -> None:
        """Check that counts and details can be those of a run."""
        self.require(self.shots is None or self.shots >= 1, "shots", "None or a positive integer")
        self.require(self.images >= 0, "images", "0 or more")
        check_record(DetailsRecord, self.details, error=ConfigError, what="the details of training")

    @property
    def history(self) -> list[dict[str, float]]:
        """The training curve: one entry for each epoch."""
        found = self.details.get("history")
        good = isinstance(found, list) and all(
            isinstance(entry, dict) and all(isinstance(v, int | float) for v in entry.values())
            for entry in found
        )
        return list(found) if good and found is not None else []


@dataclass(frozen=True, eq=False)
class Fitted:
    """A model with all that is needed to use it; what a folder holds.

    Attributes:
        model: The adapted model.
        classes: Names of the candidate classes.
        templates: Prompt templates of the class features.
        aliases: Class names by what the data calls them.
        class_features: `(K, D)` of the candidates, as the model takes them; None where unknown.
        encoder: The encoder of the features that were learned from; None for features of unknown origin.
        record: How the model was trained.
        baseline: Weights `(K, D)` and biases `(K,)` of a linear probe on the same images, with which an
            evaluation compares; None where there is none.
    """

    model: AdaptedModel
    classes: tuple[str, ...]
    templates: tuple[str, ...] = ()
    aliases: Mapping[str, str] = field(default_factory=dict)
    class_features: Tensor | None = None
    encoder: EncoderId | None = None
    record: Record = field(default_factory=Record)
    baseline: tuple[Tensor, Tensor] | None = None


@dataclass(frozen=True)
class ModelConfig(Config):
    """The schema of `config.json`."""

    method: str
    method_config: dict[str, Any]
    dim: int
    scale: float
    classes: tuple[str, ...]
    trained_classes: tuple[str, ...]
    templates: tuple[str, ...]
    aliases: dict[str, str]
    strength: dict[str, Any]
    encoder: dict[str, str] | None
    training: dict[str, Any]
    weights_hash: str
    tuned: str | None = None
    format: str = FORMAT
    rada_version: str = __version__

    def validate(self) -> None:
        """Check the names; sizes and ranges are checked by `Facts`, `Strength` and the method's own."""
        check_class_names(self.classes)
        self.require(self.format == FORMAT, "format", f"{FORMAT!r}")
        for name in (*self.classes, *self.trained_classes, *self.templates, *self.aliases.values()):
            try:
                name.encode()
            except UnicodeEncodeError as error:
                raise ConfigError(
                    f"the name {name!r} is no text: it holds half a letter"
                ) from error


def save_model(directory: str | Path, fitted: Fitted) -> None:
    """Write a model; a reader sees the old files or the new ones, never some of both.

    Raises:
        EncoderError: If the method tuned an encoder whose family cannot be written.
        OutputError: If the folder holds what rada did not write, or another process writes to it.
        StorageError: If the place cannot be written.
    """
    with claim(directory, "model") as out, out.saving() as stage:
        write_model(stage, fitted)


def write_model(folder: Path, fitted: Fitted) -> None:
    """Write the files of `save_model` into an existing folder, one after the other."""
    model = fitted.model
    tuned = model.encoder if model.method.saves_encoder else None
    if tuned is not None:
        tuned.require("save")
        (folder / ENCODER_FOLDER).mkdir()
        tuned.write(folder / ENCODER_FOLDER)
    state = model.own_state()
    if fitted.class_features is not None:
        state[_CLASS_FEATURES] = fitted.class_features
    if fitted.baseline is not None:
        state |= dict(zip(_BASELINE, fitted.baseline, strict=True))
    state = {name: value.detach().cpu().contiguous() for name, value in state.items()}
    config = ModelConfig(
        method=model.method.name,
        method_config=model.config.to_dict(),
        dim=model.facts.dim,
        scale=model.facts.scale,
        classes=fitted.classes,
        trained_classes=model.facts.classes,
        templates=fitted.templates or model.facts.templates,
        aliases=dict(fitted.aliases),
        strength=model.strength.to_dict(),
        encoder=None if fitted.encoder is None else fitted.encoder.to_dict(),
        training=(
            dataclasses.replace(fitted.record, details=model.record | fitted.record.details)
        ).to_dict(),
        weights_hash=_hash(state),
        tuned=None if tuned is None else tuned.fingerprint,
    )
    # One entry of metadata: safetensors writes several in random order, and equal models should be
    # equal files.
    save_file(state, folder / WEIGHTS_FILE, metadata={"format": "pt"})
    text = json.dumps(config.to_dict(), indent=2, ensure_ascii=False, allow_nan=False)
    (folder / CONFIG_FILE).write_text(text + "\n", encoding="utf-8")


def load_model(
    directory: str | Path,
    *,
    encoder: DualEncoder | None = None,
    device: str | torch.device | None = None,
) -> Fitted:
    """Read a folder that anybody may have written.

    Only `config.json`, `model.safetensors` and, where the method tuned it, `encoder/` inside the folder are
    opened. The shapes in the file's header are compared with the configuration before anything is
    allocated.

    Args:
        directory: A local folder.
        encoder: The encoder, for methods that ask one; else it is loaded by its saved name.
        device: Where an encoder is loaded.

    Raises:
        CheckpointError: If a file is missing, damaged, leads outside the folder or does not fit the
            configuration.
        EncoderError: If an encoder cannot be loaded.
    """
    folder = Path(directory)
    finish_save(folder)
    config, weights = _read_config(folder)
    try:
        method = get_method(config.method)
        facts = Facts(config.dim, config.scale, config.trained_classes, config.templates)
        own = method.config.from_dict(config.method_config)
        strength = Strength.from_dict(config.strength)
        record = Record.from_dict(config.training)
        saved = None if config.encoder is None else EncoderId.from_dict(config.encoder)
    except ConfigError as error:
        raise CheckpointError(f"'{folder / CONFIG_FILE}' cannot be used: {error}") from error
    asked = _encoder_for(method, folder, config, saved, encoder, device)
    state = _read_tensors(weights, config)
    features = state.pop(_CLASS_FEATURES, None)
    probe = [state.pop(name, None) for name in _BASELINE]
    if features is not None and tuple(features.shape) != (len(config.classes), config.dim):
        raise CheckpointError(
            f"{str(weights)!r} does not fit its configuration: the class features have the shape "
            f"{tuple(features.shape)}, {(len(config.classes), config.dim)} is needed"
        )
    model = _filled(weights, method, facts, own, asked, state)
    baseline = _baseline(weights, config, *probe)
    model.strength, model.record = strength, dict(record.details)
    return Fitted(
        model.eval(),
        config.classes,
        config.templates,
        config.aliases,
        features,
        saved,
        record,
        baseline,
    )


def _baseline(
    path: Path, config: ModelConfig, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor] | None:
    """Return the linear probe of a file, if it has one of the right shape."""
    if weight is None and bias is None:
        return None
    classes = len(config.trained_classes)
    shapes = [None if part is None else tuple(part.shape) for part in (weight, bias)]
    if weight is not None and bias is not None and shapes == [(classes, config.dim), (classes,)]:
        return weight, bias
    raise CheckpointError(
        f"{str(path)!r} does not fit its configuration: its linear probe should have weights of "
        f"the shape {(classes, config.dim)} and {classes} biases"
    )


def _read_config(folder: Path) -> tuple[ModelConfig, Path]:
    """Return the configuration of a folder, and the file of its weights."""
    path = _inside(folder, CONFIG_FILE)
    try:
        raw = read_json(path, error=CheckpointError, what="it", limit=_MAX_CONFIG_BYTES)
    except CheckpointError as error:
        cause = one_line(error.__cause__ or error)
        raise CheckpointError(f"{str(path)!r} is damaged ({cause}): {_MEND}") from error
    name = WEIGHTS_FILE
    try:
        if isinstance(raw, dict) and "format" not in raw:
            raw, name = modernised(raw), OLD_WEIGHTS_FILE
        config = ModelConfig.from_dict(raw)
    except (RadaError, TypeError) as error:
        raise CheckpointError(f"{str(path)!r} is not a model's configuration: {error}") from error
    return config, _inside(folder, name)


def _encoder_for(
    method: Method,
    folder: Path,
    config: ModelConfig,
    saved: EncoderId | None,
    given: DualEncoder | None,
    device: str | torch.device | None,
) -> DualEncoder | None:
    """Return the tuned encoder, or the one that the method asks; None where it needs none."""
    if method.saves_encoder:
        place = folder / ENCODER_FOLDER
        if not place.is_dir() or not place.resolve().is_relative_to(folder.resolve()):
            raise CheckpointError(
                f"{str(folder)!r} lacks the tuned encoder in {ENCODER_FOLDER}/: {_MEND}"
            )
        tuned = load_encoder(place, device=device)
        if config.tuned is None or not tuned.has_fingerprint(config.tuned):
            raise CheckpointError(
                f"{str(place)!r} is not the encoder that was tuned: it has the fingerprint "
                f"{tuned.fingerprint}, not {config.tuned}: {_MEND}"
            )
        return tuned
    if "encoder" not in method.needs:
        return given
    if given is None and saved is not None:
        given = EncoderSlot(saved.name, device, saved.dtype, saved=True).get()
    if given is None:
        raise CheckpointError(
            f"{str(folder)!r} needs the encoder that it was trained with: give it"
        )
    if saved is not None:
        check_encoder(given, saved, config.dim)
    # Of an encoder that a method puts something into, the model has a copy, with the same weights.
    return copy.copy(given) if method.train_encoder else given


def check_encoder(encoder: DualEncoder, saved: EncoderId, dim: int) -> None:
    """Check that an encoder is the one that a model was trained with.

    Raises:
        CheckpointError: If it is not; the message names the difference.
    """
    if encoder.dim != dim:
        raise CheckpointError(
            f"the model has the width {dim}, the encoder {encoder.name!r} has {encoder.dim}: "
            f"load it with the encoder {saved.name!r}"
        )
    if not encoder.has_fingerprint(saved.fingerprint):
        raise CheckpointError(
            f"the model was trained with the encoder {saved.name!r}, fingerprint {saved.fingerprint}; "
            f"{encoder.name!r} has {encoder.fingerprint}: its weights, architecture, preprocessing, "
            f"tokenizer or precision (here {encoder.dtype}) differ. Load it with the same encoder, or fit "
            "again"
        )


def _filled(
    path: Path,
    method: Method,
    facts: Facts,
    config: Config,
    encoder: DualEncoder | None,
    state: dict[str, Tensor],
) -> AdaptedModel:
    """Return the model with the weights of a file."""
    shapes = {name: tuple(value.shape) for name, value in state.items()}
    try:
        with torch.device("meta"):  # nothing is allocated before the shapes are known to fit
            model = method.build(facts, config, shapes, encoder)
    except (RadaError, TypeError, ValueError, RuntimeError, IndexError) as error:
        raise CheckpointError(f"{str(path)!r} does not fit its configuration: {error}") from error
    wanted = {name: tuple(value.shape) for name, value in model.own_state().items()}
    for name in sorted(wanted.keys() | shapes.keys()):
        if shapes.get(name) != wanted.get(name):
            raise CheckpointError(
                f"{str(path)!r} does not fit its configuration: {name!r} has the shape "
                f"{shapes.get(name)}, {wanted.get(name)} is needed"
            )
    # A file's tensors stand at any address, and sums over numbers at odd ones differ in their last bits.
    state = {name: value.clone() for name, value in state.items()}
    model.load_state_dict(state, strict=False, assign=True)
    return model if encoder is None or not method.train_encoder else model.to(encoder.device)


def _read_tensors(path: Path, config: ModelConfig) -> dict[str, Tensor]:
    """Return the tensors of a file that can be what the configuration says."""
    largest = max(config.dim, len(config.classes), len(config.trained_classes)) << 12
    try:
        with safe_open(path, framework="pt") as stream:
            names = list(stream.keys())
            for name in names:
                shape = stream.get_slice(name).get_shape()
                if any(size > largest for size in shape):
                    raise CheckpointError(f"{str(path)!r}: {name!r} has the shape {tuple(shape)}")
            state = {name: stream.get_tensor(name) for name in names}
    except (SafetensorError, OSError, KeyError, RuntimeError) as error:
        raise CheckpointError(f"{str(path)!r} is damaged ({one_line(error)}): {_MEND}") from error
    found = _hash(state) if path.name == WEIGHTS_FILE else weights_hash(state)
    if found != config.weights_hash:
        raise CheckpointError(
            f"{str(path.parent)!r} holds other weights than its configuration was written for "
            f"(hash {found}, not {config.weights_hash}), so a file is damaged, or they are of different "
            f"runs: {_MEND}"
        )
    if path.name != WEIGHTS_FILE:
        state = {f"head.{name}": value for name, value in state.items()}
    for name, value in state.items():
        if value.dtype == torch.int64:
            continue
        if value.dtype not in _FLOATS or not bool((value.abs() <= _LARGEST_WEIGHT).all()):
            raise CheckpointError(
                f"{str(path)!r} holds in {name!r} what no weights are: {value.dtype}, NaN, or values "
                f"above {_LARGEST_WEIGHT:g}"
            )
    return state


def _hash(state: Mapping[str, Tensor]) -> str:
    return fingerprint_tensors(*(state[name] for name in sorted(state)), extra=sorted(state))


def _inside(folder: Path, name: str) -> Path:
    if not folder.is_dir():
        raise CheckpointError(
            f"{str(folder)!r} is not a folder with a saved model: name one that `rada fit --out` or "
            "save_pretrained wrote"
        )
    path = folder / name
    if not path.is_file():
        others = (CONFIG_FILE, WEIGHTS_FILE, OLD_WEIGHTS_FILE)
        if any((folder / other).is_file() for other in others):
            raise CheckpointError(f"{str(folder)!r} is damaged (it has no {name}): {_MEND}")
        raise CheckpointError(
            f"{str(folder)!r} is not a saved model (it has no {name}): name a folder that `rada fit --out` "
            "or save_pretrained wrote"
        )
    # The hub's cache keeps snapshots as links into a folder of blobs two levels up.
    allowed = (folder.resolve(), folder.resolve().parent.parent / "blobs")
    if not any(path.resolve().is_relative_to(root) for root in allowed):
        raise CheckpointError(f"{str(path)!r} is a link out of its folder, which is refused")
    return path


def is_saved_model(folder: Path) -> bool:
    """Whether a folder is one that `save_model` or rada 0.1 wrote, rather than an encoder's."""
    config = folder / CONFIG_FILE
    return config.is_file() and b'"rada_version"' in config.read_bytes()


def resolve_directory(name: str | Path) -> Path:
    """Return the local folder of a saved model, downloading `owner/name` from the Hugging Face hub.

    Raises:
        CheckpointError: If there is no such folder and the hub has none or is out of reach.
    """
    path = Path(name)
    if path.exists() or str(name).count("/") != 1 or str(name).startswith((".", "/", "~")):
        return path.expanduser()
    with needed_for("a model on the hub"):
        from huggingface_hub import snapshot_download

    try:
        return Path(snapshot_download(str(name), allow_patterns=_PATTERNS))
    except Exception as error:  # the hub's client raises a dozen unrelated types
        raise CheckpointError(
            f"{str(name)!r} is neither a local folder nor reachable on the Hugging Face hub "
            f"({type(error).__name__})"
        ) from error
