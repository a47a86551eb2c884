"""The one place that chooses how an optimizer is carried out."""

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from common.device import World

FUSED_DEVICES = ("cpu", "cuda")  # that torch has fused kernels for


def fused_optimizer(
    kind: type[Optimizer], parameters: Iterable[Tensor] | Iterable[dict], world: World, **options: object
) -> Optimizer:
    """torch.optim.SGD or Adam with all their arithmetic in one pass over the weights, where the device has that.

    kind: the class. parameters: tensors, or groups of them with their own options. A fused optimizer also skips a step
    that is not finite without the host waiting for the device to know it.
    """
    optimizer = kind(parameters, fused=world.device.type in FUSED_DEVICES, **options)
    optimizer.register_load_state_dict_post_hook(_lay_out_like_weights)
    return optimizer


def _lay_out_like_weights(optimizer: Optimizer) -> None:
    """Give the momentum that was loaded the memory layout of its weights.

    The checkpoint may be of a run with another layout, and a fused kernel on the CPU pairs the numbers of two tensors
    by their place in memory.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
