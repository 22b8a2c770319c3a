"""`RAdaClassifier`: from pictures and class names to a classifier, in the manner of scikit-learn."""

from __future__ import annotations

import dataclasses
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
import torch
from torch import Tensor

from rada.config import EFTConfig
from rada.data import ImageDataset, ImageSplit, few_shot, open_dataset
from rada.data.align import align_classes
from rada.data.prompts import DEFAULT_TEMPLATES, check_class_names, check_templates
from rada.encoders import DualEncoder, load_encoder
from rada.errors import CheckpointError, ConfigError, DataError, FeatureError
from rada.evaluation import compare
from rada.features import FeatureCache, Features, extract_features, iter_features
from rada.head import RAdaHead
from rada.pretrained import HeadConfig, load_head, resolve_directory, save_head
from rada.settings.eft import TrainedHead, describe, train_head

if TYPE_CHECKING:
    from PIL.Image import Image

__all__ = ["Prediction", "RAdaClassifier"]

Data = str | Path | ImageDataset | ImageSplit | Features
FEATURE_FILES = (".safetensors", ".npz")
TRAIN_SPLITS = ("train", "all")
TEST_SPLITS = ("test", "val", "all", "train")


class Prediction(NamedTuple):
    """One candidate class of a picture."""

    name: str
    probability: float
