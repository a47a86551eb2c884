"""The one reader of pictures: from an image file to an array, by the same rules for whoever asks.

Ordinary PNG pictures (8 bits of RGB or grey) are decoded by imagecodecs or OpenCV where one of them is installed: they
give the same bytes in half to two thirds of the time. Everything else is Pillow's. Labels: `common.data.labels`.

Orientation: a camera that is held upright writes its rows as the sensor has them, and in EXIF how to turn them.
Prediction turns, as every viewer does. In training a label lies over the picture, drawn by a program that has turned
it, or by one that has not: `exif` says which ("turn" or "ignore"), and without it such a picture is refused.
"""

import contextlib
import io
import logging
import struct
import warnings
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from common.data.files import GIF, JPEG, PNG, Png, Unfit, check_end, check_whole, read_file, retried
from common.data.undecoded import (
    TIFF,
    TO_8_BITS,
    NotTaken,
    Pixels,
    check_pixels,
    why_not_decompressed,
    why_unidentified,
)
from common.errors import UNREADABLE, InputError

# Kinds of which a folder of pictures is searched, by suffix; what is in a file is known by its content.
IMAGE_SUFFIXES = (
    ".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".bmp", ".dib", ".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".webp",
    ".gif", ".tga", ".jp2", ".j2k", ".avif",
)  # fmt: skip
KNOWN_STARTS = (PNG, JPEG, *GIF, b"BM", *TIFF, b"RIFF")
ORIENTATION = 0x0112  # the tag of EXIF and TIFF; 1: as it lies in the file, 5 to 8: a quarter turn
TURN = Image.Transpose
SHOWN_BY = {  # orientation -> how the picture in the file is turned to be shown
    2: TURN.FLIP_LEFT_RIGHT, 3: TURN.ROTATE_180, 4: TURN.FLIP_TOP_BOTTOM, 5: TURN.TRANSPOSE, 6: TURN.ROTATE_270,
    7: TURN.TRANSVERSE, 8: TURN.ROTATE_90,
}  # fmt: skip
WIDTH, LENGTH, BITS_PER_SAMPLE = 256, 257, 258  # tags of TIFF, as the next
SAMPLE_FORMAT, UNSIGNED, DEPTH = 339, 1, 32997  # of a volume: its slices
SUBFILE_TYPE, REDUCED_OR_MASK = 254, 0b101  # of a page: a small copy, or a mask
LARGE_PIXELS = 1 << 30  # of a picture to be predicted: 4 GiB once decoded
FULL_16_BITS = 1 << 14  # a 16-bit picture that stays below is one of 8 to 14 bits in a file of 16

IDS_IN_8_BITS = "save the same ids as one band of 8 bits, in a PNG for one"

logging.getLogger("PIL").addHandler(logging.NullHandler())  # what it logs of a file is in the InputError

Decode = Callable[[bytes, int], np.ndarray]  # bytes of a PNG file, its colour type -> [H, W, 3] RGB or [H, W] uint8
GREY, RGB = 0, 2  # colour types of PNG; a palette (3) holds class ids, which other decoders would look up


def decoder_name() -> str:
    """What decodes ordinary PNG files here: 'imagecodecs', 'cv2' or 'Pillow'."""
    return _png_decoder()[0]


@cache
def _png_decoder() -> tuple[str, Decode | None]:
    """The fastest decoder that works, and its name; None for Pillow, which decodes whatever the others do not."""
    for name, make in (("imagecodecs", _of_imagecodecs), ("cv2", _of_opencv)):
        try:
            return name, make()
        except Exception:  # missing, too old, or without a library of the system: none is needed
            continue
    return "Pillow", None


def _of_imagecodecs() -> Decode:
    import imagecodecs

    imagecodecs.png_decode  # noqa: B018  raises where it is built without PNG
    return lambda data, color_type: imagecodecs.png_decode(data)


def _of_opencv() -> Decode:
    import cv2

    flags = {RGB: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, GREY: cv2.IMREAD_UNCHANGED}
    return lambda data, color_type: cv2.imdecode(np.frombuffer(data, np.uint8), flags[color_type])


def decode_plain_png(data: bytes, png: Png | None, color_type: int) -> np.ndarray | None:
    """The pixels of a PNG file of 8 bits and this colour type; None for any other file, and where Pillow is all."""
    _, decode = _png_decoder()
    if decode is None or png is None or not png.is_plain or (png.bits, png.color_type) != (8, color_type):
        return None
    if png.width * png.height > (Image.MAX_IMAGE_PIXELS or png.width * png.height):
        return None
    try:
        pixels = decode(data, color_type)
    except Exception:  # each library has errors of its own; Pillow finds the words for them
        return None
    expected = (png.height, png.width, 3) if color_type == RGB else (png.height, png.width)
    return pixels if pixels is not None and pixels.shape == expected and pixels.dtype == np.uint8 else None


