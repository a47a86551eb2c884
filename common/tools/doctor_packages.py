"""The doctor's look at what is installed: Python packages, torch's plugin for NPUs, and CANN."""

import contextlib
import importlib
import importlib.util
import platform
import re
import sys
from types import ModuleType

from common.tools.doctor_report import Report, reason

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


def imported(name: str) -> tuple[ModuleType | None, str]:
    """(module, its version), or (None, why there is none)."""
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError as error:
        return None, "not installed" if error.name == name else f"does not import ({reason(error)})"
    except Exception as error:  # a broken package may raise anything
        return None, f"does not import ({reason(error)})"
    return module, getattr(module, "__version__", "of unknown version")


def installed(name: str) -> bool:
    """Whether a package is there, without importing it."""
    try:
        return importlib.util.find_spec(name) is not None
    except (ImportError, ValueError):  # the package around it is not there; a stand-in that has no spec
        return name in sys.modules


def minor(version: str) -> tuple[int, int]:
    """'2.13.0.post2+cpu' -> (2, 13); (0, 0) for what is no version."""
    found = re.match(r"(\d+)\.(\d+)", version)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def packages(report: Report) -> ModuleType | None:
    """What is installed; torch itself, or None when it does not work."""
    report.section("packages")
    report.row("Python", platform.python_version())
    torch = _torch(report)
    lacking = []
    for name, package in REQUIRED.items():
        if name == "torchvision" and torch is None:
            report.row(package, "not looked at, for lack of torch" if installed(name) else "not installed")
            continue
        module, text = _torchvision() if name == "torchvision" else imported(name)
        report.row(package, f"{text}, {_operators(report, module)}" if module and name == "torchvision" else text)
        if text == "not installed":
            lacking.append(package)
        elif module is None:
            report.problems.append(f"{package} {text}; install it again, in the version that fits the others")
    if lacking:
        what = " ".join(lacking)
        report.problems.append(f"{what}: not installed; pip install {what}, or all of common/requirements.txt")
    for name, package in DECODERS.items():
        report.row(package, imported(name)[1])
    decode = imported("common.data.decode")[0]
    if decode and decode.decoder_name() == "Pillow":
        report.missing.append(
            "imagecodecs: neither it nor a recent OpenCV works here; Pillow decodes PNG files, in one and a half to "
            "twice the time"
        )
    apex = "installed" if installed("apex") else "not installed"
    report.row("apex", f"{apex}; only --fused_optimizer apex needs it")
    return torch


def _torch(report: Report) -> ModuleType | None:
    torch, text = imported("torch")
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
    if minor(text) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        report.problems.append(f"torch {text} is too old; install torch {oldest} or newer, with its torchvision")
    return torch


def _torchvision() -> tuple[ModuleType | None, str]:
    """As `imported`, and as the networks import it: one for another build of torch lacks its compiled operators."""
    with contextlib.suppress(Exception):  # which `imported` meets again, and reports
        importlib.import_module("common.nets.backbone").torchvision_models()
    return imported("torchvision")


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


def ascend(report: Report, torch: ModuleType | None) -> None:
    """The plugin and CANN; nothing where there is no trace of them."""
    npu, plugin = imported("common.device.npu")[0], installed("torch_npu")
    if not plugin and not (npu and npu.cann_home()):
        return
    report.section("Ascend")
    if npu is None or torch is None:
        report.row("torch_npu", "installed; not looked at, for lack of torch" if plugin else "not installed")
        return
    report.row("torch_npu", _plugin(report, torch) if plugin else "not installed")
    home = npu.cann_home()
    report.row("CANN", f"{npu.cann_version() or 'of unknown version'} in {home}" if home else "not found")
    lacking = npu.cann_lacks()
    report.row("for torch_npu", f"lacking {', '.join(lacking)}" if lacking else "its variables and folders are there")
    if home and lacking:
        report.missing.append(f"CANN: {npu.cann_problem()}")
    if not plugin:
        report.missing.append(f"NPU: {npu.problem()}")
        return
    works = npu.problem() is None and imported("torch_npu.optim")[0]
    report.row("torch_npu.optim", "imports" if works else "does not import")
    lacking = [package for name, package in CANN_PACKAGES.items() if not installed(name)]
    report.row("for CANN", f"lacking {' '.join(lacking)}" if lacking else "its Python packages are installed")
    if lacking:
        report.missing.append(
            f"CANN: it may fail at an operator with EH9999 for lack of packages; pip install {' '.join(lacking)}"
        )


def _plugin(report: Report, torch: ModuleType) -> str:
    """The version of torch_npu, and whether it is the one of this torch."""
    from common.device import npu

    version = npu.plugin_version() or "of unknown version"
    if minor(version) == minor(torch.__version__):
        return f"{version}, pairs with torch {torch.__version__}"
    if minor(version) != (0, 0):
        report.missing.append(
            f"torch_npu {version} does not pair with torch {torch.__version__}; install torch "
            f"{'.'.join(map(str, minor(version)))}, or the torch_npu of this torch"
        )
    return f"{version}, does not pair with torch {torch.__version__}"
