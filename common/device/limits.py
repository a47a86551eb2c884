"""What the workers of a run need of the machine, and whether it is there: said before the training, not by its end.

All figures are what is needed at least: a run that is refused would have ended by itself.
"""

import resource
import shutil
from collections.abc import Iterator
from pathlib import Path

from common.device.cores import CGROUPS
from common.errors import InputError

SHARED_MEMORY = Path("/dev/shm")
AHEAD = 2  # batches that a worker has ready (prefetch_factor of torch's DataLoader)
FILES_OF_A_BATCH, FILES_OF_A_WORKER, FILES_OF_A_PROCESS = 3, 6, 100
TASKS_OF_A_WORKER, TASKS_OF_A_PROCESS = 2, 8  # processes and threads
MEMORY_OF_A_WORKER = 32 << 20  # besides what it shares with the process that has started it
PIXEL_BYTES = 4  # image and label


def check_limits(image_size: tuple[int, int], device_batch_size: int, workers: int) -> None:
    """Raise InputError, naming the limit, for more workers than there is room for.

    workers: processes that read data, for all devices of this machine. A limit of open files that this process may
    raise by itself is raised.
    """
    if workers == 0:
        return
    height, width = image_size
    batch_bytes = device_batch_size * height * width * PIXEL_BYTES
    for what, needed, there, advice in _limits(workers, batch_bytes):
        if there < needed:
            fewer = max(0, int(workers * there / needed))
            raise InputError(
                f"{workers} workers need at least {_shown(needed)} {what}, and there are {_shown(there)}; {advice}, "
                f"or give fewer with --workers (all devices of this machine together: {fewer})"
            )


def _limits(workers: int, batch_bytes: int) -> Iterator[tuple[str, int, int, str]]:
    """(Of what, how much is needed, how much is there, how to have more)."""
    held = AHEAD * workers * batch_bytes
    if SHARED_MEMORY.is_dir():
        more = f"start the container with --shm-size={max(1, -(-2 * held >> 30))}g"
        yield "bytes in /dev/shm", held, shutil.disk_usage(SHARED_MEMORY).free, more
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    files = FILES_OF_A_PROCESS + workers * (FILES_OF_A_WORKER + AHEAD * FILES_OF_A_BATCH)
    if soft != resource.RLIM_INFINITY and soft < files:
        may = files if hard == resource.RLIM_INFINITY else min(files, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (may, hard))
        yield "open files", files, may, f"raise the limit with ulimit -n {files}"
    if (tasks := _number(CGROUPS / "pids.max")) is not None:
        needed = TASKS_OF_A_PROCESS + workers * TASKS_OF_A_WORKER
        taken = _number(CGROUPS / "pids.current") or 0
        yield "processes and threads", needed, max(0, tasks - taken), "raise --pids-limit of the container"
    memory = workers * MEMORY_OF_A_WORKER + held
    if (available := _available_memory()) is not None:
        yield "bytes of memory", memory, available, "free some"


def _available_memory() -> int | None:
    """Bytes that the machine, or the container, can still give; None where that is not known."""
    found = []
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                found.append(1024 * int(line.split()[1]))
    except OSError:
        pass
    if (most := _number(CGROUPS / "memory.max")) is not None:
        found.append(most)
    return min(found, default=None)


def _number(path: Path) -> int | None:
    try:
        return int(path.read_text(encoding="ascii"))
    except (OSError, ValueError):  # not there, or 'max'
        return None


def _shown(count: int) -> str:
    return f"{count / 2**20:.0f} Mi" if count >= 1 << 20 else str(count)
