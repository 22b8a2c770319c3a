"""Vision-language models behind one protocol: load one with `load_encoder`."""

from rada.encoders.base import CAPABILITIES, DualEncoder, TruncationWarning
from rada.encoders.families.custom import CustomEncoder
from rada.encoders.loading import describe_model, load_encoder
from rada.encoders.registry import (
    EncoderFamily,
    FamilyInfo,
    LoadOptions,
    ModelInfo,
    list_families,
    list_models,
    register_family,
)
from rada.encoders.spec import ModelSpec
from rada.encoders.tokens import Tokens
from rada.encoders.transforms import EvalTransform, TrainTransform

__all__ = [
    "CAPABILITIES",
    "CustomEncoder",
    "DualEncoder",
    "EncoderFamily",
    "EvalTransform",
    "FamilyInfo",
    "LoadOptions",
    "ModelInfo",
    "ModelSpec",
    "Tokens",
    "TrainTransform",
    "TruncationWarning",
    "describe_model",
    "list_families",
    "list_models",
    "load_encoder",
    "register_family",
]
