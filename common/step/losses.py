"""Losses of segmentation networks, in float32 whatever the precision of the logits."""

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.nets.resize import resize


def at_least_float32(logits: Tensor) -> Tensor:
    """Logits of a mixed-precision run in float32: neither a loss nor an upsampling is exact enough in 16 bits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))


def for_softmax(logits: Tensor) -> Tensor:
    """`at_least_float32` and contiguous, as a softmax makes its input: one pass for both, of 16-bit logits."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32), memory_format=torch.contiguous_format)


def cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, over_all_pixels: bool = False
) -> Tensor:
    """Mean cross entropy over the pixels that are not ignored; 0, with gradients of 0, where there are none.

    logits [B, C, h, w], labels [B, h, w] int64. PyTorch's own mean would be 0 / 0 for a batch without a valid pixel.
    over_all_pixels: divide by the number of all pixels, ignored ones included, as mmsegmentation does by default: the
    more is ignored, the smaller are loss and gradient.
    Shapes do not depend on the labels, and no value is fetched from the device.
    """
    losses = F.cross_entropy(for_softmax(logits), labels, ignore_index=ignore_index, reduction="none")
    if over_all_pixels:
        return losses.mean()
    return losses.sum() / (labels != ignore_index).sum().clamp(min=1)


def binary_cross_entropy(logits: Tensor, target: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
    """Mean binary cross entropy of sigmoid(logits) over the pixels that are not ignored; 0 where there are none.

    logits [B, H, W]. target [B, H, W]: 0, 1 and `ignore_index`; or floating, in [0, 1] or `ignore_index`.
    """
    logits = at_least_float32(logits)
    counts = target != ignore_index
    truth = torch.where(counts, target, 0).to(logits.dtype)
    losses = F.binary_cross_entropy_with_logits(logits, truth, reduction="none")
    return (losses * counts).sum() / counts.sum().clamp(min=1)


def upsampled_cross_entropy(
    logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX, over_all_pixels: bool = False
) -> Tensor:
    """`cross_entropy` of logits [B, C, h, w] that are first resized to the labels [B, H, W], bilinearly.

    Corners are not aligned. The gradient is found together with the loss, one image after another: of tensors
    [C, H, W] there are two at a time, where a graph of operators holds four for each image. No second derivative.
    """
    counted = labels != ignore_index
    divisor = labels.numel() if over_all_pixels else counted.sum().clamp(min=1)
    weights = counted.to(torch.promote_types(logits.dtype, torch.float32))
    return _UpsampledCrossEntropy.apply(logits, torch.where(counted, labels, 0), weights) / divisor


class _UpsampledCrossEntropy(torch.autograd.Function):
    """The weighted sum over the pixels of the batch; its gradient to the small logits is kept for the way back.

    logits [B, C, h, w], labels [B, H, W] in [0, C), weights [B, H, W] float32 (float64 for float64 logits).
    """

    @staticmethod
    def forward(ctx, logits: Tensor, labels: Tensor, weights: Tensor) -> Tensor:
        total, gradients = 0, []
        smalls = for_softmax(logits.detach()).split(1)  # turned round here: the large ones would cost more
        for small, label, weight in zip(smalls, labels[:, None].split(1), weights, strict=True):
            small = small.requires_grad_(ctx.needs_input_grad[0])
            with torch.enable_grad():
                large = resize(small, label.shape[-2:])
            log_probabilities = F.log_softmax(large.detach(), dim=1)
            true = log_probabilities.gather(1, label)  # [1, 1, H, W]
            total = total - (true[0, 0] * weight).sum()
            if small.requires_grad:
                gradient = log_probabilities.exp_().scatter_(1, label, true.exp_() - 1).mul_(weight)
                gradients += torch.autograd.grad(large, small, gradient)
        # float32 also for 16-bit logits: divided by the number of pixels, most of a gradient would be 0 there
        ctx.save_for_backward(*gradients)
        turned = logits.is_contiguous(memory_format=torch.channels_last) and not logits.is_contiguous()
        ctx.dtype, ctx.layout = logits.dtype, torch.channels_last if turned else torch.contiguous_format
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, factor: Tensor) -> tuple[Tensor, None, None]:
        # in the layout of the convolution that made the logits, which would turn it round itself
        return (torch.cat(ctx.saved_tensors) * factor).to(ctx.dtype, memory_format=ctx.layout), None, None
