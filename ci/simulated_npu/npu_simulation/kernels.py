"""Operators of the device: each runs on the CPU, on the same memory, after a look at whether a device would do it."""

import functools
import os
import warnings
from collections.abc import Callable, Iterator

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet

from npu_simulation import memory, rules, streams
from npu_simulation.counters import COUNTERS
from npu_simulation.memory import on_cpu, on_npu

aten = torch.ops.aten
# libraries whose kernels hold as long as these objects do
_libraries: list[torch.library.Library] = []
_VIEWS = ("as_strided", "view", "unfold", "_reshape_alias", "alias")
# may be given tensors of both devices: indices are moved by torch, and copies are between devices
_MIXED = ("index", "_index_put_impl_", "index_put", "_copy_from", "_copy_from_and_resize")
_HALF = (torch.float16, torch.bfloat16)


class Device:
    """used: whether this process has touched the device; forked: whether it is a child of one that had."""

    used = forked = False


class Schema:
    """What has to be known of an operator: names of its arguments, which it writes, and which it returns."""

    def __init__(self, op: torch._ops.OpOverload):
        schema = op._schema
        self.op = op
        self.name = op.name().partition("::")[2]
        self.base = self.name.partition(".")[0]
        self.arguments = [argument.name for argument in schema.arguments]
        writes = [argument for argument in schema.arguments if argument.alias_info and argument.alias_info.is_write]
        self.writes = {argument.name for argument in writes}
        self.outs = {argument.name for argument in writes if argument.kwarg_only}
        by_alias = {alias: argument.name for argument in writes for alias in argument.alias_info.before_set}
        # for each result the argument that it is, or None for a new tensor
        self.returns = [
            next((by_alias.get(alias) for alias in result.alias_info.before_set), None) if result.alias_info else None
            for result in schema.returns
        ]
        self.arithmetic = rules.is_arithmetic(self.base)


_schema_of = functools.lru_cache(None)(Schema)


def _tensors(value) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)


def _is_npu(tensor: Tensor) -> bool:
    return tensor.device.type == "npu"


def touch() -> None:
    """Note that this process uses the device; RuntimeError in a process forked from one that did."""
    if Device.forked:
        raise RuntimeError(
            "Cannot re-initialize NPU in forked subprocess. To use NPU with multiprocessing, you must use the 'spawn' "
            "start method"
        )
    Device.used = True


def run(op: torch._ops.OpOverload, *args, **kwargs):
    """The kernel of every operator that has none of its own below."""
    touch()
    schema = _schema_of(op)
    given = dict(zip(schema.arguments, args, strict=False)) | kwargs
    COUNTERS.operators[schema.name] += 1
    if "memory_format" in given:
        rules.refuse_memory_format(given["memory_format"])
    rules.refuse(schema.name, schema.base, given)
    read = [tensor for value in given.values() for tensor in _tensors(value)]
    if schema.base not in _MIXED:
        _refuse_two_devices(schema.name, read)
    written = [tensor for name in schema.writes for tensor in _tensors(given.get(name))]
    streams.use([tensor for tensor in read if _is_npu(tensor)], written)
    return _call(schema, given, len(args))


def _call(schema: Schema, given: dict, positional: int):
    """Run the CPU's kernel on the arguments by name, the first of them by position; hand back the device's result."""
    resized = {}  # name of an empty out= tensor -> the CPU tensor that the operator may give another size

    def convert(value, name):
        if isinstance(value, Tensor):
            if not _is_npu(value):
                return value
            if name in schema.outs and value.numel() == 0:
                resized[name] = torch.empty(0, dtype=value.dtype)
                return resized[name]
            return on_cpu(value)
        if isinstance(value, list | tuple):
            return [convert(item, name) for item in value]
        if isinstance(value, torch.device) and value.type == "npu":
            return torch.device("cpu")
        return value

    arguments = {name: convert(value, name) for name, value in given.items()}
    if "pin_memory" in arguments:
        arguments["pin_memory"] = None
    spoiled = schema.base.startswith("nll_loss") and rules.spoil_labels(arguments)
    values = list(arguments.values())[:positional]
    result = schema.op(*values, **dict(list(arguments.items())[positional:]))
    if spoiled and isinstance(result, tuple):
        result[0].mul_(-123.0)  # the loss
    for name, tensor in resized.items():
        if tensor.shape != given[name].shape:
            given[name].set_(streams.allocate(on_npu(tensor)))
    for name in schema.writes:
        for tensor in _tensors(arguments.get(name)):
            rules.finish(schema.name, tensor, schema.arithmetic)
    if len(schema.returns) == 1:
        return _returned(result, schema.returns[0], schema, given)
    if isinstance(result, tuple):
        return tuple(_returned(item, name, schema, given) for item, name in zip(result, schema.returns, strict=True))
    return result


def _returned(result, name: str | None, schema: Schema, given: dict):
    if name is not None:
        return given[name]
    if isinstance(result, Tensor):
        return streams.allocate(on_npu(rules.finish(schema.name, result, schema.arithmetic)))
    if isinstance(result, list | tuple):
        return type(result)(_returned(item, None, schema, given) for item in result)
    return result


