"""The prior probe and RAda + probe against plain transcriptions, and what they promise."""

from __future__ import annotations

import dataclasses
import math

import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy, normalize

from rada import ClassSet, Features, get_method
from rada.methods import Run
from rada.methods.prior_probe import Correction, PriorProbeConfig, PriorProbeModel, _shrinking
from rada.methods.rada_probe import ProbedHeadModel, RAdaProbeConfig
from rada.training.strength import fitted_temperature
from toy import SCALE, toy

QUICK = RAdaProbeConfig(epochs=3, min_steps=20, batch_size=8)


def data(classes: int = 6, shots: int = 4, seed: int = 0, noise: float = 0.5) -> Features:
    images, labels, text = toy(classes, shots, seed=seed)
    generator = torch.Generator().manual_seed(seed)
    images = normalize(images + noise * torch.randn(images.shape, generator=generator) / 4, dim=-1)
    names = tuple(map(str, range(classes)))
    return Features(images.double(), labels, names, text_features=text.double(), scale=SCALE)


def plain_matrix(found: Features) -> Tensor:
    """A of the module's text: the scatter image by image, and the root by eigenvalues of the whole."""
    images, labels = found.plain(), found.labels.tolist()
    scatter = torch.zeros(found.dim, found.dim, dtype=torch.float64)
    for label in set(labels):
        own = [image for image, of in zip(images, labels, strict=True) if of == label]
        for image in own:
            away = image - sum(own) / len(own)
            scatter += torch.outer(away, away)
    share = scatter.trace() / (len(labels) - len(set(labels)))
    values, vectors = torch.linalg.eigh(torch.eye(found.dim).double() + scatter / share)
    return vectors @ torch.diag(values**-0.5) @ vectors.T


def plain_spread(found: Features) -> float:
    mean, matrix = sum(found.plain()) / len(found), plain_matrix(found)
    rows = [matrix @ (image - mean) for image in found.plain()]
    return math.sqrt(sum(float(row @ row) for row in rows) / len(rows))


def plain_objective(found: Features, weight: Tensor, bias: Tensor, variance: float) -> Tensor:
    """The negative log posterior as the module's text says it, term by term."""
    images, text = found.plain(), found.class_set().text_features
    zero_shot = SCALE * images @ text.T
    temperature = fitted_temperature(zero_shot, found.labels)
    mean, matrix, spread = sum(images) / len(images), plain_matrix(found), plain_spread(found)
    total = (weight.square().sum() + bias.square().sum()) / (2 * variance)
    for image, label, start in zip(images, found.labels, zero_shot, strict=True):
        logits = start / temperature + weight @ (matrix @ (image - mean) / spread) + bias
        total = total - (logits[label] - logits.logsumexp(0))
    return total


@pytest.mark.parametrize("shots", [2, 4, 12])  # fewer images than dimensions, and more
def test_the_weights_are_the_most_likely_ones(shots: int) -> None:
    """The gradient of the plain objective vanishes at the solution, and no step near it is better."""
    found = data(shots=shots)
    model = get_method("prior_probe").fit(found, PriorProbeConfig(iterations=500))
    assert isinstance(model, PriorProbeModel)
    correction = model.correction
    variance = 10.0
    inverse = torch.linalg.inv(plain_matrix(found))
    weight = (correction.weight @ inverse * plain_spread(found)).clone().requires_grad_()
    bias = correction.bias.clone().requires_grad_()
    value = plain_objective(found, weight, bias, variance)
    value.backward()
    assert weight.grad is not None and bias.grad is not None
    assert float(weight.grad.abs().max()) < 1e-3 and float(bias.grad.abs().max()) < 1e-3
    generator = torch.Generator().manual_seed(1)
    for _ in range(5):
        step = 0.05 * torch.randn(weight.shape, generator=generator, dtype=torch.float64)
        assert (
            plain_objective(found, weight.detach() + step, bias.detach(), variance) > value.detach()
        )


def test_one_image_of_every_class_or_copies_of_it_say_nothing_of_how_a_class_differs() -> None:
    once = data(shots=1)
    twice = dataclasses.replace(
        once,
        image_features=once.image_features.repeat(3, 1, 1),
        labels=once.labels.repeat(3),
        ids=(),
    )
    for found in (once, twice):
        images = found.plain()
        assert torch.equal(_shrinking(images, found.labels, 6), torch.eye(found.dim).double())
    get_method("prior_probe").fit(twice)


