"""The doctor's look at the machine: CPUs, memory, disk, drivers and environment variables."""

import contextlib
import glob
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path

from common.device.cores import cpu_cores, cpu_quota
from common.tools.doctor_report import VALUE_LENGTH, Report, reason, size_text

VARIABLES = re.compile(
    r"(ACL|ASCEND|CUDA|HCCL|KMP|MKL|MULTI_STREAM|NCCL|OMP|PYTORCH|TORCH)_|TASK_QUEUE_ENABLE$|COMBINED_ENABLE$|"
    r"CPU_AFFINITY_CONF$|INF_NAN_MODE_|STREAMS_PER_DEVICE$|MASTER_|(RANK|LOCAL_RANK|WORLD_SIZE|RANK_TABLE_FILE)$"
)
# variable, values, what they do
HARMFUL = (
    ("TASK_QUEUE_ENABLE", "0", "operators go to the NPU one by one, which is slow; use 2"),
    ("ASCEND_LAUNCH_BLOCKING", "1", "the host waits for every operator, which is slow; unset it"),
    ("CUDA_LAUNCH_BLOCKING", "1", "the host waits for every operator, which is slow; unset it"),
    ("ASCEND_GLOBAL_LOG_LEVEL", "01", "CANN logs what it does, which is slow; use 3"),
    ("ASCEND_SLOG_PRINT_TO_STDOUT", "1", "CANN's log goes into the training log; use 0"),
    ("TORCH_NPU_WARNING_DISABLE", "1", "torch_npu does not say what it computes on the host; unset it"),
    ("INF_NAN_MODE_ENABLE", "0", "Atlas A2 and A3 refuse to work so; unset it"),
)
SMALL_SHM_BYTES, LITTLE_DISK_BYTES = 1 << 30, 2 << 30
DRIVER_SECONDS = 30  # a driver that hangs is a finding too


def machine(report: Report, output_dir: str) -> None:
    """CPUs, memory, shared memory, the disk that runs are written to, and drivers."""
    report.section("machine")
    report.row("system", f"{platform.system()} {platform.machine()}")
    report.row("CPUs", _cpus())
    report.row("memory", _memory())
    with contextlib.suppress(OSError):  # Linux alone has it
        size = shutil.disk_usage("/dev/shm").total
        report.row("/dev/shm", size_text(size))
        if size < SMALL_SHM_BYTES:
            report.missing.append(
                f"/dev/shm: {size_text(size)}; --workers end with 'Bus error' when it is full; start the container "
                "with --shm-size=8g, or train with --workers 0"
            )
    given, folder = Path(output_dir), Path(os.path.realpath(output_dir))  # does not mind a loop
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    report.row("disk", f"{size_text(free)} free for {folder}")
    links = [path for path in (given, *given.parents) if os.path.islink(path)]
    if broken := next((path for path in links if not os.path.exists(path)), None):
        report.missing.append(
            f"disk: {broken} is a link that leads nowhere; mend it, or train with another --output_dir"
        )
    elif not os.access(existing, os.W_OK):
        report.missing.append(f"disk: {existing} cannot be written; train with --output_dir in a folder that can")
    elif free < LITTLE_DISK_BYTES:
        report.missing.append(f"disk: {size_text(free)} free for {folder}; checkpoints may not fit: free some, or "
                              "train with --output_dir on another disk")  # fmt: skip
    if program := shutil.which("nvidia-smi"):
        report.row("NVIDIA driver", _nvidia_driver(program))
    program, files = shutil.which("npu-smi"), glob.glob("/dev/davinci[0-9]*")
    if program or files:
        report.row("Ascend driver", _ascend_driver(program) if program else "unknown: there is no npu-smi")
        report.row("Ascend devices", f"{len(files)} files /dev/davinci*" if files else "no file /dev/davinci*")


def _read(path: str) -> str:
    """The text of a file of the system; '' where there is none."""
    try:
        return Path(path).read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def _cpus() -> str:
    """How many this process may use: fewer than there are, in a container."""
    total, usable, quota = os.cpu_count() or 1, cpu_cores(), cpu_quota()
    return f"{usable} that this process may use, of {total}{f'; at most {quota:.1f} at a time' if quota else ''}"


def _memory() -> str:
    found = re.findall(r"^(MemTotal|MemAvailable):\s*(\d+) kB", _read("/proc/meminfo"), re.MULTILINE)
    sizes = {name: 1024 * int(number) for name, number in found}
    if len(sizes) < 2:
        return "unknown"
    text = f"{size_text(sizes['MemTotal'])}, {size_text(sizes['MemAvailable'])} of it available"
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return f"{text}; at most {size_text(int(limit))} here" if limit.isdecimal() else text


def _ascend_driver(program: str) -> str:
    text, fault = _output(program, "info")
    version = re.search(r"Version:\s*(\S+)", text)
    return f"npu-smi {fault}" if fault else version[1] if version else "npu-smi answers"


def _nvidia_driver(program: str) -> str:
    text, fault = _output(program, "--query-gpu=driver_version", "--format=csv,noheader")
    return f"nvidia-smi {fault}" if fault else (text.split() or ["nvidia-smi answers"])[0]


def _output(*command: str) -> tuple[str, str]:
    """(what a program prints, ''), or ('', why it does not)."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=DRIVER_SECONDS)
    except subprocess.TimeoutExpired:
        return "", f"does not answer in {DRIVER_SECONDS} s"
    except OSError as error:
        return "", reason(error)
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines() or ["without a word"]
        return "", f"fails with {done.returncode}: {said[0][:VALUE_LENGTH]}"
    return done.stdout, ""


def variables(report: Report) -> None:
    """The environment variables that are set and matter, and those that do harm."""
    report.section("environment variables")
    by_common = ("TORCH_DEVICE_BACKEND_AUTOLOAD", "0")
    found = sorted(item for item in os.environ.items() if VARIABLES.match(item[0]) and item != by_common)
    for name, value in found:
        report.row(name, value if len(value) <= VALUE_LENGTH else value[: VALUE_LENGTH - 3] + "...")
    if not found:
        report.row("none", "of those that matter")
    for name, values, effect in HARMFUL:
        if os.environ.get(name) in tuple(values):
            report.missing.append(f"{name}={os.environ[name]}: {effect}")
