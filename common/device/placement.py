"""A network on the devices of a run: its layout, and the processes that share it."""

import inspect

import torch.distributed as dist
from torch import nn
from torch.optim import Optimizer

from common.device.world import World


def place(model: nn.Module, world: World) -> nn.Module:
    """The model itself, on the device of this process and in its layout."""
    return model.to(world.device, memory_format=world.memory_format)


def data_parallel(model: nn.Module, world: World, optimizer: Optimizer) -> nn.Module:
    """The model, averaging gradients over the processes when there are several.

    Gradients are views of the buffers of the communication, unless the optimizer keeps them in one of its own.

    Batch-norm statistics are not exchanged in every step: training does not read them, and `share_buffers` makes
    them equal before an evaluation. For batch norms over the images of all processes see `common.step.norm`.
    """
    if world.size == 1:
        return model
    parallel = nn.parallel.DistributedDataParallel
    # the newer name of the option, from torch 2.15 on
    renamed = "forward_sync_buffers" in inspect.signature(parallel).parameters
    no_exchange = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    device_ids = None if world.device.type == "cpu" else [world.device.index]
    return parallel(model, device_ids=device_ids, gradient_as_bucket_view=not owns_gradients(optimizer), **no_exchange)


def owns_gradients(optimizer: Optimizer) -> bool:
    """Whether the optimizer keeps all gradients in one tensor of its own, as those of torch_npu do."""
    return getattr(optimizer, "is_fused_optimizer", False)


def share_state(model: nn.Module, world: World) -> None:
    """Give every process rank 0's weights and statistics."""
    if world.size > 1:
        for tensor in model.state_dict().values():
            dist.broadcast(tensor, src=0)


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every process rank 0's batch-norm statistics, the ones that a checkpoint holds."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)
