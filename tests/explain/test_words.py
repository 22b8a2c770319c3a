"""Vectors in words: what is a sum of words is found, what is none is not."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import normalize

from rada.explain.words import Vocabulary, word_list


@pytest.fixture(scope="module")
def vocabulary():
    draw = torch.Generator().manual_seed(0)
    return Vocabulary(word_list(), normalize(torch.randn(3000, 384, generator=draw), dim=-1))


def test_the_words_of_a_sum_are_found(vocabulary):
    rows = vocabulary.vectors(["stripe", "fabric", "blue"])
    vector = torch.tensor([0.8, 0.5, -0.6]).double() @ rows
    found = vocabulary.describe(5 * vector, 8, signed=True)
    assert {"stripe", "fabric"} <= set(found.more) and "blue" in found.less
    assert found.concepts[0].word == "stripe" and found.concepts[0].weight == pytest.approx(
        0.7, abs=0.1
    )
    assert found.share > 0.95 and found.by_chance < 0.35
    positive = vocabulary.describe(vector, 8)
    assert not positive.less and positive.share < found.share


def test_vectors_without_content_get_no_words(vocabulary):
    shares = []
    for seed in range(8):
        vector = torch.from_numpy(np.random.default_rng(seed).normal(size=384))
        found = vocabulary.describe(vector, 8)
        shares.append(found.share - found.by_chance)
    assert abs(np.mean(shares)) < 0.03
    nothing = vocabulary.describe(torch.zeros(384), 8)
    assert nothing.concepts == () and nothing.text().startswith("no words fit")


def test_the_same_vector_gives_the_same_words(vocabulary):
    vector = torch.randn(384, generator=torch.Generator().manual_seed(3)).double()
    vector += 4 * vocabulary.vectors(["zebra"])[0]
    assert vocabulary.describe(vector, 5) == vocabulary.describe(vector, 5)


def test_the_list_is_of_plain_words():
    words = word_list()
    assert len(words) == len(set(words)) == 3000 and list(words) == sorted(words)
    assert all(word.isascii() and word.isalpha() and word.islower() for word in words)
    assert {"red", "fabric", "dog", "striped", "hole", "metal", "round"} <= set(words)
    assert not {"therefore", "policy", "amendment", "belief"} & set(words)


def test_words_with_one_embedding_are_told_by_the_first_of_them(monkeypatch):
    from sklearn.linear_model import _least_angle

    solved, solve = [], _least_angle.linalg.solve_triangular
    monkeypatch.setattr(
        _least_angle.linalg,
        "solve_triangular",
        lambda *args, **options: solved.append(1) or solve(*args, **options),
    )
    rows = torch.randn(40, 24, generator=torch.Generator().manual_seed(0))
    many = Vocabulary(tuple(map(str, range(2000))), rows.repeat(50, 1))
    found = many.describe(rows[3] - rows[5], 4, signed=True)
    assert found.more[0] == "3" and found.less[0] == "5"
    assert all(int(concept.word) < 40 for concept in found.concepts)
    assert len(solved) < 9 * 4 * 4  # hundreds each, where doubles are dropped one by one
