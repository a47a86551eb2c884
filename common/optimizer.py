"""The one place that chooses how an optimizer is carried out."""

import importlib
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from common.device import World
from common.errors import InputError

FUSED_DEVICES = ("cpu", "cuda", "npu")  # that have fused kernels; of torch_npu, 2.13 is known to


def fused_optimizer(
    kind: type[Optimizer],
    parameters: Iterable[Tensor] | Iterable[dict],
    world: World,
    source: str = "torch",
    **options: object,
) -> Optimizer:
    """SGD or Adam with all their arithmetic in one pass over the weights, where the device has that.

    kind: torch.optim.SGD or Adam. parameters: tensors, or groups of them with their own options. source: whose passes,
    "torch", "torch_npu", "apex" or, for one operator after another, "off". Those of torch skip a step that is not
    finite without the host waiting for the device to know it; the others wait. The state of each loads into the others.
    Raises InputError where `source` is not there for the device.
    """
    if source in ("torch_npu", "apex"):
        return _foreign(kind, source, world.device.type)(parameters, **options)
    optimizer = kind(parameters, fused=source == "torch" and world.device.type in FUSED_DEVICES, **options)
    optimizer.register_load_state_dict_post_hook(_lay_out_like_weights)
    if world.device.type == "cpu" and world.channels_last:
        turned: list[Tensor] = []
        optimizer.register_step_pre_hook(lambda optimizer, *_: _channels_to_the_end(optimizer, turned))
        optimizer.register_step_post_hook(lambda optimizer, *_: _channels_back(optimizer, turned))
    return optimizer


def check_source(source: str, device_type: str) -> None:
    """Raise InputError when there are no fused optimizers of this source for the device."""
    if source in ("torch_npu", "apex"):
        _foreign(torch.optim.SGD, source, device_type)


def _foreign(kind: type[Optimizer], source: str, device_type: str) -> type[Optimizer]:
    """The class of torch_npu or apex that does what `kind` does."""
    if device_type == "cpu" or (source, device_type) == ("torch_npu", "cuda"):
        raise InputError(
            f"--fused_optimizer {source} is for {'an NPU' if source == 'torch_npu' else 'NPU and CUDA'}, and this run "
            f"is on {device_type.upper()}; use --fused_optimizer torch"
        )
    module = {"torch_npu": "torch_npu.optim", "apex": "apex.optimizers"}[source]
    name = f"{'NpuFused' if device_type == 'npu' else 'Fused'}{kind.__name__}"
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"--fused_optimizer {source}: {module}.{name} cannot be imported ({error}); install {source} for this "
            "device, or use --fused_optimizer torch"
        ) from None


def _channels_to_the_end(optimizer: Optimizer, turned: list[Tensor]) -> None:
    """Show the step weights [O, I, h, w] of the layout channels_last as [O, h, w, I], which is contiguous.

    The numbers stay where they are. The fused kernel of the CPU copies what is not contiguous, and takes four times as
    long. `turned` receives the weights.
    """
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            if parameter.dim() == 4 and not parameter.is_contiguous() and parameter.grad is not None:
                turned.append(parameter)
                _permute(optimizer, parameter, (0, 2, 3, 1))


def _channels_back(optimizer: Optimizer, turned: list[Tensor]) -> None:
    """Undo `_channels_to_the_end`."""
    for parameter in turned:
        _permute(optimizer, parameter, (0, 3, 1, 2))
    turned.clear()


def _permute(optimizer: Optimizer, parameter: Tensor, order: tuple[int, ...]) -> None:
    gradient, state, shape = parameter.grad, optimizer.state[parameter], parameter.shape
    parameter.grad = None  # a gradient has the shape of its weights at all times
    parameter.data = parameter.data.permute(order)
    parameter.grad = gradient.permute(order)
    for name, value in state.items():
        if isinstance(value, Tensor) and value.shape == shape:
            state[name] = value.permute(order)


def _lay_out_like_weights(optimizer: Optimizer) -> None:
    """Give the momentum that was loaded the memory layout of its weights.

    The checkpoint may be of a run with another layout, and a fused kernel on the CPU pairs the numbers of two tensors
    by their place in memory.
    """
    for parameter, state in optimizer.state.items():
        for name, value in state.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape and value.stride() != parameter.stride():
                state[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)
