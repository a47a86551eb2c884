"""Files that are whole and are still not decoded here: what they hold, by what they say of themselves, and what helps.

A TIFF may hold anything: many bands, floating-point numbers, compressions of other formats. Pillow says of all these
that it cannot identify the file, and decodes a few of them to other pixels than they hold. Sources: TIFF 6.0; the
BigTIFF design of libtiff; ITU-T T.81, B.1.1.3, and T.87 for JPEG.
"""

import struct
from collections.abc import Mapping
from typing import NamedTuple

from common.data.files import JPEG, Unfit, jpeg_segments

BIG_ENDIAN_BIGTIFF = b"MM\0+"
TIFF = (b"II*\0", b"MM\0*", b"II+\0", BIG_ENDIAN_BIGTIFF)  # how a TIFF begins
INTEGERS = {1: "B", 3: "H", 4: "I", 16: "Q"}  # types of a tag's values, as struct calls them
TAGS = {  # field of Pixels -> (number of the tag, its default)
    "bits": (258, 1), "compression": (259, 1), "photometric": (262, 1), "bands": (277, 1), "planar": (284, 1),
    "sample_format": (339, 1),
}  # fmt: skip
KINDS = {1: "whole numbers", 2: "signed whole numbers", 3: "floating-point numbers", 5: "complex numbers",
         6: "complex numbers"}  # fmt: skip
UNSIGNED, SIGNED, FLOAT = 1, 2, 3
WHITE_IS_ZERO, RGB, PALETTE, CMYK, YCBCR, CIELAB = 0, 2, 3, 5, 6, 8  # photometric interpretations
COLOURS = (RGB, CMYK, YCBCR, CIELAB)
PHOTOMETRICS = {
    4: "a mask of transparency", 9: "ICC L*a*b* colours", 10: "ITU L*a*b* colours", 32803: "the raw values of a camera",
    32844: "logarithms of brightness", 32845: "logarithms of brightness", 34892: "the raw values of a camera",
    51177: "depths",
}  # fmt: skip
DECODED = (1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946)  # compressions that each Pillow has
OPTIONAL = {34925: "LZMA", 50000: "Zstandard", 50001: "WebP"}  # and that it may have
COMPRESSIONS = {
    33003: "JPEG 2000", 33004: "JPEG 2000", 33005: "JPEG 2000", 34712: "JPEG 2000", 34887: "LERC", 34892: "lossy JPEG",
    34933: "PNG", 34934: "JPEG XR", 22610: "JPEG XR", 50002: "JPEG XL", 52546: "JPEG XL",
}  # fmt: skip
MOST_BANDS = 6  # that Pillow takes
BITS_OF_GREY, BITS_OF_COLOUR = (1, 2, 4, 8, 16), (8, 16)  # 32 bits: only some
TO_8_BITS = (
    "scale all pictures alike to 0 to 255 and save them with 8 bits "
    "(gdal_translate -ot Byte -scale LOW HIGH 0 255 IN OUT.png)"
)


class NotTaken(Unfit):
    """What is in a whole file of pixels that are not taken; the remedy is that of a picture, and not of ids."""


class Pixels(NamedTuple):
    """What the first directory of a TIFF says of its pixels; of several bands, the first one's bits and kind."""

    bits: int
    compression: int
    photometric: int
    bands: int
    planar: int  # 2: each band by itself
    sample_format: int

    @classmethod
    def of(cls, tags: Mapping[int, int | tuple[int, ...]]) -> "Pixels":
        """By the tags of a directory, as Pillow or `_directory` gives them."""
        values = [tags.get(tag, default) for tag, default in TAGS.values()]
        return cls(*(value[0] if isinstance(value, tuple) else value for value in values))

    @property
    def in_words(self) -> str:
        bands = f"{self.bands} bands of " if self.bands > 1 else ""
        return f"{bands}{self.bits}-bit {KINDS.get(self.sample_format, 'values of an unknown kind')}"


def check_pixels(found: Pixels) -> None:
    """Raise Unfit for a TIFF of which Pillow gives other pixels than it holds."""
    if found.photometric == WHITE_IS_ZERO and found.bits > 8 and found.sample_format != FLOAT:
        raise NotTaken(
            f"it holds {found.in_words}, 0 for white, and 0 for black is taken where there are more than 8 bits",
            "save it with 0 for black, or with 8 bits",
        )
    if found.planar == 2 and found.bands > 1 and found.bits > 8 and found.compression == 1:
        raise NotTaken(
            f"it holds {found.in_words}, one band after the other without compression, which is taken of 8 bits alone",
            "save it with the bands of a pixel side by side (gdal_translate -co INTERLEAVE=PIXEL IN OUT.tif)",
        )


