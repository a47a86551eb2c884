"""How many processor cores this process may use. Nothing here imports torch."""

import math
import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")  # what Linux allows a container


def cpu_cores() -> int:
    """Cores that this process may use: fewer than the machine has in a container, or where it is bound to some."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores, math.ceil(cpu_quota() or cores))


def cpu_quota() -> float | None:
    """The cores' worth of time that a container is given (docker run --cpus); None without such a limit."""
    # version 2 of cgroups, or version 1
    quota = _numbers("cpu.max") or _numbers("cpu/cpu.cfs_quota_us") + _numbers("cpu/cpu.cfs_period_us")
    return quota[0] / quota[1] if len(quota) == 2 and min(quota) > 0 else None


def _numbers(file: str) -> list[int]:
    """The whole numbers that a file consists of; none where it is missing or says 'max', for no limit."""
    try:
        return [int(word) for word in (CGROUPS / file).read_text(encoding="ascii").split()]
    except (OSError, ValueError):
        return []
