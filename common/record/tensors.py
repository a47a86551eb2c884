"""Files of tensors: read without running code of theirs, and found whole before anything is made of them.

torch.save writes a zip archive with a checksum (CRC-32) of each of its members, which torch.load does not look at. Here
it is: a flipped bit is found in every file, whoever wrote it. That costs 0.3 to 0.4 s for each GB, measured on one core
of an AMD EPYC with the file in memory.
"""

import contextlib
import errno
import os
import re
import struct
import warnings
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from common.data.files import retried
from common.errors import InputError
from common.record.files import has_text_name

CHUNK_BYTES = 1 << 20
# what zipfile raises for damage: the last two for a flag of encryption, and for another compression
NO_ARCHIVE = (zipfile.BadZipFile, EOFError, ValueError, zlib.error, struct.error, RuntimeError, NotImplementedError)
# What training programs write beside their tensors: mmengine its scalars over time, with the methods that it looks up
# on them, numpy its numbers, fastai its rates, torchvision its flags. Nothing here looks at them: no package of
# theirs is imported, and getattr, too, is the name of something that does nothing.
PASSED_OVER = (
    "mmengine.logging.history_buffer.HistoryBuffer",
    "__builtin__.getattr",
    "builtins.getattr",
    *(
        f"{package}.multiarray.{name}"
        for package in ("numpy.core", "numpy._core")
        for name in ("_reconstruct", "scalar")
    ),
    *(f"numpy.{name}" for name in ("ndarray", "dtype", "float64", "float32", "int64")),
    "fastcore.foundation.L",
    "argparse.Namespace",
)


class _PassedOver:
    """Takes the place of an object of `PASSED_OVER`, with whatever it is made of, and keeps nothing of that."""

    def __new__(cls, *_args, **_options):
        return object.__new__(cls)

    def __init__(self, *_args, **_options):
        pass

    def __setstate__(self, _state):
        pass


class Unusable(InputError):
    """A file that is damaged, or holds what no training has written: an older one may be whole."""


def load_tensors(path: Path, file: BinaryIO | None = None, mapped: bool = False):
    """What torch.load makes of a file, on the CPU, without running code of it.

    file: what is read instead, where the content of `path` is something around it. mapped: tensors stay in the file
    until they are looked at, for who copies some of them and drops the rest: an optimizer's state beside the weights
    then takes no memory. Raises InputError, naming `path`, for a file that may not be read, and Unusable for one that
    is damaged (with the tensor that is), cut off, or holds other things than tensors.
    """

    def load():
        with contextlib.nullcontext(file) if file else open(path, "rb") as opened:
            return _load(path, opened, mapped)

    try:
        return retried(load, path, "checkpoint")
    except PermissionError as error:
        raise InputError(f"no permission to read {path}; have its owner give it, or name another file") from error
    except OSError as error:
        raise InputError(f"{path} cannot be read ({error.strerror or error}); try again, or name another") from error


def _load(path: Path, file: BinaryIO, mapped: bool):
    try:
        damaged = _damaged_members(file)
    except NO_ARCHIVE as error:
        raise Unusable(f"{path} is damaged in its table of contents ({error}); give another file") from error
    file.seek(0)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the pickle protocol, for files that are refused below anyway
            with torch.serialization.safe_globals([(_PassedOver, name) for name in PASSED_OVER]):
                can_be_mapped = mapped and has_text_name(path) and zipfile.is_zipfile(path)
                source, mapped = (str(path), True) if can_be_mapped else (file, False)
                content = torch.load(source, map_location="cpu", weights_only=True, mmap=mapped)
    except Exception as error:  # torch raises many kinds for a damaged or foreign file
        if isinstance(error, OSError) and error.errno not in (None, errno.EINVAL):  # it leads to behind the end
            raise
        if damaged:
            reason = f"is damaged in {damaged[0]}, whose checksum is wrong"
        elif "Weights only load failed" in str(error) or "Unsupported" in str(error):
            unknown = re.search(r"GLOBAL ([\w.]+)", str(error))
            named = f" ({unknown[1]})" if unknown else ""
            reason = f"holds objects other than tensors{named}, or is no file of weights"
        else:
            reason = f"is damaged, cut off ({path.stat().st_size} bytes) or no file of weights"
        raise Unusable(f"{path} {reason}; give another file") from error
    if damaged:
        where = _in_words(damaged[0], content)
        raise Unusable(f"{path} is damaged in {where}, whose checksum is wrong; give another file")
    return content


def _damaged_members(file: BinaryIO) -> list[str]:
    """The members of the archive whose content is not what was written; none for a file of another kind."""
    if not zipfile.is_zipfile(file):
        return []
    with zipfile.ZipFile(file) as archive:
        members = [member for member in archive.infolist() if member.file_size]
        damaged = [member.filename for member in members if not _is_whole(archive, member)]
    # torch.serialization.set_crc32_options(False) leaves every checksum out
    return [] if len(damaged) == len(members) > 1 else damaged


def has_checksums(path: Path) -> bool:
    """Whether a file that `load_tensors` has read was written with them: an archive, and not without."""
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(_is_whole(archive, member) for member in archive.infolist() if member.file_size)


def _is_whole(archive: zipfile.ZipFile, member: zipfile.ZipInfo) -> bool:
    try:
        with archive.open(member) as content:
            while content.read(CHUNK_BYTES):
                pass
    except NO_ARCHIVE:
        return False
    return True


def _in_words(member: str, content) -> str:
    """The tensor that a member `archive/data/7` belongs to: torch numbers storages as it meets them."""
    folder, _, number = member.rpartition("/")
    if folder.endswith("/data") and number.isdigit():
        names: dict[int, str] = {}
        for name, tensor in named_tensors(content):
            names.setdefault(tensor.untyped_storage()._cdata, name)
        if int(number) < len(names):
            return list(names.values())[int(number)]
    return member


def check_archive(path: Path) -> None:
    """Raise OSError unless the file that has just been written reads as it was written, from the disk itself."""
    with open(path, "rb") as file:
        if hasattr(os, "posix_fadvise"):  # else what is in memory would be read
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        if not zipfile.is_zipfile(file) or _damaged_members(file):
            raise OSError(errno.EIO, "it does not read as it was written", str(path))


def named_tensors(content, name: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in nested dictionaries and lists, in the order of writing, with its path: model.head.weight."""
    if isinstance(content, Tensor):
        yield name, content
    elif isinstance(content, dict | list | tuple):
        items = content.items() if isinstance(content, dict) else enumerate(content)
        for key, value in items:
            yield from named_tensors(value, f"{name}.{key}" if name else str(key))


def not_finite(content) -> str | None:
    """The first tensor that holds nan or inf, with the number of such values, in words; None where all are finite."""
    for name, tensor in named_tensors(content):
        if tensor.is_floating_point() or tensor.is_complex():
            count = tensor.numel() - int(torch.isfinite(tensor).sum())
            if count:
                return f"{name} ({count} of {tensor.numel()} values)"
    return None


def check_finite(path: Path, content) -> None:
    """Raise Unusable, naming the tensor, where a value of the file is not finite."""
    if where := not_finite(content):
        raise Unusable(f"{path} holds values that are not finite: {where}; give a file from before the training failed")
