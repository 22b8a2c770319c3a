"""The schemas of what rada reads from disk: fields, types and ranges, nothing converted.

Whatever a file says, a record that passes can be used without further checks. Text is checked by
`rada.core.storage.parse_json`, which refuses NaN, numbers beyond float64 and broken Unicode.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from rada.core.errors import RadaError

__all__ = [
    "BenchRecord",
    "CellRecord",
    "DetailsRecord",
    "FailureRecord",
    "FoldRecord",
    "ResultRecord",
    "RunStateRecord",
    "StateRecord",
    "StoreRecord",
    "StrengthRecord",
    "check_record",
]

Count = Annotated[int, Field(ge=0, le=2**53)]
Unit = Annotated[float, Field(ge=0, le=1)]


class _Record(BaseModel):
    """Unknown fields are errors: a newer version wrote them, and they may change what the others mean."""

    model_config = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)


class _OpenRecord(_Record):
    """Unknown fields are there for people, which nothing depends on."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)


class StrengthRecord(_Record):
    """How a strength was chosen; the fields of `StrengthChoice`."""

    strength: Unit
    method: Literal["classes", "shots", "none"]
    strengths: Sequence[Unit] = ()
    base_accuracy: Sequence[Unit] = ()
    new_accuracy: Sequence[Unit] = ()
    trained_strength: Unit | None = None
    points: Sequence[Sequence[Unit]] = ()
    point: Sequence[Unit] | None = None
    base_likelihood: Sequence[float] = ()
    new_likelihood: Sequence[float] = ()
    temperature: Annotated[float, Field(gt=0)] = 1.0
    trained_temperature: Annotated[float, Field(gt=0)] | None = None
    base_images: Count = 0
    new_images: Count = 0
    base_changed: Count = 0
    linear_probe: Unit | None = None


class DetailsRecord(_OpenRecord):
    """What a method tells of its training; `training.details` in the `config.json` of a model."""

    history: Sequence[dict[str, Any]] = ()
    strength_choice: StrengthRecord | None = None


class StateRecord(_Record):
    """Where the training of a head stands; the metadata of a `TrainingState`."""

    key: str
    epoch: Count
    history: list[dict[str, float]]


class FoldRecord(_Record):
    """What a fold of the choice of a strength said, of learned and of other classes; `Scores`."""

    key: str
    scores: Annotated[
        list[tuple[list[Count], list[Count], list[list[float]], Count]],
        Field(min_length=2, max_length=2),
    ]

    @model_validator(mode="before")
    @classmethod
    def _tuples(cls, values: Any) -> Any:
        scores = values.get("scores") if isinstance(values, dict) else None
        if not isinstance(scores, list):
            return values
        rows = [tuple(one) if isinstance(one, list) else one for one in scores]
        return values | {"scores": rows}

    @model_validator(mode="after")
    def _whole(self) -> FoldRecord:
        for correct, changed, loss, _ in self.scores:
            if not len(correct) == len(changed) == len(loss):
                raise ValueError("scores are three lists of one length and a number")
        return self


class RunStateRecord(_Record):
    """Where a fine-tuning run stands; `state.json` of a checkpoint, the fields of `RunState`."""

    step: Count
    history: list[dict[str, Any]]
    sums: dict[str, float]
    best: dict[str, float]
    groups: list[dict[str, Any]]
    scaler: dict[str, Any]


class _Evaluated(_OpenRecord):
    accuracy: Unit
    images: Count


class _Shifted(BaseModel):
    """Test sets by name, and their `mean`."""

    model_config = ConfigDict(strict=True, extra="allow", allow_inf_nan=False)
    __pydantic_extra__: dict[str, _Evaluated | Unit | None]


class _Both(_OpenRecord):
    in_distribution: _Evaluated | None
    out_of_distribution: _Shifted


class _Point(_Both):
    alpha: Unit


class ResultRecord(_OpenRecord):
    """`result.json` of a fine-tuning run."""

    method: str
    data: str | None
    zero_shot: _Both
    tuned: _Both
    wise: list[_Point]


class BenchRecord(_OpenRecord):
    """What the cells of a benchmark share; `bench.json`."""

    format: str
    rada_version: str


