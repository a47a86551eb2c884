"""What a result depends on besides the flags."""

import importlib.metadata
import platform
from datetime import datetime

import numpy as np
import torch

from common.device.world import World, device_name
from common.version import git


def environment(world: World) -> dict:
    """Versions, device and commit that a result depends on."""
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
        "git_commit": git("rev-parse", "HEAD"),
        "git_changed_files": git("status", "--porcelain", "--untracked-files=no"),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
