"""What one process of a run knows becomes known to all of them, at the same step and without waiting for the device.

The processes of a run may act on what they alone know (a signal, a clock) only when all of them act at the same step:
the next collective would wait for ever for those that do not take part. So they exchange it on the host, in a group of
gloo of their own, beside whatever the devices do.
"""

import itertools
import os
import socket

import torch
import torch.distributed as dist

from common.device.world import World

_numbers = itertools.count()  # of the groups of this process, which all processes make in the same order


class Agreement:
    """The largest of the numbers that the processes give; all of them ask alike, as often and in the same order."""

    def __init__(self, world: World):
        self._group = None if world.size == 1 else _host_group(world)
        self._exchange = None  # of the call before: (work, tensor) on their way

    def largest(self, value: int) -> int:
        """The largest value (0 to 255) that any process gave in its call before this one; 0 in the first call.

        The exchange runs beside the step between two calls, so that no step waits for the network. A process alone has
        nobody to ask: its answer is `value` itself. Raises RuntimeError when another process has gone.
        """
        if self._group is None:
            return value
        before, self._exchange = self._exchange, self._begin(value)
        return _result(before) if before else 0

    def largest_now(self, value: int) -> int:
        """The largest of the values that the processes give in this call, for which they wait for each other."""
        return value if self._group is None else _result(self._begin(value))

    def any(self, flag: bool) -> bool:
        """Whether any process said so in its call before this one, as `largest` does."""
        return bool(self.largest(int(flag)))

    def _begin(self, value: int):
        tensor, options = torch.tensor([value], dtype=torch.uint8), dist.AllreduceOptions()
        options.reduceOp = dist.ReduceOp.MAX
        return self._group.allreduce([tensor], options), tensor


def _result(exchange) -> int:
    work, tensor = exchange
    work.wait()
    return int(tensor.item())


def _host_group(world: World) -> dist.ProcessGroup:
    """A group of gloo over the processes, beside that of torch: no error or end of the other one concerns it.

    It listens at the address by which this machine reaches the first one. By itself gloo takes that of the machine's
    name, which on many is one of the loopback, or none.
    """
    options = dist.ProcessGroupGloo._Options()
    options._devices = [dist.ProcessGroupGloo.create_device(hostname=_own_address())]
    options._timeout = world.patience
    store = dist.PrefixStore(f"agreement-{next(_numbers)}", dist.distributed_c10d._get_default_store())
    return dist.ProcessGroupGloo(store, world.rank, world.size, options)


def _own_address() -> str:
    """The address of this machine on the way to MASTER_ADDR; that of the loopback where all processes are on one."""
    if os.environ.get("LOCAL_WORLD_SIZE", "1") == os.environ.get("WORLD_SIZE"):
        return "127.0.0.1"
    host, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as probe:
        probe.connect(address)  # nothing is sent: the system chooses the way
        return probe.getsockname()[0]
