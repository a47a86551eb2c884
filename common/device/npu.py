"""What is asked of Ascend's plugin torch_npu: whether an NPU can be used, and if not, why; and its settings.

Nothing here imports the plugin unless an NPU is asked for or looked for, and nothing imports torch before it is needed:
the rest works where torch does not. What a chip computes like is asked of the plugin: names such as "910B" belong to
chips with and without bfloat16.
"""

import importlib.util
import os
import re
import sys
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

# Where CANN's set_env.sh lies, newest layout first; as in common/env_npu.sh.
CANN_FOLDERS = ("cann", "ascend-toolkit", "nnae")
CANN_INSTALL_INFO = Path("/etc/Ascend/ascend_cann_install.info")


def installed() -> bool:
    """Whether the plugin is there; not whether it works."""
    return "torch_npu" in sys.modules or importlib.util.find_spec("torch_npu") is not None


@cache
def problem() -> str | None:
    """Why no NPU can be used, with the remedy, in one line; None when one can.

    Looked at once in a process: a plugin whose import has failed half-way through leaves parts of itself behind, and
    importing it again fails for another reason, which says nothing about the first.
    """
    import torch

    if not installed():
        return (
            f"torch_npu is not installed; install the release of it that pairs with torch {torch.__version__} "
            "(docs/npu.md has the table)"
        )
    try:
        import torch_npu  # noqa: F401  the import registers the device; only needed where an NPU is
    except Exception as error:  # whatever a plugin raises that does not fit torch or CANN
        return _why_it_does_not_import(error)
    if not torch.npu.is_available():
        visible = os.environ.get("ASCEND_RT_VISIBLE_DEVICES")
        cause = "" if visible is None else f" with ASCEND_RT_VISIBLE_DEVICES={visible}"
        return f"torch_npu sees no device{cause}; check the driver and the cards with npu-smi info"
    return None


def _why_it_does_not_import(error: Exception) -> str:
    import torch

    text = " ".join(f"{cause}" for cause in (error, error.__cause__) if cause).strip()
    reason = text.splitlines()[0].split(". You can ")[0] if text else type(error).__name__
    if "Two accelerators" in text:
        return (
            f"torch {torch.__version__} is built for CUDA, and torch_npu works with a build for the CPU alone; install "
            f"torch {_minor(torch.__version__)} without CUDA, or run with --device cuda"
        )
    ours, theirs = torch.__version__, plugin_version()
    if theirs and _minor(ours) != _minor(theirs):
        return (
            f"torch_npu {theirs} does not pair with torch {ours} ({reason}); install torch {_minor(theirs)}, or the "
            f"torch_npu of torch {_minor(ours)} (docs/npu.md has the table)"
        )
    if library := re.search(r"(lib\w+\.so[\w.]*): cannot open shared object file", text):
        script = _cann_script()
        if home := _chosen_home():
            remedy = f"CANN in {home} is incomplete, or LD_LIBRARY_PATH has lost it: source "
            remedy += f"{script or 'its set_env.sh'} once more"
        elif script:
            remedy = f"source {script} before the run"
        else:
            remedy = "install CANN, and source its set_env.sh before the run"
        return f"CANN's library {library[1]} is not found, which torch_npu needs; {remedy}"
    if re.match(r"ASCEND_\w+ (:|environment variable) ", text) and (lacking := cann_problem()):
        return lacking
    if symbol := re.search(r"undefined symbol: \w+", text):
        cann = cann_version()
        return (
            f"torch_npu {theirs or 'of unknown version'}, torch {ours} and CANN {cann or 'of unknown version'} do not "
            f"pair ({symbol[0]}); install versions of one row of the table in docs/npu.md"
        )
    return (
        f"torch_npu does not import ({reason}); source CANN's set_env.sh, and check that the versions pair "
        "(docs/npu.md has the table)"
    )


def plugin_version() -> str | None:
    """The version of torch_npu by its package's own word, without importing it."""
    try:
        return version("torch_npu")
    except PackageNotFoundError:
        return None


def _minor(text: str) -> str:
    """'2.13.0.post2+cpu' -> '2.13'."""
    return ".".join(text.split("+")[0].split(".")[:2])


def cann_home() -> Path | None:
    """The folder of CANN: that of this shell's environment, else the first with a set_env.sh on this machine."""
    if home := _chosen_home():
        return home
    told = re.search(r"^Install_Path=(.+)$", _text(CANN_INSTALL_INFO), re.MULTILINE)
    usual = [root / name for root in (Path("/usr/local/Ascend"), Path.home() / "Ascend") for name in CANN_FOLDERS]
    written = [Path(told[1].strip()) / name for name in (*CANN_FOLDERS, ".")] if told else []
    return next((folder for folder in written + usual if (folder / "set_env.sh").is_file()), None)


