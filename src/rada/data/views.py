"""Random views that are a pure function of seed, image and view number."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from rada.core.randomness import seeded

if TYPE_CHECKING:
    from torch import Tensor

__all__ = ["seeded_view"]


def seeded_view(
    image: Image.Image,
    transform: Callable[[Image.Image], Tensor],
    seed: int,
    digest: str,
    view: int,
) -> Tensor:
    """Apply a random transform so that the result depends on nothing but the arguments.

    Whatever the batch, the worker process and the state of the global generators, which stay as they
    are. One thread at a time makes a view; a thread of somebody else's must not draw from the global
    generators meanwhile (worker processes have generators of their own).

    Args:
        image: The image.
        transform: Random through the generators of torch, NumPy or `random`.
        seed: Seed of the run.
        digest: Hash of the image's content.
        view: Number of the view.

    Returns:
        What the transform returns, `(3, H, W)`.

    Example:
        >>> import torch
        >>> from torchvision.transforms.v2.functional import pil_to_tensor
        >>> image = Image.new("RGB", (2, 2))
        >>> def noisy(image):
        ...     return pil_to_tensor(image) + torch.rand(1)
        >>> one, two = (seeded_view(image, noisy, 0, "ab", 1) for _ in range(2))
        >>> bool((one == two).all())
        True
    """
    key = hashlib.blake2b(f"{seed}/{digest}/{view}".encode(), digest_size=8).digest()
    number = int.from_bytes(key, "big") >> 1
    with seeded(number):
        python_state, numpy_state = random.getstate(), np.random.get_state()
        try:
            random.seed(number)
            np.random.seed(number % 2**32)
            return transform(image)
        finally:
            random.setstate(python_state)
            np.random.set_state(numpy_state)
