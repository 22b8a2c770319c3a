"""From what a user calls a model to an encoder."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path, PurePath
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from rada.core.errors import EncoderError, one_line
from rada.encoders.base import DualEncoder
from rada.encoders.hub import cached_snapshot, snapshot
from rada.encoders.parsing import parse_spec
from rada.encoders.registry import EncoderFamily, LoadOptions, ModelInfo, families, list_models
from rada.encoders.spec import ModelSpec, model_type

__all__ = ["check_placing", "describe_model", "encoder_extra", "load_encoder"]


def _find(spec: ModelSpec) -> type[EncoderFamily]:
    for family in families():
        if family.claims(spec):
            return family
    kind = f" (model_type {model_type(spec.directory)!r})" if spec.directory else ""
    raise EncoderError(
        f"no family of encoders knows model {spec.text!r}{kind}; the families are "
        f"{', '.join(family.family for family in families())}"
    )


def _resolve(spec: ModelSpec, *, download: bool = True) -> ModelSpec:
    """Find the files of a transformers model: its configuration names the family."""
    if spec.scheme != "hf" or spec.directory is not None:
        return spec
    directory = snapshot(spec.target) if download else cached_snapshot(spec.target)
    return replace(spec, directory=directory)


def describe_model(name: str) -> ModelInfo:
    """Describe one model, by name or directory, without touching the network.

    Raises:
        EncoderError: If the name is none of the known spellings.
    """
    spec = _resolve(parse_spec(name), download=False)
    if spec.scheme == "hf" and spec.directory is None:
        known = {info.name: info for info in list_models()}
        unknown = ModelInfo(name, "hf", summary="a model of transformers, not on this machine")
        return known.get(name, unknown)
    return _find(spec).describe(spec)


def encoder_extra(name: str) -> str | None:
    """Return the extra whose packages load a model, or None if its name means nothing on other machines.

    Example:
        >>> encoder_extra("embedded"), encoder_extra("hf:kakaobrain/align-base"), encoder_extra("/my/clip")
        ('embedded', 'models', None)
        >>> encoder_extra("open_clip:ViT-B-32/openai"), encoder_extra("open_clip:ViT-B-32/mine.pt")
        ('models', None)
    """
    try:
        spec = parse_spec(name)
        weights = spec.target.partition("/")[2] if spec.scheme == "open_clip" else ""
        if spec.directory is not None or "/" in weights or PurePath(weights).suffix:
            return None  # a folder, or a file of weights: MODEL/PATH
        family = describe_model(name).family
    except EncoderError:  # a folder that is gone, or a pair of functions
        return None
    return next(
        (found.extra for found in families() if found.family == family), EncoderFamily.extra
    )


def load_encoder(
    model: Any,
    *,
    device: str | torch.device | None = None,
    dtype: str | torch.dtype | None = None,
    scale: float | None = None,
    processor: Any = None,
    tokenizer: Any = None,
    name: str | None = None,
) -> DualEncoder:
    """Load a vision-language model, or wrap one that is already built.

    Args:
        model: A name ("embedded", "open_clip:MODEL/PRETRAINED", "hf-hub:ORG/NAME", "hf:ORG/NAME"), a
            directory, a model of open_clip or transformers, or a `DualEncoder`, which is returned
            as it is.
        device: "cpu", "cuda", ...; None for the CPU, or where a built model is.
        dtype: "float32", "bfloat16", "float16", "float64", a `torch.dtype`, or "auto": bfloat16 where the
            processor multiplies it faster and the image encoder has no batch norms, else float32. None for
            float32, or what a built model has. Features are float32 always; the fingerprint says in which
            precision they were made.
        scale: Overrides the model's scale of the logits.
        processor: For a built model: its processor (transformers) or evaluation transform
            (open_clip).
        tokenizer: For a built model: its tokenizer, where `processor` holds none.
        name: What to call a built model.

    Returns:
        The encoder, in evaluation mode.

    Raises:
        EncoderError: If the model is unknown, cannot be reached, or lacks weights.
        MissingExtraError: If a package that it needs is not installed.
    """
    if isinstance(model, DualEncoder):
        return model
    auto = dtype == "auto"
    chosen = None if auto else _dtype(dtype)
    options = LoadOptions(_device(device), chosen, scale, processor, tokenizer, name)
    if isinstance(model, str | Path):
        spec = _resolve(parse_spec(str(model)))
        return _placed(_find(spec).load(spec, options), options, auto=auto)
    for family in families():
        if family.claims_object(model):
            return _placed(family.wrap(model, options), options, auto=auto)
    raise EncoderError(
        f"cannot make an encoder of a {type(model).__name__}: give a name, a directory, a model of "
        "open_clip or transformers with its processor, or a rada.CustomEncoder"
    )


def _placed(encoder: DualEncoder, options: LoadOptions, *, auto: bool) -> DualEncoder:
    dtype = options.dtype
    if auto:
        half = _half_is_faster(options.device or encoder.device) and _half_suits(encoder)
        dtype = torch.bfloat16 if half else torch.float32
    encoder.place(options.device, dtype)
    return encoder


def _half_is_faster(device: torch.device) -> bool:
    """Whether a device has instructions for products in bfloat16."""
    if device.type == "cpu":
        return torch.cpu._is_avx512_bf16_supported()
    return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)


def _half_suits(encoder: DualEncoder) -> bool:
    """Whether bfloat16 moves the features by little, as it does those of transformers.

    Batch norms say that it does not: the embedded model's features turn farther than a cosine of .9999.
    """
    return not any(isinstance(part, _BatchNorm) for part in encoder.image_module.modules())


def check_placing(device: str | torch.device | None, dtype: str | torch.dtype | None) -> None:
    """Check a device and a type, whatever the encoder.

    Raises:
        EncoderError: If no encoder can be there, or compute in it.
    """
    _device(device)
    if dtype != "auto":
        _dtype(dtype)


def _device(device: str | torch.device | None) -> torch.device | None:
    if device is None:
        return None
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError, TypeError) as error:
        raise EncoderError(
            f"device {device!r} cannot be used here ({one_line(error)}): name another, such as 'cpu', or none"
        ) from error
    return found


def _dtype(dtype: str | torch.dtype | None) -> torch.dtype | None:
    found = getattr(torch, dtype, None) if isinstance(dtype, str) else dtype
    if found is None and dtype is None:
        return None
    if found not in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        raise EncoderError(
            f"dtype should be 'float32', 'bfloat16', 'float16', 'float64' or 'auto', but the value passed is "
            f"{dtype!r}"
        )
    return found