def _chosen_home() -> Path | None:
    """The folder of CANN that this shell's environment names."""
    home = os.environ.get("ASCEND_HOME_PATH") or os.environ.get("ASCEND_TOOLKIT_HOME")
    return Path(home) if home else None


def cann_lacks() -> list[str]:
    """What torch_npu looks for in this shell when it is imported, and does not find: two variables and two folders.

    As in common/env_npu.sh.
    """
    variables = {name: os.environ.get(name) for name in ("ASCEND_HOME_PATH", "ASCEND_OPP_PATH")}
    lacking = [
        f"{name}={value} (no such folder)" if value else f"{name} (not set)"
        for name, value in variables.items()
        if not (value and Path(value).is_dir())
    ]
    home = _chosen_home()
    folders = [home / name for name in ("runtime", "compiler")] if home and home.is_dir() else []
    return lacking + [f"{folder} (no such folder)" for folder in folders if not folder.is_dir()]


def cann_problem() -> str | None:
    """What `cann_lacks`, with the remedy, in one line; None when it has everything."""
    if not (lacking := cann_lacks()):
        return None
    return (
        f"torch_npu does not find what it needs of CANN: {', '.join(lacking)}; source "
        f"{_cann_script() or 'its set_env.sh'} in this shell, or install CANN's toolkit and the operators of the chip "
        "(ops, kernels) anew"
    )


def _cann_script() -> Path | None:
    """CANN's set_env.sh, which lies in its home or, before CANN 8.5, beside it."""
    home = cann_home()
    scripts = [folder / "set_env.sh" for folder in (home, home.parent)] if home else []
    return next((script for script in scripts if script.is_file()), None)


def _text(file: Path) -> str:
    """What a file says; '' where it cannot be read."""
    try:
        return file.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return ""


def cann_version() -> str | None:
    """The version of CANN, from the files of its folder; None where there is none."""
    home = cann_home()
    places = ("version.info", "*/version.info", "*/*/version.info")  # CANN keeps moving it
    for file in (file for place in places for file in sorted(home.glob(place))) if home else ():
        if found := re.search(r"^version=(\S+)", _text(file), re.MULTILINE | re.IGNORECASE):
            return found[1]
    return None


def set_up(hf32: bool | None = None, precision_mode: str | None = None) -> None:
    """The settings of a run; call it once the device is chosen.

    hf32: whether float32 convolutions and matrix products may use HF32, a shorter float32; None leaves
    what the chip does by itself (convolutions may, matrix products not). precision_mode: "must_keep_origin_dtype" and
    "allow_fp32_to_fp16" say whether float32 operators may be computed in float16, as the first generation of chips
    does by itself; other values leave that to the chip.
    """
    import torch

    torch.npu.set_compile_mode(jit_compile=False)  # ready-made kernels; no compilation for each new shape
    torch.npu.config.allow_internal_format = False  # private layouts cost conversions, and jit_compile alone needs them
    if hf32 is not None:
        torch.npu.matmul.allow_hf32 = torch.npu.conv.allow_hf32 = hf32
    if precision_mode in ("must_keep_origin_dtype", "allow_fp32_to_fp16"):
        torch.npu.set_option({"ACL_PRECISION_MODE": precision_mode})


def has_fused_adam(device) -> bool:
    """Whether the chip computes torch's fused Adam itself.

    torch_npu 2.13 and 2.14 register it for all of them; below Ascend 950 it copies every parameter, gradient and moment
    to the host, computes there, and copies them back, in each step.
    """
    import torch

    return torch.npu.get_device_name(device).startswith("Ascend950")


def fallback_operator(text: str) -> str | None:
    """The operator that a warning of the plugin says to run on the host; None where it says no such thing."""
    found = re.search(r"operator '([\w:.]+)' is not currently supported on the NPU backend", text)
    return found[1] if found else None


def grad_scaler(init_scale: float):
    """The plugin's own gradient scaler, for chips that saturate instead of overflowing.

    It reads the flag that their hardware raises, and shares it with the other processes; the host waits for that. It is
    a torch.amp.GradScaler, whose state lacks one key of its.
    """
    import torch

    return torch.npu.amp.GradScaler(init_scale=init_scale)
