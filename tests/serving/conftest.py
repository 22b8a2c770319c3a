"""A real service on 127.0.0.1, with models of a tiny encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("fastapi_offline", reason="needs the extra 'serve'")
pytest.importorskip("prometheus_client", reason="needs the extra 'serve'")

import httpx2

from golden.make import QUICK, tiny_encoder, write_images
from rada import Classifier, get_method
from rada.serving import ServeSettings, Service

OPTIONS: dict[str, Any] = {"workers": 0, "cache": False, "progress": False}


@pytest.fixture(scope="session")
def encoder_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("encoder") / "clip"
    tiny_encoder(folder)
    return folder


@pytest.fixture(scope="session")
def images(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return sorted(write_images(tmp_path_factory.mktemp("images") / "colours").rglob("*.png"))


@pytest.fixture(scope="session")
def heads(
    tmp_path_factory: pytest.TempPathFactory, encoder_folder: Path, images: list[Path]
) -> dict[str, Path]:
    """Saved models: one that scores any classes, one that knows its own alone."""
    root, found = tmp_path_factory.mktemp("heads"), {}
    for name in ("rada", "linear_probe"):
        config = get_method(name).config(**QUICK.get(name, {}))
        clf = Classifier(str(encoder_folder), name, config=config, **OPTIONS)
        found[name] = root / name
        clf.fit(str(images[0].parents[1]), seed=1, output_dir=found[name])
    return found


@pytest.fixture(scope="session")
def models(heads: dict[str, Path], encoder_folder: Path) -> dict[str, Classifier]:
    """Loaded models; an encoder as it is knows no classes."""
    found = {name: Classifier.from_pretrained(path, **OPTIONS) for name, path in heads.items()}
    return found | {"plain": Classifier(str(encoder_folder), "zero_shot", **OPTIONS)}


@pytest.fixture(scope="session")
def one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


LIMITS = {
    "port": 0,
    "max_body": 1 << 20,
    "max_pixels": 1_000_000,
    "max_images": 8,
    "max_classes": 20,
    "threads": 1,
}


@pytest.fixture(scope="session")
def service(models: dict[str, Classifier], one_thread: None) -> Iterator[str]:
    """The address of a service."""
    with Service(models, ServeSettings(**LIMITS)).background() as address:
        yield address


@pytest.fixture
def client(service: str) -> Iterator[httpx2.Client]:
    with httpx2.Client(base_url=service, timeout=60) as client:
        yield client


def problem(answer: httpx2.Response, status: int, kind: str) -> dict[str, str]:
    """Return what an answer says is wrong; it has to be of this status and kind, and whole."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"type", "value", "cause", "fix"} and all(error.values()), error
    assert error["type"] == kind, error
    return error
