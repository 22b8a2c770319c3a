"""Adaptation on features: batched equals the loop, and bad input has a defined answer."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_methods import problem
from plain_methods import rada as plain_rada
from torch import nn
from torch.nn.functional import normalize

from rada import RAdaHead, TTTConfig, adapt_views
from rada.core.errors import ConfigError, FeatureError
from rada.features import ClassSet
from rada.methods import Facts, get_method
from rada.methods.base import NoConfig
from rada.test_time import ViewConfig, adapt_in_detail, get_test_time_method
from rada.test_time.out_layers import OutLayers, bytes_of_image
from rada.test_time.start import make_start, untrained_head

SCALE = 30.0


def trained(dim=16, num_heads=4, dtype=torch.float64):
    with torch.random.fork_rng():
        torch.manual_seed(3)
        head = RAdaHead(dim, num_heads=num_heads)
        nn.init.normal_(head.out.weight, std=0.1)
    return head.to(dtype)


VARIANTS = {
    "plain": {},
    "several steps": {"steps": 3},
    "smoothness": {"steps": 2, "alpha": 0.5},
    "strength": {"strength": 0.4},
    "kept views": {"predict_with": "kept"},
    "all views": {"selection": 1.0},
    "every image": {"agreement": 0.0},
}


@pytest.mark.parametrize("start", ["untrained", "trained"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_batches_of_any_size_are_the_plain_method(variant, start):
    views, text = problem(noise=0.6)
    config = TTTConfig(num_heads=4, **{"agreement": 0.6} | VARIANTS[variant])
    head = trained() if start == "trained" else None
    expected = []
    for image in views:
        own = trained() if head else fresh(untrained_head(16, 4, 1.0, 0, torch.float64))
        expected.append(plain_rada(own, image, text, SCALE, config))
    for size in (None, 1, 2, 100):
        detail = adapt_in_detail(views, text, SCALE, head, config, batch_size=size)
        torch.testing.assert_close(detail.logits, torch.stack(expected), rtol=0, atol=1e-8)
    if config.agreement and config.selection < 1:
        assert 0 < detail.adapted.sum() < len(views)


def fresh(head):
    copy = RAdaHead(head.dim, head.num_heads).to(head.out.weight.dtype)
    copy.load_state_dict(head.state_dict())
    return copy


@pytest.mark.parametrize("start", ["untrained", "trained"])
def test_float32_batches_agree_to_a_hundred_thousandth(start):
    views, text = problem(24, 64, 20, 64, dtype=torch.float32, noise=1.0)
    config = TTTConfig(agreement=0.0)
    head = trained(64, dtype=torch.float32) if start == "trained" else None
    one = adapt_views(views, text, SCALE, head, config, batch_size=1)
    batched = adapt_views(views, text, SCALE, head, config)
    assert (batched - one).abs().max() < 1e-5 * one.abs().max()
    assert (one - SCALE * views[:, 0] @ text.T).abs().max() > 0.02


@settings(deadline=None, max_examples=25)
@given(
    st.integers(1, 4), st.integers(1, 12), st.integers(1, 6), st.floats(0.1, 1), st.integers(0, 99)
)
def test_any_shape_is_adapted_to_alike_in_any_batch(images, views, classes, selection, seed):
    config = TTTConfig(num_heads=2, selection=max(selection, 1 / views), agreement=0.0)
    features = problem(images, views, classes, 8, seed)
    one = adapt_views(*features, SCALE, None, config, batch_size=1)
    batched = adapt_views(*features, SCALE, None, config)
    torch.testing.assert_close(batched, one, rtol=0, atol=1e-10)


@pytest.mark.parametrize("scale", [2.0, 30.0, 100.0])
@pytest.mark.parametrize("start", ["untrained", "trained"])
def test_a_step_moves_the_mask_equally_far_whatever_the_scale(scale, start):
    """AdamW's first step at a fixed rate moves it in proportion to the scale."""
    views, text = problem(noise=1.0, classes=4, views=10)
    # Encoders with a large scale have class features that lie close together.
    text = normalize(text[:1] + 2 / scale * text, dim=-1)
    config = TTTConfig(num_heads=4, max_step=0.03, agreement=0.0)
    head = trained() if start == "trained" else None
    before = start_masks(head, views, text, scale, None)
    after = start_masks(head, views, text, scale, config)
    furthest = max(float((b - a).abs().max()) for a, b in zip(before, after, strict=True))
    assert 0.02 < furthest <= 0.03 + 1e-9


def start_masks(head, views, text, scale, config):
    """The masks of the views that are looked at, adapted unless the configuration is None."""
    start = make_start(text, scale, head, config or TTTConfig(num_heads=4), torch.float64)
    layers, chosen = OutLayers(start, len(views)), start.choose(views)
    rows = start.rows(chosen.views)
    if config is not None:
        layers.step(rows)
    change = torch.einsum("nmkd,ned->nmke", rows.mixed, layers.weight)
    return 1 + change + layers.bias[:, None, None]


