"""ISIC 2018, task 1: the pairs of a picture and a lesion mask, and what can be wrong with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common.data.decode import IMAGE_SUFFIXES
from common.data.labels import MaskFiles
from common.data.pairs import PairReader
from common.errors import InputError

MASK_ENDING = "_segmentation"  # of a mask's name, before .png
SUPERPIXELS_ENDING = "_superpixels"  # of a name: beside each picture, ISIC 2016 and 2017 have one of patches
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


def find_pictures(root: str | Path, split: str) -> list[Path]:
    """The pictures of a split that has no masks, sorted by name. Raises InputError when there are none."""
    folder = Path(root, split)
    pictures = sorted(filter(is_picture, folder.iterdir())) if folder.is_dir() else []
    if not pictures:
        raise InputError(f"no picture ({', '.join(IMAGE_SUFFIXES)}) in {folder}; put the pictures of the split there")
    return pictures


def submission_name(image: Path, split: str) -> Path:
    """What the challenge calls the mask of a picture."""
    return Path(f"{image.stem}{MASK_ENDING}.png")


def lesion_mask(class_ids: np.ndarray) -> Image.Image:
    """[H, W] uint8 of 0 and 1 -> a grey picture of 0 and 255."""
    return Image.fromarray(class_ids * np.uint8(255))


def match(images_dir: Path, masks_dir: Path) -> list[Pair]:
    """NAME.jpg (or another kind of picture) of one folder with NAME_segmentation.png of the other, sorted by name.

    Other files, superpixels among them, are passed over. Raises InputError for a folder that is missing or holds no
    such file, and for pictures without a mask and masks without a picture, with their number and the first names.
    """
    for folder, what in ((images_dir, "pictures"), (masks_dir, "masks")):
        if not folder.is_dir():
            raise InputError(f"no folder {folder}; it must hold the {what} that belong to those of the other folder")
    images: dict[str, Path] = {}
    masks: dict[str, Path] = {}
    for path in sorted(images_dir.iterdir()):
        if is_picture(path):
            if path.stem in images:
                raise InputError(f"{images[path.stem]} and {path.name} have the same name; remove one of them")
            images[path.stem] = path
    for path in sorted(masks_dir.iterdir()):
        if path.suffix.lower() == ".png" and path.stem.endswith(MASK_ENDING) and not path.name.startswith("."):
            masks[path.stem.removesuffix(MASK_ENDING)] = path
    if not images:
        raise InputError(f"no picture ({', '.join(IMAGE_SUFFIXES)}) in {images_dir}; put the pictures there")
    _refuse(images, masks, f"pictures of {images_dir} have no *{MASK_ENDING}.png in {masks_dir}")
    _refuse(masks, images, f"masks of {masks_dir} have no picture in {images_dir}")
    return [Pair(images[name], masks[name]) for name in sorted(images)]


def is_picture(path: Path) -> bool:
    """Whether a file is one of the data set's pictures, by its name; the archives also hold texts about licences."""
    hidden = path.name.startswith(".")
    return path.suffix.lower() in IMAGE_SUFFIXES and not hidden and not path.stem.endswith(SUPERPIXELS_ENDING)


def _refuse(these: dict[str, Path], those: dict[str, Path], problem: str) -> None:
    alone = [these[name].name for name in sorted(set(these) - set(those))]
    if alone:
        raise InputError(
            f"{len(alone)} of {len(these)} {problem}: {first(alone)}; add the missing files or remove these"
        )


MASKS = MaskFiles()


def kind_of(_label: Path) -> MaskFiles:
    """All labels are masks: they stay 0 to 255."""
    return MASKS


read_pair = PairReader(kind_of)


def first(names: Sequence[str], count: int = 3) -> str:
    """The first names of a list, for a message."""
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
