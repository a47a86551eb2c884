"""Makes torch know the device."""

import os
import sys

import torch

from npu_simulation import autocast, collectives, kernels, module, streams


class Unavailable(ImportError):
    """This release of torch has no device that Python can define."""


def register() -> None:
    """Claim torch's spare device type for `npu`, for the rest of the process. Unavailable where torch cannot."""
    try:
        from torch.utils.backend_registration import _setup_privateuseone_for_python_backend as set_up
    except ImportError as error:
        raise Unavailable(f"torch {torch.__version__} cannot define a device in Python") from error
    npu = module.make()
    sys.modules["torch.npu"] = npu
    set_up("npu", backend_module=npu)
    kernels.register()
    autocast.register()
    _patch_torch()
    collectives.register()
    os.register_at_fork(after_in_child=_mark_forked)


def _mark_forked() -> None:
    kernels.Device.forked = kernels.Device.used


def _patch_torch() -> None:
    """Functions of torch that would ask the device in C++, where it has nothing to answer with."""
    accelerator = torch.accelerator
    accelerator.synchronize = streams.synchronize
    accelerator.current_stream = streams.current_stream
    accelerator.set_stream = streams.set_stream
    accelerator.device_count = module.device_count
    accelerator.is_available = module.is_available
    accelerator.set_device_index = module.set_device
    accelerator.current_device_index = lambda: torch.npu.current_device()
    accelerator.device_index = module.device
    real = accelerator.current_accelerator
    accelerator.current_accelerator = lambda check_available=False: (
        None if check_available and not module.is_available() else real()
    )
    names = "memory_allocated max_memory_allocated memory_reserved max_memory_reserved memory_stats empty_cache"
    for name in [*names.split(), "reset_peak_memory_stats"]:
        setattr(accelerator, name, getattr(torch.npu, name))

    record_stream = torch.Tensor.record_stream

    def recorded(tensor: torch.Tensor, stream) -> None:
        (streams.record_stream if tensor.device.type == "npu" else record_stream)(tensor, stream)

    torch.Tensor.record_stream = recorded

    # All tensors are on npu:0, whatever the process's device: DistributedDataParallel takes them for another device's
    # and copies them. Where they were on the right one, it would not.
    torch.nn.parallel._functions._get_stream = streams.current_stream

    double = torch.Tensor.double

    def double_or_float(tensor: torch.Tensor) -> torch.Tensor:
        """The plugin gives float32, of which torch's gradient scaler makes use; a program had better not ask for it."""
        called_by_scaler = sys._getframe(1).f_code.co_filename == torch.amp.grad_scaler.__file__
        return tensor.float() if called_by_scaler and tensor.device.type == "npu" else double(tensor)

    torch.Tensor.double = double_or_float

    make_storage = torch.UntypedStorage.__new__

    def storage(cls, *args, **kwargs):
        """A storage of the NPU is one of a tensor: torch has no allocator for it, and would end the process."""
        if torch.device(kwargs.get("device") or "cpu").type == "npu":
            return torch.empty(args[0] if args else 0, dtype=torch.uint8, device="npu").untyped_storage()
        return make_storage(cls, *args, **kwargs)

    torch.UntypedStorage.__new__ = storage
