"""Watches the operators of a computation for what an accelerator could not do, or only by waiting for it."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class Operators(TorchDispatchMode):
    """`names`: the operators that ran, without their overloads; `unwanted`: what is wrong with them, in words.

    `launched`: how many of them do something on a device, which views do not.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "index.Tensor", "index_put")

    def __init__(self):
        super().__init__()
        self.names, self.unwanted, self.launched = set(), [], 0

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name().removeprefix("aten::")
        self.names.add(name.split(".")[0])
        self.launched += not operator.is_view
        result = operator(*args, **(kwargs or {}))
        if name.startswith(self.WAITING):
            self.unwanted.append(f"{name} depends on values")
        if name.startswith("upsample") and any(isinstance(argument, float) for argument in args):
            self.unwanted.append(f"{name} is given a scale factor")
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.unwanted.append(f"{name} makes float64")
        return result
