"""Families of encoders: each registers itself; what they offer is listed here."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import asdict, dataclass
from typing import Any, ClassVar, TypeVar

import torch

from rada.core.registry import import_modules
from rada.encoders.base import CAPABILITIES, DualEncoder
from rada.encoders.spec import ModelSpec

__all__ = [
    "EncoderFamily",
    "FamilyInfo",
    "LoadOptions",
    "ModelInfo",
    "families",
    "families_table",
    "list_families",
    "list_models",
    "register_family",
]

_FAMILIES: dict[str, type[EncoderFamily]] = {}


@dataclass(frozen=True)
class LoadOptions:
    """How to load, whatever the family.

    Attributes:
        device: Where to put the weights; None for the CPU, or where a built model already is.
        dtype: Their precision; None for float32, or what a built model already has.
        scale: Overrides the model's scale of the logits.
        processor: For a built model: its processor (transformers) or evaluation transform
            (open_clip).
        tokenizer: For a built model: its tokenizer, where `processor` holds none.
        name: What to call a built model.
    """

    device: torch.device | None = None
    dtype: torch.dtype | None = None
    scale: float | None = None
    processor: Any = None
    tokenizer: Any = None
    name: str | None = None


@dataclass(frozen=True)
class ModelInfo:
    """What is known of a model without loading it.

    Attributes:
        name: What `load_encoder` takes.
        family: Name of the family.
        dim: Width of the features; None if unknown before loading.
        parameters: Number of parameters; None if unknown before loading.
        local: Whether the weights are on this machine.
        capabilities: Keys of `CAPABILITIES`.
        summary: One line for people.
    """

    name: str
    family: str
    dim: int | None = None
    parameters: int | None = None
    local: bool = False
    capabilities: tuple[str, ...] = ()
    summary: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Return plain JSON values."""
        return {**asdict(self), "capabilities": list(self.capabilities)}


@dataclass(frozen=True)
class FamilyInfo:
    """A family, for lists and documentation.

    Attributes:
        name: Its name.
        spelling: How its models are called.
        summary: What it holds.
        capabilities: Keys of `CAPABILITIES` that its models may offer.
    """

    name: str
    spelling: str
    summary: str
    capabilities: tuple[str, ...]


class EncoderFamily(DualEncoder):
    """A `DualEncoder` that `load_encoder` can find.

    Attributes:
        spelling: How its models are called, for lists.
        summary: What it holds, in one line.
        conditional: Those of its capabilities that not every one of its models has.
        extra: The extra whose packages load its models.
    """

    spelling: ClassVar[str] = ""
    summary: ClassVar[str] = ""
    conditional: ClassVar[frozenset[str]] = frozenset()
    extra: ClassVar[str] = "models"

    @classmethod
    @abstractmethod
    def claims(cls, spec: ModelSpec) -> bool:
        """Whether a name is one of this family's."""

    @classmethod
    @abstractmethod
    def load(cls, spec: ModelSpec, options: LoadOptions) -> DualEncoder:
        """Load a model that the family claims, in float32 on the CPU unless options say otherwise."""

    @classmethod
    def claims_object(cls, model: object) -> bool:
        """Whether an object is a built model of this family."""
        return False

    @classmethod
    def wrap(cls, model: Any, options: LoadOptions) -> DualEncoder:
        """Wrap a built model that the family claims."""
        raise NotImplementedError

    @classmethod
    def known_models(cls) -> list[ModelInfo]:
        """Return the family's well-known models, without touching the network."""
        return []

    @classmethod
    def describe(cls, spec: ModelSpec) -> ModelInfo:
        """Describe a model that the family claims, without touching the network."""
        for info in cls.known_models():
            if info.name == spec.text:
                return info
        return ModelInfo(spec.text, cls.family, summary=cls.summary)


FamilyType = TypeVar("FamilyType", bound=type[EncoderFamily])


def register_family(family: FamilyType) -> FamilyType:
    """Make a family known to `load_encoder`; use it as a class decorator.

    Raises:
        ValueError: If the name is taken or malformed, or a capability is unknown.
    """
    name = family.family
    if not name.replace("_", "").isalnum() or not name.islower():
        raise ValueError(f"family name {name!r} should be lower-case letters, digits and _")
    if name in _FAMILIES and _FAMILIES[name].__qualname__ != family.__qualname__:
        raise ValueError(f"family {name!r} is registered already, by {_FAMILIES[name].__name__}")
    unknown = family.capabilities - set(CAPABILITIES)
    if unknown:
        raise ValueError(f"family {name!r} has unknown capabilities {sorted(unknown)}")
    _FAMILIES[name] = family
    return family


def families() -> list[type[EncoderFamily]]:
    """Return the classes of all families, by name."""
    import_modules("rada.encoders.families")
    return [_FAMILIES[name] for name in sorted(_FAMILIES)]


def list_families() -> list[FamilyInfo]:
    """Return all families, by name.

    Example:
        >>> "embedded" in [family.name for family in list_families()]
        True
    """
    return [
        FamilyInfo(f.family, f.spelling, f.summary, tuple(sorted(f.capabilities)))
        for f in families()
    ]


def families_table() -> str:
    """Return families x capabilities as the Markdown table of the documentation.

    "if" marks what depends on the model's architecture: the encoder's own `capabilities` say.
    """
    names = list(CAPABILITIES)
    header = ["family", "models", *names]
    rows = [header, ["---", "---", *[":-:"] * len(names)]]
    for family in families():
        marks = ["if" if name in family.conditional else "yes" for name in names]
        offered = [m if n in family.capabilities else "" for n, m in zip(names, marks, strict=True)]
        rows.append([f"`{family.family}`", f"{family.summary}: `{family.spelling}`", *offered])
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def list_models() -> list[ModelInfo]:
    """Return the models that have a name of their own, without touching the network.

    Example:
        >>> list_models()[0].family
        'embedded'
    """
    found = [info for family in families() for info in family.known_models()]
    return sorted(found, key=lambda info: (info.family != "embedded", not info.local))
