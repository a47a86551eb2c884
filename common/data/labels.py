"""The one reader of labels: from a label file to train ids, or to a mask, by the same rules for whoever asks.

A label file is read as the numbers that its owner drew, or refused: whatever a decoder makes of it otherwise looks like
a label too. So compression that changes values is refused, by content and not by name; grey of 2 or 4 bits is not
stretched; and indices of a palette are class ids only as long as the palette does not say something else.
"""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
from PIL import Image

from common import IGNORE_INDEX
from common.data.decode import (
    BITS_PER_SAMPLE,
    GREY,
    IDS_IN_8_BITS,
    SHOWN_BY,
    check_content,
    decode_plain_png,
    decoding,
    orientation,
    tiff_tag,
)
from common.data.files import Png, Unfit, check_whole, read_file
from common.errors import InputError

LOSSLESS = ("PNG", "BMP", "GIF", "TIFF")  # kinds that keep each value, as Pillow calls them
COMPRESSION, PHOTOMETRIC = 259, 262  # tags of TIFF
LOSSY_COMPRESSIONS = (6, 7, 34892, 34934)  # JPEG in its variants
BLACK_IS_ZERO = 1
THRESHOLD = 127  # a mask is 0 and 255; above this it is foreground
MASK_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # of 8 bits or less
_UNKNOWN = IGNORE_INDEX - 1  # no train id

Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


class Label(NamedTuple):
    """What a label file holds, and what its owner should know about how it was read."""

    values: np.ndarray  # [H, W] uint8
    note: str = ""


class LabelKind(Protocol):
    """How the label files of a data set are read."""

    def read(self, path: Path, exif: str | None) -> Label:
        """Raises InputError, naming the file. exif: as in `common.data.decode`, for a label that is to be turned."""

    def reads_as_before(self, path: Path) -> bool:
        """Whether the rules that caches of version 1 were made by give the same values; looks at the header alone."""


class Stored(NamedTuple):
    """What is stored in a label file, before anybody says what it means."""

    values: np.ndarray  # [H, W], or [H, W, channels]
    mode: str  # as Pillow calls it
    palette: tuple[Colour, ...] = ()  # of mode P
    bits: int = 8  # of a sample of grey
    picture: Image.Image | None = None  # for whoever needs its colours; None for plain grey


