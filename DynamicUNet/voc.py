"""PASCAL VOC 2012 segmentation, alone and with the masks of SBD.

The classes, the file pairs of a split, and what can be wrong with them.

SBD is the Semantic Boundaries Dataset of Hariharan et al., "Semantic Contours from Inverse Detectors", ICCV 2011.
"""

from collections.abc import Sequence, Set
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common import IGNORE_INDEX
from common.data.decode import IMAGE_SUFFIXES
from common.data.labels import Label, LabelKind, LabelTable
from common.data.pairs import PairReader
from common.data.pictures import TRAINVAL
from common.errors import InputError
from common.scores.drawing import palette_picture

CLASS_NAMES = (
    "background", "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
)  # fmt: skip
NUM_CLASSES = len(CLASS_NAMES)
KNOWN_IDS = frozenset((*range(NUM_CLASSES), IGNORE_INDEX))  # of a mask; 255 is the border around objects
SBD = Path("VOCaug", "dataset")  # below the VOCdevkit folder
# The masks of VOC and SBD as PNG files of ids, which are passed on in a folder of this name, and their list.
AUGMENTED, AUGMENTED_LISTS = "SegmentationClassAug", ("train_aug.txt", "trainaug.txt")
BORDER_COLOUR = (224, 224, 192)


def class_color(class_id: int) -> tuple[int, int, int]:
    """VOC's colour: bits 0, 1 and 2 of the id are the highest bits of red, green and blue, bits 3 to 5 the next."""
    return tuple(
        sum((class_id >> (3 * place + channel) & 1) << (7 - place) for place in range(8)) for channel in range(3)
    )


PALETTE = tuple(class_color(class_id) for class_id in range(NUM_CLASSES))
MASKS = LabelTable(  # which hold class ids already, or their colours
    np.arange(256, dtype=np.uint8), KNOWN_IDS, dict(enumerate(PALETTE)) | {IGNORE_INDEX: BORDER_COLOUR}
).in_colours()


class Pair(NamedTuple):
    """A picture and its mask: a PNG of class ids or, of SBD, a .mat file."""

    image: Path
    label: Path


def find_pairs(root: str | Path, split: str, dataset: str = "pascal_voc") -> list[Pair]:
    """The pictures of `split` with their masks, sorted by name: the order in which indices count.

    root: the VOCdevkit folder. dataset "pascal_aug": the split train is that of VOC and all of SBD, without VOC's val:
    10,582 pictures, of which those of VOC keep their finer masks; val is VOC's, and trainval is both. SBD is its own
    download or, where that is not there, the masks of `AUGMENTED`; these are also taken where VOC's own folder of masks
    is missing.
    Raises InputError when a folder, a list or files of it are missing (with their count and the first names).
    """
    root = Path(root)
    voc = _voc_folder(root)
    lists = voc / "ImageSets" / "Segmentation"
    in_parts = split == TRAINVAL and not (lists / f"{split}.txt").exists()
    parts = ("train", "val") if in_parts else (split,)
    listed = {name: line for part in parts for name, line in _read_list(lists / f"{part}.txt").items()}
    masks = next(folder for folder in (voc / "SegmentationClass", voc / AUGMENTED) if folder.is_dir())
    pairs = _pairs_of(listed, voc / "JPEGImages", masks, ".png")
    if dataset == "pascal_aug" and split != "val":
        without = listed.keys() | (_read_list(lists / "val.txt").keys() if split == "train" else set())
        pairs |= _pairs_of_sbd(root, voc, without)
    return [pairs[name] for name in sorted(pairs)]


def _pairs_of_sbd(root: Path, voc: Path, without: Set[str]) -> dict[str, Pair]:
    """Those of SBD: its own download or, without that, what `AUGMENTED` and its list hold more than VOC's lists."""
    if (root / SBD).is_dir() or not (voc / AUGMENTED).is_dir():
        sbd = _sbd_folder(root)
        folders, suffix, lists = (sbd / "img", sbd / "cls"), ".mat", [sbd / "val.txt", sbd / "train.txt"]
    else:
        folders, suffix = (voc / "JPEGImages", voc / AUGMENTED), ".png"
        known = [voc / "ImageSets" / "Segmentation" / name for name in AUGMENTED_LISTS]
        lists = [next((path for path in known if path.is_file()), known[0])]
    listed = {name: line for path in lists for name, line in _read_list(path).items() if name not in without}
    return _pairs_of(listed, *folders, suffix)


def find_pictures(root: str | Path, split: str) -> list[Path]:
    """The pictures of a split that has no masks, test for one, sorted by name.

    Raises InputError when a folder, the list or a picture is missing.
    """
    voc = _voc_folder(Path(root))
    listed = _read_list(voc / "ImageSets" / "Segmentation" / f"{split}.txt")
    images = _files_by_stem(voc / "JPEGImages", IMAGE_SUFFIXES)
    _refuse_missing("images", listed, images, voc / "JPEGImages", ".jpg")
    return [images[name] for name in sorted(listed)]


def submission_name(image: Path, split: str) -> Path:
    """Where the prediction of a picture belongs in the archive that the server takes.

    comp6: trained on more than the data of the challenge, as with ImageNet weights.
    """
    return Path("results", "VOC2012", "Segmentation", f"comp6_{split}_cls", f"{image.stem}.png")


