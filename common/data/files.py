"""The files of pictures and labels as bytes: reading them, and whether they are whole.

What decodes a file takes more for granted than one thinks: libpng warns of a wrong checksum and goes on, and a JPEG
whose second half never arrived decodes to a picture with a grey lower half. So nothing is decoded here before its
checksums and its end mark have been looked at.
"""

import errno
import os
import struct
import time
import zlib
from collections.abc import Callable, Iterator
from typing import NamedTuple, TypeVar

from common.errors import InputError, Unreachable

PNG, JPEG, GIF = b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", (b"GIF87a", b"GIF89a")  # how such files begin
TAIL_BYTES = 1 << 16  # of a file, in which its end mark is looked for first
ZERO_BYTES = 256  # no compressed data end in so many zeros
WAIT_SECONDS = (0.2, 1.0, 5.0)  # before a file is read again that its server did not give
PASSING = {errno.ESTALE, errno.EIO, errno.EAGAIN, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN}
DOWNLOAD_AGAIN = "unpack or download it again"
T = TypeVar("T")


class Unfit(ValueError):
    """What is wrong with the content of a file, and what its owner can do about it."""

    def __init__(self, reason: str, remedy: str = DOWNLOAD_AGAIN):
        super().__init__(reason)
        self.remedy = remedy


class Png(NamedTuple):
    """What the chunks of a PNG file say of it (PNG specification, third edition, 11.2 and 11.3)."""

    width: int
    height: int
    bits: int  # of a sample
    color_type: int
    is_plain: bool  # one picture, with nothing that may say how it is to be turned


def read_file(path, what: str) -> bytes:
    """The content of a picture or label file. Raises InputError, naming the file and the reason.

    what: "image" or "label file", for messages.
    """

    def read() -> bytes:
        with open(path, "rb") as file:
            return file.read()

    try:
        return retried(read, path, what)
    except OSError as error:
        advice = "give it read permission" if isinstance(error, PermissionError) else DOWNLOAD_AGAIN
        raise InputError(f"cannot read the {what} {path} ({error.strerror}); {advice}") from error


def retried(read: Callable[[], T], path, what: str) -> T:
    """What `read` returns; where a disk or file server does not give a file at once, it is asked again.

    Raises Unreachable, naming the file, when it has not given it after some seconds, and whatever else `read` raises.
    """
    waits = iter(WAIT_SECONDS)
    while True:
        try:
            return read()
        except OSError as error:
            if error.errno not in PASSING:
                raise
            wait = next(waits, None)
            if wait is None:
                raise Unreachable(
                    f"cannot read the {what} {path} ({error.strerror}, {len(WAIT_SECONDS) + 1} times); see to the disk "
                    "or file server that holds it"
                ) from error
            time.sleep(wait)


def check_whole(data: bytes) -> Png | None:
    """Raise Unfit for the bytes of a file that is damaged or cut off; of a PNG file, return what its chunks say.

    PNG: the checksum of each chunk, up to IEND. JPEG: the end mark behind the first scan. GIF: the trailer. What other
    compressed files hold is not known here, but for one thing: none of them ends in zeros.
    """
    if not data:
        raise Unfit("it is empty")
    if not data.rstrip(b"\0"):
        raise Unfit("it holds nothing but zeros")
    if data.startswith(PNG):
        return _check_png(data)
    if data.startswith(JPEG):
        _check_jpeg(data)
    elif data.startswith(GIF):
        if not data.rstrip(b"\0").endswith(b"\x3b"):
            raise Unfit("it is cut off: the trailer of a GIF is missing")
    elif _is_compressed(data) and data.endswith(bytes(ZERO_BYTES)):
        raise Unfit("it ends in zeros: not all of it was written")
    return None


def check_end(path, what: str) -> None:
    """As `check_whole`, but look for the end mark alone, where a file has one: that takes no time.

    Raises InputError, Unfit, and OSError for a file that cannot be opened.
    """

    def read() -> tuple[bytes, bytes, int]:
        with open(path, "rb") as file:
            start, size = file.read(len(PNG)), os.fstat(file.fileno()).st_size
            file.seek(max(0, size - TAIL_BYTES))
            return start, file.read(), size

    start, tail, size = retried(read, path, what)
    marks = {PNG: b"IEND\xaeB`\x82", JPEG: b"\xff\xd9"}
    mark = next((mark for begin, mark in marks.items() if start.startswith(begin)), None)
    if mark is None or mark not in tail or size <= TAIL_BYTES:  # a small JPEG: its preview has an end mark too
        check_whole(read_file(path, what))


def _check_png(data: bytes) -> Png:
    header, is_plain = None, True
    for kind, content in _chunks(data):
        if kind == b"IHDR" and header is None and len(content) == 13:
            header = struct.unpack(">IIBB", content[:10])
        elif kind in (b"eXIf", b"acTL") or (kind in (b"tEXt", b"zTXt", b"iTXt") and _is_metadata(bytes(content[:32]))):
            is_plain = False
    if header is None:
        raise Unfit("it is damaged: a PNG without a header")
    return Png(*header, is_plain)


def _is_metadata(text: bytes) -> bool:
    """Whether a text in a PNG file is EXIF or XMP, as older programs kept them."""
    return text.startswith((b"Raw profile type", b"XML:com.adobe.xmp"))


def _chunks(data: bytes) -> Iterator[tuple[bytes, memoryview]]:
    """(type, content) of each chunk up to IEND. Raises Unfit."""
    view, start = memoryview(data), len(PNG)
    while start + 12 <= len(data):
        length, kind = struct.unpack_from(">I4s", data, start)
        end = start + 8 + length
        if end + 4 > len(data):
            break
        if zlib.crc32(view[start + 4 : end]) != struct.unpack_from(">I", data, end)[0]:
            raise Unfit(f"it is damaged: a wrong checksum at byte {end} of {len(data)}")
        yield kind, view[start + 8 : end]
        if kind == b"IEND":
            return
        start = end + 4
    raise Unfit(f"it is cut off after {len(data)} bytes: the end mark of a PNG is missing")


def _check_jpeg(data: bytes) -> None:
    """Find the end mark behind the start of the first scan: before it, there may be that of a preview.

    In the data of a scan 0xFF is followed by 0 or by a restart mark, so an end mark there is one.
    """
    for marker, start in jpeg_segments(data):
        if marker == 0xDA and data.find(b"\xff\xd9", start) >= 0:
            return
    raise Unfit(f"it is cut off: the end mark of a JPEG is missing in its {len(data.rstrip(bytes(1)))} bytes")


def jpeg_segments(data: bytes) -> Iterator[tuple[int, int]]:
    """(marker, where it begins) of each segment up to the start of the first scan (0xDA)."""
    start = 2
    while (start := data.find(b"\xff", start)) >= 0 and start + 4 <= len(data):
        marker = data[start + 1]
        if marker == 0xFF or marker in (0x00, 0x01) or 0xD0 <= marker <= 0xD8:  # fill bytes, and marks without content
            start += 1
            continue
        yield marker, start
        if marker == 0xDA:
            return
        start += 2 + int.from_bytes(data[start + 2 : start + 4], "big")


def _is_compressed(data: bytes) -> bool:
    """WebP, or a file of the families of JPEG 2000 and AVIF."""
    return data[8:12] == b"WEBP" or data[4:8] in (b"ftyp", b"jP  ") or data.startswith(b"\xff\x4f\xff\x51")
