"""Processes that Slurm's srun has started: their numbers take the place of those that torchrun gives."""

import os
import re
from argparse import Namespace

from common.errors import InputError


def adopt(args: Namespace) -> None:
    """Make this process one of a run of all tasks of the srun that has started it, if there are several.

    A task on each machine that is to use several devices becomes a machine of the run (--nnodes, --node_rank,
    --master_addr), and starts a process for each of them; any other task becomes one process with its device. Flags on
    the command line, and numbers that are in the environment already, hold. Raises InputError for a list of machines
    that has no first one.
    """
    environment = os.environ
    tasks = int(environment.get("SLURM_STEP_NUM_TASKS", 1))  # set in what srun starts alone, not in a batch script
    if tasks == 1 or "LOCAL_RANK" in environment or "RANK" in environment or "nnodes" in args.given:
        return
    on_this_machine = tasks_of_machines(environment["SLURM_STEP_TASKS_PER_NODE"])[int(environment["SLURM_NODEID"])]
    first = environment.get("MASTER_ADDR") or first_machine(environment["SLURM_STEP_NODELIST"])
    if on_this_machine == 1 and (args.devices > 1 or args.distributed == 1 or len(args.device_list or []) > 1):
        args.nnodes, args.node_rank = tasks, int(environment["SLURM_PROCID"])
        if "master_addr" not in args.given:
            args.master_addr = first
            args.given = sorted([*args.given, "master_addr"])
        return
    environment |= {
        "RANK": environment["SLURM_PROCID"],
        "LOCAL_RANK": environment["SLURM_LOCALID"],
        "WORLD_SIZE": str(tasks),
        "LOCAL_WORLD_SIZE": str(on_this_machine),
        "MASTER_ADDR": first,
        "MASTER_PORT": environment.get("MASTER_PORT", str(args.master_port)),
    }


def tasks_of_machines(text: str) -> list[int]:
    """'2(x3),1' -> [2, 2, 2, 1], as SLURM_STEP_TASKS_PER_NODE says it."""
    counts = []
    for count, times in re.findall(r"(\d+)(?:\(x(\d+)\))?", text):
        counts += [int(count)] * int(times or 1)
    return counts


def first_machine(text: str) -> str:
    """The first name of a list such as 'gpu[03-05,9],login' (srun's man page, SLURM_STEP_NODELIST)."""
    found = re.match(r"([^,\[]+)(?:\[(\d+)[^\]]*\]([^,\[]*))?", text)
    if found is None:
        raise InputError(f"SLURM_STEP_NODELIST={text} names no machine; give the address of the first with MASTER_ADDR")
    name, number, rest = found.groups(default="")
    return name + number + rest