def palette_mask(class_ids: np.ndarray) -> Image.Image:
    """[H, W] uint8 -> a picture of mode P in VOC's colours, as its own masks are."""
    return palette_picture(class_ids, PALETTE)


class SbdFiles:
    """Label files of SBD: class ids in a .mat file."""

    def read(self, path: Path, exif: str | None = None) -> Label:
        """[H, W] uint8. Raises InputError, naming the file, for what cannot be read or holds other values."""
        values = _read_mat(path)
        unknown = set(np.unique(values).tolist()) - KNOWN_IDS
        if unknown:
            raise InputError(
                f"{path} holds the values {_first(sorted(unknown))}, which are no class ids (0..{NUM_CLASSES - 1}); "
                f"give the original cls/ files of SBD"
            )
        return Label(values.astype(np.uint8))

    def reads_as_before(self, path: Path) -> bool:
        """Nothing about them has changed."""
        return True


SBD_FILES = SbdFiles()


def label_kind(path: Path) -> LabelKind:
    """How a label file is read: a picture of class ids in palette indices or in grey or, of SBD, a .mat file."""
    return SBD_FILES if path.suffix == ".mat" else MASKS


read_pair = PairReader(label_kind)  # IGNORE_INDEX for what does not count


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
        if not (voc / part).is_dir() and not (part == "SegmentationClass" and (voc / AUGMENTED).is_dir()):
            raise InputError(
                f"no {part}/ in {voc} (it holds {_entries(voc)}); unpack VOCtrainval_11-May-2012.tar whole"
            )
    return voc


def _sbd_folder(root: Path) -> Path:
    sbd = root / SBD
    needed = (
        f"--dataset pascal_aug needs img/, cls/, train.txt and val.txt of SBD in {sbd}, or {AUGMENTED}/ in VOC2012/"
    )
    if not sbd.is_dir():
        raise InputError(f"no folder {sbd}; {needed}: unpack benchmark.tgz and move benchmark_RELEASE/dataset there")
    for part in ("img", "cls"):
        if not (sbd / part).is_dir():
            raise InputError(f"no {part}/ in {sbd} (it holds {_entries(sbd)}); {needed}")
    return sbd


def _read_list(path: Path) -> dict[str, str]:
    """The names in a list of pictures, one in each line, and where each stands: 'train.txt, line 3'.

    Raises InputError for a list that holds none, or paths.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()  # editors of Windows begin a text with a mark
    except OSError as error:
        there = _entries(path.parent, "*.txt")
        raise InputError(f"no list {path} (there is {there}); --data_path needs the lists of the download") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path} is no text; it should name a picture in each line, such as 2007_000032") from error
    names: dict[str, str] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if name.lower().endswith(IMAGE_SUFFIXES):  # a name is one without suffix
            name = name.rpartition(".")[0]
        if name:
            names.setdefault(name, f"{path.name}, line {number}")
    if not names:
        raise InputError(f"{path} is empty; it should name a picture in each line, such as 2007_000032")
    paths = [line.strip() for line in lines if "/" in line]
    if paths:
        raise InputError(f"{path} holds paths ({_first(paths)}); it should name pictures alone, such as 2007_000032")
    return names


def _pairs_of(listed: dict[str, str], images_dir: Path, labels_dir: Path, label_suffix: str) -> dict[str, Pair]:
    """The pair of each name in a list. Raises InputError for files that are not there, with their near twins.

    A picture may have any suffix that pictures have, in small or in capital letters.
    """
    images = _files_by_stem(images_dir, IMAGE_SUFFIXES)
    labels = _files_by_stem(labels_dir, (label_suffix,))
    _refuse_missing("images", listed, images, images_dir, ".jpg")
    _refuse_missing("masks", listed, labels, labels_dir, label_suffix)
    return {name: Pair(images[name], labels[name]) for name in listed}


def _refuse_missing(kind: str, listed: dict[str, str], files: dict[str, Path], folder: Path, suffix: str) -> None:
    missing = sorted(listed.keys() - files.keys())
    if missing:
        raise InputError(
            f"{len(missing)} of {len(listed)} listed {kind} are not in {folder}: "
            f"{_first([f'{name}{suffix}' for name in missing])} ({listed[missing[0]]}"
            f"{_near_twin(missing[0], folder)}); unpack the archive again, or fix the list"
        )


def _files_by_stem(folder: Path, suffixes: tuple[str, ...]) -> dict[str, Path]:
    """The files of a folder that have one of the suffixes, by name without it; of several the first suffix counts."""
    found = [path for path in sorted(folder.iterdir()) if path.suffix.lower() in suffixes]
    usual = [".jpg", *suffixes]
    found.sort(key=lambda path: (usual.index(path.suffix.lower()), path.suffix != path.suffix.lower()), reverse=True)
    return {path.stem: path for path in found}


def _near_twin(name: str, folder: Path) -> str:
    """A file that may be meant by a name that has none, in words."""

    def plain(text: str) -> str:
        return "".join(filter(str.isalnum, text.casefold()))

    for path in sorted(folder.iterdir()):
        if plain(path.stem) == plain(name) or path.stem.startswith(name) or name.startswith(path.stem):
            return f"; there is {path.name}"
    return ""


def _entries(folder: Path, pattern: str = "*") -> str:
    return _first(sorted(path.name for path in folder.glob(pattern))) or "nothing"


def _first(names: Sequence, count: int = 3) -> str:
    return ", ".join(str(name) for name in names[:count]) + (", ..." if len(names) > count else "")
