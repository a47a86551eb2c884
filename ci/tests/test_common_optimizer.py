"""common/step/optimizer.py: one pass over the weights, whatever lies how in memory."""

import sys
from argparse import Namespace
from types import ModuleType, SimpleNamespace

import pytest
import torch
from torch import nn

from ci.tests import small_folder
from ci.tests.operators import Operators
from common.device.world import World
from common.errors import InputError
from common.run import Run
from common.step import optimizer
from common.step.optimizer import OPTIMIZERS, check_source, fused_optimizer, optimizer_options

KINDS = {
    torch.optim.SGD: {"momentum": 0.9, "weight_decay": 0.01},
    torch.optim.Adam: {"weight_decay": 0.01},
    torch.optim.AdamW: {"weight_decay": 0.3},
}
OF_EACH_KIND = pytest.mark.parametrize("kind, options", KINDS.items(), ids=[kind.__name__ for kind in KINDS])
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


class SGD(torch.optim.SGD):
    """Says with which options it is made, and is an ordinary one."""

    def __init__(self, parameters, **options):
        self.given = options
        super().__init__(parameters, lr=options["lr"])


@pytest.mark.parametrize(
    "device_type, registered, saturating, momentum, fused",
    [
        ("cpu", False, False, 0.0, True),
        ("cuda", False, False, 0.0, True),
        ("mps", False, False, 0.9, False),
        ("npu", True, False, 0.9, True),
        ("npu", False, False, 0.9, False),
        ("npu", True, True, 0.9, False),
        ("npu", True, False, 0.0, False),
    ],
)
def test_where_there_are_fused_kernels(device_type, registered, saturating, momentum, fused, monkeypatch):
    """On an NPU, where the plugin has registered one and the chip and the options are those that it is for."""
    asked, real = [], torch._C._dispatch_has_kernel_for_dispatch_key

    def has_kernel(name, key):
        if key != "PrivateUse1":  # torch asks too
            return real(name, key)
        asked.append(name)
        return registered

    monkeypatch.setattr(torch._C, "_dispatch_has_kernel_for_dispatch_key", has_kernel)
    monkeypatch.setattr(optimizer, "saturates", lambda world: saturating)
    world = SimpleNamespace(device=SimpleNamespace(type=device_type), channels_last=False)
    monkeypatch.setattr(torch.optim, "SGD", SGD)
    made = fused_optimizer(SGD, layer(torch.contiguous_format).parameters(), world, lr=0.1, momentum=momentum)
    assert made.given == {"fused": fused, "lr": 0.1, "momentum": momentum}
    assert asked == (["aten::_fused_sgd_"] if device_type == "npu" else [])


@pytest.mark.parametrize("own", [{"momentum": 0.8}, {"beta1": 0.8, "beta2": 0.9}], ids=["of SGD", "of Adam"])
def test_what_each_optimizer_does_with_a_gradient(own):
    """Two steps by the formulas of the papers, whichever flags a folder has for them."""
    second, rate, decay, weight, gradients = own.get("beta2", 0.999), 0.1, 0.3, 2.0, (0.5, -1.0)
    for name in ("sgd", "adam", "adamw"):
        options = optimizer_options(Namespace(optimizer=name, lr=rate, weight_decay=decay, **own))
        ours = torch.tensor([weight], dtype=torch.float64, requires_grad=True)
        optimizer = fused_optimizer(OPTIMIZERS[name], [ours], in_layout(torch.contiguous_format), **options)
        theirs, mean, square = weight, 0.0, 0.0
        for step, gradient in enumerate(gradients, start=1):
            ours.grad = torch.tensor([gradient], dtype=torch.float64)
            optimizer.step()
            if name == "adamw":  # arXiv 1711.05101, algorithm 2
                theirs -= rate * decay * theirs
            else:
                gradient += decay * theirs
            if name == "sgd":
                mean = 0.8 * mean + gradient if step > 1 else gradient
                theirs -= rate * mean
                continue
            mean, square = 0.8 * mean + 0.2 * gradient, second * square + (1 - second) * gradient**2
            theirs -= rate * (mean / (1 - 0.8**step)) / ((square / (1 - second**step)) ** 0.5 + 1e-8)
        assert ours.item() == pytest.approx(theirs, rel=1e-9), name


@pytest.mark.parametrize("saved", LAYOUTS, ids=str)
@pytest.mark.parametrize("loaded", LAYOUTS, ids=str)
@OF_EACH_KIND
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


@OF_EACH_KIND
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


@pytest.mark.parametrize("decay, moved", [(1, {"first.weight", "first.bias", "norm.weight", "last.weight"}),
                                          (0, {"first.weight", "last.weight"})])  # fmt: skip
