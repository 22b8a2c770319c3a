"""The online mode: it goes on from image to image, and nothing can destroy it."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from torch.nn.functional import normalize

from rada import OnlineAdapter, TTTConfig, adapt_views
from rada.test_time.out_layers import OutLayers
from rada.test_time.start import Rows, make_start

SCALE = 30.0
CONFIG = TTTConfig(num_heads=1, selection=0.25, episodic=False)  # keeps 2 of 8 views


def clean(count=60, views=8, classes=3, dim=4, seed=0):
    """Images that zero-shot has right, with their labels."""
    generator = torch.Generator().manual_seed(seed)
    text = normalize(torch.randn(classes, dim, generator=generator), dim=-1)
    labels = torch.arange(count) % classes
    noise = torch.randn(count, views, dim, generator=generator)
    return normalize(text[labels][:, None] + 0.05 * noise, dim=-1), labels, text


def hard(streams, steps, dim=4, views=8, seed=1):
    """Images without meaning, all of them on one side of the space."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        noise = torch.randn(streams, views, dim, generator=generator)
        yield normalize(noise + torch.tensor([2.0, 0.0, 0.0, 0.0]), dim=-1)


def accuracy(online, views, labels):
    """Accuracy of every stream's head on images, without adapting to them."""
    rows = Rows(*(p.expand(online.streams, *p.shape[1:]) for p in online.start.rows(views[None, :, 0])))
    logits, _ = online.heads.predict(rows)
    return (logits.argmax(-1) == labels).float().mean(1)


def test_steps_without_resets_are_the_steps_on_one_image():
    views, _, text = clean(3, views=2)
    config = dataclasses.replace(CONFIG, steps=5, selection=1.0, agreement=0.0, episodic=True)
    start = make_start(text, SCALE / 10, None, config, torch.float32)
    heads, rows = OutLayers(start, 3), start.rows(start.choose(views).views)
    for _ in range(5):
        heads.step(rows)
    expected = adapt_views(views, text, SCALE / 10, None, config)
    torch.testing.assert_close(heads.predict(rows)[0][:, -1], expected, rtol=0, atol=1e-5)
    assert (expected - SCALE / 10 * views[:, 0] @ text.T).abs().max() > 0.05


def test_a_head_that_is_not_active_does_not_move():
    views, _, text = clean(3)
    start = make_start(text, SCALE / 10, None, CONFIG, torch.float32)
    heads, rows = OutLayers(start, 3), start.rows(start.choose(views).views)
    heads.step(rows)
    before = heads.distance()
    heads.step(rows, active=torch.tensor([True, False, True]))
    after = heads.distance()
    assert before[1] == after[1] and (before[[0, 2]] != after[[0, 2]]).all()


def test_images_follow_each_other():
    views, _, text = clean()
    online = OnlineAdapter(text, SCALE, config=CONFIG)
    whole = online.predict(views)
    assert online.seen == 60 and online.heads.distance() > 0
    again = OnlineAdapter(text, SCALE, config=CONFIG)
    parts = torch.cat([again.predict(part) for part in views.split(7)])
    torch.testing.assert_close(parts, whole)
    torch.testing.assert_close(adapt_views(views, text, SCALE, None, CONFIG), whole)
    online.reset()
    assert online.seen == 0 and online.heads.distance() == 0


def test_a_long_stream_is_its_pieces_between_restarts():
    config = dataclasses.replace(CONFIG, online_restart=20)
    views, _, text = clean(60)
    whole = OnlineAdapter(text, SCALE, config=config).predict(views)
    side_by_side = OnlineAdapter(text, SCALE, config=config, streams=3)
    pieces = [side_by_side.step(views.unflatten(0, (3, 20))[:, index]) for index in range(20)]
    torch.testing.assert_close(torch.stack(pieces, 1).flatten(0, 1), whole, rtol=1e-4, atol=1e-3)


def test_a_million_hard_images_do_not_destroy_the_classifier():
    """The stream's pieces between restarts run side by side, which gives the same heads."""
    views, labels, text = clean()
    pieces = 4000
    config = dataclasses.replace(CONFIG, online_restart=250)
    online = OnlineAdapter(text, SCALE, config=config, streams=pieces)
    worst, furthest = 1.0, 0.0
    for number, images in enumerate(hard(pieces, config.online_restart)):
        answer = online.step(images)
        if number % 50 == 49:
            assert answer.isfinite().all()
            found = accuracy(online, views, labels)
            worst, furthest = min(worst, float(found.mean())), float(online.heads.distance().max())
            assert found.min() > 0.6
    assert online.seen * online.streams == 1_000_000
    assert worst > 0.99
    # Each step is at most some learning rates long, and a part of the way is taken back each time.
    assert furthest < 3.2 * config.learning_rate / config.online_decay


BARE = dataclasses.replace(CONFIG, online_restart=0, online_decay=0.0, online_collapse=0.0)


@pytest.mark.parametrize("decay, low, high", [(0.0, 0.0, 0.8), (0.1, 0.95, 1.0)])
def test_without_decay_the_same_images_do_destroy_it(decay, low, high):
    """Else the test above would prove nothing."""
    views, labels, text = clean()
    config = dataclasses.replace(BARE, learning_rate=0.02, online_decay=decay)
    online = OnlineAdapter(text, SCALE, config=config, streams=20)
    for images in hard(20, 150):
        online.step(images)
    assert low <= accuracy(online, views, labels).mean() <= high


@pytest.mark.parametrize("learning_rate", [0.1, 0.3])
def test_collapse_is_seen_and_mended(learning_rate):
    views, labels, text = clean()

    def last_hundred(collapse):
        config = dataclasses.replace(BARE, learning_rate=learning_rate, online_collapse=collapse)
        online = OnlineAdapter(text, SCALE, config=config)
        answers = torch.cat([online.predict(views) for _ in range(4)])
        right = answers.argmax(-1) == labels.repeat(4)
        return float(right[-100:].float().mean()), online.restores["collapse"]

    lost, never = last_hundred(0.0)
    mended, restores = last_hundred(0.8)
    assert never == 0 and restores > 0 and mended > lost + 0.1


def test_numbers_that_are_not_finite_are_mended():
    views, _, text = clean()
    online = OnlineAdapter(text, SCALE, config=CONFIG)
    online.predict(views[:3])
    online.heads.weight[0, 0, 0] = float("inf")
    answer = online.predict(views[3:4])
    assert online.restores["not finite"] == 1 and online.heads.distance() == 0
    torch.testing.assert_close(answer, SCALE * views[3:4, 0] @ text.T)


def test_uncertain_images_teach_nothing():
    views, _, text = clean(5, views=4)
    config = dataclasses.replace(CONFIG, max_entropy=1e-12, online_decay=0.0)
    online = OnlineAdapter(text, SCALE / 10, config=config)
    logits = online.predict(views)
    assert online.heads.distance() == 0
    torch.testing.assert_close(logits, SCALE / 10 * views[:, 0] @ text.T)


@pytest.mark.parametrize("streams", [1, 2])
def test_streams_do_not_touch_each_other(streams):
    views, _, text = clean(10)
    online = OnlineAdapter(text, SCALE, config=CONFIG, streams=streams)
    alone = OnlineAdapter(text, SCALE, config=CONFIG).predict(views[:5])
    both = views.unflatten(0, (2, 5))[:streams]
    found = torch.stack([online.step(both[:, index]) for index in range(5)], 1)
    torch.testing.assert_close(found[0], alone, rtol=1e-4, atol=1e-3)