def test_directions_in_which_a_class_differs_count_less() -> None:
    """Two classes differ in one direction, their images in another: A shrinks the latter alone."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(2).repeat(20)
    images = torch.zeros(40, 3, dtype=torch.float64)
    images[:, 0] = labels
    images[:, 1] = torch.randn(40, generator=generator).double()
    matrix = _shrinking(images, labels, 2)
    assert float(matrix[0, 0]) == float(matrix[2, 2]) == pytest.approx(1.0)
    # all of the scatter is in one direction, and its share of 38 degrees of freedom is a 38th
    assert float(matrix[1, 1]) == pytest.approx((1 + 38) ** -0.5)


def test_the_gate_is_one_near_training_images_and_falls_away_from_them() -> None:
    found = data(classes=5, shots=6)
    correction = Correction(5, found.dim, 0)
    correction.fit(found, PriorProbeConfig(iterations=50))
    images = found.plain()
    assert torch.equal(correction.gate(images), torch.ones(len(images), 1, dtype=images.dtype))
    nearest = []
    for row, image in enumerate(images):  # the radius, written plainly
        others = torch.cat([images[:row], images[row + 1 :]])
        nearest.append(1 - max(float(image @ other) for other in others))
    radius = float(torch.tensor(nearest).quantile(0.9))
    assert float(correction.radius) == pytest.approx(radius, rel=1e-5)
    far = normalize(-images[:1], dim=-1)
    distance = 1 - max(float(far[0] @ other) for other in images)
    assert float(correction.gate(far)) == pytest.approx(math.exp(1 - distance / radius), rel=1e-4)
    correction.fit(found, PriorProbeConfig(iterations=50, reach=0.5))
    assert float(correction.gate(far)) == pytest.approx(
        math.exp(1 - 2 * distance / radius), rel=1e-4
    )


def test_training_raises_accuracy_and_no_variance_is_zero_shot() -> None:
    found = data(noise=2.5)
    classes = found.class_set()
    zero_shot = classes.zero_shot_logits(found.plain(), SCALE)
    before = (zero_shot.argmax(1) == found.labels).double().mean()
    model = get_method("prior_probe").fit(found)
    after = (model.logits(found.plain(), classes).argmax(1) == found.labels).double().mean()
    assert after > before + 0.1
    still = get_method("prior_probe").fit(found, PriorProbeConfig(variance=1e-12))
    torch.testing.assert_close(
        still.logits(found.plain(), classes, strength=1.0), zero_shot, atol=1e-4, rtol=0
    )


def test_the_mixture_is_the_documented_one() -> None:
    found = data()
    model = get_method("rada_probe").fit(found, QUICK, Run(seed=1))
    assert isinstance(model, ProbedHeadModel)
    strength, share = model.mixture.tolist()
    images, classes = data(seed=3).plain().float(), found.class_set()
    classes = ClassSet(classes.names, classes.text_features.float())
    model = model.float()
    zero_shot = SCALE * images @ classes.text_features.T
    head = model.head(images, classes.text_features, SCALE).logits
    correction = model.correction
    h = zero_shot + strength * (head - zero_shot)
    p = zero_shot + correction.temperature * (
        (images - correction.mean) @ correction.weight.T + correction.bias
    )
    expected = h + share * correction.gate(images) * (p - h)
    raw = model.logits(images, classes, strength=1.0)
    torch.testing.assert_close(raw, expected.detach(), atol=1e-3, rtol=1e-4)
    own = model.logits(images, classes)
    torch.testing.assert_close(own, raw / model.strength.trained_temperature)


def test_a_class_that_was_never_seen_leaves_the_answer_to_the_head() -> None:
    found = data()
    model = get_method("rada_probe").fit(found, QUICK, Run(seed=1)).float()
    text = found.class_set().text_features.float()
    new = ClassSet(("0", "1", "unheard of"), text[:3])
    head = model.head(found.plain().float(), new.text_features, SCALE).logits
    torch.testing.assert_close(
        model.logits(found.plain().float(), new, strength=1.0), head.detach(), atol=1e-4, rtol=1e-4
    )
    probe = get_method("prior_probe").fit(found).float()
    images = found.plain().float()
    torch.testing.assert_close(
        probe.logits(images, new, strength=1.0), new.zero_shot_logits(images, SCALE)
    )


@pytest.mark.parametrize("name", ["prior_probe", "rada_probe"])
def test_the_terms_add_up_to_the_logits(name: str) -> None:
    found = data()
    config = QUICK if name == "rada_probe" else None
    model = get_method(name).fit(found, config, Run(seed=1)).float()
    classes = found.class_set()
    classes = ClassSet(classes.names, classes.text_features.float())
    images = data(seed=3).plain().float()  # some near the training images, some not
    for candidates in (classes, ClassSet(("0", "unheard of"), classes.text_features[:2])):
        for strength in (None, 0.0, 0.5, 1.0):
            terms = model.logit_terms(images, candidates, strength=strength)
            logits = model.logits(images, candidates, strength=strength)
            torch.testing.assert_close(terms.logits(), logits, atol=1e-3, rtol=1e-4)


def test_one_shot_takes_the_prior_and_the_grid_holds_every_single_part() -> None:
    one = get_method("rada_probe").fit(data(shots=1), QUICK, Run(seed=1))
    assert isinstance(one, ProbedHeadModel)
    assert one.mixture.tolist() == list(one.grid.prior) == [1.0, 0.5]
    points = one.grid.points
    assert points[0] == (0.0, 0.0) and {(1.0, 0.0), (0.0, 1.0), (1.0, 0.5)} <= set(points)
    assert one.grid.penalties[points.index(one.grid.prior)] == 0
    assert all(value >= 0 for value in one.grid.penalties)


def test_points_of_the_grid_are_the_parts_alone() -> None:
    found = data()
    model = get_method("rada_probe").fit(found, QUICK, Run(seed=1))
    assert isinstance(model, ProbedHeadModel)
    images, classes = found.plain(), found.class_set()
    zero_shot, head, probe = model.at_points(images, classes, [(0.0, 0.0), (1.0, 0.0), (0.0, 1.0)])
    with torch.no_grad():
        torch.testing.assert_close(zero_shot, model.zero_shot_logits(images, classes))
        torch.testing.assert_close(head, model.head_logits(images, classes))
    alone = get_method("prior_probe").fit(found, PriorProbeConfig())
    expected = alone.logits(images, classes, strength=1.0)
    torch.testing.assert_close(probe, expected, atol=1e-6, rtol=1e-6)


def test_unequal_shots_do_not_favour_the_big_classes() -> None:
    """With twelve times as many images of one class, the images of the others are still found."""
    images, labels, text = toy(4, 12, seed=2)
    generator = torch.Generator().manual_seed(5)
    noisy = normalize(images + 0.4 * torch.randn(images.shape, generator=generator) / 4, dim=-1)
    position = torch.tensor(
        [int((labels[:row] == labels[row]).sum()) for row in range(len(labels))]
    )
    few = (labels == 0) | (position < 1)
    names = tuple(map(str, range(4)))
    found = Features(noisy[few], labels[few], names, text_features=text, scale=SCALE)
    model = get_method("rada_probe").fit(found, QUICK, Run(seed=1))
    asked, wanted = noisy[~few], labels[~few]
    logits = model.logits(asked, found.class_set())
    zero_shot = found.class_set().zero_shot_logits(asked, SCALE)
    right = (logits.argmax(1) == wanted).double().mean()
    assert right >= (zero_shot.argmax(1) == wanted).double().mean()
    assert cross_entropy(logits, wanted) < cross_entropy(zero_shot, wanted) + 0.2


def test_many_images_are_solved_for_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    from rada.methods import prior_probe

    found = data(shots=8)
    whole = get_method("prior_probe").fit(found)
    monkeypatch.setattr(prior_probe, "_CHUNK", 60)
    parts = get_method("prior_probe").fit(found)
    torch.testing.assert_close(
        whole.correction.weight, parts.correction.weight, atol=1e-5, rtol=1e-4
    )
    monkeypatch.setattr(prior_probe, "_MOST_SUPPORT", 10)
    assert get_method("prior_probe").fit(found).correction.support.shape[0] == 10


def test_some_of_many_images_are_asked_for_their_nearest_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from rada.methods import prior_probe

    found = data(shots=40)
    nearest = [1 - (one @ found.plain().T).topk(2).values[1] for one in found.plain()]
    radius = float(get_method("prior_probe").fit(found).correction.radius)
    assert radius == pytest.approx(float(torch.stack(nearest).quantile(0.9)), abs=1e-6)
    monkeypatch.setattr(prior_probe, "_MOST_ASKED", 60)
    some = float(get_method("prior_probe").fit(found).correction.radius)
    assert some == pytest.approx(radius, rel=0.1) and some != radius


def test_refuses_a_variance_that_is_none() -> None:
    from rada.core.errors import RadaError

    for changes in ({"variance": 0.0}, {"iterations": 0}, {"reach": 0.0}):
        with pytest.raises(RadaError):
            dataclasses.replace(QUICK, **changes)
