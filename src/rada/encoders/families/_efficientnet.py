"""EfficientNet-Lite0 in plain torch, with the weights' names of timm.

timm builds the same network, but importing it (and torchvision, which it needs) takes as long as torch
itself: half of the time that one prediction takes. A test compares the two to the bit.
"""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional

__all__ = ["EfficientNetLite0"]

# Of each stage: kernel, stride of its first block, widening inside a block, channels, blocks.
_STAGES = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM, _HEAD, _CLASSES = 32, 1280, 1000
_EPSILON = 1e-3  # TensorFlow's, which these weights were trained with


class _SameConv(nn.Conv2d):
    """A convolution with TensorFlow's padding: the odd pixel goes to the right and to the bottom."""

    def forward(self, input: Tensor) -> Tensor:
        """Pad `(B, C, H, W)` and convolve it."""
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        pads: list[int] = []
        for size in (input.shape[-1], input.shape[-2]):
            total = max((-(-size // stride) - 1) * stride + kernel - size, 0)
            pads += [total // 2, total - total // 2]
        return super().forward(functional.pad(input, pads))


class _Norm(nn.BatchNorm2d):
    """A batch norm with the activation behind it, where `fold_batch_norms` looks for one."""

    def __init__(self, channels: int, *, act: bool) -> None:
        super().__init__(channels, eps=_EPSILON)
        self.act = nn.ReLU6(inplace=True) if act else nn.Identity()

    def forward(self, input: Tensor) -> Tensor:
        """Normalise `(B, C, H, W)`."""
        found: Tensor = self.act(super().forward(input))
        return found


def _conv(
    inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1
) -> nn.Conv2d:
    kind = nn.Conv2d if stride == 1 else _SameConv
    padding = kernel // 2 if stride == 1 else 0
    return kind(inputs, outputs, kernel, stride, padding, groups=groups, bias=False)


class _Block(nn.Module):
    """Widen, convolve each channel alone, narrow; the input is added where the shapes are equal."""

    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, widen: int) -> None:
        super().__init__()
        inner, self.adds = inputs * widen, stride == 1 and inputs == outputs
        if widen > 1:
            self.conv_pw, self.bn1 = _conv(inputs, inner), _Norm(inner, act=True)
            self.conv_dw = _conv(inner, inner, kernel, stride, groups=inner)
            self.bn2 = _Norm(inner, act=True)
            self.conv_pwl, self.bn3 = _conv(inner, outputs), _Norm(outputs, act=False)
        else:
            self.conv_dw = _conv(inputs, inputs, kernel, stride, groups=inputs)
            self.bn1 = _Norm(inputs, act=True)
            self.conv_pw, self.bn2 = _conv(inputs, outputs), _Norm(outputs, act=False)

    def forward(self, pixels: Tensor) -> Tensor:
        """Turn `(B, C, H, W)` into the block's output."""
        found = pixels
        for part in self.children():  # in the order in which they were made
            found = part(found)
        return found + pixels if self.adds else found


class EfficientNetLite0(nn.Module):
    """Pixels `(B, 3, H, W)` to the logits `(B, 1000)` of ImageNet's classes (Tan and Le, 2019).

    Example:
        >>> import torch
        >>> with torch.device("meta"):
        ...     EfficientNetLite0()(torch.zeros(2, 3, 224, 224)).shape
        torch.Size([2, 1000])
    """

    def __init__(self) -> None:
        super().__init__()
        self.conv_stem, self.bn1 = _conv(3, _STEM, 3, 2), _Norm(_STEM, act=True)
        stages, inputs = [], _STEM
        for kernel, stride, widen, channels, count in _STAGES:
            widths = [inputs] + [channels] * (count - 1)
            strides = [stride] + [1] * (count - 1)
            stages.append(
                nn.Sequential(
                    *(
                        _Block(width, channels, kernel, step, widen)
                        for width, step in zip(widths, strides, strict=True)
                    )
                )
            )
            inputs = channels
        self.blocks = nn.Sequential(*stages)
        self.conv_head, self.bn2 = _conv(inputs, _HEAD), _Norm(_HEAD, act=True)
        self.classifier = nn.Linear(_HEAD, _CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits."""
        found = self.blocks(self.bn1(self.conv_stem(pixels)))
        found = self.bn2(self.conv_head(found))
        logits: Tensor = self.classifier(functional.adaptive_avg_pool2d(found, 1).flatten(1))
        return logits
