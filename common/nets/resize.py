"""Bilinear resizing whose gradient is two matrix products instead of scattered additions.

torch's backward pass on CUDA adds each gradient of the large tensor to four places of the small one with atomic
operations, which is slow and not repeatable: 33.4 % of a BiSeNetV1 step on an H200 was `upsample_bilinear2d_backward`
(`train_performance_1p.sh --prof_test`). Interpolation is linear, along rows and columns by itself: its transpose is a
product with a matrix of two numbers a row, for each of the two.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

# How a kind of device finds the gradient: torch's "scattered" additions, or the "products" of this module.
#   cuda  scattered: 20 of the 61 ms of a BiSeNetV1 step, see above; products: 2 of 42 ms, same card and sizes
#   cpu   scattered: takes whole lines there; products: 2 to 4 times as long on one thread (4 x 128 x 24 x 24
#         to 48 x 48, 1 x 19 x 24 x 24 to 192 x 192, channels last)
#   npu   not measured
GRADIENT = {"cuda": "products", "cpu": "scattered", "npu": "scattered"}


def resize(features: Tensor, size: tuple[int, int], align_corners: bool = False) -> Tensor:
    """[B, C, h, w] of any floating type and layout -> the same type [B, C, *size], bilinear, as F.interpolate has it.

    Also inside autocast, which would make float32 of 16 bits on CUDA: twice the bytes for the layers behind it, which
    read 16 bits. Give float32 where it matters, as for logits.

    align_corners: the corners of both lie on each other; else their outer edges do. No second derivative on devices
    whose gradient is found by products.
    """
    device_type = features.device.type
    if GRADIENT.get(device_type) == "products" and features.requires_grad and torch.is_grad_enabled():
        return _resized(features, *size, align_corners)
    return _interpolate(features, *size, align_corners)


# Operators, and no torch.autograd.Function: a compiler takes them whole, without a look at how the matrices are made.
def _interpolate(features: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    with _without_autocast(features.device.type):
        return F.interpolate(features, size=(height, width), mode="bilinear", align_corners=align_corners)


_resized = torch.library.custom_op("segmentation::resized", _interpolate, mutates_args=())


@torch.library.custom_op("segmentation::resized_backward", mutates_args=())
def _resized_backward(gradient: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """[B, C, H, W] -> [B, C, height, width]: its transpose, as two products."""
    rows, columns = (
        _transposed(small, large, align_corners, gradient.device, gradient.dtype)
        for small, large in zip((height, width), gradient.shape[-2:], strict=True)
    )
    with _exact_products(gradient.device.type):
        return _products(gradient, rows, columns)


_resized.register_fake(_interpolate)  # torch knows shape and layout of its own operator


@_resized_backward.register_fake
def _shape_of_gradient(gradient: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    batch, channels = gradient.shape[:2]
    if _is_channels_last(gradient):
        return gradient.new_empty(batch, height, width, channels).permute(0, 3, 1, 2)
    return gradient.new_empty(batch, channels, height, width)


def _remember(ctx, inputs: tuple, output: Tensor) -> None:
    features, _, _, ctx.align_corners = inputs
    ctx.small = features.shape[-2:]


def _backward(ctx, gradient: Tensor) -> tuple[Tensor, None, None, None]:
    return _resized_backward(gradient, *ctx.small, ctx.align_corners), None, None, None


torch.library.register_autograd(_resized, _backward, setup_context=_remember)


def _is_channels_last(tensor: Tensor) -> bool:
    return tensor.is_contiguous(memory_format=torch.channels_last) and not tensor.is_contiguous()


def _products(gradient: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows [h, H], gradient [B, C, H, W], columns [w, W] -> [B, C, h, w], in the layout of the gradient."""
    batch, channels, large_height, _ = gradient.shape
    height, width = len(rows), len(columns)
    if _is_channels_last(gradient):
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
    of_matrices = torch.backends.cuda.matmul
    allowed = of_matrices.allow_tf32
    with _without_autocast(device_type):
        try:
            of_matrices.allow_tf32 = False
            yield
        finally:
            of_matrices.allow_tf32 = allowed


def _without_autocast(device_type: str) -> AbstractContextManager:
    """Outside it an operator may be given another type of numbers; tensors without values know no autocast."""
    return nullcontext() if device_type == "meta" else torch.autocast(device_type, enabled=False)


@cache  # on the device, for all steps
def _transposed(small: int, large: int, align_corners: bool, device: torch.device, dtype: torch.dtype) -> Tensor:
    """[small, large]: what each of `small` places collects from the `large` ones that were interpolated from them."""
    return torch.from_numpy(interpolation(small, large, align_corners).T.copy()).to(device, dtype)


def interpolation(small: int, large: int, align_corners: bool) -> np.ndarray:
    """[large, small] float64: how a line of `small` places becomes one of `large`.

    Place i of the large line lies at a position of the small one, between floor(position), which has the weight
    1 - (position - floor(position)), and the next place, which has the rest.
    """
    matrix = np.zeros((large, small))
    for i in range(large):
        if align_corners:
            position = i * (small - 1) / (large - 1) if large > 1 else 0.0
        else:
            position = max(0.0, (i + 0.5) * small / large - 0.5)
        low = min(math.floor(position), small - 1)
        matrix[i, low] += 1 - (position - low)
        matrix[i, min(low + 1, small - 1)] += position - low
    return matrix
