"""Metrics against numbers worked out by hand and against scikit-learn and scipy."""

import json
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import binomtest
from sklearn.metrics import balanced_accuracy_score, confusion_matrix

from rada.core.errors import FeatureError
from rada.evaluation import evaluate_logits, harmonic_mean, wilson_interval


def naive_ece(logits, labels, bins=15):
    """The definition, one image and one bin at a time; bins are (low, high]."""
    probabilities = torch.softmax(torch.as_tensor(logits, dtype=torch.float64), dim=1).numpy()
    confidence, predicted = probabilities.max(axis=1), probabilities.argmax(axis=1)
    total = 0.0
    for number in range(bins):
        inside = [n for n, c in enumerate(confidence) if number / bins < c <= (number + 1) / bins]
        if inside:
            right = np.mean([predicted[n] == labels[n] for n in inside])
            total += len(inside) / len(labels) * abs(right - np.mean(confidence[inside]))
    return total


def test_metrics_worked_out_by_hand():
    # Probabilities .9/.1 (right), .8/.2 (wrong), .3/.7 (right), .35/.65 (right).
    logits = np.log([[0.9, 0.1], [0.8, 0.2], [0.3, 0.7], [0.35, 0.65]])
    metrics = evaluate_logits(logits, [0, 1, 1, 1], ["cat", "dog"])
    assert metrics.images == 4
    assert metrics.chance == 0.5
    assert metrics.majority == 0.75
    assert metrics.accuracy == 0.75
    assert metrics.balanced_accuracy == pytest.approx((1 + 2 / 3) / 2)
    assert metrics.confusion.tolist() == [[1, 0], [1, 2]]
    # Each image has a bin of its own: (.1 + .8 + .3 + .35) / 4.
    assert metrics.ece == pytest.approx(0.3875, abs=1e-6)
    assert [entry.accuracy for entry in metrics.per_class] == [1.0, pytest.approx(2 / 3)]
    assert metrics.per_class[1].interval == pytest.approx(wilson_interval(2, 3))


@pytest.mark.parametrize(("images", "classes"), [(50, 2), (300, 7), (900, 40)])
def test_metrics_agree_with_the_definitions(images, classes):
    generator = np.random.default_rng(classes)
    logits = generator.normal(size=(images, classes)) * 3
    labels = generator.integers(0, classes, images)
    logits[np.arange(images), labels] += 2
    metrics = evaluate_logits(torch.from_numpy(logits), labels, [f"c{k}" for k in range(classes)])
    predicted = logits.argmax(axis=1)
    assert metrics.accuracy == pytest.approx((predicted == labels).mean())
    assert metrics.balanced_accuracy == pytest.approx(balanced_accuracy_score(labels, predicted))
    assert (
        metrics.confusion.tolist()
        == confusion_matrix(labels, predicted, labels=range(classes)).tolist()
    )
    assert metrics.ece == pytest.approx(naive_ece(logits, labels), abs=1e-5)


def test_certain_predictions_share_the_last_bin():
    # Confidences of exactly 1 and .95 belong to one bin, so that their errors cancel there.
    logits = [[1000.0, 0.0], [math.log(0.95), math.log(0.05)]] * 2
    labels = [0, 0, 1, 0]
    assert evaluate_logits(logits, labels, ["a", "b"]).ece == pytest.approx(0.975 - 0.75, abs=1e-6)


def test_classes_without_test_images_do_not_count():
    logits = torch.eye(5)[[0, 0, 2]]
    metrics = evaluate_logits(logits, [0, 2, 2], list("abcde"))
    assert metrics.balanced_accuracy == pytest.approx(0.75)
    missing = metrics.per_class[1]
    assert (missing.images, missing.accuracy, missing.interval) == (0, None, None)
    assert metrics.confusion.sum() == 3


def test_one_class():
    metrics = evaluate_logits([[3.0], [-1.0]], [0, 0], ["only"])
    assert (metrics.accuracy, metrics.balanced_accuracy, metrics.ece, metrics.chance) == (
        1,
        1,
        0,
        1,
    )
    assert metrics.confusion.tolist() == [[2]]


