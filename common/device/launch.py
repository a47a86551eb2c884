"""Starts a run: the devices it asks for, and a process on each of them."""

import contextlib
import ctypes
import logging
import os
import signal
import sys
import tempfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import torch.distributed as dist

import common
from common.device import npu
from common.device.cores import cpu_cores
from common.device.exits import leave_at_once
from common.device.relay import CHECKED, STARTED, Relay, exit_code_of_omissions
from common.device.stopping import SAVES
from common.device.world import chosen_devices, device_count, find_device_type, why_this_device
from common.errors import ExitCode, InputError

LEAVE_S = 10  # for processes that are to leave because one of them has failed


def local_devices(args: Namespace) -> list[int]:
    """Indices of the devices that this machine's processes use, from --devices, --device_list and --distributed.

    One process on an NPU takes the card of ASCEND_DEVICE_ID where none of these flags is given.
    Raises InputError when more are asked for than there are, or one that is not there.
    """
    device_type = find_device_type(args.device)
    available = device_count(device_type)
    wanted = list(range(args.devices))
    if chosen := chosen_devices(args):
        wanted = chosen
    elif args.distributed == 0:
        wanted = [0]
    elif args.distributed == 1 and args.devices == 1 and device_type != "cpu":
        wanted = list(range(available))
    if len(set(wanted)) != len(wanted):
        raise InputError(f"--device_list {','.join(map(str, wanted))} names a device twice; name each one once")
    if device_type != "cpu" and len(wanted) > available:
        raise InputError(
            f"{len(wanted)} devices requested and {available} {device_type} device(s) found; "
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
            f"{processes} devices requested and 0 found ({reason}); use --devices 1 or "
            "--device_list 0 for one process on the CPU, or --device cpu --devices 2 for processes on the CPU"
        )


def process_count(args: Namespace) -> int:
    """How many processes the run has that this one belongs to, or is about to start; on all machines.

    In a process of a torchrun that the user has started, its number holds. Raises InputError for devices that are not
    there, and for machines that could not find each other.
    """
    if in_torchrun():
        _end_with_parent()
        if not is_checked():
            processes = int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            _check_processes(args.device, find_device_type(args.device), processes)
        return int(os.environ.get("WORLD_SIZE", 1))
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
    return len(devices) * args.nnodes


def in_torchrun() -> bool:
    """Whether this process is one of several that torchrun has started, ours or the user's."""
    return "LOCAL_RANK" in os.environ


def is_checked() -> bool:
    """Whether this process was started by `run_torchrun`: what it was given has been checked already."""
    return in_torchrun() and bool(os.environ.get(CHECKED))


def leave_done(result: dict) -> None:
    """Take this process, whose run has come to this result, out of the group of processes, with its exit code."""
    code = exit_code_of_omissions() if result.get("skipped_samples") else ExitCode.DONE
    if dist.is_initialized():
        if dist.get_backend() != "gloo":
            dist.destroy_process_group()
        leave_at_once(code)  # with torch 2.6, destroying a group of gloo may wait for ever, or abort
    if code:
        sys.exit(code)


def _check_launcher(args: Namespace) -> None:
    """Raise InputError where another program has numbered the processes and not said which of them share a machine."""
    rank, size = os.environ.get("RANK"), os.environ.get("WORLD_SIZE", "1")
    if rank is not None and size != "1" and args.nnodes == 1:
        raise InputError(
            f"the environment has RANK={rank} and WORLD_SIZE={size} and no LOCAL_RANK; unset them, start with "
            "torchrun, or, where each process has a machine of its own, give "
            '--nnodes "$WORLD_SIZE" --node_rank "$RANK" --master_addr "$MASTER_ADDR" --master_port "$MASTER_PORT"'
        )


def say_why(args: Namespace) -> None:
    """One line about what --device auto takes, from the first process of a run."""
    if args.device == "auto" and os.environ.get("RANK", "0") == "0":
        print(why_this_device(find_device_type()), flush=True)


def _end_with_parent() -> None:
    """Have the system kill this process when torchrun is killed: it would keep its device and the folder of the run."""
    if sys.platform == "linux":
        set_parent_death_signal = 1  # PR_SET_PDEATHSIG of prctl(2)
        ctypes.CDLL(None).prctl(set_parent_death_signal, signal.SIGKILL)


def run_torchrun(args: Namespace) -> None:
    """Run this script once per device under torchrun, and leave with the exit code of the process that failed.

    Signals are passed on to the processes, which end in order; this one ends when they have.
    """
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.run import get_args_parser, run

    processes = len(local_devices(args))
    command = [f"--nproc_per_node={processes}", f"--nnodes={args.nnodes}", f"--max_restarts={args.max_restarts}"]
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
    # torchrun would set one thread per process, which leaves most cores of a CPU run idle
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, cpu_cores() // processes)))
    # our processes say themselves why they end, in one line; torchrun would add a page about each
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    for logger in list(logging.root.manager.loggerDict):
        if logger.startswith("torch.distributed.elastic."):
            logging.getLogger(logger).setLevel(logging.CRITICAL)
    with tempfile.TemporaryDirectory(prefix="segmentation-zoo-") as folder, contextlib.ExitStack() as waiting:
        os.environ |= {CHECKED: folder, STARTED: str(common.STARTED)}
        relay = Relay(Path(folder))
        if args.nnodes > 1:
            waiting.enter_context(relay.waiting())
        _listen(relay, waiting.close)
        try:
            run(get_args_parser().parse_args([*command, *sys.argv]))
        except ChildFailedError as error:
            sys.exit(_exit_code(error.failures))
        except SignalException as error:
            raise KeyboardInterrupt from error
        if relay.has_stopped:
            sys.exit(ExitCode.STOPPED)
        if relay.has_omitted:
            sys.exit(ExitCode.OMISSIONS)


def _exit_code(failures: dict) -> int:
    """That of the processes that failed, by their numbers; says which was killed, if that was what happened first."""
    first = min(failure.timestamp for failure in failures.values())
    for rank, failure in failures.items():
        if failure.exitcode < 0 and failure.timestamp == first:  # torchrun ends the others with signals
            print(f"process {rank} was ended by signal {-failure.exitcode}", file=sys.stderr)
    codes = [failure.exitcode for failure in failures.values() if failure.exitcode > 0]
    return ExitCode.INPUT if ExitCode.INPUT in codes else (codes or [ExitCode.FAILED])[0]


def _listen(relay: Relay, starts: Callable[[], None]) -> None:
    """Have torchrun pass signals on: by itself it would end the processes, and give them half a minute to go.

    starts: is called before it starts processes.
    """
    from torch.distributed.elastic.multiprocessing import api

    end = api._terminate_process_handler
    api._terminate_process_handler = lambda number, frame: (
        end(number, frame) if number == signal.SIGQUIT else relay.take(number, frame)
    )
    signal.signal(SAVES, relay.take)
    start = api.PContext.start
    api.PContext.start = lambda context: starts() or start(context)
    close = api.PContext.close
    # when one has failed: those that hang do not hear a SIGTERM, and torchrun would wait half a minute for them
    api.PContext.close = lambda context, death_sig=None, timeout=30: close(context, death_sig, min(timeout, LEAVE_S))
