"""One's own pictures and masks: which folders and files they are in, and which are for training.

images/ and masks/ with files of the same names, as they are or in train/ and val/, with lists of names or without; the
folders of annotation tools are found by the names that these tools give them.
"""

from collections.abc import Sequence
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

from common.data.decode import IMAGE_SUFFIXES
from common.errors import InputError

VOC_IMAGES = "JPEGImages"
IMAGE_FOLDERS = ("images", "imgs", "img", VOC_IMAGES)
# of several the first: of PASCAL VOC the masks of all pictures, of labelme2voc those that are no arrays, of Supervisely
# those of class ids rather than of colours to look at
MASK_FOLDERS = (
    "masks", "SegmentationClassAug", "SegmentationClassPNG", "SegmentationClass", "masks_machine", "labels",
    "annotations",
)  # fmt: skip
SPLITS = {"train": ("train", "training"), "val": ("val", "valid", "validation")}
LISTS = (Path(), Path("ImageSets", "Segmentation"))  # where lists of names are, below the folder
MASK_ENDINGS = ("_mask", "_gt", "_segmentation", "_labelIds")  # of a mask's name, before its suffix
MASK_SUFFIXES = (".png", ".bmp", ".gif", ".tif", ".tiff")
VALIDATION_SHARE = 0.2  # of pictures that nobody has split
NEEDED = (
    "--data_path must name a folder that holds images/ and masks/ with files of the same names, or train/ and val/ "
    "that hold these"
)


class Pair(NamedTuple):
    """A picture and its mask."""

    image: Path
    mask: Path


class OwnFiles(NamedTuple):
    """The pairs for training and for validation, sorted by name, and the folders in which classes may be listed."""

    train: list[Pair]
    val: list[Pair]
    folders: list[Path]
    note: str  # how they were split


def find_files(root: str | Path) -> OwnFiles:
    """The pairs of a folder. Raises InputError when there are none, and when pictures and masks do not fit together."""
    root = Path(root)
    if not root.is_dir():
        raise InputError(f"{root} is a file; {NEEDED}" if root.is_file() else f"no folder {root}; {NEEDED}")
    parts = {split: found for split, names in SPLITS.items() if (found := _part(root, names))}
    if "train" in parts:
        if "val" in parts:
            return OwnFiles(parts["train"], parts["val"], [root, *_subfolders(root)], "train/ and val/ as they are")
        return _drawn(parts["train"], root)
    pairs = _pairs_in(root) or [pair for folder in _subfolders(root) for pair in _pairs_in(folder)]
    if not pairs:
        there = _first(sorted(path.name for path in root.iterdir())) or "nothing"
        alone = any(_folder_of(folder, MASK_FOLDERS) for folder in (root, *_subfolders(root)))
        hint = "masks alone are no data: export them with their pictures; " if alone else ""
        raise InputError(f"no pictures with masks in {root} (it holds {there}); {hint}{NEEDED}")
    found = _listed(pairs, root) or _drawn(pairs, root)
    return found._replace(note=found.note + _unlabelled(pairs))


def _unlabelled(pairs: list[Pair]) -> str:
    """How many pictures of PASCAL VOC's folder have no mask, for people; '' where all have one."""
    folders = {pair.image.parent for pair in pairs if pair.image.parent.name == VOC_IMAGES}
    count = sum(len(_files(folder, IMAGE_SUFFIXES)) for folder in folders)
    count -= sum(pair.image.parent in folders for pair in pairs)
    return f"; {count} pictures of {VOC_IMAGES} without a mask are left out" if count else ""


def _part(root: Path, names: tuple[str, ...]) -> list[Pair]:
    """The pairs of a split that has folders of its own: NAME/images or images/NAME."""
    images, masks = (_folder_of(root, folders) for folders in (IMAGE_FOLDERS, MASK_FOLDERS))
    for name in names:
        if (folder := _folder_of(root, (name,))) and (pairs := _pairs_in(folder)):
            return pairs
        if images and masks:
            parts = [_folder_of(folder, (name,)) for folder in (images, masks)]
            if all(parts):
                return match(*parts)
    return []


def _pairs_in(folder: Path) -> list[Pair]:
    """The pairs of a folder that holds two folders, or both kinds of files side by side."""
    images, masks = _folder_of(folder, IMAGE_FOLDERS), _folder_of(folder, MASK_FOLDERS)
    if images and masks:
        return match(images, masks)
    if any(_is_mask_beside_picture(path) for path in _files(folder, MASK_SUFFIXES)):
        return match(folder, folder)
    return []


def _folder_of(folder: Path, names: tuple[str, ...]) -> Path | None:
    """The first of these names that the folder holds a folder of, in capitals or small letters; None without any."""
    there = {path.name.casefold(): path for path in _subfolders(folder)}
    return next((there[name.casefold()] for name in names if name.casefold() in there), None)


