"""Find the device (NPU, CUDA or CPU), start and join the processes, and sum over them."""

import contextlib
import ctypes
import errno
import inspect
import logging
import os
import random
import re
import signal
import sys
import threading
import traceback
from argparse import Namespace
from collections.abc import Callable, Sized
from dataclasses import dataclass
from datetime import timedelta

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.optim import Optimizer

from common import cuda, npu
from common.args import shared_values
from common.cores import cpu_cores
from common.errors import Diverged, InputError
from common.winograd import use_winograd

# device type -> communication backend of torch.distributed
BACKENDS = {"npu": "hccl", "cuda": "nccl", "cpu": "gloo"}
# Parameters of mallopt(3), and the values at which glibc's own adaptation of them ends.
M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
GLIBC_TRIM_BYTES, GLIBC_MMAP_BYTES = 64 << 20, 32 << 20
# How long processes wait for another one: it may be writing gigabytes of checkpoints to a slow disk. NCCL's own ten
# minutes could end each run at the same checkpoint. A process that has died is noticed at once, by torchrun.
PATIENCE = timedelta(minutes=30)
OUT_OF_MEMORY_WORDS = 160  # letters of such an error that say how much was asked for; the rest is for programmers
# Set for the processes that `launch` starts: their arguments have been checked already.
CHECKED = "SEGMENTATION_ZOO_CHECKED"


@dataclass(frozen=True)
class World:
    """The processes of a run and the one device that this process uses."""

    device: torch.device
    rank: int = 0
    size: int = 1
    channels_last: bool = False

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
        raise InputError(f"--device npu cannot be used: {problem}; or use --device cuda, --device cpu")
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


def local_devices(args: Namespace) -> list[int]:
    """Indices of the devices that this machine's processes use, from --devices, --device_list and --distributed.

    Raises InputError when more are asked for than there are, or one that is not there.
    """
    device_type = find_device_type(args.device)
    available = device_count(device_type)
    wanted = list(range(args.devices))
    if args.device_list:
        wanted = args.device_list
    elif args.distributed == 0:
        wanted = [0]
    elif args.distributed == 1 and args.devices == 1 and device_type != "cpu":
        wanted = list(range(available))
    if len(set(wanted)) != len(wanted):
        raise InputError(f"--device_list {','.join(map(str, wanted))} names a device twice; name each one once")
    if device_type != "cpu" and len(wanted) > available:
        raise InputError(
            f"{len(wanted)} devices are asked for and {available} {device_type} device(s) found; "
            f"use --devices {available}, --device_list with some of 0..{available - 1}, or --device cpu"
        )
    _check_processes(args.device, device_type, len(wanted))
    beyond = [index for index in wanted if index >= available]
    if beyond:
        raise InputError(
            f"no {device_type} device {beyond[0]}: there are {available}, numbered from 0; use --device_list with "
            f"some of 0..{available - 1}"
        )
    return wanted


def _check_processes(kind: str, device_type: str, processes: int) -> None:
    """Raise InputError when --device auto would make several processes on the CPU of what was meant for devices."""
    if device_type == "cpu" and kind == "auto" and processes > 1:
        reason = f"no CUDA, and {npu.problem()}" if npu.installed() else "neither NPU nor CUDA"
        raise InputError(
            f"{processes} devices are asked for and 0 found ({reason}); use --devices 1 or "
            "--device_list 0 for one process on the CPU, or --device cpu --devices 2 for processes on the CPU"
        )


