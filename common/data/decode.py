"""From image and label files to arrays, with the fastest decoder that is installed.

Ordinary PNG pictures (8 bits of RGB or grey) are decoded by imagecodecs or OpenCV where one of them is installed: they
give the same bytes in half to two thirds of the time. Everything else is Pillow's, and Pillow decides what a damaged
or unusual file means.
"""

import struct
from collections.abc import Callable
from functools import cache
from pathlib import Path

import numpy as np
from PIL import Image

from common import IGNORE_INDEX
from common.errors import UNREADABLE, InputError

Decode = Callable[[bytes, int], np.ndarray]  # bytes of a PNG file, its colour type -> [H, W, 3] RGB or [H, W] uint8
_PNG_START = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR"
_UNKNOWN = IGNORE_INDEX - 1  # no train id
_GREY, _RGB = 0, 2  # colour types of PNG; a palette (3) holds class ids, which other decoders would look up


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

    # a picture lies in memory as in the file, whatever it says about its orientation: so does its label
    flags = {_RGB: cv2.IMREAD_COLOR_RGB | cv2.IMREAD_IGNORE_ORIENTATION, _GREY: cv2.IMREAD_UNCHANGED}
    return lambda data, color_type: cv2.imdecode(np.frombuffer(data, np.uint8), flags[color_type])


def decode_grey(path) -> np.ndarray | None:
    """[H, W] uint8 of an ordinary grey PNG file; None for any other file, a damaged one, and where Pillow is all."""
    return _decode_png(path, _GREY)


def _decode_png(path, color_type: int) -> np.ndarray | None:
    """The pixels of a PNG file of 8 bits and this colour type, or None for anything else and anything damaged."""
    _, decode = _png_decoder()
    if decode is None or Path(path).suffix.lower() != ".png":
        return None
    try:
        data = Path(path).read_bytes()
        if not data.startswith(_PNG_START):
            return None
        width, height, bits, kind = struct.unpack(">IIBB", data[16:26])
        if (bits, kind) != (8, color_type) or width * height > (Image.MAX_IMAGE_PIXELS or width * height):
            return None
        pixels = decode(data, color_type)
    except Exception:  # each library has errors of its own; Pillow finds the words for them
        return None
    expected = (height, width, 3) if color_type == _RGB else (height, width)
    return pixels if pixels is not None and pixels.shape == expected and pixels.dtype == np.uint8 else None


def open_image(path, reduced_to: tuple[int, int] | None = None) -> Image.Image:
    """The picture in RGB: grey is repeated, transparency dropped, 16 bits become 8.

    reduced_to (height, width): a JPEG that is at least twice, four or eight times as large in both directions is
    decoded at that fraction of its size, averaged by its own transform, in a fraction of the time.
    Raises InputError that names the file when it cannot be decoded, or holds numbers of an unknown range.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("it holds floating-point numbers and not 8-bit colours")
            if reduced_to and image.format == "JPEG":
                image.draft("RGB", reduced_to[::-1])
            if image.mode == "I" or image.mode.startswith("I;16"):  # convert() would cut off at 255: a white picture
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            image.load()
            return image if image.mode == "RGB" else image.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"cannot decode the image {path} ({error}); unpack or download it again") from error


def read_image(path, reduced_to: tuple[int, int] | None = None) -> np.ndarray:
    """[H, W, 3] uint8, RGB; see `open_image`."""
    pixels = _decode_png(path, _RGB)
    return np.array(open_image(path, reduced_to)) if pixels is None else pixels


def picture_size(path) -> tuple[int, int]:
    """(height, width) as the file's header says. Raises InputError, naming the file, when there is none."""
    try:
        with Image.open(path) as image:
            return image.height, image.width
    except UNREADABLE as error:
        raise InputError(f"cannot read the image {path} ({error}); unpack or download it again") from error


def read_label(path, train_id_of_value: np.ndarray, known_values: frozenset[int]) -> np.ndarray:
    """[H, W] uint8: the label file with its values mapped to train ids by a table [256] uint8.

    Raises InputError that names the file, and values that are not among the known ones.
    """
    values = decode_grey(path)
    if values is None:
        try:
            with Image.open(path) as label:
                mode, values = label.mode, np.asarray(label)  # mode P gives palette indices: the class ids
        except UNREADABLE as error:
            raise InputError(f"cannot decode the label file {path} ({error}); unpack or download it again") from error
        if mode not in ("L", "P"):
            raise InputError(f"{path} is a {mode} image; labels are 8-bit single-channel files of ids: give those")
    # Pillow looks bytes up faster than NumPy does
    table = [int(train_id_of_value[value]) if value in known_values else _UNKNOWN for value in range(256)]
    train_ids = np.array(Image.fromarray(values).point(table))
    if (train_ids == _UNKNOWN).any():
        unknown = set(np.unique(values).tolist()) - known_values
        raise InputError(
            f"{path} holds the values {sorted(unknown)[:5]}, which are not in the label table "
            f"({value_range(known_values)}); give the original label files"
        )
    return train_ids


def value_range(known_values: frozenset[int]) -> str:
    """What a label file may hold, for people: '0..18, and 255 for what is ignored'."""
    values = known_values - {IGNORE_INDEX}
    text = f"{min(values)}..{max(values)}"
    return f"{text}, and {IGNORE_INDEX} for what is ignored" if IGNORE_INDEX in known_values else text


def check_sizes(image: Path, label: Path, image_size: tuple[int, int], label_size: tuple[int, int]) -> None:
    """Raise InputError unless a picture and its label are equally large; sizes are (height, width)."""
    if tuple(image_size) != tuple(label_size):
        raise InputError(
            f"{image} is {image_size[1]}x{image_size[0]} and its label {label} is {label_size[1]}x{label_size[0]} "
            "pixels; a picture and its label must have the same size"
        )
