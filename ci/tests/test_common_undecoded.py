"""Whole files that are refused: the message says what is in them, and not that they are damaged."""

import logging
import struct
import warnings

import numpy as np
import pytest
from PIL import Image

from common.data.decode import check_header, read_image
from common.data.labels import LabelTable, read_label
from common.data.undecoded import why_unidentified
from common.errors import InputError

IDS = LabelTable(np.arange(256, dtype=np.uint8), frozenset(range(34)))
HEIGHT, WIDTH = 2, 3
RGB, WHITE_IS_ZERO, COLOUR_FILTER_ARRAY = 2, 0, 32803
UNSIGNED, SIGNED, FLOAT = 1, 2, 3


def tiff(path, bands=1, bits=8, kind=UNSIGNED, photometric=1, compression=1, planar=1, order="<", big=False, more=()):
    """A TIFF by its tags alone, written here: its pixels are bytes that count up. more: (tag, value) pairs."""
    extra = bands - (3 if photometric == RGB else 1)
    tags = {256: (WIDTH,), 257: (HEIGHT,), 258: (bits,) * bands, 259: (compression,), 262: (photometric,)}
    tags |= {277: (bands,), 278: (HEIGHT,), 284: (planar,), 339: (kind,) * bands}
    tags |= {338: (0,) * extra} if extra > 0 else {}
    tags |= {tag: (value,) for tag, value in more}
    size = HEIGHT * WIDTH * bands * bits // 8
    start = 16 if big else 8
    strips = bands if planar == 2 else 1
    tags[273] = tuple(start + size // strips * strip for strip in range(strips))
    tags[279] = (size // strips,) * strips
    count, entry, word = ("Q", "HHQ", 8) if big else ("H", "HHI", 4)
    directory = start + size
    after = directory + struct.calcsize(order + count) + len(tags) * (4 + 2 * word) + word
    entries, behind = b"", b""
    for tag, values in sorted(tags.items()):
        content = struct.pack(f"{order}{len(values)}H", *values)
        if len(content) > word:
            behind, content = behind + content, struct.pack(order + count.replace("H", "I"), after + len(behind))
        entries += struct.pack(order + entry, tag, 3, len(values)) + content.ljust(word, b"\0")
    mark = b"II" if order == "<" else b"MM"
    header = mark + (
        struct.pack(order + "HHHQ", 43, 8, 0, directory) if big else struct.pack(order + "HI", 42, directory)
    )
    pixels = bytes(index % 256 for index in range(size))
    content = header + pixels + struct.pack(order + count, len(tags)) + entries + bytes(word) + behind
    path.write_bytes(content)
    return path


def refusal(read, path) -> str:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pillow's, of a BigTIFF
        with pytest.raises(InputError) as error:
            read(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("layout", [{}, {"big": True}, {"order": ">"}], ids=str)
def test_what_is_taken_is_read(tmp_path, layout):
    """Or the files of the other tests would be refused for how they are written here."""
    path = tiff(tmp_path / "a.tif", bands=4, photometric=RGB, **layout)
    assert read_image(path).tolist() == np.arange(24).reshape(2, 3, 4)[..., :3].tolist()


NOT_RGB = "of 8-bit whole numbers that are not said to be RGB, and one band of grey, or RGB, is taken"
CASES = [
    ({"bands": 8}, f"it holds 8 bands {NOT_RGB}", "gdal_translate -b 1 -b 2 -b 3 IN OUT.png"),
    ({"bands": 8, "big": True}, f"it holds 8 bands {NOT_RGB}", "save the three bands"),
    ({"bands": 3, "planar": 2}, f"it holds 3 bands {NOT_RGB}", "save the three bands"),
    (
        {"bands": 8, "bits": 16, "order": ">"},
        "it holds 8 bands of 16-bit whole",
        "-b 3 -ot Byte -scale LOW HIGH 0 255 IN",
    ),
    (
        {"bands": 5, "bits": 16, "photometric": RGB},
        "16-bit whole numbers, and RGB with at most 1 more",
        "save the three",
    ),
    (
        {"kind": FLOAT, "bits": 64},
        "it holds 64-bit floating-point numbers, and whole numbers",
        "scale all pictures alike",
    ),
    (
        {"kind": FLOAT, "bits": 32, "bands": 3, "photometric": RGB},
        "3 bands of 32-bit floating-point",
        "scale all pictures",
    ),
    ({"bits": 32, "order": ">"}, "it holds 32-bit whole numbers, and 8 or 16 bits without a sign", "scale all"),
    ({"kind": SIGNED, "bits": 16, "bands": 3, "photometric": RGB}, "16-bit signed whole numbers", "scale all"),
    ({"compression": 34712}, "are compressed by JPEG 2000 (compression 34712), which", "LZW or Deflate"),
    ({"compression": 9999}, "are compressed by an unknown method (compression 9999)", "LZW or Deflate"),
    ({"photometric": COLOUR_FILTER_ARRAY, "bits": 16}, "it holds the raw values of a camera", "save it as RGB"),
    ({"order": ">", "big": True}, "it is a BigTIFF with the most significant byte first", "save it as PNG"),
    ({"photometric": WHITE_IS_ZERO, "bits": 16}, "it holds 16-bit whole numbers, 0 for white", "0 for black"),
    ({"bits": 16, "bands": 3, "photometric": RGB, "planar": 2}, "one band after the other", "INTERLEAVE=PIXEL"),
    ({"more": [(32997, 4)]}, "it holds 4 pictures", "save the one that is meant"),
]


@pytest.mark.parametrize(("tags", "found", "remedy"), CASES, ids=[str(tags) for tags, *_ in CASES])
def test_what_is_in_a_tiff_is_named_before_and_when_it_is_decoded(tmp_path, tags, found, remedy, capfd, monkeypatch):
    monkeypatch.setattr(logging.root, "handlers", [])  # pytest's: as in a command, none is there
    path = tiff(tmp_path / "a.tif", **tags)
    for read in (read_image, check_header):
        said = refusal(read, path)
        assert found in said and remedy in said and "damaged" not in said
    assert capfd.readouterr() == ("", "")


def test_a_label_is_not_to_be_scaled(tmp_path):
    said = refusal(lambda path: read_label(path, IDS), tiff(tmp_path / "a.tif", kind=FLOAT, bits=64))
    assert "64-bit floating-point" in said and said.endswith(
        "; save the same ids as one band of 8 bits, in a PNG for one"
    )
    Image.fromarray(np.zeros((2, 2), np.float32)).save(tmp_path / "b.tif")
    said = refusal(lambda path: read_label(path, IDS), tmp_path / "b.tif")
    assert "b.tif holds floating-point numbers; labels are 8-bit" in said and "save the same ids" in said


def test_large_numbers_without_a_sign_are_told_without(tmp_path):
    path = tiff(tmp_path / "a.tif", bits=32)
    data = path.read_bytes()
    path.write_bytes(data[:8] + struct.pack("<II", 9, 0xFFFFFFFF) + data[16:])
    assert "whole numbers from 0 to 4294967295" in refusal(read_image, path)


@pytest.mark.parametrize(
    ("spoil", "big"),
    [(slice(4, 8), False), (slice(8, 16), True), (slice(-20, None), False)],
    ids=["place of the directory", "one beyond what a computer can address", "end"],
)
def test_a_tiff_that_is_damaged_is_still_called_that(tmp_path, spoil, big):
    path = tiff(tmp_path / "a.tif", bands=8, big=big)
    data = bytearray(path.read_bytes())
    data[spoil] = b"\xff" * (spoil.stop - spoil.start) if spoil.stop else b""
    path.write_bytes(data)
    assert why_unidentified(bytes(data)) is None, "nothing is known of it"
    assert "); unpack or download it again" in refusal(read_image, path)


@pytest.mark.parametrize(
    ("frame", "bits", "found"),
    [(0xC1, 12, "it is a JPEG of 12 bits, and 8 are taken"), (0xC3, 16, "lossless JPEG"), (0xF7, 8, "it is JPEG-LS")],
)
def test_the_kind_of_a_jpeg_is_named(tmp_path, frame, bits, found):
    path = tmp_path / "a.jpg"
    Image.new("RGB", (8, 8)).save(path)
    data = path.read_bytes()
    start = data.index(b"\xff\xc0")
    path.write_bytes(
        data[: start + 1] + bytes([frame]) + data[start + 2 : start + 4] + bytes([bits]) + data[start + 5 :]
    )
    assert found in refusal(read_image, path)
