"""Which version of this program it is, and how a script ends while it imports; nothing here imports torch."""

import hashlib
import os
import signal
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
    """End a tool that is asked for its version, before it imports what takes seconds.

    While it imports, Ctrl-C ends it with one line: see `end_on_signal`.
    """
    if "--version" in sys.argv[1:]:
        print(version_line())
        sys.exit(0)
    signal.signal(signal.SIGINT, end_on_signal)


def end_on_signal(number: int, _frame: object) -> None:
    """End the program with one line for a signal: as an exception Ctrl-C would be a page about an import."""
    said, code = ("interrupted", 130) if number == signal.SIGINT else ("stopped by SIGTERM", 3)
    os.write(2, f"{os.path.basename(sys.argv[0])}: {said}\n".encode())
    os._exit(code)
