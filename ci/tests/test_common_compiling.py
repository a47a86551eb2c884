"""common/step/compiling.py: a compiled network trains as the plain one, and one that cannot be compiled trains too."""

import os
import shutil
import tempfile
from contextlib import nullcontext
from dataclasses import replace
from functools import partial

import pytest
import torch
import torch.distributed as dist
from torch import nn

from common.device.world import World
from common.step.compiling import blocks_of, compiled, recorded

WORLD = World(torch.device("cpu"), channels_last=True)
SHAPE = (2, 3, 8, 10)


class Block(nn.Module):
    """Convolution, batch norm, activation; of as many channels as its input."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv, self.bn = nn.Conv2d(channels, channels, 3, padding=1), nn.BatchNorm2d(channels)

    def forward(self, x):
        return torch.relu(self.bn(self.conv(x)))


class Network(nn.Module):
    """Blocks, dropout, a classifier; logits in a tuple while it trains, as the networks here give them."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(3)
        self.first, self.stage = nn.Conv2d(3, 6, 1), nn.Sequential(Block(6), Block(6), Block(6))
        self.dropout, self.last = nn.Dropout2d(0.5), nn.Conv2d(6, 4, 1)

    def forward(self, images):
        logits = self.last(self.dropout(self.stage(self.first(images))))
        return (logits,) if self.training else logits


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def no_compiler(block, **_):
    """What a compiled block does where the backend of torch.compile fails at the first step."""

    def forward(x):
        block.bn(block.conv(x))
        torch.rand(3)
        raise RuntimeError("InvalidCxxCompiler: No working C++ compiler found in\n('g++',)")

    block.forward = forward


def test_without_a_compiler_one_line_and_the_same_network(monkeypatch):
    monkeypatch.setattr(nn.Module, "compile", no_compiler)
    model = Network()
    before, drawn = state(model), torch.get_rng_state()
    network, note = compiled(model, model, WORLD, SHAPE, nullcontext)
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

    monkeypatch.setattr(nn.Module, "compile", refuse)
    model = Network()
    network, note = compiled(model, model, WORLD, SHAPE, nullcontext)
    assert network is model
    assert note.endswith("RuntimeError: torch.compile is not supported on Python 3.15+")


def test_blocks_are_those_that_repeat_and_those_of_layers():
    network = nn.Sequential(nn.Conv2d(3, 6, 1), nn.Sequential(Block(6), Block(6)), nn.Sequential(nn.ReLU()), Network())
    found = list(blocks_of(network))
    assert found == [*network[1], network[2], *network[3].stage]


def test_methods_that_a_network_names_are_compiled_whole(monkeypatch):
    """A stem that is no module of its own: its layers are not compiled again beside it."""

    class Stem(Network):
        compiled_methods = ("start",)

        def start(self, images):
            return torch.relu(self.first(images))

        def forward(self, images):
            return (self.last(self.stage(self.start(images))),)

    graphs = []

    def backend(graph, inputs):
        graphs.append([str(node.target) for node in graph.graph.nodes if node.op != "placeholder"])
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    model = Stem()
    model.first = nn.Sequential(model.first, nn.ReLU())
    assert list(blocks_of(model)) == [*model.stage]
    network, note = compiled(model, model, WORLD, SHAPE, nullcontext)
    torch.compiler.reset()
    assert note.startswith("the network is compiled") and "start" not in vars(model)
    assert len(graphs) == 2 and "batch_norm" not in str(graphs[0]) and "conv2d" in str(graphs[0])


def test_blocks_of_equal_shapes_are_compiled_once_and_serve_several_processes_too(monkeypatch, tmp_path):
    graphs = []

    def backend(graph, inputs):
        graphs.append(graph)
        return graph

    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend))
    dist.init_process_group("gloo", store=dist.FileStore(str(tmp_path / "store"), 1), rank=0, world_size=1)
    try:
        model = Network()
        network, note = compiled(model, model, WORLD, SHAPE, nullcontext)
        assert note.startswith("the network is compiled") and len(graphs) == 1
        parallel = nn.parallel.DistributedDataParallel(network)
        images = torch.zeros(SHAPE).contiguous(memory_format=torch.channels_last)
        for _ in range(2):
            parallel(images)[0].sum().backward()
    finally:
        dist.destroy_process_group()
        torch.compiler.reset()
    assert len(graphs) == 1


