"""A picture with its label: how the two are read together, and what is looked at before anything is trained."""

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common import IGNORE_INDEX
from common.data.decode import check_content, check_header, check_sizes, orientation, picture_size, read_image
from common.data.labels import LabelKind, class_counts
from common.data.transforms import Crop, cut_label
from common.errors import UNREADABLE, InputError
from common.terminal import progress

RULES = 2  # of reading; raise it when files are read to other values than before, so that caches are not believed
CHECKING_THREADS = 32  # Pillow decodes without the interpreter's lock


class Checked(NamedTuple):
    """What is known of a label once it has been read."""

    note: str  # about how it was read, or ''
    classes: tuple[int, ...] | None  # those that it holds, IGNORE_INDEX with them; None where there is no label


class PairReader(NamedTuple):
    """Reads the pairs (image file, label file) of a data set.

    kind_of: label file -> how it is read. exif: what to do with a picture that is to be turned: see
    `common.data.decode`. width: of a JPEG that is several times as wide as so many pixels only every so many are kept;
    the picture is averaged over them as it is decoded, and of the label the nearest are kept.
    """

    kind_of: Callable[[Path], LabelKind]
    exif: str | None = None
    width: int | None = None

    def __call__(self, pair: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        """image [H, W, 3] in RGB and label [H, W], both uint8. Raises InputError, naming the file."""
        return self._read(pair)[:2]

    def _read(self, pair: Sequence[Path]) -> tuple[np.ndarray, np.ndarray, str]:
        image_file, label_file = pair
        image = read_image(image_file, self.width and (1, self.width), self.exif)
        label, note = self.kind_of(label_file).read(label_file, self.exif)
        if self.width is None:
            check_sizes(image_file, label_file, image.shape[:2], label.shape)
            return image, label, note
        check_sizes(image_file, label_file, picture_size(image_file, self.exif), label.shape)
        return image, cut_label(label, Crop(image.shape[:2], 0, 0, image.shape[:2])), note

    def check(self, pair: Sequence[Path], decode_image: bool) -> Checked:
        """What is known of the label. Raises InputError, naming the file, for what cannot be used.

        The label is read. Of the picture, unless it is to be decoded, the header and the end mark are: for the training
        pictures more would take as long as an epoch.
        """
        image_file, label_file = pair
        kind = self.kind_of(label_file)
        if decode_image:
            _, label, note = self._replace(width=None)._read(pair)
        else:
            label, note = kind.read(label_file, self.exif)
            check_sizes(image_file, label_file, check_header(image_file, self.exif), label.shape)
        return Checked(note, tuple(np.flatnonzero(class_counts(kind, label)).tolist()))

    def reads_as_before(self, pair: Sequence[Path]) -> bool:
        """Whether the first rules of reading gave the same of this pair, by what the headers of its files say.

        They took indices of palettes for ids, stretched grey of few bits, passed over orientation and over all pages
        but the first, and divided whole numbers by 256. They also took some damaged files: `check` finds these.
        """
        image_file, label_file = pair
        try:
            with Image.open(image_file) as image:
                usual = image.format in ("JPEG", "PNG") and not image.mode.startswith("I")
                check_content(image)
                usual = usual and orientation(image, image_file, None) == 1
            return usual and self.kind_of(label_file).reads_as_before(label_file)
        except UNREADABLE:
            return False


class PicturesAlone(NamedTuple):
    """Reads the pictures of a split whose labels nobody publishes; exif: as in `PairReader`."""

    exif: str | None = None

    def __call__(self, pair: Sequence[Path | None]) -> tuple[np.ndarray, np.ndarray]:
        """image [H, W, 3] in RGB, and a label [H, W] that is ignored everywhere. Raises InputError, naming the file."""
        image = read_image(pair[0], None, self.exif)
        return image, np.full(image.shape[:2], IGNORE_INDEX, np.uint8)

    def check(self, pair: Sequence[Path | None], decode_image: bool) -> Checked:
        """Raises InputError, naming the file, for a picture that cannot be read."""
        self(pair)
        return Checked("", None)


def check_pairs(
    pairs: Sequence[Sequence[Path]], read: PairReader, decode_images: bool = False, most_bad: int = 0
) -> None:
    """Open every label file once and refuse what training could not use, before anything is trained.

    Raises InputError, naming the file: see `PairReader.check` and `_check_held`. What was read otherwise than its owner
    may think is said in one line. decode_images: also decode the pictures; a damaged one of the training pictures whose
    end is whole is reported when training comes to it, but validation would come to it after an epoch of training only.
    most_bad: pairs that training may replace by others; they are no errors, and said in one line.
    """
    checked, bad = _checked(pairs, lambda pair: read.check(pair, decode_images), most_bad)
    if bad:
        more = f" (and {len(bad) - 1} more)" if len(bad) > 1 else ""
        print(f"note: {bad[0]}{more}; training replaces it, as --skip_bad allows", flush=True)
    if pairs:
        held = {number for label in checked for number in label.classes or ()}
        _check_held(held, f"all {len(checked)} labels, {pairs[0][1]} for one,")
    if notes := [label.note for label in checked if label.note]:
        more = f" (and so for {len(notes) - 1} other label files)" if len(notes) > 1 else ""
        print(f"note: {notes[0]}{more}", flush=True)


def _check_held(held: set[int], labels: str) -> None:
    """Refuse what nothing can be learned of or scored on, by the classes that all labels of a data set hold together.

    That is ignored pixels alone; or these and class 0, as masks of 0 and 255 read as class ids hold. Of another class
    alone a line tells. labels: how a line about them begins.
    """
    if held == {IGNORE_INDEX}:
        raise InputError(
            f"{labels} hold ignored pixels ({IGNORE_INDEX}) alone, of which nothing can be learned or scored; give "
            "labels that hold the ids of classes"
        )
    if held == {0, IGNORE_INDEX}:
        raise InputError(
            f"{labels} hold class 0 and ignored pixels ({IGNORE_INDEX}) alone, as masks of 0 and 255 do when they are "
            "read as class ids; give labels that hold the ids of classes: where there are two classes, "
            "common.tools.check --fix writes them"
        )
    if len(held - {IGNORE_INDEX}) == 1:
        print(
            f"note: {labels} hold class {min(held)} alone: of the others nothing can be learned or scored", flush=True
        )


def _checked(
    pairs: Sequence[Sequence[Path]], check: Callable[[Sequence[Path]], Checked], most_bad: int
) -> tuple[list[Checked], list[InputError]]:
    """(What is known of the pairs, what is wrong with at most `most_bad` of them). Raises InputError for one more."""

    def look(pair: Sequence[Path]) -> Checked | InputError:
        try:
            return check(pair)
        except InputError as error:
            return error

    checked, bad = [], []
    with ThreadPoolExecutor(max_workers=min(CHECKING_THREADS, os.cpu_count() or 1)) as pool:
        for found in progress(pool.map(look, pairs), "checking labels", len(pairs), "file"):
            (bad if isinstance(found, InputError) else checked).append(found)
            if len(bad) > most_bad:
                pool.shutdown(cancel_futures=True)
                raise bad[-1]
    return checked, bad
