"""Images without a label are refused by name wherever accuracy is measured, never counted as a class."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from bench_samples import write_features
from rada import Classifier, EFTConfig, Features
from rada.bench import Plan, run_plan
from rada.core.errors import DataError
from rada.data import ImageSplit
from rada.evaluation.sets import shared_classes
from toy import toy_features

MESSAGE = r"2 of 24 images have none.*'0'"


@pytest.fixture
def features() -> Features:
    return toy_features()


@pytest.fixture
def partly(features: Features) -> Features:
    labels = features.labels.clone()
    labels[[0, 23]] = -1
    return dataclasses.replace(features, labels=labels)


@pytest.mark.parametrize("name", ["score", "zero_shot_score", "evaluate"])
def test_every_measure_of_the_classifier_refuses(
    name: str, features: Features, partly: Features
) -> None:
    config = EFTConfig(epochs=1, min_steps=0, strength=1.0)
    clf = Classifier(None, config=config, progress=False).fit(features)
    with pytest.raises(DataError, match=MESSAGE):
        getattr(clf, name)(partly)
    getattr(clf, name)(partly.subset(range(1, 23)))


def test_a_test_set_of_fine_tuning_refuses() -> None:
    split = ImageSplit.from_files(
        ".", ["a.png", "b.png", "c.png"], labels=[0, 1, -1], classes=["cat", "dog"]
    )
    with pytest.raises(DataError, match=r"1 of 3 images have none.*'c\.png'"):
        shared_classes("shifted", split, ("cat", "dog"))


@pytest.mark.parametrize("protocol", ["few-shot", "base-to-new", "cross-dataset", "domain"])
def test_every_protocol_of_the_benchmark_refuses(protocol: str, tmp_path: Path) -> None:
    spec = write_features(tmp_path)
    path = Path(spec) / "test.safetensors"
    test = Features.load(path)
    labels = test.labels.clone()
    labels[0] = -1
    dataclasses.replace(test, labels=labels).save(path)
    targets = (spec,) if protocol in ("cross-dataset", "domain") else ()
    plan = Plan(protocols=(protocol,), methods=("zero_shot",), datasets=(spec,), targets=targets)
    summary = run_plan(plan, tmp_path / "out", progress=False)
    assert summary.done == 0 and "1 of 36 images have none" in summary.failed[0][1]


def test_unlabelled_rows_of_the_training_part_are_never_drawn(tmp_path: Path) -> None:
    spec = write_features(tmp_path)
    path = Path(spec) / "train.safetensors"
    train = Features.load(path)
    labels = train.labels.clone()
    labels[:3] = -1
    dataclasses.replace(train, labels=labels).save(path)
    plan = Plan(methods=("tip_adapter",), datasets=(spec,), shots=(2,), seeds=(1,))
    assert not run_plan(plan, tmp_path / "out", progress=False).failed


def test_labels_of_some_classes_do_not_wrap_around() -> None:
    found = Features(torch.eye(4), [0, -1, 1, -1], ("cat", "dog")).select_classes([1, 0])
    assert found.labels.tolist() == [1, 0] and len(found) == 2
