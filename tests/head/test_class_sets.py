"""Work on the class set is done once, never goes stale, and leaves no trace."""

from __future__ import annotations

import copy
import gc
import io
import pickle
import weakref
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn

from rada.head import RAdaHead


def unit(rows: int, dim: int = 16, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return nn.functional.normalize(torch.randn(rows, dim, dtype=dtype), dim=-1)


@pytest.fixture
def head() -> RAdaHead:
    torch.manual_seed(0)
    head = RAdaHead(16, 4)
    nn.init.normal_(head.out.weight, std=0.2)
    return head


def fresh(head: RAdaHead, image: torch.Tensor, text: torch.Tensor, scale: float) -> torch.Tensor:
    """What a head without memories answers."""
    other = RAdaHead(head.dim, head.num_heads).to(head.out.weight.dtype)
    other.load_state_dict(head.state_dict())
    with torch.no_grad():
        return other(image, text, scale).logits


def projections(head: RAdaHead, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts how often the class set is projected."""
    from rada.head import classes

    counted: list[int] = []
    made = classes.prepare_classes
    monkeypatch.setattr(classes, "prepare_classes", lambda *a: (counted.append(1), made(*a))[1])
    return counted


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_evaluation_projects_the_classes_once(
    head: RAdaHead, mode: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = projections(head, monkeypatch)
    text = unit(5)
    with mode():
        for _ in range(4):
            head(unit(3), text, 10.0)
        head(unit(3), text.clone(), torch.tensor(10.0))
    assert len(counted) == 1


def test_training_projects_every_time_and_keeps_nothing(
    head: RAdaHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    counted = projections(head, monkeypatch)
    text = unit(5)
    with torch.no_grad():
        head(unit(3), text, 10.0)
    for _ in range(3):
        head(unit(3), text, 10.0).logits.sum().backward()
    assert len(counted) == 4
    assert head._class_sets._entry is None


def _optimizer_step(head: RAdaHead, **kwargs: bool) -> None:
    optimizer = torch.optim.AdamW(head.parameters(), lr=0.1, **kwargs)
    head(unit(2), unit(5), 3.0).logits.square().sum().backward()
    optimizer.step()


def _load(head: RAdaHead) -> None:
    head.load_state_dict(RAdaHead(16, 4).state_dict())


EDITS: dict[str, Callable[[RAdaHead], object]] = {
    "in place": lambda h: h.query_text.weight.detach().mul_(1.5),
    "through .data": lambda h: h.query_text.weight.data.mul_(1.5),
    "one entry": lambda h: h.query_text.weight.data[3, 2].add_(0.5),
    "bias": lambda h: h.query_text.bias.data.add_(0.5),
    "replaced": lambda h: setattr(h, "query_text", nn.Linear(16, 16)),
    "load_state_dict": _load,
    "optimizer": _optimizer_step,
    "fused optimizer": lambda h: _optimizer_step(h, fused=True),
    "to float64 and back": lambda h: h.double().float(),
    "to bfloat16": lambda h: h.to(torch.bfloat16).float(),
    "numpy": lambda h: np.copyto(h.query_text.weight.detach().numpy(), 0.3),
}


@pytest.mark.parametrize("edit", EDITS.values(), ids=EDITS.keys())
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_an_edited_weight_is_seen(head: RAdaHead, edit: Callable, mode: Callable) -> None:
    image, text = unit(3), unit(5)
    with mode():
        head(image, text, 10.0)
    edit(head)
    with mode():
        assert torch.equal(head(image, text, 10.0).logits, fresh(head, image, text, 10.0))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_edited_classes_and_scale_are_seen(head: RAdaHead, mode: Callable) -> None:
    shared = unit(5).numpy()
    image, text = unit(3), torch.from_numpy(shared)
    with mode():
        head(image, text, 10.0)
        shared[[0, 1]] = shared[[1, 0]]
        assert torch.equal(head(image, text, 10.0).logits, fresh(head, image, text, 10.0))
        text.copy_(unit(5))
        assert torch.equal(head(image, text, 10.0).logits, fresh(head, image, text, 10.0))
        assert torch.equal(head(image, text, 20.0).logits, fresh(head, image, text, 20.0))
        more = unit(7)
        assert torch.equal(head(image, more, 20.0).logits, fresh(head, image, more, 20.0))
        head.double()
        wide = head(image.double(), more.double(), 20.0).logits
        assert torch.equal(wide, fresh(head, image.double(), more.double(), 20.0))


def test_a_set_made_in_inference_mode_serves_training_of_the_rest(head: RAdaHead) -> None:
    image, text = unit(3), unit(5)
    with torch.inference_mode():
        head(image, text, 10.0)
    head.requires_grad_(False)
    head.value.requires_grad_(True)
    head(image, text, 10.0).logits.sum().backward()
    assert head.value.weight.grad.any()


def test_copies_and_files_do_not_carry_it(head: RAdaHead) -> None:
    with torch.no_grad():
        head(unit(3), unit(500), 10.0)
    assert head._class_sets._entry is not None
    assert copy.deepcopy(head)._class_sets._entry is None
    assert copy.copy(head._class_sets)._entry is None
    assert pickle.loads(pickle.dumps(head))._class_sets._entry is None
    file = io.BytesIO()
    torch.save(head, file)
    assert file.tell() < 40_000
    assert len(head.state_dict()) == 12


def test_it_does_not_keep_the_callers_tensors_alive(head: RAdaHead) -> None:
    text = unit(5)
    gone = weakref.ref(text)
    with torch.no_grad():
        head(unit(3), text, 10.0)
    del text
    gc.collect()
    assert gone() is None


def test_it_holds_one_set_only_and_none_that_is_large(
    head: RAdaHead, monkeypatch: pytest.MonkeyPatch
) -> None:
    from rada.head import classes

    with torch.no_grad():
        for rows in (5, 6, 7):
            head(unit(3), unit(rows), 10.0)
        assert head._class_sets._entry[2].text.shape == (7, 16)
        monkeypatch.setattr(classes, "_LARGEST", 1000)
        head(unit(3), unit(50), 10.0)
        assert head._class_sets._entry is None
