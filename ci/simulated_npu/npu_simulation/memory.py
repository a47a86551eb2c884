"""Tensors whose device is `npu` and whose memory is the CPU's, and the account of who holds how much of it.

A DLPack capsule of a tensor names its device; with another name written into it, importing it gives a tensor of that
device on the same memory. Nothing is copied in either direction.
"""

import ctypes
import weakref

import torch
from torch import Tensor

CPU, EXTENSION = 1, 12  # DLPack's numbers of device types; torch takes the latter for its spare one
DEVICE_OFFSET = 8  # of DLTensor.device, behind a pointer; type and index are an int32 each
_pointer_of = ctypes.pythonapi.PyCapsule_GetPointer
_pointer_of.restype, _pointer_of.argtypes = ctypes.c_void_p, [ctypes.py_object, ctypes.c_char_p]


def _relabelled(tensor: Tensor, device_type: int) -> Tensor:
    capsule = torch._C._to_dlpack(tensor)
    # type in the lower half, index 0 in the upper one
    ctypes.c_int64.from_address(_pointer_of(capsule, b"dltensor") + DEVICE_OFFSET).value = device_type
    return torch._C._from_dlpack(capsule)


def on_cpu(tensor: Tensor) -> Tensor:
    """The NPU tensor as one of the CPU, on the same memory, without autograd history."""
    return _relabelled(tensor, CPU)


def on_npu(tensor: Tensor) -> Tensor:
    """The CPU tensor as one of npu:0, on the same memory, without autograd history."""
    return _relabelled(tensor, EXTENSION)


class Account:
    """Bytes of the NPU's memory that are in use now, and at most so far."""

    def __init__(self):
        self.now = self.most = 0

    def add(self, size: int) -> None:
        self.now += size
        self.most = max(self.most, self.now)

    def reset(self, device=None) -> None:
        """Count the most from now on."""
        self.most = self.now


ACCOUNT = Account()


class Block:
    """One piece of NPU memory, for as long as some tensor has it as its storage.

    stream: the one whose memory it is; users: stream -> its last operation on it; writer: the (stream, operation) that
    wrote it last; recorded: streams named to Tensor.record_stream; freed: takes it when it is given back in use.
    """

    def __init__(self, size: int, stream, freed: list["Block"]):
        self.size, self.stream, self.freed = size, stream, freed
        self.users, self.writer, self.recorded = {}, None, set()
        ACCOUNT.add(size)

    def foreign_users(self) -> list:
        """(stream, its last operation) of those that nobody waits for when the memory is given back."""
        return [(s, last) for s, last in self.users.items() if s is not self.stream and s not in self.recorded]

    def __del__(self):
        ACCOUNT.add(-self.size)
        if self.foreign_users():
            self.freed.append(self)


def block_of(tensor: Tensor) -> Block | None:
    """The piece of memory of an NPU tensor and of its views; None for memory that was there before streams are."""
    return getattr(tensor.untyped_storage(), "_npu_block", None)


def set_block(tensor: Tensor, block: Block) -> None:
    tensor.untyped_storage()._npu_block = block


class _Pinned:
    """Lives as long as the pinned storage that refers to it."""


_pinned: weakref.WeakValueDictionary = weakref.WeakValueDictionary()  # address -> _Pinned


def pin(tensor: Tensor, device=None) -> Tensor:
    """A copy of a CPU tensor in memory that counts as pinned."""
    copy = tensor.clone()
    storage = copy.untyped_storage()
    storage._npu_pinned = _pinned[storage.data_ptr()] = _Pinned()
    return copy


def is_pinned(tensor: Tensor, device=None) -> bool:
    return tensor.untyped_storage().data_ptr() in _pinned
