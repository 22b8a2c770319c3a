"""rada: adapt a vision-language model to your own classes with one small attention layer.

The names below are imported when they are first used, so that `import rada` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from rada._version import __version__

if TYPE_CHECKING:
    from rada.classifier import RAdaClassifier
    from rada.core.config import EFTConfig
    from rada.data import few_shot, list_datasets, open_dataset
    from rada.encoders import CustomEncoder, DualEncoder, list_models, load_encoder
    from rada.evaluation import compare, evaluate_logits, harmonic_mean
    from rada.features import FeatureCache, Features, extract_features
    from rada.head import HeadOutput, RAdaHead, rational_matrix
    from rada.methods.finetune import FFTConfig, FineTuner
    from rada.predictions import Prediction
    from rada.report import write_report
    from rada.test_time import OnlineAdapter, TTTConfig, adapt_views
    from rada.test_time_adapter import TestTimeAdapter
    from rada.training import TrainedHead, train_head

_HOMES = {
    "rada.predictions": ("Prediction",),
    "rada.classifier": ("RAdaClassifier",),
    "rada.core.config": ("EFTConfig",),
    "rada.data": ("few_shot", "list_datasets", "open_dataset"),
    "rada.encoders": ("CustomEncoder", "DualEncoder", "list_models", "load_encoder"),
    "rada.evaluation": ("compare", "evaluate_logits", "harmonic_mean"),
    "rada.features": ("FeatureCache", "Features", "extract_features"),
    "rada.head": ("HeadOutput", "RAdaHead", "rational_matrix"),
    "rada.report": ("write_report",),
    "rada.training": ("TrainedHead", "train_head"),
    "rada.methods.finetune": ("FFTConfig", "FineTuner"),
    "rada.test_time": ("OnlineAdapter", "TTTConfig", "adapt_views"),
    "rada.test_time_adapter": ("TestTimeAdapter",),
}
_MODULES = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "CustomEncoder",
    "DualEncoder",
    "EFTConfig",
    "FFTConfig",
    "FeatureCache",
    "Features",
    "FineTuner",
    "HeadOutput",
    "OnlineAdapter",
    "Prediction",
    "RAdaClassifier",
    "RAdaHead",
    "TTTConfig",
    "TestTimeAdapter",
    "TrainedHead",
    "__version__",
    "adapt_views",
    "compare",
    "evaluate_logits",
    "extract_features",
    "few_shot",
    "harmonic_mean",
    "list_datasets",
    "list_models",
    "load_encoder",
    "open_dataset",
    "rational_matrix",
    "train_head",
    "write_report",
]


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'rada' has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return __all__
