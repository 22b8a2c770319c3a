"""scikit-learn's contract: parameters, clones, cross-validation, and its own checks of estimators."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.base import clone, is_classifier
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.utils.estimator_checks import parametrize_with_checks

from rada import Classifier, EFTConfig, get_method
from rada.core.errors import FeatureError
from rada.fitting import unit_rows
from toy import toy

EXCEPTED = {
    "check_estimators_dtypes": "it gives rows of zeros, and rows are unit vectors here",
    "check_requires_y_none": "y is None for data that brings its labels, such as a folder",
}


def estimators() -> list[Classifier]:
    rada = EFTConfig(epochs=2, min_steps=0, num_heads=1, strength=1.0)
    cross = get_method("cross_modal_probe").config(iterations=10)
    return [
        Classifier(None, "linear_probe", progress=False),
        Classifier(None, cross, progress=False),
        Classifier(None, rada, progress=False),
    ]


@parametrize_with_checks(estimators(), expected_failed_checks=lambda _: EXCEPTED)
def test_scikit_learn_checks(estimator, check):
    check(estimator)


@pytest.fixture(scope="module")
def data():
    images, labels, _ = toy(classes=4, shots=9, dim=16)
    return images.numpy(), np.array(["ant", "bee", "cat", "dog"])[labels.numpy()]


@pytest.mark.parametrize("method", ["linear_probe", "tip_adapter", "rada"])
def test_cross_validation(method, data):
    config = EFTConfig(epochs=2, min_steps=20, num_heads=2, strength=1.0)
    clf = Classifier(
        None, method, config=config if method == "rada" else None, scale=20.0, progress=False
    )
    scores = cross_val_score(clf, *data, cv=3)
    assert scores.shape == (3,) and scores.mean() > 0.9


def test_grid_search(data):
    grid = {"method": ["zero_shot", "linear_probe"], "scale": [10.0, 20.0]}
    search = GridSearchCV(Classifier(None, progress=False), grid, cv=3).fit(*data)
    assert search.best_score_ > 0.9 and set(search.best_params_) == {"method", "scale"}
    assert search.predict(data[0][:2]).tolist() == data[1][:2].tolist()


def test_parameters_survive_a_clone(data):
    clf = Classifier(None, "linear_probe", scale=20.0, progress=False).fit(*data)
    copy = clone(clf)
    assert copy.get_params() == clf.get_params() and is_classifier(copy)
    assert "not fitted" in repr(copy) and "4, fitted" in repr(clf)
    assert clf.classes_.tolist() == ["ant", "bee", "cat", "dog"]
    assert clf.set_params(scale=30.0).scale == 30.0
    with pytest.raises(ValueError, match="no parameter 'temperature'"):
        clf.set_params(temperature=1.0)


def test_the_constructor_loads_nothing():
    clf = Classifier("no-such-model-anywhere", "rada", ["cat", "dog"])
    assert "no-such-model-anywhere" in repr(clf)


@pytest.mark.parametrize("factor", [1e-300, 1e-44, 1e-30, 1.5, 1e30, 1e300])
def test_rows_of_any_size_are_normalised(factor):
    rows = np.random.default_rng(0).normal(size=(9, 4))
    expected = unit_rows(rows)
    assert np.allclose(unit_rows(rows * factor), expected, rtol=0, atol=1e-6)
    plain = torch.nn.functional.normalize(torch.from_numpy(rows.astype(np.float32)), dim=-1)
    assert torch.equal(expected, plain)
    if 1e-40 < factor < 1e38:
        narrow = unit_rows((rows * factor).astype(np.float32))
        assert np.allclose(narrow, expected, rtol=0, atol=1e-6)
    found = Classifier(None, "linear_probe", progress=False).fit(rows * factor, [0, 1, 2] * 3)
    assert len(found.predict(rows * factor)) == 9


def test_a_row_of_zeros_is_named():
    with pytest.raises(FeatureError, match="image_features is zero in row 2"):
        Classifier(None, "linear_probe").fit(np.eye(4) * [[1], [1], [0], [1]], [0, 1, 0, 1])


@pytest.mark.parametrize(
    "values", [[0, 1, None], ["a", "b", None], ["a", "b", float("nan")], ("Int64",), ("string",)]
)
def test_missing_labels_are_named(values):
    if len(values) == 1:
        pandas = pytest.importorskip("pandas")
        given = [0, 1, None] if values == ("Int64",) else ["a", "b", None]
        values = pandas.Series(given, dtype=values[0])
    with pytest.raises(FeatureError, match="contains NaN: the label of row 2 is missing"):
        Classifier(None, "linear_probe").fit(np.eye(3), values)
