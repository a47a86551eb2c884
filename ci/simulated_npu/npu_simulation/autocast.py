"""Autocast with the lists of torch_npu 2.13.0, which are not those of CUDA: nothing that resizes is among them."""

import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet

aten = torch.ops.aten
LOW_PRECISION = (
    "conv1d conv2d conv3d conv_tbc conv_transpose1d conv_transpose2d conv_transpose3d convolution _convolution linear "
    "matmul mm mv bmm baddbmm addmm addmv addbmm addr chain_matmul linalg_multi_dot einsum prelu "
    "scaled_dot_product_attention"
).split()
FLOAT32 = (
    "log_softmax softmax nll_loss nll_loss2d nll_loss_nd cosine_embedding_loss poisson_nll_loss hinge_embedding_loss "
    "kl_div l1_loss smooth_l1_loss mse_loss margin_ranking_loss soft_margin_loss triplet_margin_loss "
    "binary_cross_entropy_with_logits cosine_similarity exp expm1 log log10 log2 log1p pow reciprocal rsqrt sinh cosh "
    "tan acos asin erfinv softplus sum prod cumsum cumprod norm dist cdist renorm logsumexp layer_norm "
    "native_layer_norm group_norm frobenius_norm nuclear_norm"
).split()
WIDEST = "addcdiv addcmul dot grid_sampler index_put scatter_add bilinear tensordot".split()
REFUSED = ("binary_cross_entropy",)

_key = DispatchKeySet(DispatchKey.AutocastPrivateUse1)
_libraries: list[torch.library.Library] = []


def _cast(value, dtype: torch.dtype):
    """The same nested arguments with floating tensors of the NPU in `dtype`; float64 stays, as on every device."""
    if isinstance(value, Tensor):
        fits = value.is_floating_point() and value.device.type == "npu" and value.dtype != torch.float64
        return value.to(dtype) if fits else value
    if isinstance(value, list | tuple):
        return type(value)(_cast(item, dtype) for item in value)
    return value


def _widest(args) -> torch.dtype:
    dtype = torch.get_autocast_dtype("npu")
    for value in args:
        for tensor in value if isinstance(value, list | tuple) else [value]:
            if isinstance(tensor, Tensor) and tensor.is_floating_point():
                dtype = torch.promote_types(dtype, tensor.dtype)
    return dtype


def _kernel(op: torch._ops.OpOverload, dtype_of):
    def kernel(*args, **kwargs):
        dtype = dtype_of(args)
        with torch._C._ExcludeDispatchKeyGuard(_key):
            return op(*_cast(args, dtype), **{name: _cast(value, dtype) for name, value in kwargs.items()})

    return kernel


def _refusal(*args, **kwargs):
    raise RuntimeError(
        "torch.nn.functional.binary_cross_entropy and torch.nn.BCELoss are unsafe to autocast. Use "
        "binary_cross_entropy_with_logits instead."
    )


def register() -> None:
    """Give torch the casts."""
    everything = torch.library.Library("_", "IMPL")
    everything.fallback(torch.library.fallthrough_kernel, "AutocastPrivateUse1")
    own = torch.library.Library("aten", "IMPL")
    lists = (
        (LOW_PRECISION, lambda args: torch.get_autocast_dtype("npu")),
        (FLOAT32, lambda args: torch.float32),
        (WIDEST, _widest),
    )
    for names, dtype_of in lists:
        for op in _overloads(names):
            own.impl(op.name().partition("::")[2], _kernel(op, dtype_of), "AutocastPrivateUse1")
    for op in _overloads(REFUSED):
        own.impl(op.name().partition("::")[2], _refusal, "AutocastPrivateUse1")
    _libraries.extend((everything, own))


def _overloads(names):
    """The forms of these operators that make a new tensor."""
    for packet in (getattr(aten, name) for name in names):
        for overload in packet.overloads():
            op = getattr(packet, overload)
            if not any(argument.alias_info for argument in op._schema.arguments):
                yield op
