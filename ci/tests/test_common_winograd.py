"""Winograd's convolutions against torch's own, in float64, where what is left of a difference is no rounding."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from common import winograd
from common.device import World, place
from common.winograd import WinogradConv2d, use_winograd


@pytest.fixture(autouse=True)
def for_small_ones_too(monkeypatch):
    monkeypatch.setattr(winograd, "LEAST_PATCHES", 1)
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 1)


@pytest.mark.parametrize("size", [(8, 6), (7, 6), (8, 5), (3, 3), (1, 1), (2, 9), (33, 17)])
@pytest.mark.parametrize("band_bytes", [1, 4 << 20])
@pytest.mark.parametrize("memory_format", [torch.channels_last, torch.contiguous_format])
def test_result_and_gradients_are_those_of_the_definition(size, band_bytes, memory_format, monkeypatch):
    """In one band and in bands of one line of patches; with channels that do and do not fill up a register."""
    monkeypatch.setattr(winograd, "BAND_BYTES", band_bytes)
    torch.manual_seed(0)
    for inputs, outputs, bias in ((16, 32, True), (5, 19, True), (19, 5, False)):
        layer = WinogradConv2d(inputs, outputs, 3, padding=1, bias=bias).double().to(memory_format=memory_format)
        x = torch.randn(2, inputs, *size, dtype=torch.float64).to(memory_format=memory_format).requires_grad_()
        parameters = [x, *layer.parameters()]
        expected = F.conv2d(x, layer.weight, layer.bias, padding=1)
        result = layer(x)
        assert result.shape == expected.shape
        torch.testing.assert_close(result, expected, rtol=1e-12, atol=1e-12)
        gradient = torch.randn_like(expected)
        ours = torch.autograd.grad(result, parameters, gradient)
        for mine, theirs in zip(ours, torch.autograd.grad(expected, parameters, gradient), strict=True):
            torch.testing.assert_close(mine, theirs, rtol=1e-12, atol=1e-11)


@pytest.mark.parametrize("size", [(6, 6), (7, 6), (6, 7), (7, 7)])
@pytest.mark.parametrize("batch_size", [1, 2])
def test_the_result_may_be_changed_in_place(batch_size, size):
    """As a ReLU behind the convolution does."""
    torch.manual_seed(0)
    layer, x = WinogradConv2d(4, 4, 3, padding=1), torch.randn(batch_size, 4, *size)
    F.relu(layer(x), inplace=True).sum().backward()
    ours, layer.weight.grad = layer.weight.grad, None
    F.relu(F.conv2d(x, layer.weight, layer.bias, padding=1)).sum().backward()
    torch.testing.assert_close(ours, layer.weight.grad)


def test_frozen_weights_and_images_get_no_gradient():
    layer = WinogradConv2d(4, 4, 3, padding=1)
    x = torch.randn(1, 4, 6, 6, requires_grad=True)
    layer.weight.requires_grad_(False)
    layer(x).sum().backward()
    assert layer.weight.grad is None and x.grad is not None and layer.bias.grad is not None


def test_rounding_in_float32_is_as_small_as_that_of_the_definition():
    """Against float64; the transformations of 2x2 patches add a few roundings to the thousands of the sum."""
    torch.manual_seed(0)
    x, layer = torch.randn(2, 256, 24, 24), WinogradConv2d(256, 256, 3, padding=1)
    exact = F.conv2d(x.double(), layer.weight.double(), layer.bias.double(), padding=1)
    with torch.no_grad():
        ours = (layer(x) - exact).abs().max()
        direct = (F.conv2d(x, layer.weight, layer.bias, padding=1) - exact).abs().max()
    assert ours < 8 * direct
    assert ours < 1e-5 * exact.abs().max()


def test_only_the_convolutions_that_gain_are_replaced(monkeypatch):
    monkeypatch.setattr(winograd, "LEAST_CHANNELS", 8)

    class Other(nn.Conv2d):
        def forward(self, x):
            return x

    class Initialised(nn.Conv2d):
        pass

    def conv(*args, kind=nn.Conv2d, **options):
        return kind(*args, **{"kernel_size": 3, "padding": 1} | options)

    taken = [conv(8, 8), conv(8, 16, bias=False), conv(8, 8, kind=Initialised)]
    left = [
        conv(8, 4), conv(4, 8), conv(8, 8, kernel_size=1, padding=0), conv(8, 8, stride=2), conv(8, 8, padding=0),
        conv(8, 8, dilation=2, padding=2), conv(8, 8, groups=2), conv(8, 8, padding_mode="reflect"),
        conv(8, 8, padding="same"), conv(8, 8, kind=Other),
    ]  # fmt: skip
    model = nn.ModuleList([*taken, *left])
    names = list(model.state_dict())
    use_winograd(model)
    assert [isinstance(layer, WinogradConv2d) for layer in model] == [True] * len(taken) + [False] * len(left)
    assert list(model.state_dict()) == names
    assert isinstance(copy.deepcopy(model)[0], WinogradConv2d)


def test_only_the_cpu_has_them_and_only_in_its_fast_layout():
    for world, expected in (
        (World(torch.device("cpu"), channels_last=True), WinogradConv2d),
        (World(torch.device("cpu")), nn.Conv2d),
        (World(torch.device("meta"), channels_last=True), nn.Conv2d),
    ):
        (layer,) = place(nn.Sequential(nn.Conv2d(4, 4, 3, padding=1)), world)
        assert type(layer) is expected


def used(monkeypatch, layer, x) -> bool:
    """Whether the convolution of x is computed by the transformations."""
    calls = []
    convolve = winograd._convolve
    monkeypatch.setattr(winograd, "_convolve", lambda *args: calls.append(1) or convolve(*args))
    layer(x)
    return bool(calls)


def test_small_features_and_other_precisions_take_the_usual_way(monkeypatch):
    layer = WinogradConv2d(4, 4, 3, padding=1)
    monkeypatch.setattr(winograd, "LEAST_PATCHES", 12)
    assert used(monkeypatch, layer, torch.randn(2, 4, 4, 5))  # 2 images of 2x3 patches
    assert not used(monkeypatch, layer, torch.randn(1, 4, 5, 5))
    x = torch.randn(2, 4, 8, 8)
    with torch.autocast("cpu", torch.bfloat16):
        assert not used(monkeypatch, layer, x)
    assert not used(monkeypatch, layer.bfloat16(), x.bfloat16())
