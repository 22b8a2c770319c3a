"""Every method's logits are the sum of its terms at every strength, or it says that they are not."""

from __future__ import annotations

import pytest
import torch

from rada import list_methods
from rada.core.errors import ConfigError
from rada.methods.terms import Terms, linear_terms

REFUSED = {"svm_probe"}
"""Methods whose logits are no sum over the dimensions of the image features."""


@pytest.mark.parametrize("method", list_methods(), ids=lambda method: method.name)
def test_the_terms_add_up_to_the_logits(method, fits):
    clf = fits.load(method.name)
    model = clf.model_
    features, classes = clf.to_predict(sorted(fits.images.glob("*/[01].png"))[:5])
    rows = features.plain()
    for strength in (0.0, 0.4, 1.0, None):
        if method.name in REFUSED and strength != 0:
            with pytest.raises(ConfigError, match=method.title):
                model.logit_terms(rows, classes, strength=strength)
            continue
        wanted = model.logits(rows, classes, strength=strength)
        terms = model.logit_terms(rows, classes, strength=strength).double()
        size = terms.values.abs().sum(-1) + sum(part.abs() for part in terms.rest.values())
        error = (terms.logits() - wanted.double()).abs()
        assert (
            error < 1e-5 + 3e-7 * size
        ).all()  # what is over 1e-5 is the rounding of large logits
        assert terms.values.shape == terms.weights.shape == (5, 3, rows.shape[1])
        assert terms.images.shape == rows.shape
        score = model.logit_function(classes, strength=strength)
        learned = rows.clone().requires_grad_()
        score(learned)[:, 0].sum().backward()
        torch.testing.assert_close(score(rows), wanted, rtol=1e-5, atol=1e-5)
        assert learned.grad.abs().max() > 0


def test_a_mixture_of_models_has_the_mixture_of_their_terms():
    draw = torch.Generator().manual_seed(0)
    images = torch.randn(2, 6, generator=draw).double()
    one, two = (torch.randn(3, 6, generator=draw).double() for _ in range(2))
    bias = torch.randn(3, generator=draw).double()
    first = linear_terms(lambda rows: rows @ one.T, images)
    second = linear_terms(lambda rows: rows @ two.T + bias, images)
    mixed = first + 0.3 * (second - first)
    wanted = images @ one.T + 0.3 * (images @ (two - one).T + bias)
    torch.testing.assert_close(mixed.logits(), wanted)
    torch.testing.assert_close(mixed.weights[0], one + 0.3 * (two - one))
    torch.testing.assert_close(mixed.images, images)
    assert set(mixed.rest) == {"bias"} and not first.rest


def test_logits_that_are_no_sum_over_dimensions_have_no_terms():
    assert linear_terms(lambda rows: rows.square(), torch.eye(3) * 2) is None
    assert isinstance(linear_terms(lambda rows: rows, torch.eye(3)), Terms)