def launch(main: Callable[[Namespace], object], args: Namespace, check: Callable[[Namespace, int], None]) -> None:
    """Check the devices and the input, then run `main(args)` in as many processes as devices are asked for.

    `check(args, world_size)` raises InputError for whatever can be known to be wrong before anything is trained; it
    runs once, before other processes exist. With more than one device this process becomes torchrun, which starts this
    script again with the same arguments once per device. In a process of a torchrun that the user has started, its
    number of processes holds, and each of them checks.
    Exit codes: 0, 2 for input that cannot work, 1 for a failure, 130 for an interruption.
    """
    with exit_codes():
        if "LOCAL_RANK" not in os.environ:
            _check_launcher(args)
            devices = local_devices(args)
            if args.node_rank >= args.nnodes:
                raise InputError(
                    f"--node_rank {args.node_rank} with --nnodes {args.nnodes}: machines are numbered from 0; "
                    f"use --node_rank 0..{args.nnodes - 1}"
                )
            if args.node_rank > 0 and "master_addr" not in args.given:
                raise InputError(
                    f"machine {args.node_rank} of {args.nnodes} has to be told where machine 0 is; "
                    "give its address with --master_addr, the same on all machines"
                )
            check(args, len(devices) * args.nnodes)
            _say_why(args)
            if len(devices) * args.nnodes > 1:
                _run_torchrun(len(devices), args)
                return
        else:
            _end_with_parent()
            if not os.environ.get(CHECKED):
                processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
                _check_processes(args.device, find_device_type(args.device), processes)
                check(args, int(os.environ.get("WORLD_SIZE", 1)))
                if os.environ.get("RANK", "0") == "0":
                    _say_why(args)
        main(args)
        if dist.is_initialized():
            if dist.get_backend() == "gloo":
                _exit(0)  # with torch 2.6, destroying a group of gloo may wait for ever, and not doing so abort
            dist.destroy_process_group()


def _check_launcher(args: Namespace) -> None:
    """Raise InputError where another program has numbered the processes and not said which of them share a machine."""
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    if rank is not None and size != "1" and args.nnodes == 1:
        raise InputError(
            f"the environment has RANK={rank} and WORLD_SIZE={size} and no LOCAL_RANK; unset them, start with "
            "torchrun, or, where each process has a machine of its own, give "
            '--nnodes "$WORLD_SIZE" --node_rank "$RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT"'
        )


def _say_why(args: Namespace) -> None:
    """One line about what --device auto takes."""
    if args.device == "auto":
        print(why_this_device(find_device_type()), flush=True)


@contextlib.contextmanager
def exit_codes():
    """Turn what a user can mend into one line and an exit code; anything else keeps its traceback."""
    name = os.path.basename(sys.argv[0])
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGINT, signal.default_int_handler)  # takes over from common.args
    try:
        yield
    except KeyboardInterrupt:
        if "LOCAL_RANK" not in os.environ:  # the processes of a run leave the word to the one that started them
            print(f"{name}: interrupted; continue with the same command and --resume auto", file=sys.stderr)
        _exit(130)
    except Exception as error:
        text, code = _in_words(error)
        if text:
            print(f"{name}: {text}", file=sys.stderr)
        else:
            traceback.print_exc()
        _exit(code)


def _in_words(error: Exception) -> tuple[str, int]:
    """(What a user is told of an error, or '' for one of the program itself; exit code)."""
    said = " ".join(str(error).split())
    if isinstance(error, InputError):
        return f"error: {error}", 2
    if isinstance(error, Diverged):
        return f"stopped: {error}", 1
    if isinstance(error, PermissionError) and error.filename:
        return f"error: no permission for {error.filename}; have its owner give it, or name another path", 2
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"stopped: no space is left for {error.filename or 'a file'}; what was complete before is still there: "
            "free some space, and continue with --resume auto"
        ), 1
    if is_out_of_memory(error):
        return (
            f"stopped: the memory does not suffice ({said.partition('. GPU ')[0][:OUT_OF_MEMORY_WORDS]}); lower "
            "--device_batch_size, and --lr in proportion; in an evaluation lower --eval_batch_size"
        ), 1
    if dist.is_initialized() and re.search("Connection (closed|reset)|Broken pipe", said):
        return f"process {dist.get_rank()} has lost another process of the run", 1
    return "", 1


def is_out_of_memory(error: Exception) -> bool:
    """Whether it says that the memory of the device or of the machine does not suffice."""
    words = "out of memory|can't allocate memory|STATUS_ALLOC_FAILED"  # of CUDA, NPU and CPU; of cuDNN and cuBLAS
    return isinstance(error, MemoryError) or re.search(words, str(error)) is not None


