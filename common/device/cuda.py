"""What is asked of CUDA: whether it can be used, and if not, why; and what a card computes in."""

import re
from collections.abc import Callable
from contextlib import AbstractContextManager

import torch
from torch import Tensor, nn


def problem() -> str | None:
    """Why CUDA cannot be used, with the remedy, in one line; None when it can."""
    if not torch.cuda.is_available():
        built = f"built for CUDA {torch.version.cuda}" if torch.version.cuda else "a build without CUDA"
        return f"torch {torch.__version__} ({built}) sees no CUDA device; check the driver with nvidia-smi"
    built_for = torch.cuda.get_arch_list()
    if torch.version.hip or not built_for:
        return None
    major, minor = torch.cuda.get_device_capability(0)
    if any(_runs(arch, major, minor) for arch in built_for):
        return None
    return (
        f"torch {torch.__version__} has no kernels for {torch.cuda.get_device_name(0)} (sm_{major}{minor}), only for "
        f"{' '.join(built_for)}; install a torch that is built for it (pytorch.org/get-started/previous-versions)"
    )


def record(network: nn.Module, images: Tensor, autocast: Callable[[], AbstractContextManager]) -> nn.Module:
    """The network itself, whose forward and backward pass are CUDA graphs from now on, for images of this shape."""
    with autocast():
        torch.set_autocast_cache_enabled(False)  # it would keep 16-bit weights that the graph does not renew
        return torch.cuda.make_graphed_callables(network, (images,))


def _runs(arch: str, major: int, minor: int) -> bool:
    """Whether code for `arch` runs on a card of this compute capability.

    Machine code (sm_86) runs on cards of the same major number and no smaller minor one, that of sm_90a on its own
    alone; code for the driver's compiler (compute_80) on all that are no older. See "CUDA C++ Programming Guide",
    section "Application Compatibility".
    """
    parts = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
    if parts is None:
        return False
    kind, built_major, built_minor, special = parts[1], int(parts[2]), int(parts[3]), parts[4]
    if special == "a":
        return (built_major, built_minor) == (major, minor)
    if kind == "compute" and not special:
        return (built_major, built_minor) <= (major, minor)
    return built_major == major and built_minor <= minor


def has_bfloat16(device: torch.device) -> bool:
    """Whether the card computes in bfloat16 by itself: older ones do it in many more operations, or not at all.

    The process gets no context on the card, as it would by `torch.cuda.is_bf16_supported`.
    """
    return torch.version.hip is not None or _has_third_generation_cores(device)


def has_tf32(device: torch.device) -> bool:
    """Whether the card computes float32 products in TF32, as torch does by itself in convolutions."""
    return torch.version.hip is None and _has_third_generation_cores(device)


def _has_third_generation_cores(device: torch.device) -> bool:
    """NVIDIA's tensor cores with bfloat16 and TF32 came with compute capability 8.0 (white paper of the A100, 2020)."""
    return torch.cuda.get_device_capability(device) >= (8, 0)


def bytes_of_a_card() -> int:
    """Memory of the first CUDA device."""
    return torch.cuda.get_device_properties(0).total_memory
