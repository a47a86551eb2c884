"""common/data/files.py: whether the bytes of a picture are all there."""

import errno
import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image

from common.data import files
from common.data.decode import check_header, read_image
from common.data.files import Unfit, check_end, check_whole, read_file
from common.errors import InputError

PIXELS = np.random.default_rng(0).integers(0, 256, (80, 90, 3), dtype=np.uint8)


def encoded(kind: str, **options) -> bytes:
    file = io.BytesIO()
    Image.fromarray(PIXELS).save(file, kind, **options)
    return file.getvalue()


def with_preview() -> bytes:
    """A JPEG with a small JPEG in front, that has an end mark of its own."""
    data, preview = encoded("JPEG"), encoded("JPEG", quality=10)
    return data[:2] + b"\xff\xe2" + struct.pack(">H", len(preview) + 2) + preview + data[2:]


KINDS = {
    "PNG": encoded("PNG"),
    "JPEG": encoded("JPEG"),
    "progressive JPEG": encoded("JPEG", progressive=True),
    "JPEG with a preview": with_preview(),
    "GIF": encoded("GIF"),
    "WEBP": encoded("WEBP"),
    "lossless WEBP": encoded("WEBP", lossless=True),
    "JPEG2000": encoded("JPEG2000"),
}
each_kind = pytest.mark.parametrize("data", KINDS.values(), ids=KINDS)


@each_kind
def test_whole_files_pass(data, tmp_path):
    check_whole(data)
    (tmp_path / "a").write_bytes(data)
    check_end(tmp_path / "a", "image")
    assert read_image(tmp_path / "a").shape == PIXELS.shape == (*check_header(tmp_path / "a"), 3)


@each_kind
@pytest.mark.parametrize("share", [0.5, 0.6, 0.95])
def test_a_file_whose_end_never_arrived_is_found_without_decoding(data, share, tmp_path):
    """As a download tool leaves it that makes room for the whole file first."""
    (tmp_path / "a").write_bytes(data[: int(len(data) * share)].ljust(len(data), b"\0"))
    with pytest.raises(Unfit):
        check_whole((tmp_path / "a").read_bytes())
    for read in (read_image, check_header):
        with pytest.raises(InputError, match=r"cannot decode the image .*/a \(.*; unpack or download it again"):
            read(tmp_path / "a")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "JPEG with a preview"])
def test_the_end_of_a_large_file_is_looked_at_alone(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(files, "TAIL_BYTES", 1000)
    (tmp_path / "a").write_bytes(KINDS[kind])
    with monkeypatch.context() as patch:
        patch.setattr(files, "read_file", None)
        check_end(tmp_path / "a", "image")
    (tmp_path / "a").write_bytes(KINDS[kind][:-1500] + bytes(1500))
    with pytest.raises(Unfit, match="cut off|wrong checksum"):
        check_end(tmp_path / "a", "image")


@pytest.mark.parametrize("place", [20, 45, 2000, -10])
def test_one_wrong_bit_of_a_png_is_found(place):
    data = bytearray(KINDS["PNG"])
    data[place] ^= 4
    with pytest.raises(Unfit, match="wrong checksum|cut off"):
        check_whole(bytes(data))


def test_what_cameras_write_behind_the_end_is_no_damage():
    for kind in ("JPEG", "PNG"):
        check_whole(KINDS[kind] + b"more" + bytes(1000))


@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
@pytest.mark.parametrize("missing", [1, 2, 100])
def test_a_file_that_ends_early_is_found(kind, missing):
    with pytest.raises(Unfit, match="end mark of a|trailer"):
        check_whole(KINDS[kind][:-missing])


@pytest.mark.parametrize(("data", "reason"), [(b"", "it is empty"), (bytes(1000), "nothing but zeros")])
def test_files_of_nothing(data, reason):
    with pytest.raises(Unfit, match=reason):
        check_whole(data)


def test_the_header_of_a_png():
    file = io.BytesIO()
    Image.new("1", (5, 3)).save(file, "PNG")
    assert check_whole(file.getvalue()) == (5, 3, 1, 0, True)


@pytest.mark.parametrize("chunk", [b"eXIf", b"acTL", b"iTXt", b"tEXt"])
def test_a_png_that_may_be_turned_or_moved_is_not_plain(chunk):
    text = {b"iTXt": b"XML:com.adobe.xmp\0", b"tEXt": b"Raw profile type exif\0"}.get(chunk, b"x")
    data, start = KINDS["PNG"], 33  # behind the header
    inserted = struct.pack(">I", len(text)) + chunk + text + struct.pack(">I", zlib.crc32(chunk + text))
    assert check_whole(data).is_plain
    assert not check_whole(data[:start] + inserted + data[start:]).is_plain
    comment = struct.pack(">I", 2) + b"tEXtab" + struct.pack(">I", zlib.crc32(b"tEXtab"))
    assert check_whole(data[:start] + comment + data[start:]).is_plain


# ---- file servers


def failing(monkeypatch, number: int, times: int) -> list:
    """Have `open` fail so many times; returns what is waited, in seconds."""
    left, waited = [times], []

    def opened(*args, **kwargs):
        left[0] -= 1
        if left[0] >= 0:
            raise OSError(number, "as the server says")
        return open(*args, **kwargs)

    monkeypatch.setattr(files, "open", opened, raising=False)
    monkeypatch.setattr(files.time, "sleep", waited.append)
    return waited


@pytest.mark.parametrize("number", [errno.ESTALE, errno.EIO, errno.ETIMEDOUT])
def test_what_a_server_does_not_give_at_once_is_asked_for_again(tmp_path, monkeypatch, number):
    (tmp_path / "a").write_bytes(b"content")
    waited = failing(monkeypatch, number, times=3)
    assert read_file(tmp_path / "a", "image") == b"content"
    assert waited == [0.2, 1.0, 5.0]


def test_a_server_that_never_answers_is_named_and_not_the_file(tmp_path, monkeypatch):
    failing(monkeypatch, errno.ESTALE, times=9)
    with pytest.raises(InputError, match=r"the image .*/a \(as the server says, 4 times\); see to the disk"):
        read_file(tmp_path / "a", "image")


def test_other_errors_are_told_at_once(tmp_path, monkeypatch):
    with pytest.raises(InputError, match="label file .*/a .No such file or directory.; unpack"):
        read_file(tmp_path / "a", "label file")
    waited = failing(monkeypatch, errno.EACCES, times=1)
    with pytest.raises(InputError, match="give it read permission"):
        read_file(tmp_path / "a", "image")
    assert waited == []
