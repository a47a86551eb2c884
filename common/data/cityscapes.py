"""Cityscapes: the label table, the file pairs of a split, and what can be wrong with them."""

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common import IGNORE_INDEX
from common.data.decode import IMAGE_SUFFIXES
from common.data.labels import LabelTable
from common.data.pairs import PairReader
from common.errors import InputError

NUM_CLASSES = 19
IMAGE_SUFFIX = "_leftImg8bit.png"
LABEL_SUFFIX = "_gtFine_labelIds.png"
TRAIN_ID_SUFFIX = "_gtFine_labelTrainIds.png"  # what conversion tools write beside them


class Label(NamedTuple):
    """One row of the label table of cityscapesScripts."""

    name: str
    label_id: int  # value in *_labelIds.png
    train_id: int  # class in training and evaluation, IGNORE_INDEX for those that do not count
    color: tuple[int, int, int]


# Source: cityscapesScripts, helpers/labels.py. The licence plate (id -1) is not drawn in labelIds files.
LABELS = (
    Label("unlabeled", 0, 255, (0, 0, 0)),
    Label("ego vehicle", 1, 255, (0, 0, 0)),
    Label("rectification border", 2, 255, (0, 0, 0)),
    Label("out of roi", 3, 255, (0, 0, 0)),
    Label("static", 4, 255, (0, 0, 0)),
    Label("dynamic", 5, 255, (111, 74, 0)),
    Label("ground", 6, 255, (81, 0, 81)),
    Label("road", 7, 0, (128, 64, 128)),
    Label("sidewalk", 8, 1, (244, 35, 232)),
    Label("parking", 9, 255, (250, 170, 160)),
    Label("rail track", 10, 255, (230, 150, 140)),
    Label("building", 11, 2, (70, 70, 70)),
    Label("wall", 12, 3, (102, 102, 156)),
    Label("fence", 13, 4, (190, 153, 153)),
    Label("guard rail", 14, 255, (180, 165, 180)),
    Label("bridge", 15, 255, (150, 100, 100)),
    Label("tunnel", 16, 255, (150, 120, 90)),
    Label("pole", 17, 5, (153, 153, 153)),
    Label("polegroup", 18, 255, (153, 153, 153)),
    Label("traffic light", 19, 6, (250, 170, 30)),
    Label("traffic sign", 20, 7, (220, 220, 0)),
    Label("vegetation", 21, 8, (107, 142, 35)),
    Label("terrain", 22, 9, (152, 251, 152)),
    Label("sky", 23, 10, (70, 130, 180)),
    Label("person", 24, 11, (220, 20, 60)),
    Label("rider", 25, 12, (255, 0, 0)),
    Label("car", 26, 13, (0, 0, 142)),
    Label("truck", 27, 14, (0, 0, 70)),
    Label("bus", 28, 15, (0, 60, 100)),
    Label("caravan", 29, 255, (0, 0, 90)),
    Label("trailer", 30, 255, (0, 0, 110)),
    Label("train", 31, 16, (0, 80, 100)),
    Label("motorcycle", 32, 17, (0, 0, 230)),
    Label("bicycle", 33, 18, (119, 11, 32)),
)
_CLASSES = sorted((label for label in LABELS if label.train_id != IGNORE_INDEX), key=lambda label: label.train_id)
CLASS_NAMES = tuple(label.name for label in _CLASSES)  # by train id
PALETTE = tuple(label.color for label in _CLASSES)  # by train id, RGB

KNOWN_LABEL_IDS = frozenset(label.label_id for label in LABELS)
TRAIN_ID_OF_LABEL_ID = np.full(256, IGNORE_INDEX, np.uint8)  # index: value in a labelIds file
for _label in LABELS:
    TRAIN_ID_OF_LABEL_ID[_label.label_id] = _label.train_id
LABEL_ID_OF_TRAIN_ID = np.zeros(256, np.uint8)  # 0, unlabeled, for what is no class
LABEL_ID_OF_TRAIN_ID[:NUM_CLASSES] = [label.label_id for label in _CLASSES]
LABEL_IDS = LabelTable(TRAIN_ID_OF_LABEL_ID, KNOWN_LABEL_IDS, {label.label_id: label.color for label in LABELS})
TRAIN_IDS = LabelTable(
    np.arange(256, dtype=np.uint8),
    frozenset((*range(NUM_CLASSES), IGNORE_INDEX)),
    dict(enumerate(PALETTE)) | {IGNORE_INDEX: (0, 0, 0)},
)


class Pair(NamedTuple):
    """A picture and its labels."""

    image: Path
    label: Path


