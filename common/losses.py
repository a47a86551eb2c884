"""Losses of segmentation networks, in float32 whatever the precision of the logits."""

import torch
from torch import Tensor
from torch.nn import functional as F

from common import IGNORE_INDEX


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits of a mixed-precision run in float32: neither a loss nor an upsampling is exact enough in 16 bits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, over_all_pixels: bool = False
) -> Tensor:
    """Mean cross entropy over the pixels that are not ignored; 0, with gradients of 0, where there are none.

    logits [B, C, h, w], labels [B, h, w] int64. PyTorch's own mean would be 0 / 0 for a batch without a valid pixel.
    over_all_pixels: divide by the number of all pixels, ignored ones included, as mmsegmentation does by default: the
    more is ignored, the smaller are loss and gradient.
    Shapes do not depend on the labels, and no value is fetched from the device.
    """
    losses = F.cross_entropy(at_least_float32(logits), labels, ignore_index=ignore_index, reduction="none")
    if over_all_pixels:
        return losses.mean()
    return losses.sum() / (labels != ignore_index).sum().clamp(min=1)


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, over_all_pixels: bool = False
) -> Tensor:
    """`cross_entropy` of logits [B, C, h, w] that are first resized to the labels [B, H, W], bilinearly.

    Corners are not aligned.
    """
    logits = F.interpolate(at_least_float32(logits), size=labels.shape[-2:], mode="bilinear", align_corners=False)
    return cross_entropy(logits, labels, ignore_index, over_all_pixels)
