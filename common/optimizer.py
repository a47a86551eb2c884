"""The one place that chooses how an optimizer is carried out."""

import importlib
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from common.device import World, owns_gradients, saturates
from common.errors import InputError


def fused_optimizer(
    kind: type[Optimizer],
    parameters: Iterable[Tensor] | Iterable[dict],
    world: World,
    source: str = "torch",
    **options: object,
) -> Optimizer:
    """SGD or Adam with all their arithmetic in one pass over the weights, where the device has that.

    kind: torch.optim.SGD or Adam. parameters: tensors, or groups of them with their own options. source: whose passes,
    "torch", "torch_npu", "apex" or, for one operator after another, "off". On CPU and CUDA those of torch skip a step
    that is not finite without the host waiting for the device to know it; the others wait. Each takes the state of the
    others over. Raises InputError where `source` is not there for the device.
    """
    if source in ("torch_npu", "apex"):
        optimizer = _foreign(kind, source, world.device.type)(parameters, **options)
    else:
        optimizer = kind(parameters, fused=source == "torch" and has_fused_kernel(kind, world, options), **options)
    optimizer.register_load_state_dict_post_hook(_lay_out_like_weights)
    if owns_gradients(optimizer):
        optimizer.register_load_state_dict_post_hook(_count_in_numbers)
    elif source == "torch" and world.device.type == "cpu" and world.channels_last:
        turned: list[Tensor] = []
        optimizer.register_step_pre_hook(lambda optimizer, *_: _channels_to_the_end(optimizer, turned))
        optimizer.register_step_post_hook(lambda optimizer, *_: _channels_back(optimizer, turned))
    return optimizer


def has_fused_kernel(kind: type[Optimizer], world: World, options: dict[str, object]) -> bool:
    """Whether torch has SGD or Adam in one pass on this device.

    A plugin is asked for its kernel: torch_npu has both by 2.13, and of older ones nobody here knows. By its sources
    SGD's needs a momentum, and CANN has none for the first generation of chips.
    """
    if world.device.type != "npu":
        return world.device.type in ("cpu", "cuda")
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::_fused_{kind.__name__.lower()}_", "PrivateUse1")
    return registered and not saturates(world) and (kind is not torch.optim.SGD or bool(options.get("momentum")))


def check_source(source: str, kind: type[Optimizer], device_type: str) -> None:
    """Raise InputError when this source has no fused optimizer of this kind for the device."""
    if source in ("torch_npu", "apex"):
        _foreign(kind, source, device_type)


def _foreign(kind: type[Optimizer], source: str, device_type: str) -> type[Optimizer]:
    """The class of torch_npu or apex that does what `kind` does.

    apex has one for SGD on CUDA: those for NPUs work with apex's own amp alone, and its Adam keeps its step where no
    other optimizer looks for it, and by itself decouples the weight decay.
    """
    place = {"torch_npu": "npu", "apex": "cuda"}[source]
    if device_type != place:
        raise InputError(
            f"--fused_optimizer {source} is for {place.upper()}, and this run is on {device_type.upper()}; use "
            "--fused_optimizer torch"
        )
    if source == "apex" and kind is not torch.optim.SGD:
        raise InputError(f"--fused_optimizer apex is for SGD, and this model has {kind.__name__}; leave the flag out")
    module = {"torch_npu": "torch_npu.optim", "apex": "apex.optimizers"}[source]
    name = f"{'NpuFused' if device_type == 'npu' else 'Fused'}{kind.__name__}"
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise InputError(
            f"--fused_optimizer {source}: {module}.{name} cannot be imported ({error}); install {source}, or use "
            "--fused_optimizer torch"
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


def _count_in_numbers(optimizer: Optimizer) -> None:
    """Give Adam its count of steps as a number: a tensor torch_npu would increase twice in each step."""
    for state in optimizer.state.values():
        if "step" in state:
            state["step"] = int(state["step"])
