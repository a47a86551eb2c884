"""ISIC 2018, task 1: the pairs of a picture and a lesion mask, and what can be wrong with them."""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common.data.decode import check_sizes, decode_grey
from common.errors import UNREADABLE, InputError

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png")  # the archives also hold texts about licences
MASK_ENDING = "_segmentation"  # of a mask's name, before .png
MASK_MODES = ("1", "L", "LA", "P", "RGB", "RGBA")  # what turns into 8-bit grey without a doubt
THRESHOLD = 127  # a mask is 0 and 255; above this it is lesion
CLASS_NAMES = ("background", "lesion")
PALETTE = ((0, 0, 0), (255, 255, 255))  # as the masks are


class Pair(NamedTuple):
    """A picture and its mask."""

    image: Path
    mask: Path


def has_split(root: str | Path, split: str) -> bool:
    """Whether there is a folder of this split, or of its masks."""
    return Path(root, split).is_dir() or Path(root, f"{split}_GT").is_dir()


def find_pairs(root: str | Path, split: str) -> list[Pair]:
    """The pictures of `split` (train, valid or test) with their masks, sorted by name: the order of the indices.

    Raises InputError when a folder is missing or empty, and when pictures and masks do not belong together.
    """
    root = Path(root)
    needed = "--data_path must name the folder that holds train/, train_GT/, valid/, valid_GT/ (or be 'sample')"
    if not root.is_dir():
        raise InputError(f"{root} is a file; {needed}" if root.is_file() else f"no folder {root}; {needed}")
    if not has_split(root, split):
        there = sorted(entry.name for entry in root.iterdir())
        raise InputError(
            f"no {split}/ in {root} (it holds {first(there) or 'nothing'}); {needed}; "
            "dataset.py splits the pictures of ISIC 2018 into these folders"
        )
    return match(root / split, root / f"{split}_GT")


def match(images_dir: Path, masks_dir: Path) -> list[Pair]:
    """NAME.jpg (or .jpeg, .png) of one folder with NAME_segmentation.png of the other, sorted by name.

    Other files are passed over. Raises InputError for a folder that is missing or holds no such file, and for pictures
    without a mask and masks without a picture, with their number and the first names.
    """
    for folder, what in ((images_dir, "pictures"), (masks_dir, "masks")):
        if not folder.is_dir():
            raise InputError(f"no folder {folder}; it must hold the {what} that belong to those of the other folder")
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for path in sorted(images_dir.iterdir()):
        if path.suffix.lower() in IMAGE_SUFFIXES and not path.name.startswith("."):
            if path.stem in images:
                raise InputError(f"{images[path.stem]} and {path.name} have the same name; take one of them away")
            images[path.stem] = path
    for path in sorted(masks_dir.iterdir()):
        if path.suffix.lower() == ".png" and path.stem.endswith(MASK_ENDING) and not path.name.startswith("."):
            masks[path.stem.removesuffix(MASK_ENDING)] = path
    if not images:
        raise InputError(f"no picture ({', '.join(IMAGE_SUFFIXES)}) in {images_dir}; put the pictures there")
    _refuse(images, masks, f"pictures of {images_dir} have no *{MASK_ENDING}.png in {masks_dir}")
    _refuse(masks, images, f"masks of {masks_dir} have no picture in {images_dir}")
    return [Pair(images[name], masks[name]) for name in sorted(images)]


def _refuse(these: dict[str, Path], those: dict[str, Path], problem: str) -> None:
    alone = [these[name].name for name in sorted(set(these) - set(those))]
    if alone:
        raise InputError(
            f"{len(alone)} of {len(these)} {problem}: {first(alone)}; add the missing files or take these away"
        )


def read_mask(path: Path) -> np.ndarray:
    """The mask [H, W] uint8, 0 to 255. Raises InputError, naming the file, for what is no mask of 0 and 255."""
    mask = decode_grey(path)
    if mask is None:
        try:
            with Image.open(path) as picture:
                mode, mask = picture.mode, np.array(picture.convert("L")) if picture.mode in MASK_MODES else None
        except UNREADABLE as error:
            raise InputError(f"cannot decode the mask {path} ({error}); unpack or download it again") from error
        if mask is None:
            raise InputError(f"{path} is an image of mode {mode}; masks are 8-bit files of 0 and 255: give those")
    highest = int(mask.max())
    if 0 < highest <= THRESHOLD:
        raise InputError(
            f"{path} holds values up to {highest}; masks are 0 and 255, the latter on the lesion: give those"
        )
    return mask


def check_pairs(pairs: Sequence[Pair], decode_images: bool = False) -> None:
    """Open every mask once and refuse what training could not use, before anything is trained.

    Raises InputError naming the file: a mask that cannot be decoded or is not of 0 and 255, a file that is not a
    picture, or one whose size is not that of its mask. Of a picture the header alone is read, unless `decode_images`:
    training reports a damaged one when it comes to it, validation would after an epoch of training only.
    """
    with ThreadPoolExecutor(max_workers=min(32, os.cpu_count() or 1)) as pool:  # Pillow decodes without the GIL
        try:
            for _ in pool.map(lambda pair: _check_pair(pair, decode_images), pairs):
                pass
        except InputError:
            pool.shutdown(cancel_futures=True)
            raise


def _check_pair(pair: Pair, decode_image: bool) -> None:
    mask = read_mask(pair.mask)
    try:
        with Image.open(pair.image) as image:  # reads the header alone
            size = image.size
            if decode_image:
                image.load()
    except UNREADABLE as error:
        raise InputError(f"cannot decode the image {pair.image} ({error}); unpack or download it again") from error
    check_sizes(*pair, size[::-1], mask.shape)


def first(names: Sequence[str], count: int = 3) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
