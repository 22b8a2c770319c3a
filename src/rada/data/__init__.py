"""Images and names: data sets of every kind, class names, prompts, few-shot sampling."""

from rada.data.align import fold_name
from rada.data.bad import find_bad, readable_shots, without_bad
from rada.data.dataset import ImageDataset, ImageSplit, Skipped
from rada.data.identity import data_identity
from rada.data.images import open_image
from rada.data.loose import expand_images, open_images
from rada.data.manifest import write_manifest
from rada.data.naming import Naming, align_classes
from rada.data.prompts import (
    DEFAULT_TEMPLATE,
    build_prompts,
    check_class_names,
    load_class_names,
    load_templates,
)
from rada.data.registry import DatasetInfo, list_datasets, open_dataset, register_dataset
from rada.data.sampling import few_shot, few_shot_indices
from rada.data.summary import announce, summarise
from rada.data.views import seeded_view

__all__ = [
    "DEFAULT_TEMPLATE",
    "DatasetInfo",
    "ImageDataset",
    "ImageSplit",
    "Naming",
    "Skipped",
    "align_classes",
    "announce",
    "build_prompts",
    "check_class_names",
    "data_identity",
    "expand_images",
    "few_shot",
    "few_shot_indices",
    "find_bad",
    "fold_name",
    "list_datasets",
    "load_class_names",
    "load_templates",
    "open_dataset",
    "open_image",
    "open_images",
    "readable_shots",
    "register_dataset",
    "seeded_view",
    "summarise",
    "without_bad",
    "write_manifest",
]
