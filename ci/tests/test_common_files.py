"""common/record/files.py: files that are whole or not there."""

import errno
import json
import math
import os
import resource
import signal

import pytest
import torch

from common.record.files import Appended, write_atomically, write_json


def test_a_file_is_written_with_the_folders_above_it(tmp_path):
    path = tmp_path / "a" / "b" / "file.bin"
    write_atomically(path, lambda file: file.write(b"new"))
    assert path.read_bytes() == b"new"
    mask = os.umask(0)
    os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~mask
    assert os.listdir(path.parent) == ["file.bin"]


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_writer_that_raises_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half of the new")
        file.flush()
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file.bin"]


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_is_killed_leaves_the_old_file(tmp_path, number):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")

    def write(file):
        file.write(b"half of the new")
        file.flush()
        os.kill(os.getpid(), number)

    child = os.fork()
    if child == 0:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        try:
            write_atomically(path, write)
        finally:
            os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -number
    assert path.read_bytes() == b"old"
    write_atomically(path, lambda file: file.write(b"new"))  # what is left over does not disturb the next one
    assert path.read_bytes() == b"new"


class FullDisk:
    """A file that cannot take more, once it has the first bytes of an archive."""

    def __init__(self, file):
        self.file, self.written = file, 0

    def write(self, data) -> int:
        self.written += len(data)
        if self.written > 100:
            raise OSError(errno.ENOSPC, "No space left on device")
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def test_a_full_disk_leaves_the_old_checkpoint_and_says_what_happened(tmp_path):
    path = tmp_path / "last.pt"
    path.write_bytes(b"old")
    with pytest.raises(OSError, match="No space left on device.*last.pt") as error:
        write_atomically(path, lambda file: torch.save({"a": torch.zeros(1000)}, FullDisk(file)))
    assert (error.value.errno, error.value.filename) == (errno.ENOSPC, str(path))
    assert os.listdir(tmp_path) == ["last.pt"] and path.read_bytes() == b"old"


def test_json_has_no_nan(tmp_path):
    write_json(tmp_path / "x.json", {"a": math.nan, "b": [math.inf, 1], "c": {"d": (-math.inf,)}, "path": tmp_path})
    assert json.loads((tmp_path / "x.json").read_text()) == {
        "a": None, "b": [None, 1], "c": {"d": [None]}, "path": str(tmp_path),
    }  # fmt: skip


def test_a_file_that_grows_never_holds_a_part_of_a_row(tmp_path):
    """A limit of the size of files is met as a full disk is: what fits is written, and the rest is not."""
    file, before = Appended(tmp_path / "rows"), resource.getrlimit(resource.RLIMIT_FSIZE)
    file.append("one\n")
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (6, before[1]))
        with pytest.raises(OSError, match="rows"):
            file.append("two\n")
        assert (tmp_path / "rows").read_text() == "one\n"
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    file.append("three \udcff\n")  # of a name that is not UTF-8
    assert (tmp_path / "rows").read_text() == "one\ntwo\nthree \\udcff\n"
