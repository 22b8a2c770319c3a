"""Heads that rada 0.1 saved, read for one more version."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from rada.core.errors import ConfigError
from rada.core.hashing import fingerprint_tensors

__all__ = ["OLD_WEIGHTS_FILE", "modernised", "weights_hash"]

OLD_WEIGHTS_FILE = "head.safetensors"

_FIELDS = {
    "dim", "num_heads", "temperature", "scale", "strength", "encoder", "classes", "templates", "aliases",
    "training", "weights_hash", "rada_version", "parts",
}  # fmt: skip
_TRAINING = ("seed", "shots", "images", "data", "data_fingerprint", "skipped")
_DETAILS = ("history", "strength_choice")


def modernised(old: dict[str, Any]) -> dict[str, Any]:
    """Return the `config.json` of a head of rada 0.1 in today's form.

    Raises:
        ConfigError: If it is none, or a fine-tuned model, whose methods had one configuration in common.
    """
    unknown = sorted(map(str, old.keys() - _FIELDS))
    missing = sorted({"dim", "scale", "classes", "num_heads"} - old.keys())
    if unknown or missing:
        found = [f"unknown field {name!r}" for name in unknown]
        raise ConfigError(", ".join(found + [f"missing field {name!r}" for name in missing]))
    training, encoder = old.get("training", {}), old.get("encoder")
    if old.get("parts", ["head"]) != ["head"]:
        raise ConfigError(
            "a fine-tuned model of rada 0.1 is not read any more: fine-tune again, or use "
            "rada-vlm==0.1.0"
        )
    config = training.get("config", {}) if isinstance(training, dict) else None
    if not isinstance(config, dict):
        raise ConfigError("'training' should be an object, and 'config' in it, too")
    if not isinstance(encoder, dict | None):
        raise ConfigError(f"'encoder' should be an object or null, not {str(encoder)[:40]!r}")
    if encoder is None and training.get("origin") is not None:  # fitted on features of an encoder
        encoder = {"name": training.get("origin_name"), "fingerprint": training["origin"]}
    trained = training.get("trained_classes", old["classes"])
    return {
        "method": "rada",
        "method_config": config
        | {"num_heads": old["num_heads"], "temperature": old.get("temperature", 1.0)},
        "dim": old["dim"],
        "scale": old["scale"],
        "classes": old["classes"],
        "trained_classes": trained,
        "templates": old.get("templates", []),
        "aliases": old.get("aliases", {}),
        "strength": {
            "value": old.get("strength", 1.0),
            "trained": training.get("trained_strength"),
            "classes": trained,
        },
        "encoder": encoder and {key: encoder.get(key) for key in ("name", "fingerprint")},
        "training": {
            **{key: training[key] for key in _TRAINING if key in training},
            "key": training.get("fingerprint", ""),
            "details": {key: training[key] for key in _DETAILS if key in training},
        },
        "weights_hash": old.get("weights_hash", ""),
        "rada_version": old.get("rada_version", "0.1.0"),
    }


def weights_hash(state: Mapping[str, Tensor]) -> str:
    """Return the hash of the weights that stands in the `config.json` of rada 0.1."""
    return fingerprint_tensors(*(state[name].float() for name in sorted(state)))
