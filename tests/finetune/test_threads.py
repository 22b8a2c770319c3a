"""Fits that draw random numbers in two threads, and what they leave of the global generators."""

from __future__ import annotations

import random
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch

from finetune.conftest import examples_of
from rada.encoders import load_encoder
from rada.methods import Run, get_method

QUICK = {"epochs": 2, "batch_size": 20}


def fit(model_folder, data, name):
    encoder, method = load_encoder(model_folder), get_method(name)
    examples = examples_of(encoder, data)
    model = method.fit(examples, method.config(**QUICK), Run(seed=1, encoder=encoder))
    return model.logits(model.features_of(examples), examples.class_set())


@pytest.mark.parametrize("name", ["clip_lora", "ft", "maple"])
def test_two_threads_fit_as_one_and_the_generators_stay(model_folder, data, name):
    alone = fit(model_folder, data, name)
    with ThreadPoolExecutor(2) as pool:
        jobs = [pool.submit(fit, model_folder, data, name) for _ in range(2)]
    for job in jobs:
        assert torch.equal(job.result(), alone)
    before = torch.random.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()
    fit(model_folder, data, name)
    assert torch.equal(torch.random.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])
    assert random.getstate() == before[2]
