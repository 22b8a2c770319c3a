"""Which images a step sees: every one once an epoch, however many processes share it."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rada.training.batches import Order, Position

orders = st.builds(
    Order,
    labels=st.lists(st.integers(0, 6), min_size=1, max_size=60).map(torch.tensor),
    classes=st.just(7),
    batch_size=st.integers(1, 20),
    classes_per_step=st.integers(2, 7),
    templates=st.integers(1, 4),
    seed=st.integers(0, 1000),
)


@settings(deadline=None, max_examples=60)
@given(orders, st.integers(0, 5), st.integers(1, 5))
def test_shares_make_up_the_epoch(order, epoch, processes):
    seen = []
    for number in range(order.steps_per_epoch):
        at = Position(epoch, number)
        shares = [order.share(at, rank, processes) for rank in range(processes)]
        assert len({len(places) for places, _ in shares}) == 1
        places = torch.cat([places[weights > 0] for places, weights in shares])
        own = order.images(at)[places]
        assert len(order.caption_templates(at)) == len(own)  # one each, whoever has the image
        assert sorted(own.tolist()) == sorted(order.images(at).tolist())
        seen += own.tolist()
    assert sorted(seen) == list(range(len(order.labels)))


@settings(deadline=None, max_examples=60)
@given(orders, st.integers(0, 5))
def test_draws_depend_on_seed_and_step_alone(order, epoch):
    again = Order(*(getattr(order, name) for name in order.__dataclass_fields__))
    for number in reversed(range(order.steps_per_epoch)):
        at = Position(epoch, number)
        (classes, template), (other, same) = order.draws(at), again.draws(at)
        assert template == same and 0 <= template < order.templates
        present = set(order.labels[order.images(at)].tolist())
        size = max(order.classes_per_step, len(present))
        assert (classes is None) == (size == 7)
        if classes is not None:
            assert torch.equal(classes, other) and len(set(classes.tolist())) == size
            assert present <= set(classes.tolist())
        assert torch.equal(order.images(at), again.images(at))


def test_epochs_and_seeds_differ():
    labels = torch.zeros(50, dtype=torch.long)
    first = [
        Order(labels, 1, 50, 0, 1, seed).images(Position(epoch, 0)).tolist()
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in first}) == 4
