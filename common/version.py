"""Which version of this program it is; nothing here imports torch, so that --version is answered at once."""

import hashlib
import subprocess
import sys
from pathlib import Path

VERSION = "1.0.0"
NAME = "segmentation-zoo"
ROOT = Path(__file__).resolve().parents[1]


def git(*command: str) -> str | None:
    """What git says of the folder of these sources; None without git, or where they are no checkout."""
    try:
        run = subprocess.run(["git", "-C", str(ROOT), *command], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return run.stdout.strip() if run.returncode == 0 else None


def code_version() -> dict[str, str | bool | None]:
    """The commit of these sources, and whether files of it have changed since; without git a hash of the sources."""
    commit = git("rev-parse", "HEAD")
    changed = bool(commit and git("status", "--porcelain", "--untracked-files=no"))
    return {"commit": commit, "changed": changed, "version": None if commit else _hash_of_sources()}


def _hash_of_sources() -> str:
    digest = hashlib.sha256()
    for path in sorted((ROOT / "common").rglob("*.py")):
        digest.update(path.read_bytes())
    return digest.hexdigest()[:16]


def version_line() -> str:
    """What --version prints."""
    code = code_version()
    if code["commit"]:
        return f"{NAME} {VERSION}, commit {code['commit'][:12]}{', with changed files' if code['changed'] else ''}"
    return f"{NAME} {VERSION}, no git checkout, sources {code['version']}"


def answer_version() -> None:
    """End a script that is asked for its version, before it imports what takes seconds."""
    if "--version" in sys.argv[1:]:
        print(version_line())
        sys.exit(0)
