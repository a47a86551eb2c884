"""Files that are whole or not there."""

import contextlib
import errno
import json
import math
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from common.errors import InputError


def write_json(path: Path, content: dict) -> None:
    """Write `content` as JSON, atomically; values that are not finite become null."""
    text = json.dumps(finite(content), indent=2, default=str) + "\n"
    write_atomically(path, lambda file: file.write(text.encode()))


def finite(value):
    """JSON has no nan: null instead."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [finite(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def write_atomically(
    path: Path,
    write: Callable,
    check: Callable[[Path], None] | None = None,
    before_replacing: Callable[[], None] | None = None,
) -> None:
    """Call `write(file)` on a temporary file beside `path` and put it in place once it is on the disk.

    check: looks at the temporary file when it is on the disk, and raises OSError for one that is not to take the place.
    before_replacing: called at the last moment when the old file is there. A process that is killed, or a disk that is
    full, leaves the old file as it was; the latter raises OSError.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
    try:
        with os.fdopen(handle, "wb") as file:
            write(file)
            file.flush()
            os.fsync(file.fileno())
        with contextlib.suppress(PermissionError, NotImplementedError):  # some file systems know no permissions
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp gives 0600; other users read results too
        if check:
            check(Path(temporary))
        if before_replacing:
            before_replacing()
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(temporary)
        if isinstance(error, RuntimeError) and isinstance(error.__context__, OSError):
            # torch.save says of a full disk that a position is unexpected
            raise OSError(error.__context__.errno, error.__context__.strerror, str(path)) from error
        if isinstance(error, OSError) and error.filename is None:  # of a file that was open already
            error.filename = str(path)
        raise
    _sync_folder(path.parent)


def writable_folder(path: str | Path, flag: str) -> Path:
    """The folder, made if need be. Raises InputError, naming the flag, where nothing can be written to it."""
    folder = Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        probe = folder / f".writable{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise InputError(f"{flag} {folder} cannot be written to ({reason}); give another folder") from error
    return folder


def writable_file(path: str | Path, flag: str) -> None:
    """Raise InputError, naming the flag, where no such file can be written: before what it will hold is made.

    Its folder is made if need be.
    """
    if Path(path).is_dir():
        raise InputError(f"{flag} {path}: there is a folder of that name; name a file")
    writable_folder(Path(path).absolute().parent, f"{flag}: the folder")


def has_text_name(path: str | Path) -> bool:
    """Whether the name is UTF-8, as libraries in C++ want it where they open a file by themselves."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def size(path: Path) -> int:
    """Bytes of a file, or of all in a folder."""
    return sum(file.stat().st_size for file in (path.rglob("*") if path.is_dir() else [path]) if file.is_file())


class Appended:
    """A file of text that grows; what a full disk does not take is kept, and written with what comes next.

    It never holds a part of what was appended: after it, nobody could read the rest.
    """

    def __init__(self, path: Path):
        self.path, self._kept = path, b""

    def append(self, text: str) -> None:
        """Raises OSError when it is not in the file, and then tries again the next time."""
        self._kept += text.encode(errors="backslashreplace")
        with open(self.path, "ab", buffering=0) as file:
            size = os.fstat(file.fileno()).st_size
            if file.write(self._kept) < len(self._kept):  # the system takes what fits, and says so
                os.ftruncate(file.fileno(), size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(self.path))
        self._kept = b""


def _sync_folder(folder: Path) -> None:
    """Bring the names of the files in it to the disk, where the file system can do that."""
    with contextlib.suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
