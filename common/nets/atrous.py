"""A convolution of growing dilation, without the part of its filter that reads nothing but padding."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class AtrousConv2d(nn.Conv2d):
    """3x3 convolution that keeps the size; in training without what of its filter sees nothing but padding.

    Where the dilation is no less than a side of the features, the rows or columns beside the middle one of the filter
    lie beyond the features wherever it is put, and multiply zeros: the filter degenerates to a 1x1 (arXiv 1706.05587,
    section 3.3). So the result is the same for as little as a ninth of the operations. Evaluation uses the whole
    filter, as an exported network takes pictures of any size.
    """

    def __init__(self, in_channels: int, out_channels: int, dilation: int):
        super().__init__(in_channels, out_channels, 3, padding=dilation, dilation=dilation, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        """[B, in_channels, h, w] -> [B, out_channels, h, w]."""
        (dilation, _), sides = self.dilation, x.shape[2:]
        if not self.training or dilation < min(sides):
            return super().forward(x)
        rows, columns = (slice(None) if dilation < side else slice(1, 2) for side in sides)
        padding = [dilation if dilation < side else 0 for side in sides]
        # One copy, which the gradient uses too: an NPU makes one each time that it is given a part of a tensor.
        is_channels_last = self.weight.is_contiguous(memory_format=torch.channels_last)
        layout = torch.channels_last if is_channels_last else torch.contiguous_format
        weight = self.weight[:, :, rows, columns].contiguous(memory_format=layout)
        return F.conv2d(x, weight, padding=padding, dilation=dilation)
