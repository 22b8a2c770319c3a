"""Methods of adaptation, one file each, behind one interface: `method.fit(features) -> model`."""

from rada.methods.base import AdaptedModel, Facts, Method, Run, UnknownClassError
from rada.methods.registry import get_method, list_methods, register_method

__all__ = [
    "AdaptedModel",
    "Facts",
    "Method",
    "Run",
    "UnknownClassError",
    "get_method",
    "list_methods",
    "register_method",
]
