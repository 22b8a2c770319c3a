"""The optimisers: those of torch, and no import of its compiler."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from rada.training import optimizers

FIT = """
import sys
from toy import SCALE, toy
from rada import Features, get_method
images, labels, text = toy()
data = Features(images, labels, tuple("abcdef"), text_features=text, scale=SCALE)
for name in ("rada_probe", "taskres"):
    get_method(name).fit(data)
print([name for name in ("torch._dynamo", "sympy") if name in sys.modules])
"""


def test_a_fit_does_not_import_the_compiler() -> None:
    done = subprocess.run(
        [sys.executable, "-c", FIT],
        capture_output=True,
        text=True,
        check=True,
        env={"PYTHONPATH": ":".join(sys.path), "OMP_NUM_THREADS": "1", "PATH": ""},
        cwd=Path(__file__).parents[1],
    )
    assert done.stdout.strip() == "[]", done.stdout


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("SGD", {"lr": 0.1, "momentum": 0.9, "weight_decay": 0.1}),
        ("Adam", {"lr": 0.1, "weight_decay": 0.1}),
        ("AdamW", {"lr": 0.1, "weight_decay": 0.1, "fused": True}),
        ("LBFGS", {"max_iter": 3}),
    ],
)
def test_steps_are_those_of_torch(name: str, settings: dict[str, float]) -> None:
    found = []
    for place in (optimizers, torch.optim):
        weight = torch.nn.Parameter(torch.linspace(-1, 1, 5))
        optimizer = getattr(place, name)([weight], **settings)

        def closure(weight=weight, optimizer=optimizer):  # type: ignore[no-untyped-def]
            optimizer.zero_grad()
            loss = (weight**4).sum()
            loss.backward()
            return loss

        for _ in range(3):
            optimizer.step(closure)
        found.append(weight.detach())
    assert torch.equal(*found)
    assert not torch.equal(found[0], torch.linspace(-1, 1, 5))
