"""Classes that differ by image, and shortlists, against the equations image by image in float64."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn.functional import normalize

from oracle import oracle
from rada import RAdaHead
from rada.core.errors import ConfigError, FeatureError
from rada.head.listed import landmark_places

SCALE = 20.0


@pytest.fixture
def head() -> RAdaHead:
    torch.manual_seed(0)
    head = RAdaHead(16, 4, 0.7).double()
    for parameter in head.parameters():
        torch.nn.init.normal_(parameter, std=0.25)
    return head


def unit(*shape: int, seed: int = 1) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def close(found: Tensor, wanted: Tensor, atol: float = 1e-9) -> None:
    torch.testing.assert_close(found, wanted, rtol=0, atol=atol)


@pytest.mark.parametrize("budget", [None, 1 << 12])
@pytest.mark.parametrize("classes", [1, 5, 40])
def test_own_classes_are_the_equations(head: RAdaHead, classes: int, budget: int | None) -> None:
    """Forward and backward, of every input; a small budget cuts the maps into tiles."""
    head.memory_budget = budget
    image, text = unit(7, 16).requires_grad_(), unit(7, classes, 16, seed=2).requires_grad_()
    scale = torch.tensor(SCALE, dtype=torch.float64, requires_grad=True)
    found = head(image, text, scale, 0.6, return_mask=True)
    alone = [oracle(head, f[None], h, scale, 0.6) for f, h in zip(image, text, strict=True)]
    close(found.logits, torch.cat([one.logits for one in alone]))
    close(found.max_deviation, torch.cat([one.max_deviation for one in alone]))
    close(found.mask, torch.cat([one.mask for one in alone]))
    weight = torch.randn(7, classes, generator=torch.Generator().manual_seed(3)).double()
    sources = [image, text, scale, *head.parameters()]

    def total(logits: Tensor, deviation: Tensor) -> Tensor:
        return (logits * weight).sum() + deviation.sum()

    own = torch.autograd.grad(total(found.logits, found.max_deviation), sources)
    wanted = torch.autograd.grad(
        total(
            torch.cat([one.logits for one in alone]), torch.cat([o.max_deviation for o in alone])
        ),
        sources,
    )
    for one, other in zip(own, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-8)


def mask_among(head: RAdaHead, image: Tensor, marks: Tensor, own: Tensor | None) -> Tensor:
    """The masks of the landmarks `(R, D)`, keys and queries, and of one more class, a query alone."""
    scale = torch.tensor(SCALE, dtype=image.dtype)
    queries = marks if own is None else torch.cat([marks, own[None]])
    tokens = scale * image * queries
    sources = [
        head.query_image(scale.sqrt() * image)[None].repeat(len(queries), 1),
        head.query_text(scale.sqrt() * queries),
        head.query_rational(tokens),
    ]
    keys, values = head.key(scale * image * marks), head.value(scale * image * marks)
    width, outputs = len(image) // head.num_heads, []
    for number in range(head.num_heads):
        part = slice(number * width, (number + 1) * width)
        average: Tensor | float = 0.0
        for query in sources:
            scores = query[:, part] @ keys[:, part].T / width**0.5 / head.temperature
            average = average + len(queries) * scores.flatten().softmax(0).view(scores.shape) / 3
        outputs.append(average @ values[:, part])
    return torch.relu(1 + head.out(torch.cat(outputs, 1)))


def listed_by_hand(head: RAdaHead, image: Tensor, text: Tensor, count: int) -> tuple[Tensor, ...]:
    """Every listed class one by one."""
    marks = landmark_places(text).tolist()
    logits, deviations = [], []
    for base, own in zip(SCALE * image @ text.T, image, strict=True):
        peaks = []
        for best in base.argsort(descending=True)[:count].tolist():
            is_mark = best in marks
            masks = mask_among(head, own, text[marks], None if is_mark else text[best])
            mask = masks[marks.index(best) if is_mark else -1]
            base = base.scatter(
                0, torch.tensor([best]), (SCALE * mask * own * text[best]).sum()[None]
            )
            peaks.append((mask - 1).abs().max())
        logits.append(base)
        deviations.append(torch.stack(peaks).max())
    return torch.stack(logits), torch.stack(deviations)


@pytest.mark.parametrize(("count", "landmarks"), [(1, 5), (4, 5), (4, 64), (11, 3)])
def test_a_shortlist_is_the_equations_among_landmarks(
    head: RAdaHead, count: int, landmarks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("rada.head.listed.LANDMARKS", landmarks)
    image, text = unit(6, 16).requires_grad_(), unit(12, 16, seed=2).requires_grad_()
    found = head(image, text, SCALE, shortlist=count, return_mask=True)
    logits, deviation = listed_by_hand(head, image, text, count)
    close(found.logits, logits)
    close(found.max_deviation, deviation)
    assert (found.mask == 1).all(-1).sum(1).tolist() == [12 - count] * 6
    close((SCALE * found.mask * image[:, None] * text).sum(-1), logits)
    sources = [image, text, *head.parameters()]
    own = torch.autograd.grad(found.logits.square().sum() + found.max_deviation.sum(), sources)
    wanted = torch.autograd.grad(logits.square().sum() + deviation.sum(), sources)
    for one, other in zip(own, wanted, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-7)


@torch.no_grad()
def test_of_few_classes_the_listed_ones_have_the_masks_of_the_whole_set(head: RAdaHead) -> None:
    image, text = unit(6, 16), unit(40, 16, seed=2)
    found = head(image, text, SCALE, 0.7, shortlist=9, return_mask=True)
    whole = head(image, text, SCALE, 0.7, return_mask=True)
    listed = (found.mask != 1).any(-1)
    assert listed.sum(1).tolist() == [9] * 6
    close(found.mask[listed], whole.mask[listed])


@torch.no_grad()
@pytest.mark.parametrize("large", [30.0, 300.0])
def test_sharp_maps_stay_finite(head: RAdaHead, large: float) -> None:
    """A class that the landmarks have nothing like takes all of the joint softmax, not more."""
    head = head.float()
    for layer in (head.query_text, head.query_rational, head.key):
        layer.weight.mul_(large)
    image, text = unit(6, 16).float(), unit(200, 16, seed=2).float()
    found = head(image, text, SCALE, shortlist=9, return_mask=True)
    by_hand, _ = listed_by_hand(head.double(), image.double(), text.double(), 9)
    assert found.logits.isfinite().all()
    torch.testing.assert_close(found.logits.double(), by_hand, rtol=1e-3, atol=1e-2)


def test_a_shortlist_of_all_is_none(head: RAdaHead) -> None:
    image, text = unit(3, 16), unit(5, 16, seed=2)
    whole = head(image, text, SCALE)
    for count in (5, 9):
        assert torch.equal(head(image, text, SCALE, shortlist=count).logits, whole.logits)


@torch.no_grad()
def test_other_classes_keep_their_zero_shot_logits_and_rank(head: RAdaHead) -> None:
    """The best k for k above the length are defined: by the logits, of which those are zero-shot's."""
    image, text = unit(6, 16), unit(12, 16, seed=2)
    logits, zero_shot = head(image, text, SCALE, shortlist=4).logits, SCALE * (image @ text.T)
    others = zero_shot.argsort(1, descending=True)[:, 4:]
    assert torch.equal(logits.gather(1, others), zero_shot.gather(1, others))
    assert not torch.allclose(logits, zero_shot)
    top = logits.topk(9, 1).indices
    assert all(len(set(row)) == 9 for row in top.tolist())