class LabelTable(NamedTuple):
    """Label files of 8-bit values, each of which is an id."""

    train_ids: np.ndarray  # [256] uint8, by value
    known: frozenset[int]  # the values that there are
    colours: Mapping[int, Colour] = {}  # noqa: RUF012  published ones, by value; palettes are compared with them
    by_colour: Mapping[Colour, int] = {}  # noqa: RUF012  train ids, where files of colours are labels too
    has_one_bit: bool = False  # whether files of one bit hold ids; else they may be masks

    def read(self, path: Path, exif: str | None = None) -> Label:
        """Train ids [H, W]. Raises InputError that names the file, and values that are not among the known ones."""
        stored = read_stored(path, exif)
        if self.by_colour and stored.mode in ("RGB", "RGBA"):
            return Label(self._of_colours(path, stored.values))
        if self.has_one_bit and stored.mode == "1":
            stored = stored._replace(values=stored.values.astype(np.uint8), mode="L")
        if stored.mode not in ("L", "P"):
            but = "" if self.by_colour else " (a file of colours cannot be used)"
            remedy = IDS_IN_8_BITS if stored.mode[0] in "IF" else "give those"
            raise InputError(
                f"{path} holds {in_words(stored.mode)}; labels are 8-bit single-channel files of ids{but}: {remedy}"
            )
        values, note, table = stored.values, "", self.train_ids
        if stored.mode == "P" and not self._is_published(stored.palette):
            used = [value for value, count in enumerate(Image.fromarray(values).histogram()) if count]
            by_colour, note = self._by_palette(path, stored.palette, used)
            if by_colour:
                return Label(_looked_up(values, by_colour))
        # Pillow looks bytes up faster than NumPy does
        train_ids = _looked_up(values, {value: int(table[value]) for value in self.known})
        if (train_ids == _UNKNOWN).any():
            unknown = sorted(set(np.unique(values).tolist()) - self.known)
            raise InputError(
                f"{path} holds the values {unknown[:5]}, which are not in the label table ({value_range(self.known)}); "
                "give the original label files"
            )
        return Label(train_ids, note)

    def reads_as_before(self, path: Path) -> bool:
        """A PNG of 8 bits of grey, or one whose palette is the published one."""
        with Image.open(path) as image:
            if image.format != "PNG" or _png_bits(image) != 8 or orientation(image, path, None) != 1:
                return False
            return image.mode == "L" or (image.mode == "P" and self._is_published(_palette(image)))

    def in_colours(self) -> "LabelTable":
        """The same for files of the published colours too; a colour of two classes, or of one and none, is not read."""
        train_ids: dict[Colour, set[int]] = {}
        for value, colour in self.colours.items():
            train_ids.setdefault(colour, set()).add(int(self.train_ids[value]))
        return self._replace(by_colour={colour: min(ids) for colour, ids in train_ids.items() if len(ids) == 1})

    def _of_colours(self, path: Path, pixels: np.ndarray) -> np.ndarray:
        """Train ids [H, W] of pixels [H, W, 3 or 4]. Raises InputError for a colour that is no class's."""
        if pixels.shape[2] == 4 and pixels[..., 3].min(initial=255) < 255:
            raise InputError(f"{path} is transparent in places, which is no class; give masks of colours without that")
        packed = pixels[..., :3].astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
        found, places = np.unique(packed, return_inverse=True)
        shown = [(int(value) >> 16, int(value) >> 8 & 255, int(value) & 255) for value in found]
        unknown = [colour for colour in shown if colour not in self.by_colour]
        if unknown:
            raise InputError(
                f"{path} holds {len(unknown)} colours of no class, {unknown[0]} for one; draw with the colours of the "
                "classes alone, without smoothed edges, or give files of ids"
            )
        return np.array([self.by_colour[colour] for colour in shown], np.uint8)[places.reshape(packed.shape)]

    def _is_published(self, palette: tuple[Colour, ...]) -> bool:
        """Whether each value has its published colour there, whichever are used, or none was ever published."""
        return all(
            value == IGNORE_INDEX or palette[value : value + 1] == (colour,) for value, colour in self.colours.items()
        )

    def _by_palette(self, path: Path, palette: tuple[Colour, ...], used: list[int]) -> tuple[dict[int, int], str]:
        """(train id by index, where the colours say which; a note where they say nothing and indices are the ids).

        Optimisers of PNG files sort palettes anew: the picture that is seen stays, and the indices are others. Raises
        InputError where neither the indices nor the colours can be what is meant.
        """
        shown = {index: palette[index] if index < len(palette) else None for index in used}
        if all(index == IGNORE_INDEX or self.colours.get(index) == colour for index, colour in shown.items()):
            return {}, ""  # the border has no colour, or one of its own, in many palettes
        ramp = all(colour == (index,) * 3 for index, colour in enumerate(palette))
        if ramp or len(set(palette)) == 1:
            return {}, _indices_taken(path)
        ids_of: dict[Colour, set[int]] = {}
        for value, colour in self.colours.items():
            ids_of.setdefault(colour, set()).add(int(self.train_ids[value]))
        published = {index for index, colour in shown.items() if colour in ids_of}
        distinct = len(set(shown.values())) == len(shown)
        if len(published) == len(shown) and distinct and all(len(ids_of[colour]) == 1 for colour in shown.values()):
            return {index: min(ids_of[colour]) for index, colour in shown.items()}, ""
        greys = [colour[0] for colour in shown.values() if colour and len(set(colour)) == 1]
        # grey ids that an optimiser has put into a palette: here the levels are the ids
        levels = len(greys) == len(shown) and self.known.issuperset(greys) and greys != used
        if not levels and all(index == 0 and palette[0] == (0, 0, 0) for index in published):
            return {}, _indices_taken(path)
        index = next((index for index in used if index not in published), used[0])
        raise InputError(
            f"the palette of {path} fits neither its indices nor the published colours: index {index} has the colour "
            f"{shown[index]}; give the original label files, or 8-bit grey files of ids"
        )


class MaskFiles:
    """Label files of two values: 0, and 255 for the foreground, in grey however it is stored."""

    def read(self, path: Path, exif: str | None = None) -> Label:
        """The mask [H, W] uint8, 0 to 255. Raises InputError, naming the file, for what is no mask of 0 and 255."""
        stored = read_stored(path, exif)
        if stored.mode not in MASK_MODES:
            raise InputError(f"{path} holds {in_words(stored.mode)}; masks are 8-bit files of 0 and 255: give those")
        mask = _grey_of(stored, path)
        highest = int(mask.max(initial=0))
        if 0 < highest <= THRESHOLD:
            raise InputError(
                f"{path} holds values up to {highest}; masks are 0 and 255, the latter in the foreground: give those"
            )
        return Label(mask)

    def reads_as_before(self, path: Path) -> bool:
        """A PNG of grey without transparency."""
        with Image.open(path) as image:
            return image.format == "PNG" and image.mode in ("1", "L") and orientation(image, path, None) == 1


def in_words(mode: str) -> str:
    """What a file of a mode of Pillow holds."""
    if mode == "I" or mode.startswith("I;"):
        return "whole numbers of more than 8 bits"
    known = {"1": "values of one bit", "F": "floating-point numbers", "LA": "grey with transparency"}
    return known.get(mode, f"colours ({mode})")