def _exit(code: int) -> None:
    """Leave at once where other processes of the run may be waiting for this one in a collective."""
    sys.stdout.flush()
    sys.stderr.flush()
    if dist.is_initialized():
        os._exit(code)
    sys.exit(code)


def _end_with_parent() -> None:
    """Have the system kill this process when torchrun is killed: it would keep its device and the folder of the run."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def _run_torchrun(processes: int, args: Namespace) -> None:
    """Run this script once per device under torchrun, and leave with the exit code of the process that failed."""
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    command = [f"--nproc_per_node={processes}", f"--nnodes={args.nnodes}"]
    if args.nnodes > 1:
        command += [
            f"--node_rank={args.node_rank}",
            f"--master_addr={args.master_addr}",
            f"--master_port={args.master_port}",
        ]
        if args.local_addr:
            command += [f"--local_addr={args.local_addr}"]
            os.environ.setdefault("HCCL_IF_IP", args.local_addr)  # the address that HCCL binds to
        print(
            f"machine {args.node_rank} of {args.nnodes}: joining the others at {args.master_addr}:{args.master_port} "
            "(--master_addr, --master_port)",
            flush=True,
        )
    else:
        # finds a free port by itself, at an address that needs no name: that of a laptop may not resolve
        command += ["--standalone", "--local_addr=127.0.0.1"]
    os.environ[CHECKED] = "1"
    # torchrun would set one thread per process, which leaves most cores of a CPU run idle
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_cores() // processes)))
    # our processes say themselves why they end, in one line; torchrun would add a page about each
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for logger in list(logging.root.manager.loggerDict):
        if logger.startswith("torch.distributed.elastic."):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
    _stay_under_nohup()
    try:
        run(get_args_parser().parse_args([*command, *sys.argv]))
    except ChildFailedError as error:
        failures = list(error.failures.values())
        for failure in failures:
            if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM:  # SIGTERM is how torchrun ends the others
                print(f"process {failure.local_rank} was ended by signal {-failure.exitcode}", file=sys.stderr)
        codes = [failure.exitcode for failure in failures if failure.exitcode > 0]
        sys.exit(2 if 2 in codes else (codes or [1])[0])
    except SignalException as error:
        raise KeyboardInterrupt from error


def _stay_under_nohup() -> None:
    """Have torchrun ignore the end of the terminal where this process does: it would undo what nohup has set."""
    from torch.distributed.elastic.multiprocessing import api

    if signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        end = api._terminate_process_handler
        api._terminate_process_handler = lambda number, frame: None if number == signal.SIGHUP else end(number, frame)


def setup(
    kind: str = "auto",
    device_list: list[int] | None = None,
    seed: int = 0,
    deterministic: bool = False,
    hf32: bool | None = None,
    channels_last: bool | None = None,
    precision_mode: str | None = None,
) -> World:
    """Choose this process's device, join the others when started by torchrun, and seed every generator.

    With `deterministic`, operators that have a repeatable form use it (slower); where one has none, torch warns.
    On the CPU two runs are then equal bit for bit. `hf32` allows (or forbids) HF32 on NPU and TF32 on CUDA in float32
    convolutions and matrix products; None leaves what the device does by itself. `channels_last` is the layout of
    images, features and weights; None takes it where there are kernels for it, on CPU and CUDA. `precision_mode` is an
    NPU's way with float32 operators (`common.npu.set_up`). Raises InputError when there is no device for this process,
    and for a layout that the device has not.
    """
    device_type = find_device_type(kind)
    channels_last = device_type != "npu" if channels_last is None else channels_last
    check_layout(channels_last, device_type)
    rank = local_rank = 0
    size = 1
    if "LOCAL_RANK" in os.environ:  # without it the others are of another program, if they are there at all
        local_rank, rank = int(os.environ["LOCAL_RANK"]), int(os.environ.get("RANK", 0))
        size = int(os.environ.get("WORLD_SIZE", 1))
    if device_type == "cpu":
        device = torch.device("cpu")
        keep_freed_memory()
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
            BACKENDS[device_type], timeout=PATIENCE, device_id=device if device_type == "cuda" else None
        )
    if device_type == "npu":
        npu.set_up(hf32, precision_mode)
    elif hf32 is not None:
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = hf32
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True, warn_only=True)
    torch.backends.cudnn.deterministic = deterministic
    torch.backends.cudnn.benchmark = not deterministic  # crops have one size: the search is paid once
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002  for libraries that draw from the global generator; ours have their own
    torch.manual_seed(seed)  # the same on every rank: the same initial weights
    return World(device, rank, size, channels_last)


def check_layout(channels_last: bool | None, device_type: str) -> None:
    """Raise InputError for a layout that the device has not."""
    if channels_last and device_type == "npu":
        raise InputError(
            "--channels_last is on, and an NPU takes contiguous tensors alone; leave the flag out, "
            "or give --no_channels_last"
        )


def keep_freed_memory(keep: bool = True) -> None:
    """Have malloc keep freed blocks of whatever size for the next tensor; or, not `keep`, as it does by itself.

    glibc gives each block above 32 MiB back to the system when it is freed. A training step frees and takes the same
    hundreds of blocks as the one before it, and their pages are then cleared anew each time, which is a tenth of the
    step of a network with large features. What a process holds is then its highest need. Nothing happens where the C
    library has no such setting.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_THRESHOLD, 2**30 if keep else GLIBC_MMAP_BYTES)
        mallopt(M_TRIM_THRESHOLD, 2**31 - 1 if keep else GLIBC_TRIM_BYTES)  # the largest int there is