@torch.no_grad()
def test_order_of_classes_and_company_do_not_matter(
    head: RAdaHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    image, text = unit(9, 16), unit(900, 16, seed=2)
    whole = head(image, text, SCALE, shortlist=6).logits
    order = torch.randperm(900, generator=torch.Generator().manual_seed(0))
    close(head(image, text[order], SCALE, shortlist=6).logits, whole[:, order])
    # alone, the listed classes are projected anew; in a batch, all of the set
    each = [head(one[None], text, SCALE, shortlist=6).logits for one in image]
    close(torch.cat(each), whole)
    monkeypatch.setattr(
        "rada.head.head._LISTED_NUMBERS", 2 * 70 * (16 + 4 * 64)
    )  # two images at a time
    cut = head(image, text, SCALE, shortlist=6, return_mask=True)
    close(cut.logits, whole)
    assert cut.mask is not None and cut.mask.shape == (9, 900, 16)
    assert head(image[:0], text, SCALE, shortlist=6).logits.shape == (0, 900)


def test_the_plain_form_takes_them_too(head: RAdaHead) -> None:
    image, text = unit(4, 16), unit(4, 6, 16, seed=2)

    def logits(rows: Tensor) -> Tensor:
        return head(rows, text, SCALE).logits

    _, change = torch.func.jvp(logits, (image,), (torch.ones_like(image),))
    step = 1e-6
    close(change, (logits(image + step) - logits(image - step)) / (2 * step), 1e-4)


@pytest.mark.parametrize("bad", [0, -1, True, 2.5])
def test_bad_shortlists_are_refused(head: RAdaHead, bad: object) -> None:
    with pytest.raises(ConfigError, match="shortlist"):
        head(unit(2, 16), unit(5, 16), SCALE, shortlist=bad)


def test_bad_class_sets_are_refused(head: RAdaHead) -> None:
    with pytest.raises(FeatureError, match="3 images"):
        head(unit(2, 16), unit(3, 5, 16), SCALE)
    with pytest.raises(ConfigError, match="for each image"):
        head(unit(3, 16), unit(3, 5, 16), SCALE, shortlist=2)
