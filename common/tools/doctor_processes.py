"""The doctor's look at several processes: a training step and a sum in each of them."""

import contextlib
import os
import socket
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from common.tools.doctor_report import REASON_LENGTH, Report, reason

ROOT = Path(__file__).resolve().parents[2]
PROCESSES_SECONDS = 600  # a driver that hangs is a finding too


def processes(report: Report, kind: str, count: int) -> None:
    """The step and a sum over all processes, with a device for each of them."""
    from common.device.world import BACKENDS, device_count

    report.section(f"{count} processes")
    if count > device_count(kind):
        available = device_count(kind)
        report.row("devices", f"{available} found")
        report.problems.append(
            f"--devices {count} and {available} {kind} device(s) found; use --devices {available}, and check "
            "ASCEND_RT_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES"
        )
        return
    failed = _run_processes(kind, count)
    report.row("all_reduce", failed or "right: int64, and the training step in each of them")
    if failed:
        report.problems.append(
            f"{count} processes on {kind}: {failed}; use --devices 1, or end other runs on these devices and check the "
            f"variables of {BACKENDS[kind]}"
        )


def _run_processes(kind: str, count: int) -> str:
    """Run `check_process` in so many processes; what went wrong first, '' for nothing."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    world = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    environment = {"OMP_NUM_THREADS": str(max(1, (os.cpu_count() or 1) // count)), **os.environ, **world}
    code = f"from common.tools.doctor_processes import check_process; check_process({kind!r})"
    with contextlib.ExitStack() as stack:
        logs, started = [], []
        for rank in range(count):
            logs.append(stack.enter_context(tempfile.TemporaryFile("w+", errors="replace")))
            of_rank = {"RANK": str(rank), "LOCAL_RANK": str(rank)}
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", code], cwd=ROOT, env={**environment, **of_rank},
                    stdout=subprocess.DEVNULL, stderr=logs[-1],
                )
            )  # fmt: skip
            stack.callback(started[-1].wait)
            stack.callback(started[-1].kill)
        end = time.monotonic() + PROCESSES_SECONDS
        while (codes := [process.poll() for process in started]) and None in codes and not any(codes):
            if time.monotonic() > end:
                return f"not finished after {PROCESSES_SECONDS} s"
            time.sleep(0.1)
        for rank, code in enumerate(codes):
            if code:
                logs[rank].seek(0)
                said = [line.strip() for line in logs[rank] if line.strip()]
                return f"process {rank}: {said[-1][:REASON_LENGTH] if said else f'ended with {code}'}"
    return ""


def check_process(kind: str) -> None:
    """What each of several processes does: ends with exit code 0, or with 1 and the reason as its last line."""
    try:
        fault = _fault_of_process(kind)
    except Exception as error:  # of a driver, of CANN, or of the plugin
        fault = reason(error)
    sys.stderr.write(f"{fault}\n")
    sys.stderr.flush()
    os._exit(1 if fault else 0)  # at once: to leave the group may mean to wait for another process


def _fault_of_process(kind: str) -> str:
    """Take the step on this process's device, and sum int64 over all processes; what is wrong, '' for nothing."""
    import torch
    import torch.distributed as dist

    from common.device.world import Modes, setup, sum_over_ranks
    from common.tools.trial_step import check_step, expected_step

    world = setup(kind, modes=Modes(hf32=False))
    text, right = check_step(world, "float32", expected_step())
    if not right:
        return f"the training step is {text}"
    large = 1 << 40  # beyond what float32 and int32 hold
    total = sum_over_ranks(torch.tensor([large + world.rank], device=world.device)).item()
    expected = world.size * large + world.size * (world.size - 1) // 2
    dist.barrier()
    return "" if total == expected else f"all_reduce gives {total} instead of {expected}"