@contextlib.contextmanager
def large_pictures() -> Iterator[None]:
    """Within it pictures of up to LARGE_PIXELS are decoded: one that is named for prediction is no attack."""
    limit = Image.MAX_IMAGE_PIXELS
    Image.MAX_IMAGE_PIXELS = LARGE_PIXELS // 2  # Pillow refuses what has more than twice as many, and warns before
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            yield
    finally:
        Image.MAX_IMAGE_PIXELS = limit


@contextlib.contextmanager
def decoding(path, what: str) -> Iterator[None]:
    """Turn what is raised for a file that cannot be decoded into an InputError that names it, in one line.

    what: "image" or "label file".
    """
    try:
        yield
    except InputError:  # names the file already
        raise
    except UNREADABLE as error:
        reason = _in_words(error, path)
        remedy = IDS_IN_8_BITS if isinstance(reason, NotTaken) and what == "label file" else reason.remedy
        raise InputError(f"cannot decode the {what} {path} ({reason}); {remedy}") from error


def _in_words(error: Exception, path) -> Unfit:
    """What is wrong with a file, as one who owns it would say it rather than the decoder that has given up."""
    if isinstance(error, Unfit):
        return error
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * Image.MAX_IMAGE_PIXELS
        return Unfit(f"it has more than {limit:,} pixels, the most that is decoded", "cut it into parts, or shrink it")
    data = read_file(path, "image")
    try:
        check_whole(data)
    except Unfit as found:
        return found
    is_unidentified = isinstance(error, UnidentifiedImageError)
    if found := (why_unidentified if is_unidentified else why_not_decompressed)(data):
        return found
    if is_unidentified:
        if data.startswith(KNOWN_STARTS):
            return Unfit("its header is damaged")
        return Unfit("it is no kind of picture that can be read here", "convert it to PNG or JPEG")
    return Unfit(" ".join(str(error).split()))


def open_image(path, reduced_to: tuple[int, int] | None = None, exif: str | None = "turn") -> Image.Image:
    """The picture in RGB: grey is repeated, transparency dropped, 16 bits become 8.

    reduced_to (height, width): a JPEG that is at least twice, four or eight times as large in both directions is
    decoded at that fraction of its size, averaged by its own transform, in a fraction of the time.
    exif: "turn" it as EXIF says, "ignore" that, or None: refuse what is to be turned.
    Raises InputError that names the file when it is damaged or cannot be decoded, holds several pages, or numbers of an
    unknown range.
    """
    data = read_file(path, "image")
    with decoding(path, "image"):
        return _with_pillow(data, check_whole(data), path, reduced_to, exif)


def read_image(path, reduced_to: tuple[int, int] | None = None, exif: str | None = None) -> np.ndarray:
    """[H, W, 3] uint8, RGB; see `open_image`."""
    data = read_file(path, "image")
    with decoding(path, "image"):
        png = check_whole(data)
        pixels = decode_plain_png(data, png, RGB)
        return np.array(_with_pillow(data, png, path, reduced_to, exif)) if pixels is None else pixels


def _with_pillow(data: bytes, png: Png | None, path, reduced_to, exif: str | None) -> Image.Image:
    with Image.open(io.BytesIO(data)) as image:
        check_content(image)
        if png and not png.is_plain:
            image.load()
        turn = orientation(image, path, exif)
        turned_already = image.format == "TIFF"  # by Pillow
        if image.mode == "F":
            raise Unfit("it holds floating-point numbers, and whole numbers are taken", TO_8_BITS)
        if reduced_to and image.format == "JPEG":
            image.draft("RGB", reduced_to[::-1] if turn < 5 else reduced_to)
        bits = png.bits if png else tiff_tag(image, BITS_PER_SAMPLE, 8)
        if image.mode == "I" or image.mode.startswith("I;16"):  # convert() would cut off at 255: a white picture
            is_unsigned = image.mode == "I" and tiff_tag(image, SAMPLE_FORMAT, UNSIGNED) == UNSIGNED
            values = np.asarray(image)
            image = _of_whole_numbers(values.view(np.uint32) if is_unsigned else values)
        image.load()
        picture = image if image.mode == "RGB" else image.convert("RGB")
        if bits == 16 and image.mode != "L" and np.asarray(picture).max(initial=0) < FULL_16_BITS >> 8:
            raise _of_few_bits(f"under {FULL_16_BITS}")
        return picture if turn == 1 or turned_already else picture.transpose(SHOWN_BY[turn])


