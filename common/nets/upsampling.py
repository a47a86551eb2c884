"""A convolution of enlarged features, with fewer multiplications.

Measured in the quickstart of Attention U-Net on two cores: without it a training step takes 1.09 to 1.12 times as long
(`python3 -m common.tools.benchmark train` with the sizes of that preset, whose plain form does without it).
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class UpsampledConv2d(nn.Conv2d):
    """3x3 convolution, padded with zeros, of features that are first enlarged by nearest neighbour.

    Enlarged twice, neighbouring pixels are equal, so some of a kernel's nine taps always see the same value: each pixel
    of the result depends on 2x2 of the small ones, through sums of taps. These sums are the 4x4 kernel of a transposed
    convolution of stride 2 on the small features. It gives the same result, up to rounding, with 4/9 of the
    multiplications, and the enlarged features are never in memory. Parameters are those of the 3x3 convolution.
    """

    def __init__(self, in_channels: int, out_channels: int, bias: bool = True):
        super().__init__(in_channels, out_channels, kernel_size=3, padding=1, bias=bias)

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """x [B, in_channels, h, w] -> [B, out_channels, *size]; only sizes of twice h and w are done the short way."""
        return self.convolve(x, size, self.bias)

    def convolve(self, x: Tensor, size: Sequence[int], bias: Tensor | None) -> Tensor:
        """`forward` with another bias [out_channels], or none."""
        if tuple(size) == (2 * x.shape[-2], 2 * x.shape[-1]):
            return F.conv_transpose2d(x, doubling_kernel(self.weight), bias, stride=2, padding=1)
        return F.conv2d(F.interpolate(x, size=tuple(size), mode="nearest"), self.weight, bias, padding=1)


def doubling_kernel(weight: Tensor) -> Tensor:
    """Weights [Cout, Cin, 3, 3] -> [Cin, Cout, 4, 4], of a transposed convolution with stride 2 and padding 1.

    Along each side the taps (a, b, c) become (c, b + c, a + b, a). Of contiguous weights the result is contiguous too.
    """
    # Taps first, so that what is added and stacked are whole matrices [Cin, Cout].
    a, b, c = weight.permute(2, 3, 1, 0).contiguous().unbind(0)
    rows = torch.stack([c, b + c, a + b, a])  # [4, 3, Cin, Cout]
    a, b, c = rows.unbind(1)
    # This lies in memory as channels_last wants it, in runs of Cout. Where tensors are contiguous, the convolution and
    # its backward pass would each make a copy of it.
    kernel = torch.stack([c, b + c, a + b, a], dim=1).permute(2, 3, 0, 1)
    return kernel.contiguous() if weight.is_contiguous() else kernel
