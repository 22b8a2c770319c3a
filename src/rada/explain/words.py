"""Vectors of the shared space in plain words: a sparse sum of embedded words, and how much it explains."""

from __future__ import annotations

import functools
import threading
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import normalize

from rada.encoders.fingerprint import digest
from rada.encoders.kept_texts import kept_texts

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from rada.encoders import DualEncoder

__all__ = ["Concept", "InWords", "Vocabulary", "word_list"]

_SHUFFLES = 8
_MOST_EMBEDDED = 4  # a vocabulary has 3,000 x D numbers
_embedding = threading.Lock()


@functools.cache
def word_list() -> tuple[str, ...]:
    """Return the bundled words; `benchmarks/word_list.py` says how they were chosen.

    Example:
        >>> "striped" in word_list(), len(word_list())
        (True, 3000)
    """
    return tuple(files("rada.explain").joinpath("words.txt").read_text("utf-8").split())


@dataclass(frozen=True)
class Concept:
    """A word in the sum that stands for a vector.

    Attributes:
        word: The word.
        weight: Its part of the vector's length; below zero, the vector points away from the word.
    """

    word: str
    weight: float


@dataclass(frozen=True)
class InWords:
    """A vector as a sum of a few words.

    Attributes:
        concepts: The words, the largest weight first; none where the words explain no more than they
            would of a random vector.
        share: Part of the vector's squared length that the sum explains, in [0, 1].
        by_chance: What as many words explain of the same numbers in random order; only a share far above
            it means something.
    """

    concepts: tuple[Concept, ...]
    share: float
    by_chance: float

    @property
    def more(self) -> tuple[str, ...]:
        """The words that the vector points to."""
        return tuple(concept.word for concept in self.concepts if concept.weight > 0)

    @property
    def less(self) -> tuple[str, ...]:
        """The words that it points away from."""
        return tuple(concept.word for concept in self.concepts if concept.weight < 0)

    def text(self) -> str:
        """Return it as a line.

        Example:
            >>> InWords((Concept("stripe", 0.6), Concept("blue", -0.2)), 0.4, 0.1).text()
            'more: stripe; less: blue (40 % explained, 10 % by chance)'
        """
        sides = (("more", self.more), ("less", self.less))
        said = "; ".join(f"{side}: {', '.join(words)}" for side, words in sides if words)
        numbers = f"{100 * self.share:.0f} % explained, {100 * self.by_chance:.0f} % by chance"
        return f"{said or 'no words fit'} ({numbers})"


class Vocabulary:
    """Embedded words, in which vectors of the same space are described.

    What all words have in common is taken away, so that a word stands for what sets it apart.

    Args:
        words: V words.
        vectors: Their embeddings `(V, D)`.

    Attributes:
        words: The words.
        centre: Mean of their embeddings, `(D,)`; class features are described as their difference to it.

    Example:
        >>> rows = torch.randn(200, 64, generator=torch.Generator().manual_seed(0))
        >>> vocabulary = Vocabulary(tuple(map(str, range(200))), rows)
        >>> found = vocabulary.describe(rows[3] - rows[5], 2, signed=True)
        >>> found.more, found.less
        (('3',), ('5',))
    """

    def __init__(self, words: tuple[str, ...], vectors: Tensor) -> None:
        self.words = words
        self.centre = vectors.double().mean(0)
        self._rows: NDArray[np.float64] = normalize(vectors.double() - self.centre, dim=-1).numpy()
        # Of words with one embedding the first stands for all: scikit-learn's path would drop the others one
        # by one, hundreds of times.
        first = np.unique(self._rows.round(6), axis=0, return_index=True)[1]
        self._told: NDArray[np.int64] = np.sort(first)

    @classmethod
    def of(
        cls,
        encoder: DualEncoder,
        template: str,
        *,
        keep: bool = True,
        progress: bool | None = None,
    ) -> Vocabulary:
        """Embed the bundled words with an encoder's text encoder; those of late are still in memory.

        Args:
            encoder: The encoder.
            template: Prompt that the words stand in; that of the classes.
            keep: Whether the embeddings are kept in the cache and read from there.
            progress: Show a bar; None on a terminal only.
        """
        words = word_list()
        prompts = [template.format(word) for word in words]
        name = f"words-{digest(encoder.fingerprint, *prompts)}"

        def made() -> Tensor:
            return encoder.encode_texts(prompts, progress=progress)

        with _embedding:  # two that ask at once would embed them twice
            found = _embedded.get(name)
            if found is None:
                shape = (len(words), encoder.dim)
                found = cls(words, kept_texts(name, shape, made) if keep else made())
                while len(_embedded) >= _MOST_EMBEDDED:
                    _embedded.pop(next(iter(_embedded)))
                _embedded[name] = found
        return found

    def describe(self, vector: Tensor, most: int, *, signed: bool = False) -> InWords:
        """Return a vector as a sum of a few words with weights above zero.

        The words are those of the first steps of the non-negative lasso path; their weights are least
        squares. The same is done to the vector's numbers in random order, to tell what chance explains.

        Args:
            vector: `(D,)`.
            most: Words at most.
            signed: Also use the opposite of every word; its weight is then below zero.
        """
        target = vector.double().numpy()
        length = float(np.linalg.norm(target))
        if not length:
            return InWords((), 0.0, 0.0)
        rows = self._rows[self._told]
        if signed:
            rows = np.concatenate([rows, -rows])
        found, share = _sparse_sum(rows, target / length, most)
        shuffle = np.random.default_rng(0)
        shares = [
            _sparse_sum(rows, shuffle.permutation(target / length), most)[1]
            for _ in range(_SHUFFLES)
        ]
        by_chance = float(np.mean(shares))
        if share <= max(shares):  # no more than a random vector
            return InWords((), share, by_chance)
        count = len(self._told)
        concepts = [
            Concept(self.words[self._told[row % count]], weight if row < count else -weight)
            for row, weight in found.items()
        ]
        concepts.sort(key=lambda concept: -abs(concept.weight))
        return InWords(tuple(concepts), share, by_chance)

    def vectors(self, words: Sequence[str]) -> Tensor:
        """Return unit vectors `(n, D)` of words, what all words have in common taken away."""
        return torch.from_numpy(self._rows[[self.words.index(word) for word in words]])


_embedded: dict[str, Vocabulary] = {}


def _sparse_sum(
    rows: NDArray[np.float64], target: NDArray[np.float64], most: int
) -> tuple[dict[int, float], float]:
    """Return weights above zero by row, and the explained part of a unit vector."""
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LinearRegression, lars_path

    with warnings.catch_warnings():  # words with one embedding: one of them is enough
        warnings.simplefilter("ignore", ConvergenceWarning)
        path: Any = lars_path(rows.T, target, method="lasso", positive=True, max_iter=most)
    chosen = np.flatnonzero(path[2][:, -1] > 0)
    if not len(chosen):
        return {}, 0.0
    model = LinearRegression(positive=True, fit_intercept=False).fit(rows[chosen].T, target)
    left = target - rows[chosen].T @ model.coef_
    weights = zip(chosen.tolist(), model.coef_.tolist(), strict=True)
    return {row: weight for row, weight in weights if weight > 0}, 1 - float(left @ left)
