"""What this process holds of memory."""

import resource
import sys

import torch


def memory_in_use(device: torch.device) -> tuple[str, float]:
    """('device', the most that tensors have taken of it so far) or, on the CPU, ('resident', what the process holds).

    In GiB. Asking does not wait for the device.
    """
    if device.type == "cpu":
        return "resident", resident_bytes() / 2**30
    return "device", getattr(torch, device.type).max_memory_allocated(device) / 2**30


def resident_bytes() -> int:
    """Memory that this process holds now; on a system without /proc, the most it has held."""
    try:
        with open("/proc/self/statm", encoding="ascii") as pages:
            return int(pages.read().split()[1]) * resource.getpagesize()
    except OSError:
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else 1024 * peak  # bytes there, KiB elsewhere