def shown_values(path: Path) -> tuple[set[int], set[Colour]]:
    """(the values, the colours) that a label file of unknown classes holds; one of the two is empty.

    Raises InputError, naming the file, for what is no label file of 8 bits.
    """
    stored = read_stored(path, None)
    if stored.mode in ("1", "L", "P"):
        return set(np.unique(stored.values.astype(np.uint8)).tolist()), set()
    if stored.mode not in ("RGB", "RGBA"):
        raise InputError(
            f"{path} holds {in_words(stored.mode)}; label files are of 8 bits (ids, palette, colours); {IDS_IN_8_BITS}"
        )
    pixels = stored.values[..., :3].astype(np.int32) @ np.array([1 << 16, 1 << 8, 1], np.int32)
    return set(), {(int(value) >> 16, int(value) >> 8 & 255, int(value) & 255) for value in np.unique(pixels)}


def read_label(path: Path, table: LabelTable) -> np.ndarray:
    """Train ids [H, W] uint8 of a label file; see `LabelTable.read`."""
    return table.read(path).values


def class_counts(kind: LabelKind, values: np.ndarray) -> np.ndarray:
    """[256] pixels of a label by class id, IGNORE_INDEX for what does not count.

    values: [H, W] uint8 as `kind` reads them; of a mask, what is above THRESHOLD is class 1.
    """
    counts = np.array(Image.fromarray(values).histogram(), np.int64)  # faster than NumPy's
    if isinstance(kind, MaskFiles):
        counts = np.array([counts[: THRESHOLD + 1].sum(), counts[THRESHOLD + 1 :].sum(), *[0] * 254], np.int64)
    return counts


def value_range(known_values: frozenset[int]) -> str:
    """What a label file may hold, for people: '0..18, and 255 for what is ignored'."""
    values = known_values - {IGNORE_INDEX}
    text = f"{min(values)}..{max(values)}"
    return f"{text}, and {IGNORE_INDEX} for what is ignored" if IGNORE_INDEX in known_values else text


def _indices_taken(path: Path) -> str:
    return f"the palette of {path} has none of the published colours: its indices are taken for the ids"


def _grey_of(stored: Stored, path: Path) -> np.ndarray:
    """[H, W] uint8 of a mask in any of MASK_MODES. Raises InputError where colours or transparency say it."""
    if stored.mode == "1":
        return stored.values.astype(np.uint8) * 255
    if stored.mode == "L":
        return stored.values if stored.bits == 8 else stored.values * (255 // ((1 << stored.bits) - 1))
    red, green, blue, alpha = np.moveaxis(np.asarray(stored.picture.convert("RGBA")), -1, 0)
    needed = "masks are grey, of 0 and 255: give those"
    if not (np.array_equal(red, green) and np.array_equal(red, blue)):
        raise InputError(f"{path} is a mask in colour; {needed}")
    if alpha.min(initial=255) < 255 and not np.array_equal(alpha, red):
        raise InputError(f"{path} has transparency, in which the mask may be instead of in its grey; {needed}")
    return red.copy()


def _looked_up(values: np.ndarray, train_ids: Mapping[int, int]) -> np.ndarray:
    """[H, W] uint8 by a table that may lack values; `_UNKNOWN` for those."""
    return np.array(Image.fromarray(values).point([train_ids.get(value, _UNKNOWN) for value in range(256)]))


def read_stored(path: Path, exif: str | None) -> Stored:
    data = read_file(path, "label file")
    with decoding(path, "label file"):
        png = check_whole(data)
        grey = decode_plain_png(data, png, GREY)
        return _stored(data, png, path, exif) if grey is None else Stored(grey, "L")


def _stored(data: bytes, png: Png | None, path: Path, exif: str | None) -> Stored:
    with Image.open(io.BytesIO(data)) as image:
        if image.format not in LOSSLESS or tiff_tag(image, COMPRESSION, 1) in LOSSY_COMPRESSIONS:
            raise Unfit(
                f"it is a {image.format} file, whatever its name: compression with loss makes up values",
                "give label files that keep each value, PNG for one",
            )
        check_content(image)
        image.load()
        turn = orientation(image, path, exif)
        bits = png.bits if png else tiff_tag(image, BITS_PER_SAMPLE, 8)
        if (
            not png
            and image.mode == "L"
            and (bits != 8 or tiff_tag(image, PHOTOMETRIC, BLACK_IS_ZERO) != BLACK_IS_ZERO)
        ):
            raise Unfit("its grey is of few bits or inverted", "save it as PNG of 8 bits")
        palette = _palette(image)
        turned = image if turn == 1 or image.format == "TIFF" else image.transpose(SHOWN_BY[turn])
        values = np.array(turned)
        if image.mode == "L" and bits < 8:
            values //= 255 // ((1 << bits) - 1)  # Pillow has stretched them over 0 to 255
        return Stored(values, image.mode, palette, bits, turned)


def _palette(image: Image.Image) -> tuple[Colour, ...]:
    if image.mode != "P":
        return ()
    flat = image.getpalette()
    return tuple(zip(flat[::3], flat[1::3], flat[2::3], strict=True))


def _png_bits(image: Image.Image) -> int:
    """Bits of a sample of a PNG file that is open."""
    image.fp.seek(24)  # behind width and height in the first chunk
    return image.fp.read(1)[0]
