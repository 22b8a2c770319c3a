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


def accuracy(online, views, labels):
    """Accuracy of every stream's head on images, without adapting to them."""
    rows = Rows(
        *(p.expand(online.streams, *p.shape[1:]) for p in online.start.rows(views[None, :, 0]))
    )
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


def test_the_first_image_of_a_stream_takes_all_steps():
    views, _, text = clean(1, views=2)
    config = dataclasses.replace(
        CONFIG, steps=5, selection=1.0, agreement=0.0, online_decay=0.0, episodic=False
    )
    online = OnlineAdapter(text, SCALE / 10, None, config)
    alone = adapt_views(views, text, SCALE / 10, None, dataclasses.replace(config, episodic=True))
    torch.testing.assert_close(online.predict(views), alone, rtol=0, atol=1e-5)


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


KINDS = ("mixed", "class by class", "shifted", "half of them without meaning")


def labelled(streams, steps, text, seed=2):
    """Images with their classes, a quarter of the streams of each kind; zero-shot has four of five right.

    Some of the views are worse than the image itself. The streams of the second kind show one class for
    25 images, then the next; those of the third have all images moved to one side; every other image
    of the fourth is noise on one side, of class -1.
    """
    generator = torch.Generator().manual_seed(seed)
    classes, dim = text.shape
    kind = torch.arange(streams) % len(KINDS)
    for step in range(steps):
        labels = torch.randint(classes, (streams,), generator=generator)
        labels = torch.where(kind == 1, step // 25 % classes, labels)
        own = 0.45 * torch.randn(streams, 1, dim, generator=generator)
        size = 0.6 * torch.rand(streams, 8, 1, generator=generator)
        size[:, 0] = 0.2
        noise = torch.randn(streams, 8, dim, generator=generator)
        views = text[labels][:, None] + own + size * noise
        views[kind == 2, :, 0] += 0.6
        if step % 2:
            labels[kind == 3] = -1
            views[kind == 3] = noise[kind == 3]
            views[kind == 3, :, 0] += 2
        yield normalize(views, dim=-1), labels


@pytest.mark.parametrize("agreement", [CONFIG.agreement, 0.0])
def test_a_million_images_are_predicted_as_well_as_by_doing_nothing(agreement):
    """By 0.2 points at most may a stream of any kind be worse, with the gate and without it.

    The stream's pieces between restarts run side by side, which gives the same heads.
    """
    clean_views, clean_labels, text = clean()
    pieces = 4000 if agreement else 400
    config = dataclasses.replace(CONFIG, online_restart=250, agreement=agreement)
    online = OnlineAdapter(text, SCALE, config=config, streams=pieces)
    right, before, known, changed = (torch.zeros(pieces, dtype=torch.long) for _ in range(4))
    for number, (views, labels) in enumerate(labelled(pieces, config.online_restart, text)):
        unadapted = (views[:, 0] @ text.T).argmax(-1)
        answer = online.step(views)
        adapted = answer.argmax(-1)
        right += adapted == labels
        before += unadapted == labels
        known += labels >= 0
        changed += adapted != unadapted
        if number % 50 == 49:
            assert answer.isfinite().all()
            found = accuracy(online, clean_views, clean_labels)
            assert found.mean() > 0.99 and found.min() > 0.6
    assert online.seen * pieces == (1_000_000 if agreement else 100_000)
    assert changed.sum() > 0
    for kind in range(len(KINDS)):
        own = slice(kind, None, len(KINDS))
        images = known[own].sum()
        assert 0.7 < before[own].sum() / images < 0.9
        assert (right[own].sum() - before[own].sum()) / images > -0.002, KINDS[kind]


BARE = dataclasses.replace(
    CONFIG, online_restart=0, online_decay=0.0, online_collapse=0.0, agreement=0.0
)


def after(changes, streams, steps):
    """The heads after images of all kinds, with other settings than the bare ones."""
    text = clean()[2]
    online = OnlineAdapter(
        text, SCALE, config=dataclasses.replace(BARE, **changes), streams=streams
    )
    for views, _ in labelled(streams, steps, text):
        online.step(views)
    return online


@pytest.mark.parametrize("decay, low, high", [(0.0, 0.0, 0.9), (0.1, 0.95, 1.0)])
def test_without_decay_long_steps_do_destroy_it(decay, low, high):
    """Else the test above would prove little."""
    views, labels, _ = clean()
    online = after({"max_step": 1.0, "online_decay": decay}, 20, 400)
    assert low <= accuracy(online, views, labels).mean() <= high


@pytest.mark.parametrize("max_step", [1.0, 3.0])
def test_collapse_is_seen_and_mended(max_step):
    views, labels, _ = clean()
    lost, mended = (
        after({"max_step": max_step, "online_collapse": collapse}, 40, 300)
        for collapse in (0.0, 0.8)
    )
    assert lost.restores["collapse"] == 0 and mended.restores["collapse"] > 0
    found = [float(accuracy(online, views, labels).mean()) for online in (lost, mended)]
    assert found[1] > found[0] + 0.03


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
