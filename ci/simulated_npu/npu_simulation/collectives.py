"""The communication backend `hccl`: gloo on the memory of NPU tensors, with HCCL's limits of types and layout."""

import os

import torch
import torch.distributed as dist
from torch import Tensor

from npu_simulation import kernels, streams
from npu_simulation.memory import on_cpu


def _refuse(name: str, tensors: list[Tensor]) -> None:
    kernels.touch()
    for tensor in tensors:
        if tensor.device.type != "npu":
            raise RuntimeError(f"No backend type associated with device type {tensor.device.type} ({name}, hccl)")
        if not tensor.is_contiguous():
            raise RuntimeError(f"Tensors must be contiguous ({name}, ERR02002)")
        if tensor.dtype in (torch.float64, torch.complex64, torch.complex128):
            raise RuntimeError(f"HCCL: {name} does not take {tensor.dtype}")


def _flat(tensors) -> list[Tensor]:
    return [tensor for each in tensors for tensor in (_flat(each) if isinstance(each, list | tuple) else [each])]


def _cpu(tensors):
    return [_cpu(each) if isinstance(each, list | tuple) else on_cpu(each.detach()) for each in tensors]


class HcclGroup(dist.ProcessGroup):
    """Forwards every collective to a group of gloo."""

    def __init__(self, store, rank: int, size: int, timeout):
        super().__init__(rank, size)
        self._gloo = dist.ProcessGroupGloo(store, rank, size, timeout)

    @property
    def _device_types(self) -> list[torch.device]:
        """Where torch puts what it has to send by itself."""
        return [torch.device("npu")]

    def getBackendName(self) -> str:  # noqa: N802  torch's name
        return "hccl"

    def _done(self, name: str, written, read, call):
        """Check the tensors, do it, and hand back a finished work that holds what was written."""
        _refuse(name, _flat(read) + _flat(written))
        # torch itself gathers single counters, when DistributedDataParallel starts and for objects
        if name == "all_gather" and any(each.dtype == torch.int64 and each.numel() > 1 for each in read):
            raise RuntimeError("HCCL: all_gather does not take torch.int64")
        streams.use(_flat(read), _flat(written))
        call()
        future = torch.futures.Future()
        future.set_result(written)
        return torch._C._distributed_c10d._create_work_from_future(future)

    def allreduce(self, tensors, opts=None):
        opts = opts or dist.AllreduceOptions()
        return self._done("all_reduce", tensors, tensors, lambda: self._gloo.allreduce(_cpu(tensors), opts).wait())

    def allreduce_coalesced(self, tensors, opts=None):
        def call():
            for tensor in _cpu(tensors):
                self._gloo.allreduce([tensor]).wait()

        return self._done("all_reduce", tensors, tensors, call)

    def broadcast(self, tensors, opts=None):
        opts = opts or dist.BroadcastOptions()
        return self._done("broadcast", tensors, tensors, lambda: self._gloo.broadcast(_cpu(tensors), opts).wait())

    def reduce(self, tensors, opts=None):
        opts = opts or dist.ReduceOptions()
        return self._done("reduce", tensors, tensors, lambda: self._gloo.reduce(_cpu(tensors), opts).wait())

    def allgather(self, outputs, inputs, opts=None):
        def call():
            self._gloo.allgather(_cpu(outputs), _cpu(inputs)).wait()

        return self._done("all_gather", outputs, inputs, call)

    def _allgather_base(self, output, input, opts=None):
        def call():
            parts = [torch.empty(input.shape, dtype=input.dtype) for _ in range(self.size())]
            self._gloo.allgather([parts], _cpu([input])).wait()
            on_cpu(output.detach()).view(-1).copy_(torch.cat([part.flatten() for part in parts]))

        return self._done("all_gather", [output], [input], call)

    all_gather_single = _allgather_base  # the name from torch 2.13 on

    def barrier(self, opts=None):
        return self._done("barrier", [], [], lambda: self._gloo.barrier().wait())


def register() -> None:
    """Make `hccl` the backend of NPU tensors."""
    os.environ.setdefault("TORCH_FR_BUFFER_SIZE", "0")  # torch's recorder of collectives takes no group of Python
    dist.Backend.register_backend("hccl", HcclGroup, devices=["npu"])
    dist.is_hccl_available = lambda: True
