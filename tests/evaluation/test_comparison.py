"""Two predictors on the same images, and runs over seeds."""

import json
import statistics

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score

from rada.core.errors import FeatureError
from rada.evaluation import aggregate_runs, compare, mean_std, paired_difference


def logits_of(predictions, classes=3):
    return torch.nn.functional.one_hot(torch.tensor(predictions), classes).float()


def test_comparison_worked_out_by_hand():
    labels = [0, 0, 1, 1, 2]
    result = compare(
        logits_of([0, 1, 0, 1, 0]),
        logits_of([1, 0, 1, 1, 2]),
        labels,
        ["a", "b", "c"],
        extra={"linear_probe": logits_of([0, 0, 1, 1, 2])},
    )
    assert result["images"] == 5
    assert result["classes"] == ["a", "b", "c"]
    assert result["rows"] == ["zero_shot", "adapted", "linear_probe"]
    assert result["zero_shot"]["accuracy"] == 0.4
    assert result["adapted"]["accuracy"] == 0.8
    assert result["linear_probe"]["accuracy"] == 1.0
    assert result["changed"]["wrong_to_right"] == 3
    assert result["changed"]["right_to_wrong"] == 1
    assert result["changed"]["difference"] == pytest.approx(0.4)
    # b' = 3.5, c' = 1.5, n' = 7: 2/7 +- 1.96 sqrt(5 - 4/7)/7.
    assert result["changed"]["interval"] == pytest.approx([-0.3035, 0.8749], abs=1e-4)
    assert result["changed"]["p_value"] == pytest.approx(2 * 5 / 16)  # 3 or more of 4 coins
    assert result["linear_probe"]["against_zero_shot"]["right_to_wrong"] == 0
    assert result["chance"] == pytest.approx(1 / 3)
    assert "against_zero_shot" not in result["zero_shot"]
    json.dumps(result, allow_nan=False)


def test_comparison_with_itself():
    logits = logits_of([0, 1, 2])
    changed = compare(logits, logits, [0, 1, 1], ["a", "b", "c"])["changed"]
    assert (changed["wrong_to_right"], changed["right_to_wrong"]) == (0, 0)
    assert changed["p_value"] == 1
    assert changed["interval"][0] < 0 < changed["interval"][1]


def test_interval_of_the_difference_covers():
    """Of 400 experiments with a known difference, about 95 % hold it in their interval."""
    generator = np.random.default_rng(0)
    covered = 0
    for _ in range(400):
        first = generator.random(120) < 0.5
        second = np.where(first, generator.random(120) < 0.9, generator.random(120) < 0.4)
        low, high = paired_difference(first, second).interval
        covered += low <= 0.15 <= high
    assert 0.92 <= covered / 400 <= 0.98


def test_bad_comparisons_are_refused():
    logits = logits_of([0, 1, 2])
    with pytest.raises(ValueError, match="'changed'"):
        compare(logits, logits, [0, 1, 2], ["a", "b", "c"], extra={"changed": logits})
    with pytest.raises(ValueError, match="'adapted'"):
        compare(logits, logits, [0, 1, 2], ["a", "b", "c"], extra={"adapted": logits})
    with pytest.raises(FeatureError, match="2 rows of logits for 3 labels"):
        compare(logits, logits[:2], [0, 1, 2], ["a", "b", "c"])
    with pytest.raises(FeatureError, match="same images"):
        paired_difference([True], [True, False])
    with pytest.raises(FeatureError, match="same images"):
        paired_difference([], [])


def test_right_counts_are_accuracies():
    generator = torch.Generator().manual_seed(0)
    labels = torch.randint(0, 6, (200,), generator=generator)
    before, after = torch.randn(2, 200, 6, generator=generator)
    result = compare(before, after, labels, list("abcdef"))
    expected = accuracy_score(labels, after.argmax(1)) - accuracy_score(labels, before.argmax(1))
    assert result["changed"]["difference"] == pytest.approx(expected)


def test_mean_and_sample_deviation():
    spread = mean_std([0.5, 0.6, 0.9])
    assert spread.mean == pytest.approx(2 / 3)
    assert spread.std == pytest.approx(statistics.stdev([0.5, 0.6, 0.9]))
    assert mean_std([0.4]).to_dict() == {"mean": 0.4, "std": None, "runs": 1}
    for bad in ([], [float("nan")]):
        with pytest.raises(ValueError, match="finite"):
            mean_std(bad)


def test_runs_are_averaged_over_seeds():
    runs = [
        {"method": method, "shots": shots, "seed": seed, "accuracy": shots / 10 + seed / 100}
        for method in ("rada", "linear_probe")
        for shots in (1, 2)
        for seed in (1, 2, 3)
    ]
    runs.append({"method": "zero_shot", "shots": 0, "accuracy": 0.1, "balanced_accuracy": 0.3})
    table = aggregate_runs(runs)
    assert [(row["method"], row["shots"]) for row in table[:2]] == [("rada", 1), ("rada", 2)]
    assert table[1]["accuracy"] == {
        "mean": pytest.approx(0.22),
        "std": pytest.approx(0.01),
        "runs": 3,
    }
    assert "balanced_accuracy" not in table[0]
    assert table[-1]["balanced_accuracy"]["std"] is None