def _subfolders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def match(images_dir: Path, masks_dir: Path) -> list[Pair]:
    """Each picture with the mask of its name, sorted by name.

    A mask may have one of the usual endings, or the picture's whole name before its own suffix (a.jpg.png). PASCAL
    VOC's folder of pictures, and that of tools which follow it, also holds pictures without a mask: they are left out.
    Raises InputError for pictures without a mask in other folders, masks without a picture, and two that could be
    meant, with their names.
    """
    beside = images_dir == masks_dir
    images: dict[str, Path] = {}
    for path in _files(images_dir, IMAGE_SUFFIXES):
        if beside and _is_mask_beside_picture(path):
            continue
        if path.stem in images:
            raise InputError(f"{images[path.stem]} and {path.name} have the same name; remove one of them")
        images[path.stem] = path
    masks: dict[str, Path] = {}
    for path in _files(masks_dir, MASK_SUFFIXES):
        if beside and not _is_mask_beside_picture(path):
            continue
        name = _picture_name(path.stem, images)
        if name in masks:
            raise InputError(f"{masks[name]} and {path.name} could both be the mask of {name}; remove one of them")
        masks[name] = path
    if not masks and (others := _files(masks_dir, IMAGE_SUFFIXES)) and not beside:
        raise InputError(
            f"the masks of {masks_dir} have to be of a kind that keeps each value ({', '.join(MASK_SUFFIXES)}), and "
            f"{others[0].name} is not; give the original masks, as PNG"
        )
    if images_dir.name == VOC_IMAGES:
        images = {name: path for name, path in images.items() if name in masks}
    _refuse(images, masks, f"pictures of {images_dir} have no mask in {masks_dir}", masks_dir)
    _refuse(masks, images, f"masks of {masks_dir} have no picture in {images_dir}", images_dir)
    return [Pair(images[name], masks[name]) for name in sorted(images)]


def _files(folder: Path, suffixes: tuple[str, ...]) -> list[Path]:
    files = sorted(path for path in folder.iterdir() if path.is_file() and not path.name.startswith("."))
    return [path for path in files if path.suffix.lower() in suffixes]


def _is_mask_beside_picture(path: Path) -> bool:
    return path.stem.endswith(MASK_ENDINGS)


def _picture_name(stem: str, images: dict[str, Path]) -> str:
    """The name of the picture that a mask of this name belongs to, or the name itself where there is none."""
    if stem in images:
        return stem
    for ending in ("", *MASK_ENDINGS):
        if stem.endswith(ending):
            name = stem.removesuffix(ending)
            if name in images:
                return name
            before, _, suffix = name.rpartition(".")
            if before in images and f".{suffix.lower()}" in IMAGE_SUFFIXES:
                return before
    return stem


def _refuse(these: dict[str, Path], those: dict[str, Path], problem: str, folder: Path) -> None:
    alone = sorted(set(these) - set(those))
    if alone:
        there = _first(sorted(path.name for path in folder.iterdir() if not path.name.startswith("."))) or "nothing"
        raise InputError(
            f"{len(alone)} of {len(these)} {problem}: {_first([these[name].name for name in alone])} (there are "
            f"{there}); add the missing files, or remove these"
        )


# ---- which are for training


def _listed(pairs: list[Pair], root: Path) -> OwnFiles | None:
    """The split that two lists of names say: train.txt and val.txt; None where they are not there."""
    for folder in LISTS:
        lists = {path.stem.lower(): path for path in sorted((root / folder).glob("*.txt"))}
        paths = [next((lists[name] for name in names if name in lists), None) for names in SPLITS.values()]
        if all(paths):
            by_name = {pair.image.stem: pair for pair in pairs}
            train, val = (_read_list(path, by_name) for path in paths)
            if both := [pair.image.name for pair in train if pair in set(val)]:
                raise InputError(
                    f"{paths[0]} and {paths[1]} both name {_first(both)}; scores of pictures that were trained on "
                    "mean nothing: take these out of one list"
                )
            return OwnFiles(train, val, [root, *_subfolders(root)], f"split by {paths[0].name} and {paths[1].name}")
    return None


def _read_list(path: Path, by_name: dict[str, Pair]) -> list[Pair]:
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path} ({error}); it should name a picture in each line") from error
    found = {}
    for number, line in enumerate(lines, start=1):
        name = name_in_list(line)
        if not name:
            continue
        if name not in by_name:
            near = next((other for other in sorted(by_name) if other.casefold() == name.casefold()), None)
            hint = f"there is {near}; " if near else ""
            raise InputError(f"{path}, line {number}: no picture {name}; {hint}add it, or fix the list")
        found[name] = by_name[name]
    if not found:
        raise InputError(f"{path} is empty; it should name a picture in each line")
    return [found[name] for name in sorted(found)]


def name_in_list(line: str) -> str:
    """The name of a picture that a line of a list gives, which may be a path or have a suffix; '' in an empty line."""
    name = Path(line.strip()).name
    return name.rpartition(".")[0] if name.lower().endswith(IMAGE_SUFFIXES) else name


def _drawn(pairs: list[Pair], root: Path) -> OwnFiles:
    """A fifth of the pictures for validation, by a hash of the name.

    So a picture stays where it is when others come, and whatever --seed a run has.
    """
    if len(pairs) < 2:
        raise InputError(f"{len(pairs)} picture in {root}; one to train on and one to validate on are needed: add more")
    order = sorted(pairs, key=lambda pair: blake2b(pair.image.stem.encode(), digest_size=8).digest())
    count = max(1, round(VALIDATION_SHARE * len(pairs)))
    val = set(order[:count])
    train = [pair for pair in pairs if pair not in val]
    note = f"{len(train)} pictures for training and {count} for validation, split by a hash of their names"
    return OwnFiles(train, [pair for pair in pairs if pair in val], [root, *_subfolders(root)], note)


def _first(names: Sequence[str], count: int = 3) -> str:
    return ", ".join(names[:count]) + (", ..." if len(names) > count else "")
