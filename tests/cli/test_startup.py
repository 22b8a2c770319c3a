"""What a command imports before it answers: start-up is most of what a person waits for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from rada import Classifier, EFTConfig

HEAVY = "torchvision timm transformers open_clip torch._dynamo sympy sklearn scipy matplotlib rich"
WATCH = """
import json, sys
from rada.cli import main
try:
    main()
except SystemExit as ended:
    assert not ended.code, ended.code
heavy = json.loads(sys.stdin.read())
print(json.dumps(sorted(name for name in heavy if name in sys.modules)), file=sys.stderr)
"""


def imported_anyway() -> set[str]:
    """Return the heavy packages that older torch (sympy) and typer (rich) import by themselves."""
    code = """
import json, sys, torch, typer
torch.nn.Linear(1, 1, device="meta")
print(json.dumps([*sys.modules]))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(HEAVY.split()).intersection(json.loads(done.stdout.splitlines()[-1]))


@pytest.fixture
def images(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for label, shade in (("dark", 60), ("light", 190)):
        folder = tmp_path / "images" / label
        folder.mkdir(parents=True)
        for number in range(3):
            noise = rng.integers(-50, 50, (60, 80, 3)) + shade
            Image.fromarray(noise.clip(0, 255).astype(np.uint8)).save(folder / f"{number}.jpg")
    return tmp_path / "images"


def test_a_prediction_imports_only_what_it_needs(images: Path, tmp_path: Path) -> None:
    config = EFTConfig(epochs=1, min_steps=0, strength=1.0)
    classifier = Classifier("embedded", config, progress=False)
    classifier.fit(images, output_dir=tmp_path / "head")
    words = ["predict", str(tmp_path / "head"), str(images / "dark" / "0.jpg"), "--workers", "0"]
    done = subprocess.run(
        [sys.executable, "-c", WATCH, *words],
        input=json.dumps(HEAVY.split()),
        capture_output=True,
        text=True,
        check=True,
    )
    path, name, chance = done.stdout.splitlines()[1].split(",")
    assert name == classifier.predict([path])[0] and 0.5 <= float(chance) <= 1
    assert set(json.loads(done.stderr)) <= imported_anyway()


def test_fit_says_what_it_does_before_it_imports_torch(images: Path, tmp_path: Path) -> None:
    """Without torch it gets as far as its first line."""
    (tmp_path / "none").mkdir()
    (tmp_path / "none" / "torch.py").write_text("raise ImportError('not yet')")
    paths = os.pathsep.join([str(tmp_path / "none"), *sys.path])
    words = ["fit", str(images), "--out", str(tmp_path / "head")]
    done = subprocess.run(
        [sys.executable, "-m", "rada", *words],
        capture_output=True,
        text=True,
        env=os.environ | {"PYTHONPATH": paths},
    )
    assert done.returncode == 1 and done.stderr.splitlines()[0] == f"Opening {images} ..."
    assert "not yet" in done.stderr
