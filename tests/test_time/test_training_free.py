"""ZERO, MTA and TDA equal plain transcriptions of their papers, and have defined answers at the edges."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from plain_methods import mta, problem, tda, zero
from torch.nn.functional import normalize

from rada.core.errors import ConfigError, FeatureError
from rada.features import ClassSet
from rada.methods import Facts, get_method
from rada.methods.base import NoConfig
from rada.test_time import get_test_time_method
from rada.test_time.mta import MTAConfig
from rada.test_time.tda import Stream, TDAConfig

SCALE = 10.0


def predictor(name, text, **fields):
    classes = ClassSet(tuple(map(str, range(len(text)))), text)
    facts = Facts(text.shape[1], SCALE, classes.names)
    model = get_method("zero_shot").build(facts, NoConfig(), {}, None)
    method = get_test_time_method(name)
    return method.predictor(model, classes, method.config(**fields), progress=False)


@pytest.mark.parametrize(("views", "selection"), [(20, 0.1), (20, 0.3), (7, 1.0), (1, 1.0)])
def test_zero_is_the_plain_method(views, selection):
    features, text = problem(60, views, noise=1.0)
    found = predictor("zero", text, selection=selection)(features)
    count = MTAConfig(selection=selection).kept(views)
    expected = [zero(SCALE * image @ text.T, count) for image in features]
    assert found.argmax(-1).tolist() == expected
    assert found.isfinite().all()
    if count == 2:  # ties are common here, and the votes alone would not tell which class wins
        names = (SCALE * features @ text.T).argmax(-1)
        assert len({tuple(row.tolist()) for row in names[:, :2]}) > 2


def test_a_tie_is_broken_by_the_next_view_that_names_a_winner():
    text = torch.eye(3)
    votes = torch.tensor([[0, 1, 2, 1, 0]])  # by falling confidence
    certainty = torch.linspace(1, 0.5, 5)[None, :, None]
    views = normalize(certainty * text[votes] + 0.1, dim=-1)
    assert predictor("zero", text, selection=0.4)(views).argmax() == 1
    # Nothing but the kept views: the most confident one.
    assert predictor("zero", text, selection=1.0)(views[:, :2]).argmax() == 0


@pytest.mark.parametrize(
    "fields", [{}, {"affinity_weight": 0.0}, {"entropy_weight": 2.0, "neighbours": 1.0}]
)
def test_mta_is_the_plain_method(fields):
    features, text = problem(6, 12, noise=1.0)
    found = predictor("mta", text, **fields)(features)
    expected = [mta(image, text, SCALE, MTAConfig(**fields)) for image in features]
    torch.testing.assert_close(found, torch.stack(expected), rtol=0, atol=1e-8)
    zero_shot = SCALE * features[:, 0] @ text.T
    assert (found - zero_shot).abs().amax() > 0.1


def test_mta_leaves_views_apart_that_show_something_else():
    text = torch.eye(4)
    good = normalize(text[0] + 0.1 * torch.randn(18, 4), dim=-1)
    views = torch.cat([good, text[[3, 3]]])[None]
    mean = SCALE * views.mean(1) @ text.T
    found = predictor("mta", text)(views)
    assert found[0, 3] < 0.5 * mean[0, 3]


@pytest.mark.parametrize("name", ["mta", "zero"])
def test_equal_views_are_the_image_itself(name):
    features, text = problem(3, 1, noise=1.0)
    views = features.expand(-1, 10, -1).float()
    found = predictor(name, text.float())(views)
    zero_shot = SCALE * views[:, 0] @ text.T.float()
    assert torch.equal(found.argmax(-1), zero_shot.argmax(-1))
    if name == "mta":
        torch.testing.assert_close(found, zero_shot, rtol=0, atol=1e-4)
        torch.testing.assert_close(predictor(name, text.float())(views[:, :1]), zero_shot)


@pytest.mark.parametrize("noise", [0.3, 1.0])
def test_tda_is_the_plain_method(noise):
    features, text = problem(80, 1, noise=noise)
    config = TDAConfig(positive_sharpness=3.0, lowest_entropy=0.1, highest_entropy=0.9)
    config = dataclasses.replace(config, negative_weight=0.5)
    fields = {key: value for key, value in config.to_dict().items() if key != "views"}
    predict = predictor("tda", text, **fields)
    found = torch.cat([predict(part) for part in features.split(11)])  # a stream over calls
    torch.testing.assert_close(found, tda(features[:, 0], text, SCALE, config), rtol=0, atol=1e-8)
    assert (found - SCALE * features[:, 0] @ text.T).abs().amax() > 0.5


def test_tda_forgets_nothing_and_holds_no_more_than_its_sizes():
    features, text = problem(300, 1, noise=2.0)
    stream = Stream(TDAConfig(lowest_entropy=0.0, highest_entropy=1.0))
    for feature in features[:, 0]:
        logits = SCALE * text @ feature
        stream.step(feature, logits, logits.log_softmax(-1))
    for cache, size in ((stream.positive, 3), (stream.negative, 2)):
        assert {len(own) for own in cache.entries.values()} == {size}
        for own in cache.entries.values():
            assert sorted(own, key=lambda entry: entry.entropy) == own


def test_tda_takes_the_confident_views_on_request():
    features, text = problem(5, 20, noise=1.0)
    config = TDAConfig(positive_weight=0.0, negative_weight=0.0, predict_with="kept")
    found = predictor("tda", text, predict_with="kept", positive_weight=0.0, negative_weight=0.0)(
        features
    )
    logits = SCALE * features @ text.T
    entropies = -(logits.softmax(-1) * logits.log_softmax(-1)).sum(-1)
    kept = entropies.argsort(1)[:, : config.kept(20)]
    expected = torch.stack([row[own].mean(0) for row, own in zip(logits, kept, strict=True)])
    torch.testing.assert_close(found, expected)
    with pytest.raises(FeatureError, match="1 views are too few"):
        predictor("tda", text, predict_with="kept")(features[:, :1])


@pytest.mark.parametrize("name", ["zero", "mta", "tda"])
def test_one_class_and_broken_views(name):
    features, text = problem(3, 10, classes=1)
    assert predictor(name, text)(features).shape == (3, 1)
    assert predictor(name, text)(features).isfinite().all()
    with pytest.raises(FeatureError, match="zero"):
        predictor(name, text)(features * 0)


@pytest.mark.parametrize(
    ("config", "field", "value"),
    [
        (MTAConfig, "entropy_weight", 0.0),
        (MTAConfig, "affinity_weight", -1.0),
        (MTAConfig, "neighbours", 0.0),
        (MTAConfig, "iterations", 0),
        (TDAConfig, "positive_size", 0),
        (TDAConfig, "negative_weight", -1.0),
        (TDAConfig, "highest_entropy", 0.1),
        (TDAConfig, "least_probability", 1.0),
    ],
)
def test_configurations_name_a_bad_field(config, field, value):
    with pytest.raises(ConfigError, match=rf"^{field} should be"):
        config(**{field: value})
