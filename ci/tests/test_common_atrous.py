"""common/nets/atrous.py against the convolution that it shortens."""

import pytest
import torch
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from common.nets.atrous import AtrousConv2d
from common.tools.plain import plain_network


def operations(layer: nn.Module, x: torch.Tensor) -> int:
    with FlopCounterMode(display=False) as counter:
        layer(x)
    return counter.get_total_flops()


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
@pytest.mark.parametrize("sides, taps", [((5, 6), 1), ((5, 7), 3), ((7, 6), 3), ((7, 7), 9)])
def test_values_gradients_and_operations(sides, taps, layout):
    """Of a dilation of six, in features of six pixels and less the middle of the filter is all that counts."""
    torch.manual_seed(0)
    ours = AtrousConv2d(3, 5, dilation=6).double().to(memory_format=layout)
    theirs = nn.Conv2d(3, 5, 3, padding=6, dilation=6, bias=False).double()
    theirs.load_state_dict(ours.state_dict())
    x = torch.randn(2, 3, *sides, dtype=torch.float64).contiguous(memory_format=layout).requires_grad_()
    assert operations(ours, x) * 9 == operations(theirs, x) * taps
    assert torch.allclose(ours(x), theirs(x), rtol=0, atol=1e-14)
    weights = torch.randn_like(theirs(x))
    gradients = [torch.autograd.grad((layer(x) * weights).sum(), [x, layer.weight]) for layer in (ours, theirs)]
    for gradient, expected in zip(*gradients, strict=True):
        assert torch.allclose(gradient, expected, rtol=0, atol=1e-13)
    assert operations(plain_network(nn.Sequential(ours)), x) == operations(theirs, x)
    assert operations(ours.eval(), x) == operations(theirs, x)  # an exported network takes other sizes too