class _CellName(_OpenRecord):
    protocol: Literal["few-shot", "base-to-new", "cross-dataset", "domain", "shift"]
    label: str
    method: str
    dataset: str
    shots: Count
    seed: Count
    model: str
    targets: list[str]
    options: dict[str, Any]
    test_time: str = ""

    @model_validator(mode="after")
    def _tested(self) -> _CellName:
        if self.protocol == "shift" and not self.targets:
            raise ValueError("should have a target")
        return self


class FailureRecord(_OpenRecord):
    """Why a cell of a benchmark failed."""

    cell: _CellName
    type: str
    error: str


class _Identity(_OpenRecord):
    test: str


class _Part(_OpenRecord):
    images: Count
    classes: Count
    accuracy: Unit | None
    balanced_accuracy: Unit | None = None


class CellRecord(_OpenRecord):
    """The result of a cell of a benchmark."""

    format: str
    rada_version: str
    cell: _CellName
    parts: dict[str, _Part]
    trainable_parameters: Count
    fit_seconds: float
    predict_seconds: float
    fit_cpu_seconds: float | None = None
    predict_cpu_seconds: float | None = None
    memory: Count | None
    harmonic_mean: Unit | None = None
    identities: dict[str, _Identity] = Field(default_factory=dict)
    config: dict[str, Any]
    environment: dict[str, Any]

    @model_validator(mode="after")
    def _whole(self) -> CellRecord:
        protocol, count = self.cell.protocol, 1
        names = {"few-shot": {"test"}, "base-to-new": {"base", "new"}}.get(protocol, set())
        if protocol in ("cross-dataset", "domain"):
            names, count = {"source"}, 1 + len(self.cell.targets)
        if not names <= set(self.parts) or len(self.parts) != max(count, len(names)):
            raise ValueError(
                f"the parts {sorted(self.parts)} are not those of the protocol {protocol}"
            )
        return self


class _Shard(_Record):
    file: Annotated[str, Field(pattern=r"^shard-[0-9]{1,9}\.safetensors$")]
    rows: Annotated[int, Field(ge=0, le=2**40)]
    key: str


class StoreRecord(_OpenRecord):
    """The index of a feature store, `features.json`."""

    format: str
    shards: Annotated[list[_Shard], Field(min_length=1)]
    classes: Annotated[list[str], Field(min_length=1)]
    dim: Annotated[int, Field(ge=1, le=2**20)]
    views: Annotated[int, Field(ge=1, le=2**20)]
    scale: Annotated[float, Field(gt=0)] | None = None
    encoder: str | None = None
    encoder_fingerprint: str | None = None
    templates: Sequence[str] = ()
    decoding: Literal["exact", "fast"] | None = None


def check_record(
    kind: type[BaseModel], values: object, *, error: type[RadaError], what: str
) -> None:
    """Check what was read from disk, or is about to be written there.

    Args:
        kind: The schema.
        values: Parsed JSON.
        error: The type of error to raise.
        what: What the values are, for the message.

    Raises:
        RadaError: Of type `error`; the message names fields, values and what they should be.

    Example:
        >>> from rada.core.errors import CheckpointError
        >>> check_record(StateRecord, {"key": 1}, error=CheckpointError, what="the state")
        Traceback (most recent call last):
        ...
        rada.core.errors.CheckpointError: the state cannot be used: 'key' should be a valid string, not 1; ...
    """
    try:
        kind.model_validate(values)
    except ValidationError as cause:
        messages = [_message(entry) for entry in cause.errors(include_url=False)]
        raise error(f"{what} cannot be used: {'; '.join(messages[:4])}") from None


def _message(entry: Any) -> str:
    name = ".".join(map(str, entry["loc"]))
    if entry["type"] == "missing":
        return f"missing field {name!r}"
    if entry["type"] == "extra_forbidden":
        return f"unknown field {name!r}"
    expected = entry["msg"].removeprefix("Input ").removeprefix("Value error, ")
    if not name:
        return str(expected)
    shown = repr(entry["input"])
    return f"{name!r} {expected}, not {shown if len(shown) <= 60 else shown[:60] + '...'}"
