"""Why a model says what it says: evidence, plain words, places in the image, similar training images."""

from rada.explain.evidence import ClassScore, Contribution, Evidence
from rada.explain.explanation import ImageExplanation, Nearest, Words
from rada.explain.image import ExplainConfig, Explainer
from rada.explain.learned import ClassChange, ConfusedPair, Learned, what_was_learned
from rada.explain.neighbours import Neighbour
from rada.explain.where import HeatMap
from rada.explain.words import Concept, InWords, Vocabulary

__all__ = [
    "ClassChange",
    "ClassScore",
    "Concept",
    "ConfusedPair",
    "Contribution",
    "Evidence",
    "ExplainConfig",
    "Explainer",
    "HeatMap",
    "ImageExplanation",
    "InWords",
    "Learned",
    "Nearest",
    "Neighbour",
    "Vocabulary",
    "Words",
    "what_was_learned",
]
