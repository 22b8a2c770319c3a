"""The pixels behind the features of views, for what looks at an image again."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from torch import Tensor

from rada.data import ImageSplit
from rada.features.images import ListReader, SplitReader
from rada.features.work import BatchWork, ViewTransform

if TYPE_CHECKING:
    from rada.encoders import DualEncoder

__all__ = ["ViewPixels"]


class ViewPixels:
    """Makes the views of images again that `iter_features` encoded, with the same pixels.

    Args:
        encoder: The encoder.
        images: A split, or images as `rada.data.open_image` takes them.
        seed: Chooses the random views.
        view_transform: How views above 0 are made.
        exact_decoding: As for `iter_features`.
    """

    def __init__(
        self,
        encoder: DualEncoder,
        images: ImageSplit | Sequence[Any],
        *,
        seed: int,
        view_transform: ViewTransform,
        exact_decoding: bool = False,
    ) -> None:
        reader = SplitReader(images) if isinstance(images, ImageSplit) else ListReader(images)
        self._items = list(reader.items())
        self._work = BatchWork(
            encoder,
            reader,
            views=view_transform,
            seed=seed,
            cache=None,
            keep=False,
            exact_decoding=exact_decoding,
        )

    def __call__(self, image: int, views: Sequence[int]) -> Tensor:
        """Return pixels `(m, 3, H, W)` of views of one image; view 0 is the plain one.

        Raises:
            DataError: If the image cannot be read any more.
        """
        return self._work.pixels(self._items[image], views)
