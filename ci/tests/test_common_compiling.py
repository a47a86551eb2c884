"""common/step/compiling.py: a compiled network trains as the plain one, and one that cannot be compiled trains too."""

import shutil
from contextlib import nullcontext
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from common.device.world import World
from common.step.compiling import compiled

WORLD = World(torch.device("cpu"), channels_last=True)
SHAPE = (2, 3, 8, 10)


class Network(nn.Module):
    """Convolution, batch norm, dropout; logits in a tuple while it trains, as the networks here give them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.conv, self.bn, self.last = nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.Conv2d(6, 4, 1)
        self.dropout = nn.Dropout2d(0.5)

    def forward(self, images):
        logits = self.last(self.dropout(torch.relu(self.bn(self.conv(images)))))
        return (logits,) if self.training else logits


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def no_compiler(model, **_):
    """What torch.compile gives where its backend fails at the first step, half-way through the network."""

    def forward(images):
        model.bn(model.conv(images))
        torch.rand(3)
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in\n('g++',)")

    network = nn.Module()
    network.forward = forward
    return network


def test_without_a_compiler_one_line_and_the_same_network(monkeypatch):
    monkeypatch.setattr(torch, "compile", no_compiler)
    model = Network()
    before, drawn = state(model), torch.get_rng_state()
    network, note = compiled(model, WORLD, SHAPE, nullcontext)
    assert network is model
    assert note.startswith("--compile failed; training goes on without it: ")
    assert "No working C++ compiler found" in note and "\n" not in note
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_a_python_that_is_too_new_for_the_compiler(monkeypatch):
    """torch.compile itself refuses then, before any network runs."""

    def refuse(*_, **__):
        raise RuntimeError("torch.compile is not supported on Python 3.15+")

    monkeypatch.setattr(torch, "compile", refuse)
    model = Network()
    network, note = compiled(model, WORLD, SHAPE, nullcontext)
    assert network is model
    assert note.endswith("RuntimeError: torch.compile is not supported on Python 3.15+")


def test_with_several_processes_gradients_are_exchanged_during_the_backward_pass(monkeypatch, tmp_path):
    """torch compiles in parts then, one for each package of gradients, if the first step is compiled with them."""
    parts, sizes = [], []

    def backend(graph, inputs):
        parts.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    monkeypatch.setattr(dist, "_DEFAULT_FIRST_BUCKET_BYTES", 1)  # a megabyte, more than all weights here
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        for size in (1, 2):
            torch.compiler.reset()
            model = Network()
            network, _ = compiled(model, World(WORLD.device, size=size, channels_last=True), SHAPE, nullcontext)
            parallel = nn.parallel.DistributedDataParallel(network, bucket_cap_mb=0.0001)
            parts.clear()
            parallel(torch.zeros(SHAPE).contiguous(memory_format=torch.channels_last))
            sizes.append(len(parts))
    finally:
        dist.destroy_process_group()
        torch.compiler.reset()
    assert sizes[0] == 0 and sizes[1] > 1


def test_an_error_on_the_way_back_counts_too(monkeypatch):
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no backend for the backward pass: " + 500 * "x")

    def compile(model, **_):
        network = nn.Module()
        network.forward = lambda images: tuple(Fails.apply(output) for output in model(images))
        return network

    monkeypatch.setattr(torch, "compile", compile)
    model = Network()
    network, note = compiled(model, WORLD, SHAPE, nullcontext)
    assert network is model and "no backend for the backward pass" in note and len(note) < 250


@pytest.fixture
def plain_kernels():
    """Kernels without vector instructions: to find out which ones a compiler knows takes it as long as all the rest."""
    import torch._inductor.config

    with torch._inductor.config.patch({"cpp.vec_isa_ok": False}):
        yield


@pytest.mark.skipif(not shutil.which("g++"), reason="torch.compile needs a C++ compiler on the CPU")
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_a_compiled_step_is_the_plain_one(layout, plain_kernels):
    """Loss, gradients and statistics to the rounding of float32; names and evaluation are those of the network."""
    model, plain = Network(), Network()
    for network in (model, plain):
        network.dropout.p = 0.0
        network.to(memory_format=layout)
    before = state(model)
    world = World(torch.device("cpu"), channels_last=layout == torch.channels_last)
    network, note = compiled(model, world, SHAPE, nullcontext)
    assert note == "the network is compiled" and network is not model
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert all(parameter.grad is None for parameter in model.parameters())

    images = torch.randn(SHAPE).contiguous(memory_format=layout)
    for step in range(2):
        (ours,), (theirs,) = network(images), plain(images)
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-5), step
        for outputs in (ours, theirs):
            outputs.square().mean().backward()
    for (name, one), other in zip(model.named_parameters(), plain.parameters(), strict=True):
        assert torch.allclose(one.grad, other.grad, rtol=1e-3, atol=1e-5), name
    for (name, one), other in zip(model.named_buffers(), plain.buffers(), strict=True):
        assert torch.allclose(one, other, rtol=1e-4, atol=1e-6), name
    model.eval(), plain.eval()
    other_size = torch.randn(1, 3, 5, 7)
    assert torch.allclose(model(other_size), plain(other_size), rtol=1e-4, atol=1e-5)