def test_an_image_whose_views_do_not_agree_keeps_its_prediction():
    views, text = problem(images=2, views=10, noise=0.0)
    # One confident view, the tenth that is kept, names another class than all the rest do.
    views[0, 4] = text[3]
    views[:, :4] = normalize(views[:, :4] + text[2], dim=-1)
    views[:, 5:] = views[:, :1]
    gated = TTTConfig(num_heads=4, agreement=0.5)
    detail = adapt_in_detail(views, text, SCALE, None, gated)
    assert detail.kept[0].tolist() == [4] and detail.adapted.tolist() == [False, True]
    assert torch.equal(detail.logits[0], detail.before[0]) and detail.max_deviation[0] == 0
    ungated = adapt_in_detail(views, text, SCALE, None, dataclasses.replace(gated, agreement=0.0))
    assert ungated.adapted.all() and not torch.equal(ungated.logits[0], ungated.before[0])
    torch.testing.assert_close(ungated.logits[1], detail.logits[1], rtol=0, atol=1e-12)


def test_memory_budget_changes_the_chunks_but_not_the_result(monkeypatch):
    views, text = problem(images=9)
    config = TTTConfig(num_heads=4)
    start = make_start(text, SCALE, None, config, torch.float64)
    sizes = []
    from rada.test_time import adapt

    whole = adapt._adapt

    def counted(start, chunk):
        sizes.append(len(chunk))
        return whole(start, chunk)

    monkeypatch.setattr(adapt, "_adapt", counted)
    small = dataclasses.replace(config, memory_budget=4 * bytes_of_image(start, 3))
    first = adapt_views(views, text, SCALE, None, config)
    second = adapt_views(views, text, SCALE, None, small)
    third = adapt_views(views, text, SCALE, None, dataclasses.replace(config, memory_budget=1))
    assert sizes == [9, 4, 4, 1, *[1] * 9]
    torch.testing.assert_close(first, second, rtol=0, atol=1e-12)
    torch.testing.assert_close(first, third, rtol=0, atol=1e-12)


def test_every_image_starts_anew():
    views, text = problem()
    config = TTTConfig(num_heads=4)
    order = torch.tensor([3, 0, 6, 2, 5, 1, 4])
    whole = adapt_views(views, text, SCALE, None, config)
    torch.testing.assert_close(
        adapt_views(views[order], text, SCALE, None, config), whole[order], rtol=0, atol=1e-12
    )


def test_the_given_head_stays_as_it_is():
    views, text = problem()
    head = trained()
    before = {name: value.clone() for name, value in head.state_dict().items()}
    adapt_views(views, text, SCALE, head, batch_size=1)
    adapt_views(views, text, SCALE, head)
    assert all(torch.equal(before[name], value) for name, value in head.state_dict().items())
    assert all(parameter.requires_grad for parameter in head.parameters())


def test_the_result_repeats_and_leaves_the_global_generator_alone():
    views, text = problem()
    state = torch.get_rng_state()
    first = adapt_views(views, text, SCALE, None, TTTConfig(num_heads=4))
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(first, adapt_views(views, text, SCALE, None, TTTConfig(num_heads=4)))
    other = adapt_views(views, text, SCALE, None, TTTConfig(num_heads=4, head_seed=1))
    assert not torch.equal(first, other)


def test_adaptation_lowers_the_entropy_of_the_kept_views():
    views, text = problem()
    config = TTTConfig(num_heads=4, predict_with="kept", selection=0.3)
    detail = adapt_in_detail(views, text, SCALE, None, config)
    after = -(detail.logits.exp() * detail.logits).sum(-1)
    assert (after < detail.mean_entropy).all()
    assert detail.kept.shape == (7, 6) and (detail.max_deviation > 0).all()
    lowest = detail.entropies.gather(1, detail.kept)
    assert (lowest.diff(dim=1) >= 0).all()
    assert torch.equal(lowest[:, 0], detail.entropies.amin(1))


# Bad and borderline input


def test_too_few_views_say_how_many_are_needed():
    views, text = problem(views=9)
    with pytest.raises(FeatureError, match=r"9 views are too few.*at least 10 views"):
        adapt_views(views, text, SCALE)
    assert TTTConfig(selection=0.3).kept(10) == 3


def test_a_constant_image_has_equal_views():
    views, text = problem(images=2)
    constant = views[:, :1].expand(-1, 20, -1)
    config = TTTConfig(num_heads=4)
    detail = adapt_in_detail(constant, text, SCALE, None, config)
    assert detail.kept.tolist() == [[0, 1]] * 2
    one = adapt_views(views[:, :1], text, SCALE, None, dataclasses.replace(config, selection=1.0))
    torch.testing.assert_close(detail.logits, one, rtol=0, atol=1e-9)


def test_an_image_of_which_nothing_is_known_stays_as_it_is():
    text = torch.eye(4, dtype=torch.float64)[:3]
    views = torch.zeros(1, 10, 4, dtype=torch.float64)
    views[..., 3] = 1  # as far from every class
    for size in (1, None):
        logits = adapt_views(views, text, SCALE, None, TTTConfig(num_heads=2), size)
        assert logits.tolist() == [[0.0, 0.0, 0.0]]


