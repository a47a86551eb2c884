"""A network for the training step with less work for the host: its blocks compiled, or all of it recorded once."""

import collections
import contextlib
import copy
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path

import torch
from torch import Tensor, nn

from common.device import cuda
from common.device.world import World

REASON_LENGTH = 160  # of an error in the one line about it
FORMS = 128  # of one forward method that may be compiled: a residual block has one for each size and each width

Autocast = Callable[[], AbstractContextManager]


def compiled(
    model: nn.Module, network: nn.Module, world: World, shape: Sequence[int], autocast: Autocast
) -> tuple[nn.Module, str]:
    """(network for the training step, a line that says what it is): `network` compiled, or itself where that fails.

    model: what is trained, and stays as it is for evaluation and for checkpoints. network: what the step has so far,
    `model` itself or another one with the same weights and statistics; so is the one returned. shape: of the training
    images, [B, 3, H, W]; every step has it. autocast: the context of the forward pass.

    Compiled are the blocks that a network repeats (`blocks_of`): one compilation serves all blocks of the same shapes,
    where one of the whole network would compile each of them. What is compiled is kept on disk for the next run.

    A step with images of zeros is tried at once, so that a missing compiler is known before training starts.
    """
    folder = _keep_between_runs()
    started = time.perf_counter()
    try:
        with _nothing_learnt(model, world):
            images = _images(world, shape)
            twin = _counting_at_once(twin_of(model), images, autocast)
            _compile_blocks(twin)  # torch refuses by itself on a Python that is too new for it
            with autocast():
                outputs = twin(images)
            sum(output.float().sum() for output in outputs).backward()
        seconds = time.perf_counter() - started
        return twin, f"the network is compiled, in {seconds:.0f} s; {folder} keeps the result for the next run"
    except Exception as error:  # of a compiler, of a backend, or of one that is not there
        return network, f"--compile failed; training goes on without it: {_reason(error)}"


def recorded(
    model: nn.Module, network: nn.Module, world: World, shape: Sequence[int], autocast: Autocast
) -> tuple[nn.Module, str]:
    """As `compiled`, but forward and backward pass of `network` become CUDA graphs.

    A step of an eager network launches a thousand kernels and more, one by one, and a fast card waits for the host in
    between; a graph is launched at once ("CUDA Graphs" in PyTorch's notes on CUDA semantics). The memory of a step
    stays taken between the steps. Under autocast the gradients of a weight that is used twice are added in float32.
    """
    if world.size > 1:
        return network, "--cuda_graph is for one device, and is left out: gradients are exchanged on the way back"
    try:
        with _nothing_learnt(model, world):
            images = _images(world, shape)
            recording = _counting_at_once(twin_of(model), images, autocast) if network is model else network
            recording = cuda.record(recording, images, autocast)
        return recording, "the network's kernels are recorded, and replayed in each step"
    except Exception as error:  # of an operator that cannot be recorded, for example
        return network, f"--cuda_graph failed; training goes on without it: {_reason(error)}"


@contextlib.contextmanager
def _nothing_learnt(model: nn.Module, world: World) -> Iterator[None]:
    """Statistics and random numbers are afterwards what they were before, and there are no gradients."""
    buffers = copy.deepcopy(list(model.buffers()))
    generators = [torch] if world.device.type == "cpu" else [torch, getattr(torch, world.device.type)]
    states = [generator.get_rng_state() for generator in generators]
    try:
        yield
    finally:
        model.zero_grad(set_to_none=True)
        with torch.no_grad():
            for buffer, before in zip(model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        for generator, state in zip(generators, states, strict=True):
            generator.set_rng_state(state)


def twin_of(model: nn.Module) -> nn.Module:
    """A network with the very same tensors, for training."""
    tensors = [*model.parameters(), *model.buffers()]
    return copy.deepcopy(model, {id(tensor): tensor for tensor in tensors}).train()


def _counting_at_once(network: nn.Module, images: Tensor, autocast: Autocast) -> nn.Module:
    """The network, whose batch norms no longer count their batches one by one: a tenth of the kernels of a ResNet."""
    norms = [
        module
        for module in network.modules()
        if type(module) is nn.BatchNorm2d and module.num_batches_tracked is not None and module.momentum is not None
    ]
    return _CountingAtOnce(network, norms, images, autocast) if norms else network


class _CountingAtOnce(nn.Module):
    """Raises the counters of all `norms` together, by what a forward pass of `images` adds to each."""

    def __init__(self, network: nn.Module, norms: Sequence[nn.BatchNorm2d], images: Tensor, autocast: Autocast):
        super().__init__()
        self.network = network
        self.counters = [norm.num_batches_tracked for norm in norms]
        before = torch.stack(self.counters)
        with torch.no_grad(), autocast():
            network(images)
        self.uses = (torch.stack(self.counters) - before).tolist()  # two where a layer is used twice
        for norm in norms:
            norm.num_batches_tracked = None

    def forward(self, images: Tensor) -> object:
        torch._foreach_add_(self.counters, self.uses)
        return self.network(images)


def _images(world: World, shape: Sequence[int]) -> Tensor:
    return torch.zeros(*shape, device=world.device).contiguous(memory_format=world.memory_format)


def blocks_of(model: nn.Module) -> Iterator[nn.Module]:
    """The outermost modules that are worth compiling by themselves.

    They are those of a class that occurs more than once, and those of layers alone: a residual block, a convolution
    with its batch norm and activation, a level of a decoder. A module that names `compiled_methods` runs its own layers
    in these.
    """
    has_methods = hasattr(model, "compiled_methods")
    uses = collections.Counter(type(module) for module in model.modules())

    def is_block(module: nn.Module) -> bool:
        layers = list(module.children())
        if not layers or isinstance(module, nn.ModuleList):
            return False
        has_parts = any(True for layer in layers for _ in layer.children())
        return not has_parts or (uses[type(module)] > 1 and type(module) is not nn.Sequential)

    for child in model.children():
        if is_block(child):
            if not has_methods:
                yield child
        else:
            yield from blocks_of(child)


def _compile_blocks(network: nn.Module) -> None:
    """Have the blocks and the methods that a module names compiled when they run for the first time."""
    import torch._dynamo.config as config

    name = "recompile_limit" if hasattr(config, "recompile_limit") else "cache_size_limit"  # the name until torch 2.6
    setattr(config, name, max(FORMS, getattr(config, name)))
    for block in list(blocks_of(network)):
        block.compile(dynamic=False)
    for module in network.modules():
        for method in getattr(module, "compiled_methods", ()):
            setattr(module, method, torch.compile(getattr(module, method), dynamic=False))


def _keep_between_runs() -> Path:
    """Where torch's compiler keeps its results: in the user's cache folder, unless the user has chosen one.

    Its own choice is a folder for temporary files, which are gone with the next start of the machine; torch sets the
    variable to it as soon as a part of the compiler is imported.
    """
    os.environ.setdefault("TORCHINDUCTOR_FX_GRAPH_CACHE", "1")
    os.environ.setdefault("TORCHINDUCTOR_AUTOGRAD_CACHE", "1")  # by itself from torch 2.8 on
    chosen = os.environ.get("TORCHINDUCTOR_CACHE_DIR", "")
    if not chosen or chosen.startswith(os.path.join(tempfile.gettempdir(), "torchinductor_")):
        folder = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "torchinductor"
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(folder)
    return Path(os.environ["TORCHINDUCTOR_CACHE_DIR"])


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 3] + "..."
