"""Heads that rada 0.1 saved, read for one more version."""

from __future__ import annotations

from typing import Any

from rada.core.errors import ConfigError

__all__ = ["modernised"]

_FIELDS = {
    "dim", "num_heads", "temperature", "scale", "strength", "encoder", "classes", "templates", "aliases",
    "training", "weights_hash", "rada_version", "parts",
}  # fmt: skip
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
    training = old.get("training") or {}
    if not isinstance(training, dict) or old.get("parts", ["head"]) != ["head"]:
        raise ConfigError(
            "a fine-tuned model of rada 0.1 is not read any more: fine-tune again, or use "
            "rada-vlm==0.1.0"
        )
    config = dict(training.get("config") or {})
    config |= {"num_heads": old["num_heads"], "temperature": old.get("temperature", 1.0)}
    trained = training.get("trained_classes", old["classes"])
    encoder = old.get("encoder")
    return {
        "method": "rada",
        "method_config": config,
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
            "seed": training.get("seed", 0),
            "shots": training.get("shots"),
            "images": training.get("images", 0),
            "data": training.get("data"),
            "data_fingerprint": training.get("data_fingerprint"),
            "key": training.get("fingerprint", ""),
            "details": {key: training[key] for key in _DETAILS if key in training},
        },
        "weights_hash": "",
        "rada_version": old.get("rada_version", "0.1.0"),
    }
