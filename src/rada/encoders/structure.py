"""What decides a module's results beside its weights: heads, activations, epsilons, pooling, masks."""

from __future__ import annotations

import enum
import functools
import hashlib
import json
import re
import types
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

__all__ = ["describe_function", "describe_module", "describe_value"]

# Settings of training, of the returned format, of the way a result is computed, or of where weights
# came from: two models that differ in these alone are the same function in evaluation mode.
_WITHOUT_EFFECT = re.compile(
    r"^_|^training$|drop|checkpointing|fused|^init(ializer)?(_|$)|_init_value$|pretrained|^default_cfg$"
    r"|^preprocess_cfg$|^image_(mean|std)$|^inplace$|^output_(dict|tokens|attentions|hidden_states)$"
    r"|^architectures$|^(torch_)?dtype$|_version$|^id2label$|^label2id$|^problem_type$"
    r"|^return_dict$|^use_cache$|^attn_implementation$|^feature_info$"
)
_NOTHING = object()


def describe_module(module: nn.Module) -> str:
    """Return the settings of a module and of all its parts as sorted JSON.

    A model of transformers is described by its configuration, every other module by its class, the
    plain values among its public attributes, and its buffers that no state dict holds. What is off
    (False, None, empty) is left out, and so are a configuration's defaults, so that an option which
    a later version of a library adds changes nothing as long as it is not used.

    Example:
        >>> describe_module(nn.Sequential(nn.SiLU())) == describe_module(nn.Sequential(nn.GELU()))
        False
    """
    return json.dumps(dict(_parts("", module)), sort_keys=True)


def _parts(name: str, module: nn.Module) -> Iterator[tuple[str, Any]]:
    kind = type(module).__name__
    if kind == "Identity" or "Drop" in kind:  # no effect in evaluation mode
        return
    config: Any = getattr(module, "config", None)
    if _is_config(config) and hasattr(module, "base_model_prefix"):  # a PreTrainedModel
        yield name, [kind, _config(config)]
        return
    settings = {
        key: found
        for key, value in vars(module).items()
        if not _WITHOUT_EFFECT.search(key) and (found := describe_value(value)) is not None
    }
    for key in sorted(module._non_persistent_buffers_set):
        buffer = module._buffers[key]
        if buffer is not None:
            settings[key] = _tensor(buffer)
    yield name, [kind, settings]
    for key, child in module.named_children():
        yield from _parts(f"{name}.{key}", child)


def describe_function(function: Any) -> str:
    """Return the code of a function and the plain values that it uses as sorted JSON.

    Example:
        >>> describe_function(lambda x: 2 * x) == describe_function(lambda x: 3 * x)
        False
    """
    return json.dumps(_function(function), sort_keys=True)


def _function(function: Any) -> Any:
    if isinstance(function, functools.partial):
        return [_function(function.func), describe_value([function.args, function.keywords])]
    code = getattr(function, "__code__", None)
    if code is None:
        call = getattr(type(function).__call__, "__code__", None)
        if call is None or isinstance(function, nn.Module):
            return getattr(function, "__qualname__", type(function).__qualname__)
        return [type(function).__qualname__, _code(call), describe_value(vars(function))]
    given = describe_value([function.__defaults__, function.__kwdefaults__])
    held = [_cell(cell) for cell in function.__closure__ or ()]
    return [function.__qualname__, _code(code), given, held]


def _cell(cell: Any) -> Any:
    try:
        value = cell.cell_contents
    except ValueError:  # not filled yet
        return None
    if isinstance(value, types.FunctionType):
        return [value.__qualname__, _code(value.__code__)]
    return describe_value(value)


def _code(code: types.CodeType) -> list[Any]:
    return [code.co_code.hex(), list(code.co_names), [_constant(part) for part in code.co_consts]]


def _constant(value: Any) -> Any:
    if isinstance(value, types.CodeType):
        return _code(value)
    return sorted(map(repr, value)) if isinstance(value, frozenset) else repr(value)


def describe_value(value: Any) -> Any:
    """Return a setting as JSON; None where it is off, or no plain value.

    Example:
        >>> describe_value((1, 0.5, nn.GELU)), describe_value(False)
        ([1, 0.5, 'GELU'], None)
    """
    if isinstance(value, enum.Enum):
        return value.name
    if isinstance(value, bool | int | float | str):
        return None if value is False or value == "" else value
    if isinstance(value, Tensor):
        return _tensor(value)
    if isinstance(value, functools.partial):
        return [describe_value(part) for part in (value.func, value.args, value.keywords)]
    if isinstance(value, Mapping):
        found = {
            str(key): inner
            for key, entry in value.items()
            if not _WITHOUT_EFFECT.search(str(key)) and (inner := describe_value(entry)) is not None
        }
        return found or None
    if isinstance(value, list | tuple):
        return [describe_value(entry) for entry in value] or None
    if isinstance(value, set | frozenset):
        return sorted(map(str, value)) or None
    if isinstance(value, nn.Module):
        return None  # described as a part
    return getattr(value, "__qualname__", None)  # functions and classes


def _tensor(value: Tensor) -> str:
    flat = value.detach().cpu().contiguous()
    content = flat.reshape(-1).double().numpy().tobytes()
    return f"{tuple(flat.shape)} {hashlib.blake2b(content, digest_size=16).hexdigest()}"


def _is_config(value: Any) -> bool:
    return hasattr(value, "model_type") and callable(getattr(value, "to_dict", None))


def _config(config: Any) -> dict[str, Any]:
    """Return what a configuration of transformers sets, its class's defaults left out."""
    try:
        usual = type(config)().to_dict()
    except Exception:  # a class whose configurations have no defaults
        usual = {}
    found: dict[str, Any] = {"model_type": config.model_type}
    for key, value in config.to_dict().items():
        if _WITHOUT_EFFECT.search(key):
            continue
        inner = getattr(config, key, None)
        if _is_config(inner):
            found[key] = _config(inner)
        elif value != usual.get(key, _NOTHING) and not (value is None and key not in usual):
            found[key] = value if value in (False, None) else describe_value(value)
    return found
