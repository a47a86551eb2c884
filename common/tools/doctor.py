"""Can training start here, and what is missing: python -m common.tools.doctor [--device npu] [--devices 8]

Prints the machine, the packages, CANN and the drivers, the devices, the environment variables that matter, and one
training step of a small network whose numbers are compared with those of the CPU in float64; with --devices N also a
step and a sum in each of N processes. One process uses one device: ASCEND_RT_VISIBLE_DEVICES or CUDA_VISIBLE_DEVICES
choose which. Exit code: 0 when training can start on the device, 1 when not; the last line then says why, and what
to do.
"""

import contextlib
import glob
import importlib
import importlib.util
import json
import os
import platform
import re
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from argparse import Namespace
from collections import Counter
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING

from common.args import Parser
from common.cores import cpu_cores, cpu_quota

if TYPE_CHECKING:  # torch takes seconds to import, and may be what is broken: each function imports what it needs
    from common.device import World

ROOT = Path(__file__).resolve().parents[2]
OLDEST_TORCH = (2, 6)  # of common/requirements.txt
# name to import -> name to install
REQUIRED = {
    "torchvision": "torchvision",
    "numpy": "numpy",
    "PIL": "pillow",
    "scipy": "scipy",
    "tensorboardX": "tensorboardX",
    "tqdm": "tqdm",
}
DECODERS = {"imagecodecs": "imagecodecs", "cv2": "opencv-python-headless"}
# What CANN's operator compiler imports, only once an operator is compiled.
CANN_PACKAGES = {
    "decorator": "decorator",
    "sympy": "sympy",
    "cffi": "cffi",
    "google.protobuf": "protobuf",
    "attr": "attrs",
    "psutil": "psutil",
    "scipy": "scipy",
    "requests": "requests",
    "absl": "absl-py",
}
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
    ("INF_NAN_MODE_ENABLE", "0", "Atlas A2 and A3 refuse to work so; unset it"),
)
# device type -> what to do when it does not calculate, or wrongly
REMEDIES = {
    "npu": "check that the driver, CANN, its operators for this chip and torch_npu pair; or try --fused_optimizer off",
    "cuda": "check that the driver fits the CUDA that torch is built for (nvidia-smi)",
    "cpu": "install torch again: pip install --force-reinstall torch torchvision",
}
SMALL_SHM_BYTES, LITTLE_DISK_BYTES = 1 << 30, 2 << 30
DRIVER_SECONDS, PROCESSES_SECONDS = 30, 600  # a driver that hangs is a finding too
VALUE_LENGTH, REASON_LENGTH = 90, 200


class Report:
    """What is found, printed at once: where the output ends, something has crashed or hangs.

    sections: title -> name -> value. missing: what is missing or slow, and what that means. problems: why training
    cannot start, each with its remedy.
    """

    def __init__(self):
        self.sections: dict[str, dict[str, str]] = {}
        self.missing: list[str] = []
        self.problems: list[str] = []

    def section(self, title: str) -> None:
        self.sections[title] = {}
        print(title, flush=True)

    def row(self, name: str, value: object) -> None:
        """One line of the section that was begun last, in ASCII."""
        text = _ascii(str(value))
        self.sections[next(reversed(self.sections))][name] = text
        print(f"  {_ascii(name):<28} {text}", flush=True)


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _size(count: float) -> str:
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def _reason(error: Exception) -> str:
    """The kind of the error and its first line, with CANN's error code where there is one."""
    text = str(error).strip()
    first = f"{type(error).__name__}: {text.splitlines()[0]}" if text else type(error).__name__
    code = re.search(r"\b(E[A-Z0-9]\d{4}|ERR\d{5}|50\d{4})\b", text)
    first = first if len(first) <= REASON_LENGTH else first[: REASON_LENGTH - 3] + "..."
    return f"{first} ({code[1]})" if code and code[1] not in first else first


