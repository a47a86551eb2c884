"""Find the device (NPU, CUDA or CPU), join the other processes, and sum over them."""

import contextlib
import os
import random
import sys
from argparse import Namespace
from collections.abc import Sized
from dataclasses import dataclass, field
from datetime import timedelta
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from common.args import shared_values
from common.device import cuda, determinism, npu
from common.device.cores import cpu_cores
from common.errors import InputError

# device type -> communication backend of torch.distributed
BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}

GRACE = timedelta(seconds=15)  # for `common.device.watching`, which knows more than a collective that ends by itself


@dataclass(frozen=True)
class World:
    """The processes of a run and the one device that this process uses."""

    device: torch.device
    rank: int = 0
    size: int = 1
    channels_last: bool = False
    # --dist_timeout and a little: how long collectives wait
    patience: timedelta = field(default=timedelta(minutes=30), compare=False)

    @property
    def memory_format(self) -> torch.memory_format:
        """How images, features and convolution weights lie in memory."""
        return torch.channels_last if self.channels_last else torch.contiguous_format

    @property
    def is_main(self) -> bool:
        """The process that writes files and prints."""
        return self.rank == 0


def find_device_type(kind: str = "auto") -> str:
    """'npu', 'cuda' or 'cpu' for one of 'auto', 'npu', 'cuda', 'gpu', 'cpu'.

    'auto' takes an NPU that works, then CUDA, then the CPU. A device that is asked for and cannot be used raises
    InputError with the reason: a run never falls back to the CPU silently.
    """
    kind = {"gpu": "cuda"}.get(kind, kind)
    if kind == "auto":
        if npu.installed() and npu.problem() is None:
            return "npu"
        return "cpu" if cuda.problem() else "cuda"
    if kind == "npu" and (problem := npu.problem()):
        others = "--device cpu" if cuda.problem() else "--device cuda, --device cpu"
        raise InputError(f"--device npu cannot be used: {problem}; or use {others}")
    if kind == "cuda" and (problem := cuda.problem()):
        raise InputError(f"--device cuda cannot be used: {problem}; or use --device cpu")
    return kind


def why_this_device(device_type: str) -> str:
    """What --device auto has found, in one line: the device type that it took, and why none that comes before it."""
    if device_type == "npu":
        return "running on the NPU (--device auto)"
    reasons = [npu.problem() if npu.installed() else "torch_npu is not installed"]
    if device_type == "cuda":
        return f"running on CUDA (--device auto): {reasons[0]}"
    reasons.append(cuda.problem() if torch.cuda.is_available() else "torch sees no CUDA device")
    return f"running on the CPU (--device auto): {'; '.join(reasons)}"


def device_count(device_type: str) -> int:
    """How many devices of this type there are; for the CPU as many as one likes."""
    if device_type == "cpu":
        return sys.maxsize
    return torch.npu.device_count() if device_type == "npu" else torch.cuda.device_count()


def card_of_environment(device_type: str) -> list[int] | None:
    """[n] for ASCEND_DEVICE_ID=n, with which the original scripts choose the NPU of a single process; None without.

    Raises InputError for what is no NPU's number.
    """
    text = os.environ.get("ASCEND_DEVICE_ID")
    if not text or device_type != "npu" or "LOCAL_RANK" in os.environ:
        return None
    available = device_count(device_type)
    if not (text.isascii() and text.isdigit() and int(text) < available):
        raise InputError(
            f"ASCEND_DEVICE_ID={text} is not an NPU of this machine, which has {available}; set it to "
            f"{f'one of 0..{available - 1}' if available > 1 else '0'}, unset it, or give --device_list"
        )
    return [int(text)]


def chosen_devices(args: Namespace) -> list[int] | None:
    """The devices of --device_list, or that of `card_of_environment`; None where neither says which.

    The environment is asked for a single process only, and not where a flag on the command line speaks of devices.
    """
    given = {"device_list", "devices", "distributed"} & set(args.given)
    if given or args.device_list or args.devices > 1 or args.distributed == 1 or args.nnodes > 1:
        return args.device_list
    return card_of_environment(find_device_type(args.device))


class Modes(NamedTuple):
    """How a device computes and lays out what it computes with; None leaves it as the device does by itself."""

    hf32: bool | None = None  # allow (or forbid) HF32 on NPU and TF32 on CUDA in float32 convolutions and products
    channels_last: bool | None = (
        None  # layout of images, features and weights; None: where it has kernels, CPU and CUDA
    )
    precision_mode: str | None = None  # an NPU's way with float32 operators (`common.device.npu.set_up`)

    @classmethod
    def of(cls, args: Namespace) -> "Modes":
        """Those of the command line."""
        return cls(args.hf32, args.channels_last, args.precision_mode)


