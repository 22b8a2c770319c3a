"""The last, linear step of an image encoder: its weights, and the images before it."""

from __future__ import annotations

import copy
from typing import NamedTuple, Self

import torch
from torch import Tensor, nn

from rada.encoders.protocol import EncoderProtocol

__all__ = ["ImageProjection", "ProjectionAccess"]


class ImageProjection(NamedTuple):
    """The weights of the last step, `embedding = weight @ before + bias`; not copies.

    Attributes:
        weight: `(D, W)`.
        bias: `(D,)`, or None.
    """

    weight: Tensor
    bias: Tensor | None


class ProjectionAccess(EncoderProtocol):
    """Opens the projection of images, where the family says that it has one."""

    def image_projection(self) -> ImageProjection:
        """Return the weights of the projection of images.

        Raises:
            EncoderError: If the family does not offer `image_projection`.
        """
        self.require("image_projection")
        owner, name = self.image_projection_slot()
        found = getattr(owner, name)
        if isinstance(found, nn.Linear):
            bias = None if found.bias is None else found.bias.detach()
            return ImageProjection(found.weight.detach(), bias)
        return ImageProjection(found.detach().T, None)

    def set_image_projection(self, weight: Tensor) -> None:
        """Write other weights `(D, W)` into the projection of images; its bias stays.

        Raises:
            EncoderError: If the family does not offer `image_projection`.
        """
        with torch.no_grad():
            self.image_projection().weight.copy_(weight)

    def before_image_projection(self) -> Self:
        """Return a copy of the encoder whose image features are what the projection gets.

        They have unit norm, like all features. Where the projection has a bias, a 1 stands behind
        them before they are normalised, so that with the bias as a last column the weights still give the
        direction of the embedding.

        Raises:
            EncoderError: If the family does not offer `image_projection`.
        """
        width, bias = self.image_projection().weight.shape[1], self.image_projection().bias
        found = copy.deepcopy(self)
        owner, name = found.image_projection_slot()
        there = getattr(owner, name)
        eye = torch.eye(width, dtype=self.dtype, device=self.device)
        if isinstance(there, nn.Linear):
            if bias is not None:
                eye = torch.cat([eye, torch.zeros_like(eye[:1])])
            layer = nn.Linear(width, len(eye), bias=bias is not None, device="meta")
            layer.weight = nn.Parameter(eye, requires_grad=False)
            if bias is not None:
                last = torch.zeros_like(eye[:, 0])
                last[-1] = 1
                layer.bias = nn.Parameter(last, requires_grad=False)
            setattr(owner, name, layer)
        else:
            parameter = isinstance(there, nn.Parameter)
            setattr(owner, name, nn.Parameter(eye, requires_grad=False) if parameter else eye)
        found.dim = len(eye)
        return found