def tiff_tag(image: Image.Image, number: int, default: int) -> int:
    """A tag of a TIFF, of its first channel; the default for other files."""
    value = image.tag_v2.get(number, default) if image.format == "TIFF" else default
    return value[0] if isinstance(value, tuple) else value


def _of_whole_numbers(values: np.ndarray) -> Image.Image:
    """[H, W] of 0 to 65535 -> grey of 0 to 255. Raises Unfit for what seems to have another range."""
    low, high = int(values.min(initial=0)), int(values.max(initial=0))
    if low < 0 or high > 65535:
        raise Unfit(f"it holds whole numbers from {low} to {high}, and 0 to 65535 is taken", TO_8_BITS)
    if 0 < high < FULL_16_BITS:
        raise _of_few_bits(f"up to {high}")
    return Image.fromarray((values // 256).astype(np.uint8))


def _of_few_bits(values: str) -> Unfit:
    return Unfit(
        f"it holds whole numbers {values}, and black to white is 0 to 65535: it would be seen as nearly black",
        TO_8_BITS,
    )


def check_content(image: Image.Image) -> None:
    """Raise Unfit for several pages, slices or an animation, and for a TIFF that would be decoded to something else.

    Of several pictures nobody has said which one is meant. A photograph with a second one behind it (MPO), as
    telephones write them, is the first; small copies and masks of a TIFF are no pages.
    """
    if image.format == "TIFF":
        check_pixels(Pixels.of(image.tag_v2))
    count = 1 if image.format == "MPO" else getattr(image, "n_frames", 1)
    if count > 1 and image.format == "TIFF":
        kinds = []
        for page in range(count):
            image.seek(page)
            kinds.append(tiff_tag(image, SUBFILE_TYPE, 0))
        image.seek(0)
        count = sum(not kind & REDUCED_OR_MASK for kind in kinds)
    count = max(count, tiff_tag(image, DEPTH, 1))
    if count > 1:
        raise Unfit(f"it holds {count} pictures", "save the one that is meant as a file of its own")


def orientation(image: Image.Image, path, exif: str | None) -> int:
    """How the picture is turned when it is shown, 1 to 8, and 1 when that is to be ignored; reads the header alone.

    Raises InputError, naming the file, for anything but 1 unless `exif` says what is meant.
    """
    try:
        # Pillow decodes a whole PNG to look for EXIF behind the pixels; there it is known once the file is decoded
        exif_of = Image.Image.getexif if image.format == "PNG" else type(image).getexif
        found = exif_of(image).get(ORIENTATION, 1)
    except (SyntaxError, ValueError, TypeError, LookupError, struct.error):  # damaged, as programs leave it behind
        return 1
    if found == 1 or found not in range(1, 9):
        return 1
    if exif is None:
        raise InputError(
            f"{path} is to be shown turned or mirrored (its EXIF orientation is {found}), and its label may be drawn "
            "over either; say --exif turn where labels fit the picture as it is shown, --exif ignore where they fit it "
            "as it lies in the file"
        )
    if exif == "ignore" and image.format == "TIFF":
        raise Unfit("a TIFF is always turned as it says", "save it as PNG without EXIF")
    return found if exif == "turn" else 1


def picture_size(path, exif: str | None = None) -> tuple[int, int]:
    """(height, width) as `read_image` gives it, by the file's header.

    Raises InputError, naming the file, where there is no header, and for what is refused by it: several pages, or a
    picture that is to be turned.
    """
    with decoding(path, "image"), retried(lambda: Image.open(path), path, "image") as image:
        check_content(image)
        turn = orientation(image, path, exif)
        # of a TIFF that is to be turned, newer versions of Pillow give the size that it is shown at
        height, width = tiff_tag(image, LENGTH, image.height), tiff_tag(image, WIDTH, image.width)
        return (width, height) if turn >= 5 else (height, width)


def check_header(path, exif: str | None = None) -> tuple[int, int]:
    """`picture_size` of a picture that has its end mark: all that can be known without decoding it."""
    with decoding(path, "image"):
        check_end(path, "image")
    return picture_size(path, exif)


def check_sizes(image: Path, label: Path, image_size: tuple[int, int], label_size: tuple[int, int]) -> None:
    """Raise InputError unless a picture and its label are equally large; sizes are (height, width)."""
    if tuple(image_size) != tuple(label_size):
        raise InputError(
            f"{image} is {image_size[1]}x{image_size[0]} and its label {label} is {label_size[1]}x{label_size[0]} "
            "pixels; a picture and its label must have the same size"
        )
