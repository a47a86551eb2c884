"""3x3 convolutions with 4/9 of the multiplications, for the CPU.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", CVPR 2016, arXiv 1509.09308: a 2x2 patch of the
result is computed from a 4x4 patch d of the features and a 3x3 kernel g as A'[(G g G') * (B' d B)]A (formula 8), where
* multiplies element by element: 16 multiplications where the definition has 36. Summed over the channels, the products
are 16 matrix products. On accelerators cuDNN and CANN choose such kernels by themselves; oneDNN has none for x86.
"""

from collections.abc import Iterator

import torch
from torch import Tensor, nn

# Features are transformed in bands of about so many bytes, four times the features' own, which then stay in the cache.
BAND_BYTES = 16 << 20
# Matrix products are slow for rows that begin in the middle of a vector register: channels are filled up to a multiple.
CHANNELS_MULTIPLE = 16
# Below them the transformations of features or of kernels cost more than the multiplications that they save: measured
# on two cores with AVX-512, for the convolutions of the five networks.
LEAST_CHANNELS, LEAST_PATCHES = 256, 512


class WinogradConv2d(nn.Conv2d):
    """3x3 convolution of stride 1, padded with one line of zeros, by the minimal filtering of Lavin and Gray.

    It has the parameters and, up to rounding, the results of `nn.Conv2d`, and is that where it would not be faster.
    """

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, H, W] -> [B, out_channels, H, W]."""
        patches = x.shape[0] * ((x.shape[2] + 1) // 2) * ((x.shape[3] + 1) // 2)
        if (
            x.dtype not in (torch.float32, torch.float64)
            or x.device.type != "cpu"
            or patches < LEAST_PATCHES
            or torch.is_autocast_enabled("cpu")
            or torch.compiler.is_compiling()
        ):
            return super().forward(x)
        return _Convolution.apply(x, self.weight, self.bias)


def use_winograd(model: nn.Module) -> None:
    """Let the 3x3 convolutions of a model that gain from it be `WinogradConv2d`; parameters and names stay."""
    for layer in model.modules():
        if (
            type(layer).forward is nn.Conv2d.forward  # a class with a forward of its own does something else
            and (layer.kernel_size, layer.stride, layer.padding, layer.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
            and (layer.groups, layer.padding_mode) == (1, "zeros")
            and min(layer.in_channels, layer.out_channels) >= LEAST_CHANNELS
        ):
            layer.__class__ = WinogradConv2d


class _Convolution(torch.autograd.Function):
    """The convolution and its gradients, each by Winograd's transformations."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return _convolve(x, weight, bias)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx, gradient: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad
        return (
            # the gradient of a correlation is a correlation with the kernel turned by 180 degrees
            _convolve(gradient, weight.transpose(0, 1).flip(2, 3), None) if needs_x else None,
            _weight_gradient(x, gradient) if needs_weight else None,
            gradient.sum((0, 2, 3)) if needs_bias else None,
        )


