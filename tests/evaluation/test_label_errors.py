"""Wrong labels are found, right ones are left alone."""

from __future__ import annotations

import sys

import pytest
import torch

from rada import Features
from rada.core.errors import FeatureError, MissingExtraError
from rada.evaluation.label_errors import likely_label_errors
from toy import toy

pytest.importorskip("cleanlab", reason="needs the extra 'labels'")
NAMES = tuple("abcdef")


def features(shots=12, swaps=()):
    images, labels, _ = toy(classes=6, shots=shots, dim=32)
    labels = labels.clone()
    for row, label in swaps:
        assert labels[row] != label
        labels[row] = label
    return Features(images, labels, NAMES)


def test_clean_labels_are_left_alone():
    assert likely_label_errors(features()) == []


def test_swapped_labels_are_found_and_named():
    found = likely_label_errors(features(swaps=[(7, 4), (20, 0), (33, 1)]))
    assert {error.row for error in found} == {7, 20, 33}
    (one,) = [error for error in found if error.row == 7]
    assert (one.label, one.suggested) == ("e", "b") and one.probability > 0.5 > one.own
    assert likely_label_errors(features(swaps=[(7, 4), (20, 0), (33, 1)])) == found


def test_classes_with_one_image_are_passed_over():
    data = features(shots=6)
    alone = torch.cat([data.plain(), -data.plain()[:1]])
    more = Features(alone, [*data.labels.tolist(), 6], (*NAMES, "g"))
    assert likely_label_errors(more) == []


def test_bad_input_is_refused(monkeypatch):
    with pytest.raises(FeatureError, match="two classes with two images"):
        likely_label_errors(features(shots=1))
    data = features(shots=3)
    with pytest.raises(FeatureError, match="label for every image"):
        likely_label_errors(Features(data.plain(), [-1] * len(data), NAMES))
    monkeypatch.setitem(sys.modules, "cleanlab.filter", None)
    monkeypatch.setitem(sys.modules, "cleanlab", None)
    with pytest.raises(MissingExtraError, match=r"rada-vlm\[labels\]"):
        likely_label_errors(data)