def place(model: nn.Module, world: World) -> nn.Module:
    """The model itself, on the device of this process, in the layout and with the convolutions that are fastest there.

    Without `channels_last` the convolutions stay as they are too: that is the plain form.
    """
    if world.device.type == "cpu" and world.channels_last:
        use_winograd(model)
    return model.to(world.device, memory_format=world.memory_format)


def data_parallel(model: nn.Module, world: World, optimizer: Optimizer) -> nn.Module:
    """The model, averaging gradients over the processes when there are several.

    Gradients are views of the buffers of the communication, unless the optimizer keeps them in one of its own.

    Batch-norm statistics are not exchanged in every step: training does not read them, and `share_buffers` makes
    them equal before an evaluation. For batch norms over the images of all processes see `common.norm`.
    """
    if world.size == 1:
        return model
    parallel = nn.parallel.DistributedDataParallel
    # the newer name of the option, from torch 2.15 on
    renamed = "forward_sync_buffers" in inspect.signature(parallel).parameters
    no_exchange = {"forward_sync_buffers" if renamed else "broadcast_buffers": False}
    device_ids = None if world.device.type == "cpu" else [world.device.index]
    return parallel(model, device_ids=device_ids, gradient_as_bucket_view=not owns_gradients(optimizer), **no_exchange)


def owns_gradients(optimizer: Optimizer) -> bool:
    """Whether the optimizer keeps all gradients in one tensor of its own, as those of torch_npu do."""
    return getattr(optimizer, "is_fused_optimizer", False)


def share_buffers(model: nn.Module, world: World) -> None:
    """Give every process rank 0's batch-norm statistics, the ones that a checkpoint holds."""
    if world.size > 1:
        for buffer in model.buffers():
            dist.broadcast(buffer, src=0)


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


def seed_step(seed: int, world: World, step: int) -> None:
    """Make everything random in this step (dropout) a function of (seed, rank, step).

    A run that is resumed at any step then draws what an uninterrupted one draws, without saving generator states.
    """
    torch.manual_seed(int(np.random.SeedSequence((seed, world.rank, step)).generate_state(1)[0]))


def device_name(device: torch.device) -> str:
    """The name of the chip, for reports."""
    if device.type == "cpu":
        with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8") as info:
            for line in info:
                if line.startswith("model name"):
                    return f"{line.split(':', 1)[1].strip()} ({cpu_cores()} cores)"
        return f"CPU ({cpu_cores()} cores)"
    return getattr(torch, device.type).get_device_name(device)
