"""A real service on 127.0.0.1, with models of a tiny encoder."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

pytest.importorskip("fastapi", reason="needs the extra 'serve'")
pytest.importorskip("fastapi_offline", reason="needs the extra 'serve'")
pytest.importorskip("prometheus_client", reason="needs the extra 'serve'")

import httpx2

from fits import OPTIONS, Fits
from rada import Classifier
from rada.serving import ServeSettings, Service


@pytest.fixture(scope="session")
def encoder_folder(fits: Fits) -> Path:
    return fits.encoder


@pytest.fixture(scope="session")
def images(fits: Fits) -> list[Path]:
    return sorted(fits.images.rglob("*.png"))


@pytest.fixture(scope="session")
def heads(fits: Fits) -> dict[str, Path]:
    """Saved models: one that scores any classes, one that knows its own alone."""
    return {name: fits.folder(name) for name in ("rada", "linear_probe")}


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
    "threads": 2,  # what an encoder and a model cannot share shows
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
