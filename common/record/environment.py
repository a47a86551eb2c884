"""What a result depends on besides the flags."""

import importlib.metadata
import platform
import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from common.device.world import World, device_name


def environment(world: World) -> dict:
    """Versions, device and commit that a result depends on."""
    root = Path(__file__).resolve().parents[2]
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "torchvision": _version("torchvision"),
        "torch_npu": _version("torch_npu"),
        "numpy": np.__version__,
        "pillow": _version("pillow"),
        "platform": platform.platform(),
        "device": device_name(world.device),
        "world_size": world.size,
        "git_commit": _git(root, "rev-parse", "HEAD"),
        "git_changed_files": _git(root, "status", "--porcelain", "--untracked-files=no"),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _git(root: Path, *command: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(root), *command], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
