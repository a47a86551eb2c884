"""Watches the operators of a computation for what an accelerator could not do, or only by waiting for it."""

from collections import Counter

import torch

from common.tools.operators import Launched


class Operators(Launched):
    """`names`: the operators that ran, without their overloads; `unwanted`: what is wrong with them, in words.

    `launched`: how many of them do something on a device, which views do not. `written`: name with overload -> how many
    numbers of a result each of these has written.
    """

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "index.Tensor", "index_put")

    def __init__(self):
        super().__init__()
        self.names, self.unwanted = set(), []
        self.written: Counter[str] = Counter()

    @property
    def launched(self) -> int:
        return self.counts.total()

    def __torch_dispatch__(self, operator, types, args=(), kwargs=None):
        name = operator.name().removeprefix("aten::")
        self.names.add(name.split(".")[0])
        result = super().__torch_dispatch__(operator, types, args, kwargs)
        if isinstance(result, torch.Tensor) and not operator.is_view:
            self.written[name] += result.numel()
        if name.startswith(self.WAITING):
            self.unwanted.append(f"{name} depends on values")
        if name.startswith("upsample") and any(isinstance(argument, float) for argument in args):
            self.unwanted.append(f"{name} is given a scale factor")
        if isinstance(result, torch.Tensor) and result.dtype == torch.float64:
            self.unwanted.append(f"{name} makes float64")
        return result
