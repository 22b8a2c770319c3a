"""rada: adapt a vision-language model to your own classes with one small attention layer.

The names below are imported when they are first used, so that `import rada` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rada._version import __version__

if TYPE_CHECKING:
    from rada.classifier import Classifier
    from rada.data import few_shot, list_datasets, open_dataset
    from rada.encoders import CustomEncoder, DualEncoder, list_models, load_encoder
    from rada.evaluation import Evaluation, compare, evaluate_logits, harmonic_mean
    from rada.explain import ExplainConfig, ImageExplanation
    from rada.exporting import ExportSettings, export_model
    from rada.features import ClassSet, FeatureCache, Features, extract_features
    from rada.finetuner import FineTuner
    from rada.head import HeadOutput, RAdaHead, rational_matrix
    from rada.methods import AdaptedModel, get_method, list_methods
    from rada.methods.finetune.rada_ft import FFTConfig
    from rada.methods.rada import EFTConfig, train_head
    from rada.predictions import Prediction
    from rada.report import write_report
    from rada.test_time import (
        OnlineAdapter,
        TTTConfig,
        adapt_views,
        get_test_time_method,
        list_test_time_methods,
    )
    from rada.test_time_adapter import TestTimeAdapter

    RAdaClassifier = Classifier

_HOMES = {
    "rada.classifier": ("Classifier",),
    "rada.data": ("few_shot", "list_datasets", "open_dataset"),
    "rada.encoders": ("CustomEncoder", "DualEncoder", "list_models", "load_encoder"),
    "rada.evaluation": ("Evaluation", "compare", "evaluate_logits", "harmonic_mean"),
    "rada.explain": ("ExplainConfig", "ImageExplanation"),
    "rada.exporting": ("ExportSettings", "export_model"),
    "rada.features": ("ClassSet", "FeatureCache", "Features", "extract_features"),
    "rada.finetuner": ("FineTuner",),
    "rada.head": ("HeadOutput", "RAdaHead", "rational_matrix"),
    "rada.methods": ("AdaptedModel", "get_method", "list_methods"),
    "rada.methods.finetune.rada_ft": ("FFTConfig",),
    "rada.methods.rada": ("EFTConfig", "train_head"),
    "rada.predictions": ("Prediction",),
    "rada.report": ("write_report",),
    "rada.test_time": (
        "OnlineAdapter",
        "TTTConfig",
        "adapt_views",
        "get_test_time_method",
        "list_test_time_methods",
    ),
    "rada.test_time_adapter": ("TestTimeAdapter",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "AdaptedModel",
    "ClassSet",
    "Classifier",
    "CustomEncoder",
    "DualEncoder",
    "EFTConfig",
    "Evaluation",
    "ExplainConfig",
    "ExportSettings",
    "FFTConfig",
    "FeatureCache",
    "Features",
    "FineTuner",
    "HeadOutput",
    "ImageExplanation",
    "OnlineAdapter",
    "Prediction",
    "RAdaClassifier",
    "RAdaHead",
    "TTTConfig",
    "TestTimeAdapter",
    "__version__",
    "adapt_views",
    "compare",
    "evaluate_logits",
    "export_model",
    "extract_features",
    "few_shot",
    "get_method",
    "get_test_time_method",
    "harmonic_mean",
    "list_datasets",
    "list_methods",
    "list_models",
    "list_test_time_methods",
    "load_encoder",
    "open_dataset",
    "rational_matrix",
    "train_head",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name == "RAdaClassifier":  # its name while there was one method
        name = "Classifier"
    if name == "errors":
        return importlib.import_module("rada.errors")
    if name not in _MODULES:
        raise AttributeError(f"module 'rada' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
