"""PASCAL VOC 2012 segmentation, alone and with the masks of SBD.

The classes, the file pairs of a split, and what can be wrong with them.

SBD is the Semantic Boundaries Dataset of Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011.
"""

import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common import IGNORE_INDEX
from common.data.decode import check_sizes, read_image, read_label
from common.errors import UNREADABLE, InputError

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
NUM_CLASSES = len(CLASS_NAMES)
KNOWN_IDS = frozenset((*range(NUM_CLASSES), IGNORE_INDEX))  # of a mask; 255 is the border around objects
SAME_IDS = np.arange(256, dtype=np.uint8)  # masks hold class ids already
SBD = Path("VOCaug", "dataset")  # below the VOCdevkit folder
CHECKING_THREADS = 32


def class_color(class_id: int) -> tuple[int, int, int]:
    """VOC's colour: bits 0, 1 and 2 of the id are the highest bits of red, green and blue, bits 3 to 5 the next."""
    return tuple(
        sum((class_id >> (3 * place + channel) & 1) << (7 - place) for place in range(8)) for channel in range(3)
    )


PALETTE = tuple(class_color(class_id) for class_id in range(NUM_CLASSES))


class Pair(NamedTuple):
    """A picture and its mask: a PNG of class ids or, of SBD, a .mat file."""

    image: Path
    label: Path


def find_pairs(root: str | Path, split: str, dataset: str = "pascal_voc") -> list[Pair]:
    """The pictures of `split` with their masks, sorted by name: the order in which indices count.

    root: the VOCdevkit folder. dataset "pascal_aug": the split train is that of VOC and all of SBD, without VOC's val:
    10,582 pictures, of which those of VOC keep their finer masks; val is VOC's.
    Raises InputError when a folder, a list or files of it are missing (with their count and the first names).
    """
    root = Path(root)
    voc = _voc_folder(root)
    names = _read_list(voc / "ImageSets" / "Segmentation" / f"{split}.txt")
    pairs = {
        name: Pair(voc / "JPEGImages" / f"{name}.jpg", voc / "SegmentationClass" / f"{name}.png") for name in names
    }
    if dataset == "pascal_aug" and split == "train":
        sbd = _sbd_folder(root)
        val_names = _read_list(voc / "ImageSets" / "Segmentation" / "val.txt")
        more = (_read_list(sbd / "train.txt") | _read_list(sbd / "val.txt")) - val_names - names
        pairs |= {name: Pair(sbd / "img" / f"{name}.jpg", sbd / "cls" / f"{name}.mat") for name in more}
    pairs = [pairs[name] for name in sorted(pairs)]
    _check_files_exist(pairs)
    return pairs


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """A picture [H, W, 3] in RGB and its class ids [H, W] (IGNORE_INDEX for what does not count), both uint8.

    Raises InputError, naming the file, for what cannot be decoded or does not fit.
    """
    image, label = read_image(pair.image), read_mask(pair.label)
    check_sizes(*pair, image.shape[:2], label.shape)
    return image, label


def read_mask(path: Path) -> np.ndarray:
    """[H, W] uint8: the class ids in a PNG (palette indices, or grey values) or in a .mat file. Raises InputError."""
    if path.suffix != ".mat":
        return read_label(path, SAME_IDS, KNOWN_IDS)
    values = _read_mat(path)
    unknown = set(np.unique(values).tolist()) - KNOWN_IDS
    if unknown:
        raise InputError(
            f"{path} holds the values {_first(sorted(unknown))}, which are no class ids (0..{NUM_CLASSES - 1}); "
            f"give the original cls/ files of SBD"
        )
    return values.astype(np.uint8)


def _read_mat(path: Path) -> np.ndarray:
    """[H, W] whole numbers: the field Segmentation of the struct GTcls. Raises InputError."""
    try:
        from scipy.io import loadmat  # for SBD alone
    except ImportError as error:
        raise InputError(
            "--dataset pascal_aug reads .mat files, and scipy is not installed: pip install -r requirements.txt"
        ) from error
    try:
        values = np.asarray(loadmat(path)["GTcls"]["Segmentation"][0, 0])
    except Exception as error:  # loadmat raises many kinds for a damaged or foreign file
        raise InputError(
            f"cannot read GTcls.Segmentation in {path} ({error!r:.200}); unpack or download it again"
        ) from error
    if values.ndim != 2 or values.dtype.kind not in "ui":
        raise InputError(f"{path} holds {values.dtype} {list(values.shape)} and no [H, W] class ids; download it again")
    return values


