"""What a result depends on besides the flags."""

import hashlib
import importlib.metadata
import platform
import subprocess
from datetime import datetime
from pathlib import Path

import numpy as np
import torch

from common.device.world import World, device_name

ROOT = Path(__file__).resolve().parents[2]


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
        "git_commit": _git("rev-parse", "HEAD"),
        "git_changed_files": _git("status", "--porcelain", "--untracked-files=no"),
        "started": datetime.now().astimezone().isoformat(timespec="seconds"),
    }


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def code_version() -> dict[str, str | bool | None]:
    """The commit of these sources, and whether files of it have changed since; without git a hash of the sources."""
    commit = _git("rev-parse", "HEAD")
    changed = bool(commit and _git("status", "--porcelain", "--untracked-files=no"))
    return {"commit": commit, "changed": changed, "version": None if commit else _hash_of_sources()}


def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "common").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def _git(*command: str) -> str | None:
    try:
        run = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None
