from __future__ import annotations

import json

import pytest

from rada import EFTConfig
from rada.core.errors import ConfigError
from rada.pretrained import EncoderId, ModelConfig, Record
from rada.training.strength import Strength


def test_round_trip_through_json() -> None:
    config = EFTConfig(epochs=3, strength=0.5, classes_per_step=7)
    assert EFTConfig.from_dict(config.to_dict()) == config


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("epochs", 0),
        ("epochs", 1.5),
        ("epochs", True),
        ("batch_size", -1),
        ("learning_rate", 0.0),
        ("learning_rate", float("nan")),
        ("learning_rate", "fast"),
        ("weight_decay", -0.1),
        ("warmup", 1.0),
        ("alpha", -1.0),
        ("temperature", 0.0),
        ("classes_per_step", 1),
        ("strength", 1.5),
        ("strength", "much"),
        ("strength", True),
        ("strength_folds", 1),
        ("num_heads", None),
    ],
)
def test_bad_value_is_named(field: str, value: object) -> None:
    with pytest.raises(ConfigError, match=rf"{field} should be") as caught:
        EFTConfig(**{field: value})  # type: ignore[arg-type]
    assert repr(value) in str(caught.value)


def test_unknown_field_is_named() -> None:
    with pytest.raises(ConfigError, match="'learning_rat': did you mean 'learning_rate'"):
        EFTConfig.from_dict({"learning_rat": 1e-3})
    with pytest.raises(ConfigError, match="'colour': there are alpha, batch_size, "):
        EFTConfig.from_dict({"colour": 1})


def test_wrong_types_are_told_in_words() -> None:
    for value in (float("nan"), "nan", "fast"):
        with pytest.raises(
            ConfigError, match=f"^learning_rate should be a finite number, not {value!r}$"
        ):
            EFTConfig(learning_rate=value)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^shots should be an integer or null, not 'x+[.]{3}$"):
        Record(shots="x" * 500)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^aliases should be an object, not 3$"):
        ModelConfig("m", {}, 1, 1.0, ("a",), (), (), 3, {}, None, {}, "")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"^strength value should be in \[0, 1\], but .* is 2$"):
        Strength(2)


@pytest.mark.parametrize("values", [None, [], "epochs", 3])
def test_anything_but_an_object_is_refused(values: object) -> None:
    with pytest.raises(ConfigError, match="JSON object"):
        EFTConfig.from_dict(values)


def test_missing_field_is_named() -> None:
    with pytest.raises(ConfigError, match="missing field 'fingerprint'"):
        EncoderId.from_dict({"name": "x"})


def test_lists_of_lists_come_back_from_json_as_tuples() -> None:
    record = Record(skipped=(("cat/1.png", "no image"),), details={"history": [{"loss": 0.5}]})
    assert Record.from_dict(json.loads(json.dumps(record.to_dict()))) == record
