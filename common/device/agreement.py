"""What the processes of a run decide together in each step, without waiting for the device."""

import torch
import torch.distributed as dist


class Agreement:
    """Asks all processes of a run, which call it in the same step. They talk over the network of the hosts (gloo)."""

    def __init__(self):
        self._group = dist.new_group(backend="gloo") if dist.is_initialized() else None

    def any(self, flag: bool) -> bool:
        """Whether the flag is set in some process; the same answer in all of them."""
        if self._group is None:
            return flag
        flags = torch.tensor([flag], dtype=torch.int32)
        dist.all_reduce(flags, dist.ReduceOp.MAX, group=self._group)
        return bool(flags)
