"""Image features: extraction, cache, files and the checks that they pass before use."""

from rada.features.cache import CacheEntry, CacheWarning, FeatureCache
from rada.features.checks import CheckedFeatures, FeatureWarning, check_features
from rada.features.features import Features

__all__ = [
    "CacheEntry",
    "CacheWarning",
    "CheckedFeatures",
    "FeatureCache",
    "FeatureWarning",
    "Features",
    "check_features",
]
