"""Methods of adaptation, one file each, behind one interface: `method.fit(task) -> predictor`."""

from rada.methods.base import ClassSet, Examples, Method, Predictor, Task, UnknownClassError
from rada.methods.linear_probe import linear_probe
from rada.methods.registry import get_method, list_methods, register_method
from rada.methods.saving import load_predictor

__all__ = [
    "ClassSet",
    "Examples",
    "Method",
    "Predictor",
    "Task",
    "UnknownClassError",
    "get_method",
    "linear_probe",
    "list_methods",
    "load_predictor",
    "register_method",
]