def check_pairs(pairs: Sequence[Pair], decode_images: bool = False) -> None:
    """Open every mask once and refuse what training could not use, before anything is trained.

    Raises InputError, naming the file. Of a picture the size alone is read, unless `decode_images`: for the training
    pictures that would take as long as an epoch, and training reports a damaged one when it comes to it.
    """
    with ThreadPoolExecutor(max_workers=min(CHECKING_THREADS, os.cpu_count() or 1)) as pool:
        for problem in pool.map(lambda pair: _problem_of(pair, decode_images), pairs):
            if problem:
                pool.shutdown(cancel_futures=True)
                raise problem


def _problem_of(pair: Pair, decode_image: bool) -> InputError | None:
    try:
        if decode_image:
            read_pair(pair)
            return None
        size = read_mask(pair.label).shape
        with Image.open(pair.image) as image:  # reads the header alone
            check_sizes(*pair, image.size[::-1], size)
        return None
    except InputError as error:  # which is a ValueError, so one of UNREADABLE too
        return error
    except UNREADABLE as error:
        return InputError(f"cannot read the image {pair.image} ({error}); unpack or download it again")


def _voc_folder(root: Path) -> Path:
    """root/VOC2012, with the three folders that segmentation needs."""
    needed = "--data_path must name the VOCdevkit folder, which holds VOC2012/ (or be 'sample')"
    if not root.is_dir():
        raise InputError(f"{root} is a file; {needed}" if root.is_file() else f"no folder {root}; {needed}")
    voc = root / "VOC2012"
    if not voc.is_dir():
        inside = next((folder for folder in (root.parent, root / "VOCdevkit") if (folder / "VOC2012").is_dir()), None)
        hint = f"; try --data_path={inside}" if inside else ""
        raise InputError(f"no VOC2012/ in {root} (it holds {_entries(root)}); {needed}{hint}")
    for part in ("JPEGImages", "SegmentationClass", "ImageSets/Segmentation"):
        if not (voc / part).is_dir():
            raise InputError(
                f"no {part}/ in {voc} (it holds {_entries(voc)}); unpack VOCtrainval_11-May-2012.tar whole"
            )
    return voc


def _sbd_folder(root: Path) -> Path:
    sbd = root / SBD
    needed = f"--dataset pascal_aug needs img/, cls/, train.txt and val.txt of SBD in {sbd}, and looks nowhere else"
    if not sbd.is_dir():
        raise InputError(f"no folder {sbd}; {needed}: unpack benchmark.tgz and move benchmark_RELEASE/dataset there")
    for part in ("img", "cls"):
        if not (sbd / part).is_dir():
            raise InputError(f"no {part}/ in {sbd} (it holds {_entries(sbd)}); {needed}")
    return sbd


def _read_list(path: Path) -> set[str]:
    """The names in a list of pictures, one in each line. Raises InputError for a list that holds none, or paths."""
    try:
        names = set(path.read_text().split())
    except OSError as error:
        there = _entries(path.parent, "*.txt")
        raise InputError(f"no list {path} (there is {there}); --data_path needs the lists of the download") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text; it should name a picture in each line, such as 2007_000032") from error
    if not names:
        raise InputError(f"{path} is empty; it should name a picture in each line, such as 2007_000032")
    paths = sorted(name for name in names if "/" in name)
    if paths:
        raise InputError(f"{path} holds paths ({_first(paths)}); it should name pictures alone, such as 2007_000032")
    return names


def _check_files_exist(pairs: Sequence[Pair]) -> None:
    folders = {path.parent for pair in pairs for path in pair}
    there = {folder: set(os.listdir(folder)) for folder in folders}
    for kind, files in (("images", [pair.image for pair in pairs]), ("masks", [pair.label for pair in pairs])):
        missing = [path for path in files if path.name not in there[path.parent]]
        if missing:
            raise InputError(
                f"{len(missing)} of {len(files)} listed {kind} are not there: {_first(missing)}; "
                "unpack the archive again, or take their names out of the list"
            )


def _entries(folder: Path, pattern: str = "*") -> str:
    return _first(sorted(path.name for path in folder.glob(pattern))) or "nothing"


def _first(names: Sequence, count: int = 3) -> str:
    return ", ".join(str(name) for name in names[:count]) + (", ..." if len(names) > count else "")
