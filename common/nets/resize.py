"""Bilinear resizing whose gradient is two matrix products instead of scattered additions.

torch's backward pass on CUDA adds each gradient of the large tensor to four places of the small one with atomic
operations, which is slow and not repeatable: 33.4 % of a BiSeNetV1 step on an H200 was `upsample_bilinear2d_backward`
(`train_performance_1p.sh --prof_test`). Interpolation is linear, along rows and columns by itself: its transpose is a
product with a matrix of two numbers a row, for each of the two.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch
from torch import Tensor
from torch.nn import functional as F

# How a kind of device finds the gradient: torch's "scattered" additions, or the "products" of this module.
#   cuda  scattered: a third of a BiSeNetV1 step, see above; products: not measured yet
#   cpu   scattered: takes whole lines there; products: 2 to 4 times as long on one thread (4 x 128 x 24 x 24
#         to 48 x 48, 1 x 19 x 24 x 24 to 192 x 192, channels last)
#   npu   not measured
GRADIENT = {"cuda": "products", "cpu": "scattered", "npu": "scattered"}


def resize(features: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """[B, C, h, w] of any floating type and layout -> the same type [B, C, *size], bilinear, as F.interpolate has it.

    align_corners: the corners of both lie on each other; else their outer edges do. No second derivative on devices
    whose gradient is found by products.
    """
    size = tuple(size)
    if GRADIENT.get(features.device.type) == "products" and features.requires_grad and torch.is_grad_enabled():
        return _Resize.apply(features, size, align_corners)
    return F.interpolate(features, size=size, mode="bilinear", align_corners=align_corners)


class _Resize(torch.autograd.Function):
    """F.interpolate forwards; its transpose, as two products, backwards."""

    @staticmethod
    def forward(ctx, features: Tensor, size: tuple[int, int], align_corners: bool) -> Tensor:
        ctx.small, ctx.align_corners = tuple(features.shape[-2:]), align_corners
        return F.interpolate(features, size=size, mode="bilinear", align_corners=align_corners)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None]:
        rows, columns = (
            _transposed(small, large, ctx.align_corners, gradient.device, gradient.dtype)
            for small, large in zip(ctx.small, gradient.shape[-2:], strict=True)
        )
        with _exact_products(gradient.device.type):
            return _products(gradient, rows, columns), None, None


def _products(gradient: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows [h, H], gradient [B, C, H, W], columns [w, W] -> [B, C, h, w], in the layout of the gradient."""
    batch, channels, large_height, _ = gradient.shape
    height, width = len(rows), len(columns)
    if gradient.is_contiguous(memory_format=torch.channels_last) and not gradient.is_contiguous():
        lines = gradient.permute(0, 2, 3, 1).flatten(0, 1)  # [B * H, W, C], a view
        lines = torch.bmm(columns.expand(len(lines), -1, -1), lines)  # [B * H, w, C]
        pixels = lines.view(batch, large_height, width * channels)
        pixels = torch.bmm(rows.expand(batch, -1, -1), pixels)  # [B, h, w * C]
        return pixels.view(batch, height, width, channels).permute(0, 3, 1, 2)
    planes = gradient.reshape(batch * channels, *gradient.shape[-2:])
    planes = torch.bmm(planes, columns.T.expand(len(planes), -1, -1))  # [B * C, H, w]
    return torch.bmm(rows.expand(len(planes), -1, -1), planes).view(batch, channels, height, width)


@contextmanager
def _exact_products(device_type: str) -> Iterator[None]:
    """Products in the type of their factors: neither autocast nor TF32 has a say in a gradient of logits."""
    if device_type not in ("cuda", "cpu"):
        yield
        return
    of_matrices = torch.backends.cuda.matmul
    allowed = of_matrices.allow_tf32
    with torch.autocast(device_type, enabled=False):
        try:
            of_matrices.allow_tf32 = False
            yield
        finally:
            of_matrices.allow_tf32 = allowed


@cache  # on the device, for all steps
def _transposed(small: int, large: int, align_corners: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[small, large]: what each of `small` places collects from the `large` ones that were interpolated from them.

    Place i of the large line lies at a position of the small one, between floor(position), which has the weight
    1 - (position - floor(position)), and the next place, which has the rest.
    """
    matrix = torch.zeros(small, large, dtype=torch.float64)
    for i in range(large):
        if align_corners:
            position = i * (small - 1) / (large - 1) if large > 1 else 0.0
        else:
            position = max(0.0, (i + 0.5) * small / large - 0.5)
        low = min(math.floor(position), small - 1)
        matrix[low, i] += 1 - (position - low)
        matrix[min(low + 1, small - 1), i] += position - low
    return matrix.to(device, dtype)