def test_biases_and_norms_are_decayed_unless_that_is_not_wanted(tmp_path, decay, moved):
    """By a step without gradients; the last bias has a group of its own, without decay in either case."""
    run = Run(small_folder.arguments(tmp_path / "run", norm_decay=decay, weight_decay=0.01), small_folder)
    _, model = run.build(small_folder.build)
    run.join()
    run.prepare(model)
    *weights, last = model.parameters()
    groups = [{"params": iter(weights), "lr": 0.5}, {"params": [last], "lr": 0.1, "weight_decay": 0.0}]
    made = run.optimizer(groups)
    assert [(len(group["params"]), group["lr"]) for group in made.param_groups] == (
        [(5, 0.5), (1, 0.1)] if decay else [(2, 0.5), (3, 0.5), (1, 0.1)]
    )
    before = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    run.amp.step(sum(weight.sum() for weight in model.parameters()) * 0)
    assert {name for name, weight in model.named_parameters() if not torch.equal(weight, before[name])} == moved


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
    """Its SGD on CUDA, whose momentum gets the layout of the weights from a checkpoint of another layout."""
    apex = ModuleType("apex.optimizers")
    apex.FusedSGD = type("FusedSGD", (torch.optim.SGD,), {})
    monkeypatch.setitem(sys.modules, "apex", ModuleType("apex"))
    monkeypatch.setitem(sys.modules, "apex.optimizers", apex)
    before, after = layer(torch.contiguous_format), layer(torch.channels_last)
    first = fused_optimizer(
        torch.optim.SGD, before.parameters(), in_layout(torch.contiguous_format), lr=0.1, momentum=0.9
    )
    steps(first, before, 1, seed=1)
    world = SimpleNamespace(device=SimpleNamespace(type="cuda"))
    second = fused_optimizer(torch.optim.SGD, after.parameters(), world, "apex", lr=0.1, momentum=0.9)
    assert type(second) is apex.FusedSGD
    second.load_state_dict(first.state_dict())
    momentum, expected = second.state[after.weight]["momentum_buffer"], first.state[before.weight]["momentum_buffer"]
    assert momentum.stride() == after.weight.stride() != expected.stride()
    assert torch.equal(momentum, expected)


def test_the_plugins_adam_gets_its_count_of_steps_as_a_number(monkeypatch):
    """From a checkpoint of torch's, which counts in a tensor: the plugin would add to it twice."""

    class NpuFusedAdam(torch.optim.Adam):
        is_fused_optimizer = True

    plugin = ModuleType("torch_npu.optim")
    plugin.NpuFusedAdam = NpuFusedAdam
    monkeypatch.setitem(sys.modules, "torch_npu", ModuleType("torch_npu"))
    monkeypatch.setitem(sys.modules, "torch_npu.optim", plugin)
    model = layer(torch.contiguous_format)
    first = fused_optimizer(torch.optim.Adam, model.parameters(), in_layout(torch.contiguous_format), lr=0.1)
    steps(first, model, 3, seed=1)
    assert isinstance(first.state[model.weight]["step"], torch.Tensor)
    world = SimpleNamespace(device=SimpleNamespace(type="npu"))
    second = fused_optimizer(torch.optim.Adam, model.parameters(), world, "torch_npu", lr=0.1)
    second.load_state_dict(first.state_dict())
    assert [type(state["step"]) for state in second.state.values()] == [int, int]
    assert second.state[model.weight]["step"] == 3


@pytest.mark.parametrize("source, kind, device_type, message", [
    ("apex", torch.optim.SGD, "cuda", "apex.optimizers.FusedSGD cannot be imported .*install apex, or use --fused"),
    ("apex", torch.optim.SGD, "cpu", "apex is for CUDA, and this run is on CPU; use --fused_optimizer torch"),
    ("apex", torch.optim.SGD, "npu", "apex is for CUDA, and this run is on NPU; use --fused_optimizer torch"),
    ("apex", torch.optim.Adam, "cuda", "apex is for SGD, and this model has Adam; leave the flag out"),
    ("torch_npu", torch.optim.SGD, "cuda", "torch_npu is for NPU, and this run is on CUDA; use --fused"),
])  # fmt: skip
def test_an_optimizer_that_is_not_there_is_an_error(monkeypatch, source, kind, device_type, message):
    monkeypatch.setitem(sys.modules, "apex", None)
    with pytest.raises(InputError, match=message):
        check_source(source, kind, device_type)
    for own in ("torch", "off"):
        check_source(own, kind, device_type)