def _refuse_two_devices(name: str, tensors: list[Tensor]) -> None:
    """Raise for a CPU tensor beside NPU tensors, unless it is a single number."""
    if any(map(_is_npu, tensors)) and any(not _is_npu(tensor) and tensor.dim() for tensor in tensors):
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, npu:0 and cpu! ({name})"
        )


# ---- operators with a kernel of their own


def _view(op: torch._ops.OpOverload) -> Callable:
    """The CPU's kernel on the NPU tensor itself: the result shares its storage."""
    cpu = DispatchKeySet(DispatchKey.CPU)
    return lambda *args, **kwargs: op.redispatch(cpu, *args, **kwargs)


def copy_from(source: Tensor, target: Tensor, non_blocking: bool = False) -> Tensor:
    """Every .to(), .cpu() and copy_() that has an NPU at one end at least."""
    touch()
    COUNTERS.operators["_copy_from"] += 1
    from_npu, to_npu = _is_npu(source), _is_npu(target)
    streams.use([source] if from_npu else [], [target] if to_npu else [])
    if from_npu and not to_npu:
        COUNTERS.wait("copy to the host")
        streams.host_waits()
    elif to_npu and not from_npu and not (non_blocking and memory.is_pinned(source)) and source.numel() > 1:
        COUNTERS.wait("copy to the device")
    values = on_cpu(source) if from_npu else source
    (on_cpu(target) if to_npu else target).copy_(values)
    return target


def copy_from_and_resize(source: Tensor, target: Tensor) -> Tensor:
    target.resize_(source.shape)
    return copy_from(source, target)


def item(tensor: Tensor):
    """_local_scalar_dense, behind .item(), float() and bool()."""
    touch()
    COUNTERS.operators["_local_scalar_dense"] += 1
    COUNTERS.wait("item")
    streams.use([tensor], [])
    streams.host_waits()
    return aten._local_scalar_dense(on_cpu(tensor))


def resize(tensor: Tensor, size, memory_format=None) -> Tensor:
    """resize_: in the same storage if it is large enough."""
    rules.refuse_memory_format(memory_format)
    needed = torch.Size(size).numel()
    strides = torch.empty(size, device="meta").stride()
    if tensor.untyped_storage().nbytes() < (tensor.storage_offset() + needed) * tensor.itemsize:
        larger = torch.empty(needed, dtype=tensor.dtype)
        larger[: tensor.numel()] = on_cpu(tensor.detach()).flatten()
        tensor.set_(streams.allocate(on_npu(larger.view(size))))
    else:
        tensor.set_(tensor.untyped_storage(), tensor.storage_offset(), size, strides)
    return tensor


def convolution(input, weight, bias, stride, padding, dilation, transposed, output_padding, groups):
    _note_convolution(input, weight, stride, padding, dilation, groups)
    _refuse_two_devices("convolution", [t for t in (input, weight, bias) if t is not None])
    streams.use([tensor for tensor in (input, weight, bias) if tensor is not None], [])
    values = [None if tensor is None else _accumulating(on_cpu(tensor)) for tensor in (input, weight, bias)]
    result = aten.convolution(*values, stride, padding, dilation, transposed, output_padding, groups)
    return _new("convolution", result.to(input.dtype))


def convolution_backward(grad, input, weight, stride, padding, dilation, transposed, output_padding, groups, mask):
    COUNTERS.operators["convolution_backward"] += 1
    COUNTERS.strided["gradient"] += not grad.is_contiguous()
    streams.use([grad, input, weight], [])
    bias_sizes = [weight.shape[1] * groups if transposed else weight.shape[0]] if mask[2] else None
    results = aten.convolution_backward(
        *(_accumulating(on_cpu(tensor)) for tensor in (grad, input, weight)),
        bias_sizes, stride, padding, dilation, transposed, output_padding, groups, mask,
    )  # fmt: skip
    return tuple(None if each is None else _new("convolution_backward", each.to(grad.dtype)) for each in results)


def _accumulating(tensor: Tensor) -> Tensor:
    """Products of 16 bits are summed up in 32, as the device does; the CPU's own kernels for 16 bits are slow."""
    return tensor.float() if tensor.dtype in _HALF else tensor


def _new(name: str, tensor: Tensor) -> Tensor:
    return streams.allocate(on_npu(rules.finish(name, tensor, arithmetic=True)))


def _note_convolution(input: Tensor, weight: Tensor, stride, padding, dilation, groups) -> None:
    touch()
    COUNTERS.operators["convolution"] += 1
    shape, weight_shape = tuple(input.shape), tuple(weight.shape)
    COUNTERS.convolutions.setdefault((weight_shape, weight.data_ptr()), set()).add(shape)
    options = (tuple(stride), tuple(padding), tuple(dilation), groups)
    COUNTERS.convolution_kinds.add((shape, weight_shape, input.dtype, *options))
    COUNTERS.strided["input"] += not input.is_contiguous()
    COUNTERS.strided["weight"] += not weight.is_contiguous()


