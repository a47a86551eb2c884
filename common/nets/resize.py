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

# Where the values of features in training are found by products too, if they are of 16 bits, channels last, and many.
#   cuda  torch's kernel: 1.37 of the 29 ms of a step of a cascade network on an H200, for 16 x 2048 x 30 x 30 to
#         60 x 60 and 16 x 128 x 60 x 60 to 120 x 120 in fp16; that card's memory takes less than 0.1 to write these
#   others  not measured
VALUES = {"cuda": "products"}
MANY_CHANNELS = 64


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


def _interpolate(features: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    with _without_autocast(features.device.type):
        return F.interpolate(features, size=(height, width), mode="bilinear", align_corners=align_corners)


# Operators, and no torch.autograd.Function: a compiler takes them whole, without a look at how the matrices are made.
@torch.library.custom_op("segmentation::resized", mutates_args=())
def _resized(features: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    is_short = features.element_size() == 2 and features.shape[1] >= MANY_CHANNELS and _is_channels_last(features)
    if not is_short or VALUES.get(features.device.type) != "products":
        return _interpolate(features, height, width, align_corners)
    rows, columns = (
        _matrix(small, large, align_corners, features.device, features.dtype)
        for small, large in zip(features.shape[-2:], (height, width), strict=True)
    )
    with _exact_products(features.device.type):
        return _products(features, rows, columns)


@torch.library.custom_op("segmentation::resized_backward", mutates_args=())
def _resized_backward(gradient: Tensor, height: int, width: int, align_corners: bool) -> Tensor:
    """[B, C, H, W] -> [B, C, height, width]: its transpose, as two products."""
    rows, columns = (
        _matrix(small, large, align_corners, gradient.device, gradient.dtype, transposed=True)
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


def _products(tensor: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """rows [h, H], tensor [B, C, H, W], columns [w, W] -> [B, C, h, w], in the layout of the tensor.

    In the order of fewer multiplications: of a picture twice as wide as high they are 0.6 of those of the other one.
    """
    by_rows_first = _multiplications(rows, columns) <= _multiplications(columns, rows)
    first, second = (_of_rows, _of_columns) if by_rows_first else (_of_columns, _of_rows)
    matrices = (rows, columns) if by_rows_first else (columns, rows)
    return second(first(tensor, matrices[0]), matrices[1])


def _multiplications(first: Tensor, second: Tensor) -> int:
    """For one channel: `first`, [h, H], with all W lines across it, then `second`, [w, W], with the h that are left."""
    return first.numel() * second.shape[1] + second.numel() * first.shape[0]


def _of_rows(tensor: Tensor, matrix: Tensor) -> Tensor:
    """[B, C, H, W], [h, H] -> [B, C, h, W]."""
    batch, channels, height, width = tensor.shape
    if _is_channels_last(tensor):
        lines = tensor.permute(0, 2, 3, 1).reshape(batch, height, width * channels)  # a view
        lines = torch.bmm(matrix.expand(batch, -1, -1), lines)
        return lines.view(batch, len(matrix), width, channels).permute(0, 3, 1, 2)
    planes = tensor.reshape(batch * channels, height, width)
    return torch.bmm(matrix.expand(len(planes), -1, -1), planes).view(batch, channels, len(matrix), width)


def _of_columns(tensor: Tensor, matrix: Tensor) -> Tensor:
    """[B, C, H, W], [w, W] -> [B, C, H, w]."""
    batch, channels, height, width = tensor.shape
    if _is_channels_last(tensor):
        lines = tensor.permute(0, 2, 3, 1).flatten(0, 1)  # [B * H, W, C], a view
        lines = torch.bmm(matrix.expand(len(lines), -1, -1), lines)
        return lines.view(batch, height, len(matrix), channels).permute(0, 3, 1, 2)
    planes = tensor.reshape(batch * channels, height, width)
    return torch.bmm(planes, matrix.T.expand(len(planes), -1, -1)).view(batch, channels, height, len(matrix))


@contextmanager
def _exact_products(device_type: str) -> Iterator[None]:
    """Products in the type of their factors: neither autocast nor TF32 has a say in them."""
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
def _matrix(
    small: int, large: int, align_corners: bool, device: torch.device, dtype: torch.dtype, transposed: bool = False
) -> Tensor:
    """[large, small], of `interpolation`; transposed: what each small place collects from those made from it."""
    matrix = interpolation(small, large, align_corners)
    return torch.from_numpy(matrix.T.copy() if transposed else matrix).to(device, dtype)


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