def setup(
    kind: str = "auto",
    device_list: list[int] | None = None,
    seed: int = 0,
    deterministic: bool = False,
    modes: Modes | None = None,
    patience_seconds: float = World.patience.total_seconds(),
) -> World:
    """Choose this process's device, join the others when started by torchrun, and seed every generator.

    With `deterministic`, operators that have a repeatable form use it (slower); `common.device.determinism` names
    those that have none. On the CPU two runs are then equal bit for bit. Raises InputError when there is no device for
    this process, and for a layout that the device does not support.
    """
    device_type, patience = find_device_type(kind), timedelta(seconds=patience_seconds) + GRACE
    hf32, channels_last, precision_mode = modes or Modes()
    channels_last = device_type != "npu" if channels_last is None else channels_last
    check_layout(channels_last, device_type)
    rank = local_rank = 0
    size = 1
    if "LOCAL_RANK" in os.environ:  # without it the others are of another program, if they are there at all
        local_rank, rank = int(os.environ["LOCAL_RANK"]), int(os.environ.get("RANK", 0))
        size = int(os.environ.get("WORLD_SIZE", 1))
    if device_type == "cpu":
        device = torch.device("cpu")
    else:
        available = device_count(device_type)
        indices = device_list or range(available)
        if local_rank >= len(indices) or indices[local_rank] >= available:
            raise InputError(
                f"no {device_type} device for process {local_rank} of this machine, which has {available}"
                f"{f' and uses --device_list {device_list}' if device_list else ''}; start fewer processes"
            )
        device = torch.device(device_type, indices[local_rank])
        getattr(torch, device_type).set_device(device)
    if size > 1 and not dist.is_initialized():
        # device_id lets the communicator form at once, on this device
        dist.init_process_group(
            BACKENDS[device_type],
            timeout=patience,
            device_id=device if device_type == "cuda" else None,
            **_meeting_point(patience),
        )
    if device_type == "npu":
        npu.set_up(hf32, precision_mode)
    elif hf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = hf32
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    determinism.collect(deterministic)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic  # crops have one size: the search is paid once
    seed_everything(seed)
    return World(device, rank, size, channels_last, patience)


def _meeting_point(patience: timedelta) -> dict:
    """Where the processes find each other, for `init_process_group`.

    torchrun starts processes anew (--max_restarts) with the store of those before, in which their addresses still are:
    each attempt has names of its own there.
    """
    attempt = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", 0))
    if attempt == 0:
        return {}
    store, rank, size = next(dist.rendezvous("env://", timeout=patience))
    return {"store": dist.PrefixStore(f"attempt-{attempt}", store), "rank": rank, "world_size": size}


def seed_everything(seed: int) -> None:
    """Seed every generator, the same on every rank: the same initial weights."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  for libraries that draw from the global generator; ours have their own
    torch.manual_seed(seed)


def check_layout(channels_last: bool | None, device_type: str) -> None:
    """Raise InputError for a layout that the device does not support."""
    if channels_last and device_type == "npu":
        raise InputError(
            "--channels_last is on, and an NPU takes contiguous tensors alone; leave the flag out, "
            "or give --no_channels_last"
        )


def has_bfloat16(world: World) -> bool:
    """Whether the device computes in bfloat16 by itself; the CPU always can."""
    if world.device.type == "cuda":
        return cuda.has_bfloat16(world.device)
    if world.device.type == "cpu":
        return True
    torch.npu.set_device(world.device)  # the one that is asked
    return torch.npu.is_bf16_supported()


def saturates(world: World) -> bool:
    """Whether the device has no inf: what overflows stays at the largest number, and a flag of the device is raised.

    So do the first generation of NPUs.
    """
    return world.device.type == "npu" and not torch.npu.utils.is_support_inf_nan()


def check_same(world: World, args: Namespace, first_step: int, *datasets: Sized | None) -> None:
    """Raise InputError, on every process, unless all processes have these flags, first step and numbers of images.

    Machines are started by hand. Where one of them has another rate, other pictures, or has not found the checkpoint,
    it would go on with the gradients of the others, and the weights would be those of no run.
    """
    if world.size == 1:
        return
    ours = {f"--{name}": value for name, value in shared_values(args).items()}
    ours |= {"first step": first_step, "numbers of images": [len(dataset) for dataset in datasets if dataset]}
    of_ranks: list[dict] = [{}] * world.size
    dist.all_gather_object(of_ranks, ours)
    for rank, theirs in enumerate(of_ranks):
        for name, value in of_ranks[0].items():
            if theirs[name] != value:
                raise InputError(
                    f"the processes of this run differ: {name} is {value} in process 0 and {theirs[name]} in process "
                    f"{rank}; give all machines the same flags and data set, and one --output_dir that all can read"
                )


def sum_over_ranks(tensor: Tensor) -> Tensor:
    """Sum `tensor` (float32, int32 or int64, contiguous) over all processes, in place."""
    if dist.is_initialized():
        dist.all_reduce(tensor)
    return tensor


def synchronize(world: World) -> None:
    """Wait until the device has done everything that was asked of it."""
    if world.device.type != "cpu":
        getattr(torch, world.device.type).synchronize(world.device)


def seed_step(seed: int, world: World, step: int, part: int = 0) -> None:
    """Make everything random in this part of a step (dropout) a function of (seed, rank, step, part).

    A run that is resumed at any step then draws what an uninterrupted one draws, without saving generator states.
    """
    # without a 0 for the first part: a step of one part draws what it drew before there were several
    numbers = (seed, world.rank, step, part) if part else (seed, world.rank, step)
    torch.manual_seed(int(np.random.SeedSequence(numbers).generate_state(1)[0]))


def device_name(device: torch.device) -> str:
    """The name of the chip, for reports."""
    if device.type == "cpu":
        with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return f"{line.split(':', 1)[1].strip()} ({cpu_cores()} cores)"
        return f"CPU ({cpu_cores()} cores)"
    return getattr(torch, device.type).get_device_name(device)
