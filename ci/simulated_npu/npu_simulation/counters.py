"""What a program did that costs time on a device and none on a CPU."""

import os
import sys
from collections import Counter

# Frames inside of these are not where a program asked for something.
_TORCH, _SIMULATION = f"{os.sep}torch{os.sep}", f"{os.sep}npu_simulation{os.sep}"
_TOLERATED = tuple(_TORCH + name for name in ("_tensor_str.py", f"nn{os.sep}modules{os.sep}_functions.py"))
_NOT_THE_PROGRAM = (_TORCH, _SIMULATION, f"{os.sep}contextlib.py")


class Counters:
    """Counts since the last `reset`.

    waits: what made the host wait for the device -> how often. The kinds are `item` (a value fetched: .item(),
        float(), bool()), `copy to the host`, `copy to the device` (from memory that is not pinned, or without
        non_blocking=True), `synchronize`, and the name of an operator whose result's shape depends on values.
    places: (kind, "file:line" of the program) -> how often.
    operators: name -> how often.
    convolutions: (shape and address of the weight) -> the shapes of its inputs; the address is of use where weights
        stay where they are, without autocast.
    convolution_kinds: (shape of the input, shape of the weight, dtype, stride, padding, dilation, groups): each needs a
        kernel of its own where kernels are compiled for shapes.
    strided: `input`, `weight` and (of the result) `gradient` of convolutions that lie in another order than their shape
        says, or with gaps, which costs a copy each -> how often.
    """

    def __init__(self):
        self.reset()

    def reset(self) -> None:
        self.waits, self.places, self.operators = Counter(), Counter(), Counter()
        self.convolutions, self.convolution_kinds, self.strided = {}, set(), Counter()

    def wait(self, kind: str) -> None:
        self.waits[kind] += 1
        frame = sys._getframe(1)
        while frame.f_back and any(part in frame.f_code.co_filename for part in _NOT_THE_PROGRAM):
            frame = frame.f_back
        self.places[kind, f"{frame.f_code.co_filename}:{frame.f_lineno}"] += 1


def torch_asks() -> bool:
    """Whether torch itself asks for the present operator where the real plugin has code of its own.

    That is when it prints a tensor, and in SyncBatchNorm, which looks for processes without images.
    """
    frame = sys._getframe(1)
    while frame.f_back and _SIMULATION in frame.f_code.co_filename:
        frame = frame.f_back
    return frame.f_code.co_filename.endswith(_TOLERATED)


COUNTERS = Counters()