def test_an_error_on_the_way_back_counts_too(monkeypatch):
    class Fails(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, gradient):
            raise RuntimeError("no backend for the backward pass: " + 500 * "x")

    def compile(block, **_):
        forward = block.forward
        block.forward = lambda x: Fails.apply(forward(x))

    monkeypatch.setattr(nn.Module, "compile", compile)
    model = Network()
    network, note = compiled(model, model, WORLD, SHAPE, nullcontext)
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
    network, note = compiled(model, model, world, SHAPE, nullcontext)
    assert note.startswith("the network is compiled, in ") and "\n" not in note and network is not model
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


# ---- recorded: CUDA graphs, of which a CPU can only see what they are asked for


@pytest.fixture
def graphs(monkeypatch):
    """Networks that torch was asked to record, with the shape of the images and whether autocast would keep casts."""
    asked = []

    def make_graphed_callables(network, sample):
        asked.append((network, sample[0].shape, torch.is_autocast_cache_enabled()))
        network(*sample)[0].sum().backward()
        torch.rand(3)
        return network

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", make_graphed_callables)
    return asked


def test_a_recorded_network_has_the_weights_of_the_model_and_has_learnt_nothing(graphs):
    model = Network()
    before, drawn = state(model), torch.get_rng_state()
    network, note = recorded(model, model, WORLD, SHAPE, partial(torch.autocast, "cpu", torch.bfloat16))
    assert note == "the network's kernels are recorded, and replayed in each step"
    assert graphs == [(network, SHAPE, False)] and network is not model and network.training
    assert all(a is b for a, b in zip(network.parameters(), model.parameters(), strict=True))
    assert {id(buffer) for buffer in (*network.buffers(), *network.counters)} == set(map(id, model.buffers()))
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), drawn)
    assert all(parameter.grad is None for parameter in model.parameters())


def test_batches_are_counted_all_at_once_as_often_as_a_layer_is_used(graphs):
    model, plain = Network(), Network()
    for network in (model, plain):
        network.stage.append(network.stage[0])  # used twice
    network, _ = recorded(model, model, WORLD, SHAPE, nullcontext)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        network(torch.rand(SHAPE))
    plain(torch.rand(SHAPE))
    counts = [block.bn.num_batches_tracked.item() for block in model.stage]
    assert counts == [block.bn.num_batches_tracked.item() for block in plain.stage] == [2, 1, 1, 2]
    assert sum(event.name == "aten::add_" for event in profile.events()) <= len(
        counts
    )  # by foreach, on a CPU one by one
    assert sum(event.name == "aten::_foreach_add_" for event in profile.events()) == 1


def test_what_is_compiled_already_is_recorded_as_it_is(graphs):
    model, so_far = Network(), Network()
    network, _ = recorded(model, so_far, WORLD, SHAPE, nullcontext)
    assert network is so_far


def test_what_cannot_be_recorded_trains_without(monkeypatch, graphs):
    model = Network()
    network, note = recorded(model, model, replace(WORLD, size=2), SHAPE, nullcontext)
    assert network is model and "--cuda_graph is for one device" in note and not graphs

    def fails(*_):
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(torch.cuda, "make_graphed_callables", fails)
    network, note = recorded(model, model, WORLD, SHAPE, nullcontext)
    assert network is model
    assert note == (
        "--cuda_graph failed; training goes on without it: RuntimeError: operation not permitted when stream is "
        "capturing"
    )


# ---- what is kept


@pytest.mark.parametrize("by_torch", [False, True])
def test_what_is_compiled_is_kept_in_the_users_cache(by_torch, monkeypatch, tmp_path):
    """torch itself names a folder of temporary files as soon as a part of its compiler is imported."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.delenv("TORCHINDUCTOR_CACHE_DIR", raising=False)
    if by_torch:
        monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", f"{tempfile.gettempdir()}/torchinductor_somebody")
    monkeypatch.setattr(nn.Module, "compile", lambda block, **_: None)
    model = Network()
    _, note = compiled(model, model, WORLD, SHAPE, nullcontext)
    assert f"{tmp_path}/torchinductor keeps the result" in note
    assert os.environ["TORCHINDUCTOR_CACHE_DIR"] == f"{tmp_path}/torchinductor"


def test_a_cache_that_the_user_has_chosen_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path / "mine"))
    monkeypatch.setattr(nn.Module, "compile", lambda block, **_: None)
    model = Network()
    assert f"{tmp_path}/mine keeps" in compiled(model, model, WORLD, SHAPE, nullcontext)[1]