def _imported(name: str) -> tuple[ModuleType | None, str]:
    """(module, its version), or (None, why there is none)."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return None, "not installed" if error.name == name else f"does not import ({_reason(error)})"
    except Exception as error:  # a broken package may raise anything
        return None, f"does not import ({_reason(error)})"
    return module, getattr(module, "__version__", "of unknown version")


def _installed(name: str) -> bool:
    """Whether a package is there, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # the package around it is not there; a stand-in that has no spec
        return name in sys.modules


def _minor(version: str) -> tuple[int, int]:
    """'2.13.0.post2+cpu' -> (2, 13); (0, 0) for what is no version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


# ---- the machine


def machine(report: Report, output_dir: str) -> None:
    """CPUs, memory, shared memory, the disk that runs are written to, and drivers."""
    report.section("machine")
    report.row("system", f"{platform.system()} {platform.machine()}")
    report.row("CPUs", _cpus())
    report.row("memory", _memory())
    with contextlib.suppress(OSError):  # Linux alone has it
        size = shutil.disk_usage("/dev/shm").total
        report.row("/dev/shm", _size(size))
        if size < SMALL_SHM_BYTES:
            report.missing.append(
                f"/dev/shm: {_size(size)}; --workers end with 'Bus error' when it is full; start the container with "
                "--shm-size=8g, or train with --workers 0"
            )
    folder = Path(output_dir).resolve()
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    free = shutil.disk_usage(existing).free
    report.row("disk", f"{_size(free)} free for {folder}")
    if not os.access(existing, os.W_OK):
        report.missing.append(f"disk: {existing} cannot be written; train with --output_dir in a folder that can")
    elif free < LITTLE_DISK_BYTES:
        report.missing.append(f"disk: {_size(free)} free for {folder}; checkpoints may not fit: free some, or "
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
    text = f"{_size(sizes['MemTotal'])}, {_size(sizes['MemAvailable'])} of it available"
    limit = _read("/sys/fs/cgroup/memory.max").strip()
    return f"{text}; at most {_size(int(limit))} here" if limit.isdecimal() else text


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
        return "", _reason(error)
    if done.returncode:
        said = (done.stderr + done.stdout).strip().splitlines() or ["without a word"]
        return "", f"fails with {done.returncode}: {said[0][:VALUE_LENGTH]}"
    return done.stdout, ""


# ---- packages


def packages(report: Report) -> ModuleType | None:
    """What is installed; torch itself, or None when it does not work."""
    report.section("packages")
    report.row("Python", platform.python_version())
    torch = _torch(report)
    lacking = []
    for name, package in REQUIRED.items():
        if name == "torchvision" and torch is None:
            report.row(package, "not looked at, for lack of torch" if _installed(name) else "not installed")
            continue
        module, text = _torchvision() if name == "torchvision" else _imported(name)
        report.row(package, f"{text}, {_operators(report, module)}" if module and name == "torchvision" else text)
        if text == "not installed":
            lacking.append(package)
        elif module is None:
            report.problems.append(f"{package} {text}; install it again, in the version that fits the others")
    if lacking:
        what = " ".join(lacking)
        report.problems.append(f"{what}: not installed; pip install {what}, or all of common/requirements.txt")
    for name, package in DECODERS.items():
        report.row(package, _imported(name)[1])
    decode = _imported("common.decode")[0]
    if decode and decode.decoder_name() == "Pillow":
        report.missing.append(
            "imagecodecs: neither it nor a recent OpenCV works here; Pillow decodes PNG files, in one and a half to "
            "twice the time"
        )
    apex = "installed" if _installed("apex") else "not installed"
    report.row("apex", f"{apex}; only --fused_optimizer apex needs it")
    return torch


def _torch(report: Report) -> ModuleType | None:
    torch, text = _imported("torch")
    if torch is None:
        report.row("torch", text)
        remedy = "pip install -r common/requirements.txt with this Python"
        if "backend extension" in text:
            remedy = "unset TORCH_DEVICE_BACKEND_AUTOLOAD, or set it to 0"
        report.problems.append(f"torch: {text}; {remedy}")
        return None
    kinds = {"CUDA": torch.version.cuda, "ROCm": torch.version.hip}
    built = " ".join(f"{name} {version}" for name, version in kinds.items() if version)
    report.row("torch", f"{text}, built for {built or 'the CPU alone'}")
    if _minor(text) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        report.problems.append(f"torch {text} is too old; install torch {oldest} or newer, with its torchvision")
    return torch


def _torchvision() -> tuple[ModuleType | None, str]:
    """As `_imported`, and as the networks import it: one for another build of torch lacks its compiled operators."""
    with contextlib.suppress(Exception):  # which `_imported` meets again, and reports
        importlib.import_module("common.backbone").torchvision_models()
    return _imported("torchvision")


def _operators(report: Report, torchvision: ModuleType) -> str:
    """Whether torchvision's compiled part was built for this torch."""
    import torch

    try:
        torchvision.ops.nms(torch.tensor([[0.0, 0.0, 1.0, 1.0]]), torch.ones(1), 0.5)
    except Exception:  # torchvision and torch each have their own error for it
        report.missing.append(
            "torchvision: it does not pair with torch, and its compiled operators do not load; training needs none"
        )
        return "compiled operators do not load"
    return "compiled operators load"


