"""The folder of a run: what may be written there, who holds it, what is moved aside."""

import errno
import fcntl
import json
import os
from datetime import datetime
from pathlib import Path

from common.device.world import World
from common.errors import InputError

RUN_MARK = "config.json"  # a folder that holds it is a run of ours


def check_output_dir(output_dir: str | Path, continues: bool = False) -> None:
    """Raise InputError when a run could not write there, or would disturb what is there and is no run."""
    path = Path(output_dir)
    try:
        existing = _existing(path)
        if any(len(os.fsencode(part)) > os.pathconf(existing, "PC_NAME_MAX") for part in path.parts):
            raise OSError(errno.ENAMETOOLONG, os.strerror(errno.ENAMETOOLONG))
    except OSError as error:
        reason = error.strerror or error
        raise InputError(f"--output_dir {path} cannot be a folder ({reason}); give another --output_dir") from error
    if not existing.is_dir():
        raise InputError(f"--output_dir {path}: {existing} is a file; give a folder")
    if not os.access(existing, os.W_OK | os.X_OK) or not _can_create(existing):
        raise InputError(f"--output_dir {path}: {existing} is not writable; give another folder with --output_dir")
    if path.exists() and _visible(path) and not (path / RUN_MARK).exists():
        raise InputError(
            f"--output_dir {path} is not empty and holds no run (no {RUN_MARK}); give a new or empty folder"
        )
    if path.exists() and not continues and not os.access(path.parent, os.W_OK | os.X_OK):
        raise InputError(f"--output_dir {path}: the run in it cannot be moved aside, {path.parent} is not writable")
    if (path / ".lock").exists():  # else nobody holds it, and a check leaves nothing behind
        _take_lock(path, fcntl.LOCK_SH).close()  # refuses a folder that another run is writing to


def _existing(path: Path) -> Path:
    """The folder, or the nearest above it that is there. Raises OSError for a name that none can have."""
    while True:
        try:
            path.stat()
            return path
        except (FileNotFoundError, NotADirectoryError):
            if path.is_symlink():
                raise OSError(errno.ENOENT, f"{path} is a link to {os.readlink(path)}, which is not there") from None
            path = path.parent


def _visible(folder: Path) -> list[Path]:
    """What is in a folder besides hidden files such as the lock."""
    return [entry for entry in folder.iterdir() if not entry.name.startswith(".")]


def _can_create(folder: Path) -> bool:
    """Whether a file can really be made: a read-only mount passes the access check of root."""
    probe = folder / f".writable-{os.getpid()}"
    try:
        probe.touch()
        probe.unlink(missing_ok=True)  # a process of this number on another machine may have been faster
    except OSError:
        return False
    return True


def finished_result(output_dir: str | Path, steps_done: int, total_steps: int, world: World) -> dict | None:
    """The result of a run that has come to its end, and says so; None for one that goes on after `steps_done`."""
    path = Path(output_dir) / "result.json"
    if steps_done < total_steps or not path.exists():
        return None
    result = json.loads(path.read_text(encoding="utf-8"))
    if result["steps"] != steps_done:  # it is of an earlier, shorter run
        return None
    if world.is_main:
        print(f"the run in {output_dir} is complete: {steps_done} of {total_steps} steps are done")
    return result


def open_folder(output_dir: Path, continues: bool):
    """Make the folder of a run, and hold it until the file that is returned is closed.

    An older run in it is moved aside, unless this one continues it.
    """
    check_output_dir(output_dir, continues)
    if not continues and output_dir.exists() and _visible(output_dir):
        _move_aside(output_dir)
    output_dir.mkdir(parents=True, exist_ok=True)
    lock = _take_lock(output_dir)
    for left_over in (output_dir / "checkpoints").glob(".*.pt.*"):  # of a process killed while it was saving
        left_over.unlink()
    return lock


def _take_lock(folder: Path, kind: int = fcntl.LOCK_EX):
    """Hold the folder for this process until the file is closed. Raises InputError when another run holds it.

    kind: fcntl.LOCK_SH for a look, which several processes may take at the same time.
    """
    file = open(folder / ".lock", "a+", encoding="utf-8")  # noqa: SIM115  the lock lasts as long as the file is open
    try:
        fcntl.flock(file, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise InputError(f"another run is writing to {folder}; wait for it, or give another --output_dir") from None
    except OSError:
        pass  # some network file systems know no locks
    os.register_at_fork(after_in_child=file.close)  # a worker that outlives a killed run does not hold its lock
    return file


def _move_aside(folder: Path) -> None:
    """Move an older run to backup/<name>-<time> beside it."""
    stamp = datetime.fromtimestamp((folder / RUN_MARK).stat().st_mtime).strftime("%Y%m%d-%H%M%S")
    target, number = folder.parent / "backup" / f"{folder.name}-{stamp}", 1
    while target.exists():
        number += 1
        target = target.with_name(f"{folder.name}-{stamp}-{number}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        folder.rename(target)
    except OSError as error:  # a mount point, for example
        raise InputError(
            f"--output_dir {folder}: the run in it cannot be moved aside ({error}); give another --output_dir"
        ) from error
