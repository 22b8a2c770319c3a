"""Image features: extraction, cache, files and the checks that they pass before use."""

from rada.features.cache import CacheEntry, CacheWarning, FeatureCache
from rada.features.checks import CheckedFeatures, FeatureWarning, check_features
from rada.features.classes import ClassSet
from rada.features.extract import BadImage, FeatureBatch, extract_features, iter_features
from rada.features.features import Features
from rada.features.pixels import ViewPixels
from rada.features.store import FeatureStore, names_features
from rada.features.work import ViewTransform

__all__ = [
    "BadImage",
    "CacheEntry",
    "CacheWarning",
    "CheckedFeatures",
    "ClassSet",
    "FeatureBatch",
    "FeatureCache",
    "FeatureStore",
    "FeatureWarning",
    "Features",
    "ViewPixels",
    "ViewTransform",
    "check_features",
    "extract_features",
    "iter_features",
    "names_features",
]
