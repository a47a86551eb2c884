"""common/nets/upsampling.py against the enlargement and the convolution that it stands for."""

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode

from common.nets.upsampling import UpsampledConv2d, doubling_kernel


def case(bias: bool = True, layout=torch.contiguous_format) -> tuple[UpsampledConv2d, torch.Tensor]:
    torch.manual_seed(0)
    layer = UpsampledConv2d(3, 5, bias).double().to(memory_format=layout)
    return layer, torch.randn(2, 3, 4, 6, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()


def enlarge_then_convolve(layer: UpsampledConv2d, x: torch.Tensor, size) -> torch.Tensor:
    """Pixel by pixel of the enlarged image, then an ordinary convolution."""
    rows = torch.arange(size[0]) * x.shape[2] // size[0]
    columns = torch.arange(size[1]) * x.shape[3] // size[1]
    return F.conv2d(x[:, :, rows][..., columns], layer.weight, layer.bias, padding=1)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("size", [(8, 12), (7, 11), (8, 11), (4, 6)])
def test_values_and_gradients(size, bias, layout):
    """Twice the size, and what an image of odd sides asks for."""
    layer, x = case(bias, layout)
    weights = torch.randn(2, 5, *size, dtype=torch.float64)
    inputs = [x, *layer.parameters()]
    ours, theirs = layer(x, size), enlarge_then_convolve(layer, x, size)
    assert ours.shape == theirs.shape
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)
    gradients = torch.autograd.grad((ours * weights).sum(), inputs)
    expected = torch.autograd.grad((theirs * weights).sum(), inputs)
    for gradient, truth in zip(gradients, expected, strict=True):
        assert torch.allclose(gradient, truth, rtol=0, atol=1e-12)


def test_four_ninths_of_the_multiplications():
    layer, x = case()

    operations = []
    for function in (layer, partial(enlarge_then_convolve, layer)):
        with FlopCounterMode(display=False) as counter, torch.no_grad():
            function(x, (8, 12))
        operations.append(counter.get_total_flops())
    short, long = operations
    assert short * 9 == long * 4


def test_the_kernel_lies_in_memory_as_the_weights_do():
    """Contiguous where they are; with channels_last in runs of the channels of the result, as it is made."""
    weight = torch.randn(5, 3, 3, 3)
    contiguous, other = doubling_kernel(weight), doubling_kernel(weight.to(memory_format=torch.channels_last))
    assert contiguous.is_contiguous()
    assert other.stride(1) == 1 and not other.is_contiguous()
    assert torch.equal(contiguous, other)


def test_without_values():
    """As the counters of operations build networks."""
    with torch.device("meta"):
        assert UpsampledConv2d(3, 5)(torch.zeros(2, 3, 4, 6), (8, 12)).shape == (2, 5, 8, 12)


def test_parameters_are_those_of_a_3x3_convolution():
    layer = UpsampledConv2d(3, 5)
    assert {name: value.shape for name, value in layer.state_dict().items()} == {
        name: value.shape for name, value in nn.Conv2d(3, 5, 3).state_dict().items()
    }


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_mixed_precision_is_as_exact_as_the_long_way(dtype):
    layer, x = case()
    exact = layer(x, (8, 12))
    layer, x = layer.float(), x.detach().float()
    with torch.autocast("cpu", dtype=dtype):
        ours, theirs = layer(x, (8, 12)), enlarge_then_convolve(layer, x, (8, 12))
    assert ours.dtype == theirs.dtype == dtype
    assert (ours - exact).norm() <= 1.5 * (theirs - exact).norm()
