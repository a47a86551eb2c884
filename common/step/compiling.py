"""Compiles a network for training, where that can be done."""

import copy
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager

import torch
from torch import nn

from common.device.world import World

REASON_LENGTH = 160  # of an error in the one line about it


def compiled(
    model: nn.Module, world: World, shape: Sequence[int], autocast: Callable[[], AbstractContextManager]
) -> tuple[nn.Module, str]:
    """(network for the training step, a line that says what it is): `model` compiled, or itself where that fails.

    shape: of the training images, [B, 3, H, W]; every step has it. autocast: the context of the forward pass. What is
    returned shares everything with `model`, which stays as it is for evaluation and for checkpoints.

    A step with images of zeros is tried at once, so that a missing compiler is known before training starts; weights,
    statistics and random numbers are afterwards what they were.
    """
    buffers = copy.deepcopy(list(model.buffers()))
    random_state = torch.get_rng_state(), _device_random(world).get_rng_state() if _device_random(world) else None
    try:
        network = torch.compile(model, dynamic=False)  # refuses by itself on a Python that is too new for it
        images = torch.zeros(*shape, device=world.device).contiguous(memory_format=world.memory_format)
        with autocast():
            outputs = network.train()(images)
        sum(output.float().sum() for output in outputs).backward()
        if world.size > 1:
            # compiled again with the first step, in parts: gradients are exchanged while others are still computed
            torch.compiler.reset()
        note = "the network is compiled"
    except Exception as error:  # of a compiler, of a backend, or of one that is not there
        network, note = model, f"--compile failed; training goes on without it: {_reason(error)}"
    model.zero_grad(set_to_none=True)
    with torch.no_grad():
        for buffer, before in zip(model.buffers(), buffers, strict=True):
            buffer.copy_(before)
    torch.set_rng_state(random_state[0])
    if random_state[1] is not None:
        _device_random(world).set_rng_state(random_state[1])
    return network, note


def _device_random(world: World):
    """The module with the device's own generator; None on the CPU."""
    return None if world.device.type == "cpu" else getattr(torch, world.device.type)


def _reason(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    return text if len(text) <= REASON_LENGTH else text[: REASON_LENGTH - 3] + "..."
