"""common/optimizer.py: one pass over the weights, whatever lies how in memory."""

import sys
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from ci.tests.operators import Operators
from common.device import World
from common.errors import InputError
from common.optimizer import check_source, fused_optimizer

KINDS = [(torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}), (torch.optim.Adam, {"weight_decay": 0.01})]
LAYOUTS = (torch.contiguous_format, torch.channels_last)


def layer(layout) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(4, 6, 3).to(memory_format=layout)


def in_layout(layout) -> World:
    return World(torch.device("cpu"), channels_last=layout == torch.channels_last)


def steps(optimizer, model: nn.Conv2d, count: int, seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in model.parameters():
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = torch.empty_like(parameter).copy_(gradient)
        optimizer.step()


@pytest.mark.parametrize("device_type, fused", [("cpu", True), ("cuda", True), ("npu", True), ("mps", False)])
def test_where_there_are_fused_kernels(device_type, fused):
    taken = {}

    class Recorded(torch.optim.SGD):
        def __init__(self, parameters, **options):
            taken.update(options)
            super().__init__(parameters, lr=options["lr"])

    world = World(torch.device(device_type if device_type != "npu" else "cpu"))
    if device_type == "npu":  # a name that torch knows with its plugin alone
        world = type("Npu", (), {"device": type("Device", (), {"type": "npu"})})
    fused_optimizer(Recorded, layer(torch.contiguous_format).parameters(), world, lr=0.1)
    assert taken == {"fused": fused, "lr": 0.1}


@pytest.mark.parametrize("saved", LAYOUTS, ids=str)
@pytest.mark.parametrize("loaded", LAYOUTS, ids=str)
@pytest.mark.parametrize("kind, options", KINDS, ids=["SGD", "Adam"])
def test_momentum_continues_in_another_layout(kind, options, loaded, saved):
    """A checkpoint of a run with one layout, continued with another: as one run that updates tensor by tensor."""
    before, after = layer(saved), layer(loaded)
    first = fused_optimizer(kind, before.parameters(), in_layout(saved), lr=0.1, **options)
    steps(first, before, 2, seed=1)
    after.load_state_dict(before.state_dict())
    second = fused_optimizer(kind, after.parameters(), in_layout(loaded), lr=0.1, **options)
    second.load_state_dict(first.state_dict())
    steps(second, after, 2, seed=2)

    plain = layer(torch.contiguous_format)
    optimizer = kind(plain.parameters(), lr=0.1, fused=False, foreach=False, **options)
    steps(optimizer, plain, 2, seed=1)
    steps(optimizer, plain, 2, seed=2)
    for ours, theirs in zip(after.parameters(), plain.parameters(), strict=True):
        assert torch.allclose(ours, theirs, rtol=0, atol=1e-5)
    for parameter, state in second.state.items():
        momentum = [value for value in state.values() if value.shape == parameter.shape]
        assert momentum and all(value.stride() == parameter.stride() for value in momentum)


@pytest.mark.parametrize("kind, options", KINDS, ids=["SGD", "Adam"])
def test_nothing_is_copied_in_a_step(kind, options):
    """Weights of the layout channels_last are updated where they are, and look afterwards as they did before."""
    model = layer(torch.channels_last)
    place, strides = model.weight.data_ptr(), model.weight.stride()
    optimizer = fused_optimizer(kind, model.parameters(), in_layout(torch.channels_last), lr=0.1, **options)
    steps(optimizer, model, 1, seed=1)
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    with Operators() as operators:
        optimizer.step()
    assert not operators.names & {"copy_", "clone", "empty_like"} and operators.names
    assert (model.weight.data_ptr(), model.weight.stride()) == (place, strides)
    assert model.weight.grad.stride() == strides and model.weight.grad.shape == model.weight.shape


@pytest.mark.parametrize("shape", [(3, 3, 3, 3), (5, 3, 1, 1), (1, 4, 3, 3), (4, 1, 3, 3)])
def test_shapes_that_look_the_same_when_turned(shape):
    results = []
    for layout in LAYOUTS:
        torch.manual_seed(0)
        weight = nn.Parameter(torch.randn(shape).contiguous(memory_format=layout))
        optimizer = fused_optimizer(torch.optim.SGD, [weight], in_layout(layout), lr=0.1, momentum=0.9)
        for _ in range(3):
            weight.grad = torch.empty_like(weight).copy_(torch.randn(shape))
            optimizer.step()
        results.append(weight.detach())
    assert torch.allclose(*results, rtol=0, atol=1e-6)


def test_one_operator_after_another_on_request():
    """The same weights up to rounding, and no pass over all of them."""
    results = []
    for source in ("off", "torch"):
        model = layer(torch.contiguous_format)
        optimizer = fused_optimizer(torch.optim.SGD, model.parameters(), World(torch.device("cpu")), source, lr=0.1)
        assert bool(optimizer.defaults["fused"]) == (source == "torch")
        steps(optimizer, model, 2, seed=1)
        results.append(model.weight.detach())
    torch.testing.assert_close(*results)


def test_apex_is_taken_when_asked_for(monkeypatch):
    """By the name that it has on the device."""
    apex = ModuleType("apex.optimizers")
    for name in ("FusedSGD", "FusedAdam", "NpuFusedSGD", "NpuFusedAdam"):
        setattr(apex, name, type(name, (getattr(torch.optim, name.replace("Npu", "").replace("Fused", "")),), {}))
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", apex)
    for device_type, prefix in (("cuda", "Fused"), ("npu", "NpuFused")):
        for kind, options in KINDS:
            world = SimpleNamespace(device=SimpleNamespace(type=device_type))
            parameters = layer(torch.contiguous_format).parameters()
            optimizer = fused_optimizer(kind, parameters, world, "apex", lr=0.1, **options)
            assert type(optimizer).__name__ == prefix + kind.__name__
            assert optimizer.defaults["weight_decay"] == 0.01


@pytest.mark.parametrize("source, device_type, message", [
    ("apex", "cuda", "apex.optimizers.FusedSGD cannot be imported .*install apex .*--fused_optimizer torch"),
    ("apex", "cpu", "apex is for NPU and CUDA, and this run is on CPU; use --fused_optimizer torch"),
    ("torch_npu", "cuda", "torch_npu is for an NPU, and this run is on CUDA; use --fused_optimizer torch"),
])  # fmt: skip
def test_an_optimizer_that_is_not_there_is_an_error(monkeypatch, source, device_type, message):
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(InputError, match=message):
        check_source(source, device_type)
    for own in ("torch", "off"):
        check_source(own, device_type)