def test_max_entropy_leaves_uncertain_images_alone():
    views, text = problem(noise=1.0)
    config = TTTConfig(num_heads=4, agreement=0.0)
    entropies = adapt_in_detail(views, text, SCALE, None, config).mean_entropy
    limit = float(entropies.sort().values[3:5].mean() / math.log(5))
    config = dataclasses.replace(config, max_entropy=limit)
    detail = adapt_in_detail(views, text, SCALE, None, config)
    certain = entropies <= limit * math.log(5)
    assert certain.sum() == 4 and torch.equal(detail.adapted, certain)
    assert torch.equal(detail.logits[~certain], detail.before[~certain])
    assert (detail.logits[certain] != detail.before[certain]).any(1).all()
    assert (detail.max_deviation[~certain] == 0).all()


@pytest.mark.parametrize("size", [1, None])
def test_one_class_is_certain_and_two_classes_work(size):
    views, text = problem(classes=2)
    config = TTTConfig(num_heads=4)
    one = adapt_views(views, text[:1], SCALE, None, config, size)
    torch.testing.assert_close(one, SCALE * views[:, 0] @ text[:1].T)
    two = adapt_views(views, text, SCALE, None, config, size)
    assert two.shape == (7, 2) and two.isfinite().all()


@pytest.mark.parametrize(
    "change, message",
    [
        (
            lambda views, text: (views.index_fill(1, torch.tensor([3]), math.nan), text),
            "NaN.*view 3",
        ),
        (lambda views, text: (views * 0, text), "zero"),
        (lambda views, text: (views[:, 0], text), r"\(rows, views, D\)"),
        (lambda views, text: (views[:0], text), "empty"),
        (lambda views, text: (views, text[:, :8]), "same encoder"),
        (lambda views, text: (views, text * math.nan), "text_features holds NaN"),
        (lambda views, text: ("views", text), "cannot be read"),
    ],
)
def test_broken_features_are_named(change, message):
    with pytest.raises(FeatureError, match=message):
        adapt_views(*change(*problem()), SCALE, None, TTTConfig(num_heads=4))


def test_broken_numbers_are_named():
    views, text = problem()
    for scale in (0.0, -1.0, math.nan, math.inf, True):
        with pytest.raises(ConfigError, match="scale"):
            adapt_views(views, text, scale)
    for size in (0, -1, True, "a"):
        with pytest.raises(ConfigError, match="batch_size"):
            adapt_views(views, text, SCALE, batch_size=size)
    with pytest.raises(FeatureError, match="head was built for 8"):
        adapt_views(views, text, SCALE, RAdaHead(8))
    with pytest.raises(ConfigError, match="multiple of num_heads"):
        adapt_views(views, text, SCALE, None, TTTConfig(num_heads=3))


@pytest.mark.parametrize(
    "field, value",
    [
        ("views", 0),
        ("selection", 0.0),
        ("selection", 1.5),
        ("steps", 0),
        ("max_step", 0.0),
        ("agreement", 1.5),
        ("strength", 2.0),
        ("predict_with", "guess"),
        ("augmentation", "colour"),
        ("smallest_crop", 0.0),
        ("max_entropy", 0.0),
        ("online_decay", 2.0),
        ("online_collapse", 1.0),
        ("memory_budget", 0),
    ],
)
def test_configuration_names_a_bad_field(field, value):
    with pytest.raises(ConfigError, match=rf"{field} should be"):
        TTTConfig(**{field: value})


def test_configuration_survives_json():
    config = TTTConfig(steps=2, strength=0.5)
    assert TTTConfig.from_dict(config.to_dict()) == config


def test_numpy_and_half_precision_are_accepted():
    views, text = problem(dtype=torch.float32)
    config = TTTConfig(num_heads=4)
    expected = adapt_views(views, text, SCALE, None, config)
    found = adapt_views(views.numpy(), text.numpy(), SCALE, None, config)
    assert torch.equal(found, expected)
    half = adapt_views(views.half(), np.asarray(text.half()), SCALE, None, config)
    assert half.dtype == torch.float32


def test_baselines_are_means_of_probabilities():
    views, text = problem()
    classes = ClassSet(tuple("abcde"), text)
    model = get_method("zero_shot").build(Facts(16, SCALE, classes.names), NoConfig(), {}, None)

    def predicted(name):
        method = get_test_time_method(name)
        return method.predictor(model, classes, ViewConfig(selection=0.1))(views)

    probabilities = (SCALE * views @ text.T).softmax(-1)
    torch.testing.assert_close(model.logits(views[:, 0], classes).softmax(-1), probabilities[:, 0])
    torch.testing.assert_close(predicted("mean_of_views").exp(), probabilities.mean(1))
    best = (-(probabilities * probabilities.log()).sum(-1)).argsort(1)[:, :2]
    mean = torch.stack([p[b].mean(0) for p, b in zip(probabilities, best, strict=True)])
    torch.testing.assert_close(predicted("confident_views").exp(), mean)
