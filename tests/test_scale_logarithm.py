"""A logarithm where the exponentiated scale belongs is noticed wherever a scale is handed over."""

import warnings

import pytest
import torch

from rada import Classifier, EFTConfig, Features, train_head

EYE = torch.eye(4)
PLAIN = Features(EYE[:2], [0, 1], ("a", "b"), text_features=EYE[:2])


def handed_over(scale):
    yield lambda: Classifier(None, classes=["a", "b"], scale=scale).predict(PLAIN)
    yield lambda: Features(EYE, [0, 1, 2, 3], ("a", "b", "c", "d"), scale=scale)
    config = EFTConfig(epochs=1, min_steps=0, num_heads=2, strength=1.0)
    yield lambda: train_head(EYE, torch.arange(4), EYE, scale, config, progress=False)


@pytest.mark.parametrize("place", range(3))
def test_everywhere(place):
    with pytest.warns(UserWarning, match=r"4\.6052 looks like a logarithm .* pass scale=100"):
        list(handed_over(4.6052))[place]()


@pytest.mark.parametrize("scale", [1.0, 10.0, 14.2857, 100.0, 117.3])
def test_scales_of_real_models_are_silent(scale):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for act in list(handed_over(scale))[:3]:
            act()