def why_unidentified(data: bytes) -> NotTaken | None:
    """What is in a file of which Pillow makes nothing; None where it says nothing unusual: its header is damaged."""
    if data.startswith(JPEG):
        return _why_no_jpeg(data)
    found = _pixels_of(data)
    if found is None:
        return None
    if data.startswith(BIG_ENDIAN_BIGTIFF):
        return NotTaken(
            "it is a BigTIFF with the most significant byte first", "save it as PNG, or as TIFF under 4 GiB"
        )
    if found.compression not in (*DECODED, *OPTIONAL):
        kind = COMPRESSIONS.get(found.compression, "an unknown method")
        return NotTaken(
            f"its pixels are compressed by {kind} (compression {found.compression}), which is not decoded here",
            "save it as PNG, or as TIFF in LZW or Deflate compression, with the program that wrote it",
        )
    if found.sample_format not in (UNSIGNED, SIGNED):
        return NotTaken(f"it holds {found.in_words}, and whole numbers are taken", TO_8_BITS)
    if found.photometric in PHOTOMETRICS:
        return NotTaken(f"it holds {PHOTOMETRICS[found.photometric]} and no grey or RGB", "save it as RGB with 8 bits")
    if found.bands > _most_bands(found):
        return _too_many_bands(found)
    is_colour = found.photometric in COLOURS
    if found.bits not in (BITS_OF_COLOUR if is_colour else BITS_OF_GREY) or (
        found.sample_format == SIGNED and is_colour
    ):
        return NotTaken(f"it holds {found.in_words}, and 8 or 16 bits without a sign are taken", TO_8_BITS)
    if found.photometric == PALETTE and found.bits > 8:
        return NotTaken(f"it is a palette of {found.bits} bits, and up to 8 are taken", "save it as RGB with 8 bits")
    return None


def why_not_decompressed(data: bytes) -> NotTaken | None:
    """What may be wrong with a file whose header Pillow has read; None where it will be damaged."""
    found = _pixels_of(data)
    if found is None or found.compression not in OPTIONAL:
        return None
    return NotTaken(
        f"its pixels, compressed by {OPTIONAL[found.compression]}, cannot be decoded: this Pillow is built without it, "
        "or the file is damaged",
        "save it in LZW or Deflate compression, or download it again",
    )


def _most_bands(found: Pixels) -> int:
    """How many bands Pillow takes: of grey one and transparency, of colours further ones too, which it drops."""
    if found.photometric not in COLOURS:
        return 2 if found.bits == 8 else 1
    return MOST_BANDS if found.bits == 8 else 4


def _too_many_bands(found: Pixels) -> NotTaken:
    scaled = "" if found.bits == 8 else " -ot Byte -scale LOW HIGH 0 255"
    if found.photometric == RGB:
        found_and_taken = f"{found.in_words}, and RGB with at most {_most_bands(found) - 3} more is taken"
    else:
        found_and_taken = f"{found.in_words} that are not said to be RGB, and one band of grey, or RGB, is taken"
    return NotTaken(
        f"it holds {found_and_taken}",
        f"save the three bands that are meant as RGB with 8 bits (gdal_translate -b 1 -b 2 -b 3{scaled} IN OUT.png)",
    )


def _pixels_of(data: bytes) -> Pixels | None:
    """What a TIFF says of its pixels; None for another file, and where its first directory is damaged."""
    if not data.startswith(TIFF):
        return None
    order, is_big = "<>"[data.startswith(b"M")], data[2:4] in (b"+\0", b"\0+")
    number, start_at = ("Q", 8) if is_big else ("I", 4)  # of a place in the file, as struct calls it
    try:
        (start,) = struct.unpack_from(order + number, data, start_at)
        return Pixels.of(_directory(data, start, order, is_big))
    except (struct.error, OverflowError):  # a place behind the end, or behind any end
        return None


def _directory(data: bytes, start: int, order: str, is_big: bool) -> dict[int, tuple[int, ...]]:
    """The values of TAGS in a directory, by tag. Raises struct.error."""
    count, entry, inside = ("Q", "HHQ", 8) if is_big else ("H", "HHI", 4)
    place, tags = start + struct.calcsize(order + count), {}
    for _ in range(*struct.unpack_from(order + count, data, start)):
        tag, kind, length = struct.unpack_from(order + entry, data, place)
        value_at = place + struct.calcsize(order + entry)
        place = value_at + inside
        if kind not in INTEGERS or length < 1:
            continue
        values = f"{order}{length}{INTEGERS[kind]}"
        if struct.calcsize(values) > inside:
            (value_at,) = struct.unpack_from(order + entry[2], data, value_at)
        if tag in [number for number, _ in TAGS.values()]:
            tags[tag] = struct.unpack_from(values, data, value_at)
    return tags


def _why_no_jpeg(data: bytes) -> NotTaken | None:
    """By the marker that begins the frame, and the bits of a sample behind it."""
    for marker, start in jpeg_segments(data):
        if marker == 0xF7 or marker in (0xC3, 0xC7, 0xCB, 0xCF):
            kind = "JPEG-LS" if marker == 0xF7 else "lossless JPEG"
            return NotTaken(f"it is {kind}, which is not decoded here", "convert it to PNG")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC) and data[start + 4] != 8:
            return NotTaken(f"it is a JPEG of {data[start + 4]} bits, and 8 are taken", TO_8_BITS)
    return None
