"""The one place that chooses how an optimizer is carried out."""

import importlib
from argparse import Namespace
from collections.abc import Iterable

import torch
from torch import Tensor
from torch.optim import Optimizer

from common.device import npu
from common.device.placement import owns_gradients
from common.device.world import World, saturates
from common.errors import InputError

BETA2 = 0.999  # of Adam and AdamW, where a recipe names none: torch's
OPTIMIZERS = {"sgd": torch.optim.SGD, "adam": torch.optim.Adam, "adamw": torch.optim.AdamW}


def optimizer_options(args: Namespace) -> dict[str, object]:
    """What --optimizer is made with: rate, weight decay, and momentum or betas; groups may have a rate of their own.

    A folder whose recipe is of SGD has --momentum, and one whose recipe is of Adam --beta1 and --beta2: either is how
    much of the mean of the gradients stays from step to step.
    """
    first, second = getattr(args, "beta1", None), getattr(args, "beta2", BETA2)
    first = args.momentum if first is None else first
    kept = {"momentum": first} if args.optimizer == "sgd" else {"betas": (first, second)}
    return {"lr": args.lr, "weight_decay": args.weight_decay, **kept}


def fused_optimizer(
    kind: type[Optimizer],
    parameters: Iterable[Tensor] | Iterable[dict],
    world: World,
    source: str = "torch",
    **options: object,
) -> Optimizer:
    """SGD, Adam or AdamW with all their arithmetic in one pass over the weights, where the device has that.

    kind: one of OPTIMIZERS. parameters: tensors, or groups of them with their own options. source: whose passes,
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
    return optimizer


def trained_groups(parameters: Iterable[Tensor] | Iterable[dict], norm_decay: bool = True) -> list[dict]:
    """Tensors, or groups of them, as groups without those that `common.step.freezing` has frozen.

    norm_decay: False: in each group those of one dimension, which are biases and the scales and shifts of norms, become
    a group behind it with its rate and a weight decay of 0: "no bias decay" of "Bag of Tricks for Image Classification"
    (arXiv:1812.01187, 3.1); in mmcv norm_decay_mult and bias_decay_mult of 0. A group of which nothing is left is left
    out.
    """
    given = list(parameters)
    groups = given if isinstance(given[0], dict) else [{"params": given}]
    parts = []
    for group in groups:
        trained = [tensor for tensor in group["params"] if tensor.requires_grad]
        if norm_decay:
            parts.append({**group, "params": trained})
        else:
            parts.append({**group, "params": [tensor for tensor in trained if tensor.dim() > 1]})
            parts.append({**group, "params": [tensor for tensor in trained if tensor.dim() <= 1], "weight_decay": 0.0})
    return [part for part in parts if part["params"]]


def has_fused_kernel(kind: type[Optimizer], world: World, options: dict[str, object]) -> bool:
    """Whether torch has SGD, Adam or AdamW in one pass on this device.

    A plugin is asked for its kernel: torch_npu has both by 2.13, and of older ones nobody here knows. By its sources
    SGD's needs a momentum, and CANN has none for the first generation of chips. Adam's is registered for every chip
    and computed on the host by most of them, with a copy of each tensor in each step (`npu.has_fused_adam`). That of
    AdamW takes steps that are to be skipped, because a gradient is not finite.
    """
    if world.device.type != "npu":
        return world.device.type in ("cpu", "cuda")
    registered = torch._C._dispatch_has_kernel_for_dispatch_key(f"aten::_fused_{kind.__name__.lower()}_", "PrivateUse1")
    if not registered or saturates(world) or kind is torch.optim.AdamW:
        return False
    return bool(options.get("momentum")) if kind is torch.optim.SGD else npu.has_fused_adam(world.device)


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