def find_pairs(root: str | Path, split: str) -> list[Pair]:
    """The pictures of `split` with their label files, sorted by city and name: the order in which indices count.

    Labels are the labelIds of the download or, in a split that has none of these, converted labelTrainIds.
    Raises InputError when the folder is missing, empty or of another layout, when the split is not there, and when
    pictures and labels do not belong together (with their count and the first names).
    """
    root = Path(root)
    images_dir, labels_dir = root / "leftImg8bit" / split, root / "gtFine" / split
    _check_layout(root, split, images_dir, labels_dir)
    images = _files_by_name(images_dir, IMAGE_SUFFIX)
    label_suffix = LABEL_SUFFIX
    labels = _files_by_name(labels_dir, label_suffix)
    if not labels and (train_ids := _files_by_name(labels_dir, TRAIN_ID_SUFFIX)):
        label_suffix, labels = TRAIN_ID_SUFFIX, train_ids
    if not images:
        raise InputError(
            f"no *{IMAGE_SUFFIX} in the city folders of {images_dir}; "
            f"--data_path must hold leftImg8bit/{split}/<city>/ and gtFine/{split}/<city>/"
        )
    if not labels:
        raise InputError(
            f"no *{label_suffix} in the city folders of {labels_dir}; unpack gtFine_trainvaltest.zip into {root}"
        )
    _check_same_names(images, labels, f"images of {images_dir} have no *{label_suffix} in {labels_dir}")
    _check_same_names(labels, images, f"label files of {labels_dir} have no *{IMAGE_SUFFIX} in {images_dir}")
    return [Pair(images[name], labels[name]) for name in sorted(images)]


def find_pictures(root: str | Path, split: str) -> list[Path]:
    """The pictures of a split, sorted like those of `find_pairs`, whether or not it has labels.

    Raises InputError when there are none.
    """
    folder = Path(root) / "leftImg8bit" / split
    images = _files_by_name(folder, IMAGE_SUFFIX)
    if not images:
        raise InputError(
            f"no *{IMAGE_SUFFIX} in the city folders of {folder}; unpack leftImg8bit_trainvaltest.zip into {root}"
        )
    return [images[name] for name in sorted(images)]


def submission_name(image: Path, split: str) -> Path:
    """Where the prediction of a picture belongs: the server reads city, sequence and frame from the file's name.

    The folders of the cities are kept, in which other data sets of this layout may count from 0.
    """
    return Path(image.parent.name, f"{image.name.removesuffix(IMAGE_SUFFIX)}_labelIds.png")


def label_id_picture(train_ids: np.ndarray) -> Image.Image:
    """[H, W] uint8 of train ids -> a grey picture of label ids, which cityscapesScripts and the server score."""
    return Image.fromarray(LABEL_ID_OF_TRAIN_ID[train_ids])


def left_out(root: str | Path, split: str) -> str:
    """Which pictures in the folder are none of the split, in a line for people; '' where there are none."""
    folder = Path(root) / "leftImg8bit" / split
    others = sorted(
        str(path.relative_to(folder))
        for path in (*folder.glob("[!.]*"), *folder.glob("[!.]*/[!.]*"))
        if path.suffix.lower() in IMAGE_SUFFIXES and not (path.name.endswith(IMAGE_SUFFIX) and path.parent != folder)
    )
    if not others:
        return ""
    return f"{len(others)} pictures in {folder} are left out, being no <city>/*{IMAGE_SUFFIX}: {_first(others)}"


def label_table(path: Path) -> LabelTable:
    """What a label file holds by its name: label ids or, in a *_labelTrainIds.png, train ids."""
    return TRAIN_IDS if path.name.endswith(TRAIN_ID_SUFFIX) else LABEL_IDS


read_pair = PairReader(label_table)  # labels become train ids, IGNORE_INDEX for what does not count


def _check_layout(root: Path, split: str, images_dir: Path, labels_dir: Path) -> None:
    needed = "--data_path must name the folder that holds leftImg8bit/ and gtFine/ (or be 'sample')"
    if not root.is_dir():
        raise InputError(f"{root} is a file; {needed}" if root.is_file() else f"no folder {root}; {needed}")
    entries = sorted(entry.name for entry in root.iterdir())
    if not entries:
        raise InputError(f"the folder {root} is empty; {needed}")
    for part in ("leftImg8bit", "gtFine"):
        if not (root / part).is_dir():
            raise InputError(f"no {part}/ in {root} (it holds {_first(entries)}); {needed}")
    for folder in (images_dir, labels_dir):
        if not folder.is_dir():
            there = sorted(entry.name for entry in folder.parent.iterdir() if entry.is_dir())
            raise InputError(
                f"no split '{split}' in {folder.parent} (it holds {_first(there) or 'no folder'}); "
                "training needs train, val; evaluation needs val"
            )


def _files_by_name(folder: Path, suffix: str) -> dict[tuple[str, str], Path]:
    """The files of the city folders by (city, name): in other data sets of this layout each city may count from 0.

    Names that begin with a dot are left out: macOS keeps notes about a file in one that is called so.
    """
    return {(path.parent.name, path.name.removesuffix(suffix)): path for path in folder.glob(f"[!.]*/[!.]*{suffix}")}


def _check_same_names(these: dict[tuple[str, str], Path], those: dict[tuple[str, str], Path], problem: str) -> None:
    missing = sorted(set(these) - set(those))
    if missing:
        files = [f"{city}/{these[city, name].name}" for city, name in missing]
        raise InputError(
            f"{len(missing)} of {len(these)} {problem}: {_first(files)}; add the missing files or remove these"
        )


def _first(names: Sequence, count: int = 3) -> str:
    return ", ".join(str(name) for name in names[:count]) + (", ..." if len(names) > count else "")