def _sync_batch_norm_operators() -> dict[str, Callable]:
    """The parts of torch's SyncBatchNorm, which have no kernel for the CPU, in arithmetic of the device's tensors."""

    def shape(x):
        return [1, -1] + [1] * (x.dim() - 2)

    def axes(x):
        return [0, *range(2, x.dim())]

    def stats(x, eps):
        values = x.float()
        mean = values.mean(axes(x))
        variance = (values - mean.view(shape(x))).square().mean(axes(x))
        return mean, torch.rsqrt(variance + eps)

    def gather_stats(x, mean, invstd, running_mean, running_var, momentum, eps, counts):
        weights = (counts / counts.sum()).view(-1, 1)
        total_mean = (weights * mean).sum(0)
        variance = (weights * (invstd.pow(-2) - eps + (mean - total_mean).square())).sum(0)
        if running_mean is not None:
            count = counts.sum()
            running_mean.mul_(1 - momentum).add_(momentum * total_mean)
            running_var.mul_(1 - momentum).add_(momentum * variance * count / (count - 1))
        return total_mean, torch.rsqrt(variance + eps)

    def elemt(x, weight, bias, mean, invstd, eps):
        scale = invstd if weight is None else invstd * weight
        result = (x.float() - mean.view(shape(x))) * scale.view(shape(x))
        return (result if bias is None else result + bias.view(shape(x))).to(x.dtype)

    def backward_reduce(grad, x, mean, invstd, weight, input_g, weight_g, bias_g):
        sum_dy = grad.float().sum(axes(x))
        sum_dy_xmu = (grad.float() * (x.float() - mean.view(shape(x)))).sum(axes(x))
        return sum_dy, sum_dy_xmu, sum_dy_xmu * invstd if weight_g else None, sum_dy.clone() if bias_g else None

    def backward_elemt(grad, x, mean, invstd, weight, sum_dy, sum_dy_xmu, count):
        total = count.sum()
        scale = invstd if weight is None else invstd * weight
        centred = x.float() - mean.view(shape(x))
        slope = (sum_dy_xmu / total * invstd.square()).view(shape(x))
        return ((grad.float() - (sum_dy / total).view(shape(x)) - centred * slope) * scale.view(shape(x))).to(x.dtype)

    return {
        "batch_norm_stats": stats,
        "batch_norm_gather_stats_with_counts": gather_stats,
        "batch_norm_elemt": elemt,
        "batch_norm_backward_reduce": backward_reduce,
        "batch_norm_backward_elemt": backward_elemt,
    }


def fused_step(op: torch._ops.OpOverload, *args, **kwargs):
    """A step of a fused optimizer of torch, which CANN has for newer chips, and of SGD with a momentum.

    SGD's reads on the host whether the step is to be skipped. Adam's is registered for all chips; below Ascend 950 the
    plugin takes the tensors to the host, computes there, and takes them back.
    """
    if not rules.INF_NAN:
        raise RuntimeError(f"{op} is not supported on {rules.SOC} (EZ9999)")
    if op is aten._fused_sgd_.default and not kwargs["momentum"] > 0:
        raise RuntimeError("Expected momentum > 0 to be true")
    if op is aten._fused_sgd_.default and kwargs.get("found_inf") is not None:
        COUNTERS.wait("item")
    if op is not aten._fused_sgd_.default and not rules.SOC.startswith("Ascend950"):
        name = op.name().removesuffix(".default")
        if os.environ.get("TORCH_NPU_WARNING_DISABLE") != "1":
            warnings.warn(
                f"CAUTION: The operator '{name}' is not currently supported on the NPU backend and will fall back to "
                "run on the CPU. This may have performance implications.",
                stacklevel=2,
            )
        COUNTERS.wait("fallback to the host")
        for _ in (tensor for argument in args if isinstance(argument, list | tuple) for tensor in argument):
            COUNTERS.wait("copy to the host")
    return run(op, *args, **kwargs)


def register() -> None:
    """Give torch the kernels of the device."""
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(run, "PrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    for name in _VIEWS:
        own.impl(name, _view(getattr(aten, name).default), "PrivateUse1")
    for overload in aten.set_.overloads():
        own.impl(f"set_.{overload}".removesuffix(".default"), _view(getattr(aten.set_, overload)), "PrivateUse1")
    kernels = {
        "_copy_from": copy_from,
        "_copy_from_and_resize": copy_from_and_resize,
        "_local_scalar_dense": item,
        "resize_": resize,
        "convolution_overrideable": convolution,
        "convolution_backward_overrideable": convolution_backward,
        **_sync_batch_norm_operators(),
    }
    for name, kernel in kernels.items():
        own.impl(name, kernel, "PrivateUse1")
    for name in ("_fused_sgd_", "_fused_adam_", "_fused_adamw_"):  # programs ask whether the plugin has them
        own.impl(name, functools.partial(fused_step, getattr(aten, name).default), "PrivateUse1")
    own.impl("_pin_memory", memory.pin, "CPU")
    own.impl("is_pinned", memory.is_pinned, "CPU")
    _libraries.extend((everything, own))