def test_a_thousand_classes():
    logits = torch.eye(1000).roll(1, dims=1) * 50
    logits[:500] = torch.eye(1000)[:500] * 50
    metrics = evaluate_logits(logits, torch.arange(1000), [f"class {k}" for k in range(1000)])
    assert metrics.accuracy == metrics.balanced_accuracy == 0.5
    assert metrics.confusion.shape == (1000, 1000)
    assert metrics.confusion[700, 701] == 1
    assert metrics.ece == pytest.approx(0.5, abs=1e-6)


def test_equal_logits_count_as_the_first_class():
    assert evaluate_logits(torch.zeros(4, 2), [0, 0, 1, 1], ["a", "b"]).accuracy == 0.5


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_float_types_and_gradients(dtype):
    logits = torch.tensor([[2.0, 1.0], [0.0, 1.0]], dtype=dtype, requires_grad=True)
    assert (
        evaluate_logits(logits, torch.tensor([0, 1], dtype=torch.uint8), ["a", "b"]).accuracy == 1
    )


def test_dictionary_is_json():
    metrics = evaluate_logits(torch.eye(3)[[0, 1]], [0, 2], ["a", "b", "c"])
    values = json.loads(json.dumps(metrics.to_dict(), allow_nan=False))
    assert values["per_class"][2] == {
        "class": "c",
        "images": 1,
        "accuracy": 0.0,
        "interval": [0.0, pytest.approx(0.793, abs=1e-3)],
    }
    assert values["per_class"][1]["interval"] is None
    assert set(values) >= {"images", "classes", "chance", "majority", "accuracy", "interval"}


@pytest.mark.parametrize(
    ("logits", "labels", "classes", "message"),
    [
        ([[1.0, float("nan")]], [0], ["a", "b"], "row 0 the value nan"),
        ([[1.0, 2.0], [float("inf"), 0.0]], [0, 1], ["a", "b"], "1 of 2 rows"),
        (torch.zeros(0, 2), [], ["a", "b"], "no images"),
        ([[1.0, 2.0]], [2], ["a", "b"], "label 2 of image 0"),
        ([[1.0, 2.0]], [-1], ["a", "b"], "label -1 of image 0"),
        ([[1.0, 2.0]], [0.5], ["a", "b"], "integers"),
        ([[1.0, 2.0]], [0, 1], ["a", "b"], "1 rows of logits for 2 labels"),
        ([[1.0, 2.0]], [0], ["a", "b", "c"], r"\(images, 3\)"),
        ([1.0, 2.0], [0], ["a", "b"], "shape"),
        (torch.zeros(1, 0), [0], [], "no classes"),
    ],
)
def test_bad_input_is_named(logits, labels, classes, message):
    with pytest.raises(FeatureError, match=message):
        evaluate_logits(logits, labels, classes)


@given(st.integers(1, 5000).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n))))
@settings(max_examples=60, deadline=None)
def test_wilson_interval_is_scipys(pair):
    hits, total = pair
    expected = binomtest(hits, total).proportion_ci(0.95, method="wilson")
    low, high = wilson_interval(hits, total)
    assert (low, high) == pytest.approx((expected.low, expected.high), abs=1e-9)
    assert low <= hits / total <= high


@pytest.mark.parametrize(("hits", "total"), [(0, 0), (2, 1), (-1, 3)])
def test_wilson_interval_refuses_what_is_no_proportion(hits, total):
    with pytest.raises(ValueError, match="no proportion"):
        wilson_interval(hits, total)


def test_harmonic_mean():
    assert harmonic_mean(0.684, 0.481) == pytest.approx(0.5648, abs=1e-4)
    assert harmonic_mean(0, 0.9) == harmonic_mean(0, 0) == 0
    for bad in (-0.1, float("nan")):
        with pytest.raises(ValueError, match="0 or more"):
            harmonic_mean(bad, 0.5)