def _convolve(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """x [B, I, H, W], weight [O, I, 3, 3], bias [O] -> [B, O, H, W], channels_last.

    The result is no view of another tensor: a ReLU behind the convolution may change it in place.
    """
    height, width = x.shape[2:]
    kernels = _transform_kernels(weight)  # [16, O', I'], both filled up with zeros
    result = torch.empty(
        (x.shape[0], weight.shape[0], height + height % 2, width + width % 2),
        dtype=x.dtype, memory_format=torch.channels_last,
    )  # fmt: skip
    lines = result.permute(0, 2, 3, 1)
    for image, rows, patches in _bands(x, kernels.shape[2], kernels.shape[1]):
        products = torch.bmm(patches.flatten(1, 2), kernels.transpose(1, 2))  # [16, patches, O']
        products = products.view(4, 4, *patches.shape[1:3], -1)[..., : weight.shape[0]]
        _gather(products, lines[image, rows])
    if bias is not None:
        lines += bias
    if result.shape[2:] == x.shape[2:]:
        return result
    # not contiguous(): one image of even width counts as contiguous already, and would stay a view
    return result[:, :, :height, :width].clone(memory_format=torch.channels_last)


def _weight_gradient(x: Tensor, gradient: Tensor) -> Tensor:
    """x [B, I, H, W], gradient of the result [B, O, H, W] -> gradient of the weight [O, I, 3, 3], channels_last."""
    inputs, outputs = _filled(x.shape[1]), _filled(gradient.shape[1])
    gradient = gradient.permute(0, 2, 3, 1)
    kernels = x.new_zeros(16, outputs, inputs)
    for image, rows, patches in _bands(x, inputs, outputs):
        products = _scatter(gradient[image, rows], *patches.shape[1:3], outputs)  # [16, patches, O']
        torch.baddbmm(kernels, products.transpose(1, 2), patches.flatten(1, 2), out=kernels)
    kernels = kernels[:, : gradient.shape[3], : x.shape[1]].unflatten(0, (4, 4))
    rows = kernels.new_empty(3, 4, *kernels.shape[2:])
    _fold_kernels(kernels, rows)
    taps = kernels.new_empty(kernels.shape[2], 3, 3, kernels.shape[3])  # the order of channels_last
    _fold_kernels(rows.transpose(0, 1), taps.permute(2, 1, 0, 3))
    return taps.permute(0, 3, 1, 2)


def _fold_kernels(kernels: Tensor, out: Tensor) -> None:
    """G' along the first dimension: (a, b, c, d) -> (a + (b + c) / 2, (b - c) / 2, d + (b + c) / 2)."""
    a, b, c, d = kernels
    half = torch.add(b, c).mul_(0.5)
    torch.add(a, half, out=out[0])
    torch.sub(b, c, out=out[1]).mul_(0.5)
    torch.add(d, half, out=out[2])


def _transform_kernels(weight: Tensor) -> Tensor:
    """G g G': weight [O, I, 3, 3] -> [16, O', I'], with zeros where O' and I' go beyond O and I."""
    outputs, inputs = weight.shape[:2]
    taps = weight.permute(2, 3, 0, 1)  # [3, 3, O, I]
    rows = weight.new_empty(4, 3, outputs, inputs)
    _spread_kernels(taps, rows)
    kernels = weight.new_zeros(4, 4, _filled(outputs), _filled(inputs))
    _spread_kernels(rows.transpose(0, 1), kernels[:, :, :outputs, :inputs].transpose(0, 1))
    return kernels.flatten(0, 1)


def _spread_kernels(taps: Tensor, out: Tensor) -> None:
    """G along the first dimension: (a, b, c) -> (a, (a + b + c) / 2, (a - b + c) / 2, c)."""
    a, b, c = taps
    out[0].copy_(a)
    torch.add(a, c, out=out[3])
    torch.add(out[3], b, out=out[1]).mul_(0.5)
    torch.sub(out[3], b, out=out[2]).mul_(0.5)
    out[3].copy_(c)


def _filled(channels: int) -> int:
    return -(-channels // CHANNELS_MULTIPLE) * CHANNELS_MULTIPLE


def _bands(x: Tensor, channels: int, more: int) -> Iterator[tuple[int, slice, Tensor]]:
    """x [B, I, H, W] in bands of patches: index of the image, rows of the result, and B' d B of the 4x4 patches.

    The latter are [16, h, w, channels], for a result of h * 2 rows and w * 2 columns. Each is valid until the next.
    """
    batch_size, inputs, height, width = x.shape
    down, across = (height + 1) // 2, (width + 1) // 2
    x = x.permute(0, 2, 3, 1)
    step = max(1, min(down, BAND_BYTES // (16 * across * max(channels, more) * x.element_size())))
    padded = x.new_zeros(2 * step + 2, 2 * across + 2, inputs)
    lines = x.new_empty(4, step, 2 * across + 2, inputs)
    patches = x.new_zeros(4, 4, step, across, channels)
    for image in range(batch_size):
        for first in range(0, down, step):
            count = min(step, down - first)
            top, bottom = max(0, 2 * first - 1), min(height, 2 * (first + count) + 1)
            shift = 1 if first == 0 else 0
            padded[:shift] = 0
            padded[shift : shift + bottom - top, 1 : 1 + width] = x[image, top:bottom]
            padded[shift + bottom - top :] = 0
            _transform(*(padded[i : i + 2 * count : 2] for i in range(4)), lines[:, :count])
            result = patches[:, :, :count]
            for i in range(4):
                columns = (lines[i, :count, j : j + 2 * across : 2] for j in range(4))
                _transform(*columns, result[i, ..., :inputs])
            yield image, slice(2 * first, 2 * (first + count)), result.flatten(0, 1)


def _transform(a: Tensor, b: Tensor, c: Tensor, d: Tensor, out: Tensor) -> None:
    """B' along one side: lines (a, b, c, d) of the patches -> (a - c, b + c, c - b, b - d)."""
    torch.sub(a, c, out=out[0])
    torch.add(b, c, out=out[1])
    torch.sub(c, b, out=out[2])
    torch.sub(b, d, out=out[3])


def _gather(products: Tensor, out: Tensor) -> None:
    """A' on both sides: products [4, 4, h, w, O] -> out [2h, 2w, O]."""
    both = products[1] + products[2]
    odd = products[1] - products[2]
    for row, line in enumerate((both.add_(products[0]), odd.sub_(products[3]))):
        torch.add(line[0], line[1], out=out[row::2, 0::2]).add_(line[2])
        torch.sub(line[1], line[2], out=out[row::2, 1::2]).sub_(line[3])


def _scatter(gradient: Tensor, down: int, across: int, channels: int) -> Tensor:
    """A on both sides: gradient [<= 2 down, <= 2 across, O] of the result -> [16, down * across, channels]."""
    height, width, outputs = gradient.shape
    if (height, width) != (2 * down, 2 * across):
        gradient = torch.nn.functional.pad(gradient, (0, 0, 0, 2 * across - width, 0, 2 * down - height))
    even, odd = gradient[0::2], gradient[1::2]
    out = gradient.new_zeros(4, 4, down, across, channels)
    for i, line in enumerate((even, even + odd, even - odd, -odd)):
        a, b = line[:, 0::2], line[:, 1::2]
        target = out[i, ..., :outputs]
        target[0].copy_(a)
        torch.add(a, b, out=target[1])
        torch.sub(a, b, out=target[2])
        torch.neg(b, out=target[3])
    return out.flatten(2, 3).flatten(0, 1)