# ---- devices


def ascend(report: Report, torch: ModuleType | None) -> None:
    """The plugin and CANN; nothing where there is no trace of them."""
    npu, plugin = _imported("common.npu")[0], _installed("torch_npu")
    if not plugin and not (npu and npu.cann_home()):
        return
    report.section("Ascend")
    if npu is None or torch is None:
        report.row("torch_npu", "installed; not looked at, for lack of torch" if plugin else "not installed")
        return
    report.row("torch_npu", _plugin(report, torch) if plugin else "not installed")
    home = npu.cann_home()
    report.row("CANN", f"{npu.cann_version() or 'of unknown version'} in {home}" if home else "not found")
    if home and not (os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")):
        report.missing.append(f"CANN: its environment is not set in this shell: source {home / 'set_env.sh'}")
    if not plugin:
        report.missing.append(f"NPU: {npu.problem()}")
        return
    works = npu.problem() is None and _imported("torch_npu.optim")[0]
    report.row("torch_npu.optim", "imports" if works else "does not import")
    lacking = [package for name, package in CANN_PACKAGES.items() if not _installed(name)]
    report.row("for CANN", f"lacking {' '.join(lacking)}" if lacking else "its Python packages are installed")
    if lacking:
        report.missing.append(
            f"CANN: it may fail at an operator with EH9999 for lack of packages; pip install {' '.join(lacking)}"
        )


def _plugin(report: Report, torch: ModuleType) -> str:
    """The version of torch_npu, and whether it is the one of this torch."""
    from common import npu

    version = npu.plugin_version() or "of unknown version"
    if _minor(version) == _minor(torch.__version__):
        return f"{version}, pairs with torch {torch.__version__}"
    if _minor(version) != (0, 0):
        report.missing.append(
            f"torch_npu {version} does not pair with torch {torch.__version__}; install torch "
            f"{'.'.join(map(str, _minor(version)))}, or the torch_npu of this torch"
        )
    return f"{version}, does not pair with torch {torch.__version__}"


def devices(report: Report, kind: str) -> str | None:
    """List the devices; the type of the one that --device `kind` means, None when there is none that works."""
    import torch

    from common import cuda, npu
    from common.device import device_count, device_name, find_device_type
    from common.errors import InputError

    report.section("devices")
    usable = {"npu": npu.installed() and npu.problem() is None, "cuda": cuda.problem() is None}
    for name, there in usable.items():
        asked = there and kind in ("auto", name)  # a card that is not wanted, and hangs, is not to be asked
        report.row(name, _names(name, device_count(name)) if asked else "not asked" if there else "none")
    report.row("cpu", device_name(torch.device("cpu")))
    if shutil.which("nvidia-smi") and not usable["cuda"]:
        report.missing.append(f"CUDA: there is nvidia-smi, and {cuda.problem()}; also look at CUDA_VISIBLE_DEVICES")
    try:
        chosen = find_device_type(kind)
    except InputError as error:
        report.row("chosen", f"none (--device {kind})")
        report.problems.append(str(error))
        return None
    report.row("chosen", f"{chosen} (--device {kind})")
    if npu.installed() and not usable["npu"]:
        report.missing.append(f"NPU: {npu.problem()}")
    return chosen


def _names(kind: str, count: int) -> str:
    """'8: Ascend910B3, 64.0 GiB'."""
    import torch

    device = getattr(torch, kind)
    # to ask an NPU is to start it, and a process is to start one alone
    asked = [device.get_device_properties(index) for index in (range(count) if kind == "cuda" else range(1))]
    names = Counter(f"{each.name}, {_size(each.total_memory)}" for each in asked)
    return f"{count}: " + "; ".join(f"{n} x {name}" if len(names) > 1 else name for name, n in names.items())


def numerics(report: Report, world: "World") -> None:
    """What the device computes like, as a run finds it."""
    import torch

    from common.device import has_bfloat16, saturates

    report.section(f"arithmetic of {world.device}")
    if world.device.type == "cpu":
        report.row("vector units", torch.backends.cpu.get_cpu_capability())
        report.row("threads", torch.get_num_threads())
    report.row("bfloat16", "yes" if has_bfloat16(world) else "no: --amp_dtype bf16 is refused")
    report.row("overflow", "the largest number, and a flag" if saturates(world) else "inf and nan")
    if world.device.type == "npu":
        device = torch.get_device_module(world.device)
        off = device.is_jit_compile_false()
        report.row("jit_compile", "off: ready-made kernels" if off else "on: each new shape is compiled")
        short, flags = "HF32", (device.conv.allow_hf32, device.matmul.allow_hf32)
    else:
        short, flags = "TF32", (torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32)
    if world.device.type != "cpu":
        convolutions, matrices = ("on" if flag else "off" for flag in flags)
        report.row(short, f"convolutions {convolutions}, matrix products {matrices}; --no_hf32 turns both off")


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


# ---- the training step


def training_step(report: Report, kind: str) -> None:
    """Take the step on the device in float32 and in mixed precision where runs use it, and compare its numbers."""
    from common.device import has_bfloat16, setup
    from common.tools.trial_step import check_step, expected_step

    try:
        world = setup(kind)
        numerics(report, world)
        world = setup(kind, hf32=False)
    except Exception as error:  # of a driver, of CANN, or of the plugin
        report.problems.append(f"{kind} cannot be set up ({_reason(error)}); {REMEDIES[kind]}")
        return
    report.section(f"one training step on {world.device}, beside the CPU in float64")
    expected = expected_step()
    for precision in ("float32", "fp16", "bf16"):
        if precision != "float32" and kind == "cpu":
            continue  # mixed precision is off there
        if precision == "bf16" and not has_bfloat16(world):
            continue
        try:
            text, right = check_step(world, precision, expected)
        except Exception as error:  # of a driver, of CANN, or of the plugin
            text, right = f"FAILS: {_reason(error)}", False
        report.row(precision, text)
        if not right:
            _blame(report, kind, precision, text)


def _blame(report: Report, kind: str, precision: str, text: str) -> None:
    what = f"the training step on {kind} in {precision}: {text}"
    if precision == "float32":
        report.problems.append(f"{what}; {REMEDIES[kind]}")
    elif precision == "fp16":
        report.problems.append(f"{what}; train with --no_amp, or {REMEDIES[kind]}")
    else:
        report.missing.append(f"{what}; do not use --amp_dtype bf16")


# ---- several processes


def processes(report: Report, kind: str, count: int) -> None:
    """The step and a sum over all processes, with a device for each of them."""
    from common.device import BACKENDS, device_count

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
    code = f"from common.tools.doctor import check_process; check_process({kind!r})"
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
        fault = _reason(error)
    sys.stderr.write(f"{fault}\n")
    sys.stderr.flush()
    os._exit(1 if fault else 0)  # at once: to leave the group may mean to wait for another process


def _fault_of_process(kind: str) -> str:
    """Take the step on this process's device, and sum int64 over all processes; what is wrong, '' for nothing."""
    import torch
    import torch.distributed as dist

    from common.device import setup, sum_over_ranks
    from common.tools.trial_step import check_step, expected_step

    world = setup(kind, hf32=False)
    text, right = check_step(world, "float32", expected_step())
    if not right:
        return f"the training step is {text}"
    large = 1 << 40  # beyond what float32 and int32 hold
    total = sum_over_ranks(torch.tensor([large + world.rank], device=world.device)).item()
    expected = world.size * large + world.size * (world.size - 1) // 2
    dist.barrier()
    return "" if total == expected else f"all_reduce gives {total} instead of {expected}"


# ---- the command


def parse(argv: list[str] | None = None) -> Namespace:
    """The flags, with names and meanings of a train.py."""
    parser = Parser(prog="doctor", description=__doc__.partition("\n\n")[0])
    parser.add_argument(
        "--device", choices=("auto", "npu", "cuda", "gpu", "cpu"), default="auto",
        help="where training is to run; auto takes an NPU, then CUDA, then the CPU; default: auto",
    )  # fmt: skip
    parser.add_argument("--devices", type=int, default=1, metavar="N", help="in how many processes; default: 1")
    parser.add_argument("--output_dir", default=str(ROOT), metavar="DIR", help="where runs go; default: here")
    parser.add_argument("--json", metavar="FILE", help="a file for the result")
    args = parser.parse_args(argv)
    if args.devices < 1:
        parser.error(f"--devices {args.devices}: give at least 1")
    if args.json and not Path(args.json).resolve().parent.is_dir():
        parser.error(f"--json {args.json}: there is no such folder; give a file in one that exists")
    args.device = {"gpu": "cuda"}.get(args.device, args.device)
    return args


def examine(report: Report, args: Namespace) -> str | None:
    """Fill the report; the device type that training would use, None when there is none."""
    machine(report, args.output_dir)
    variables(report)
    torch = packages(report)
    ascend(report, torch)
    if torch is None or not all(_imported(name)[0] for name in ("numpy", "PIL")):  # common.device needs them
        return None
    try:
        kind = devices(report, args.device)
    except Exception as error:  # of a driver, of CANN, or of the plugin
        report.problems.append(f"the devices do not answer ({_reason(error)}); check npu-smi info or nvidia-smi")
        return None
    if kind is not None:
        training_step(report, kind)
        if args.devices > 1 and not report.problems:
            processes(report, kind, args.devices)
    return kind


def main(argv: list[str] | None = None) -> int:
    """Examine, print, and return the exit code."""
    args = parse(argv)
    report = Report()
    kind = examine(report, args)
    for title, texts in (("missing, and what that means", report.missing), ("more problems", report.problems[1:])):
        if texts:
            print(title)
            print("\n".join(f"  {_ascii(text)}" for text in texts))
    ready = kind is not None and not report.problems
    verdict = f"ready: training can start on {kind}" if ready else f"NOT READY: {_ascii(report.problems[0])}"
    if ready and kind != "npu" and any(text.startswith("NPU: ") for text in report.missing):
        verdict += ", and not on npu (see above)"
    if args.json:
        result = {"ready": ready, "device": kind, "verdict": verdict, **vars(report)}
        Path(args.json).write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(verdict, flush=True)
    return 0 if ready else 1


if __name__ == "__main__":
    sys.exit(main())
