"""A data set written anew beside itself: what can be mended is, what cannot be used is left out.

Pictures, and labels that are plain files of ids or masks, become links to the files of the data set; other labels are
written as PNG: ids in the indices of a palette of the published colours, masks as 0 and 255. The folder is laid out as
the data set is, so that it can be given for it, and it is there whole or not at all. The data set itself is not
touched.
"""

import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image

from common import IGNORE_INDEX
from common.data.classes import CLASSES_FILE, write_classes
from common.data.decode import check_sizes
from common.data.labels import LabelKind, LabelTable, MaskFiles, Stored, read_stored
from common.data.own import ReaderOf
from common.data.own_files import SPLITS, name_in_list
from common.data.pairs import PairReader
from common.data.pictures import Datasets
from common.data.survey import Look, Survey
from common.errors import InputError
from common.terminal import progress

EXCLUDED = "excluded.txt"  # split, picture and reason of each pair that is left out, with tabs between them
LIST_DEPTH = 4  # folders, at most, in which a list of names lies
ORIGIN = {"1": "grey", "L": "grey", "P": "palettes", "RGB": "colours", "RGBA": "colours"}  # of labels, by their mode


class LeftOut(NamedTuple):
    """A pair that the new folder does not have."""

    split: str
    image: Path
    reason: str


class Mended(NamedTuple):
    """What the new folder holds."""

    pictures: int
    rewritten: Counter[str]  # labels that were written anew, by what they were
    left_out: tuple[LeftOut, ...]

    def described(self, folder: Path) -> list[str]:
        """Lines for people."""
        kinds = ", ".join(f"{count:,} from {kind}" for kind, count in self.rewritten.most_common())
        lines = [
            f"written: {folder}, {self.pictures:,} pictures (links to the original files), "
            f"{self.rewritten.total():,} labels rewritten{f' ({kinds})' if kinds else ''}"
        ]
        if self.left_out:
            lines.append(f"left out: {len(self.left_out):,} pictures, which {folder / EXCLUDED} lists with the reason")
        return lines


def check_target(target: Path, root: Path) -> None:
    """Raise InputError unless a folder can be made there, beside the data set."""
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise InputError(f"--fix {target} already exists; name a folder that is new or empty")
    if target.resolve().is_relative_to(root.resolve()):
        raise InputError(f"--fix {target} lies in the data, {root}; name a folder beside it")
    there = next(folder for folder in target.absolute().parents if folder.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise InputError(f"--fix {target} cannot be made in {there}; name a folder in one that can be written to")
    if not root.is_dir():
        raise InputError(f"--fix writes beside a folder of data, and --data_path {root} is none; name yours")


def mend(datasets: Datasets, surveys: Mapping[str, Survey], root: Path, target: Path) -> Mended:
    """Write the data set that is in `root`, and that `surveys` tell of, to `target`.

    Raises InputError where nothing would be left of a split, and where the folder cannot be written.
    """
    bad = dict(_bad_pairs(surveys))
    if all(
        ("train", look.image) in bad for look in surveys["train"].looks
    ):  # meant to be: what is scored is trained on
        bad = {key: reason for split, each in surveys.items() for key, reason in _bad_pairs({split: each})}
    chosen: dict[str, list[Look]] = {}
    for split, each in surveys.items():
        chosen[split] = [look for look in each.looks if (split, look.image) not in bad]
        if not chosen[split]:
            reason = next(reason for (where, _), reason in bad.items() if where == split)
            raise _nothing_left(split, reason)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        try:
            mended = _write(datasets, chosen, bad, root, scratch)
            shutil.copymode(target.parent, scratch)  # mkdtemp gives 0700; others may read the data too
            os.replace(scratch, target)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    except OSError as error:
        raise InputError(f"--fix {target} cannot be written ({error.strerror}); name another folder") from error
    return mended


def _nothing_left(split: str, reason: str) -> InputError:
    return InputError(f"--fix: no picture of {split} would be left ({reason}); fix the data by hand")


def _bad_pairs(surveys: Mapping[str, Survey]) -> Iterator[tuple[tuple[str, Path], str]]:
    """((split, picture), reason) of each pair whose picture cannot be used, which is another one, or learns nothing."""
    order = [*(split for split in surveys if split != "train"), *(split for split in surveys if split == "train")]
    seen: dict[str, Path] = {}
    for split in order:  # what is scored stays, and training does without it
        for look in surveys[split].looks:
            reason = next((message for path, message in look.errors if path == look.image), "")
            if not reason and look.fingerprint in seen:
                reason = f"the same pixels as {seen[look.fingerprint]}"
            if not reason and look.counts is not None and not np.delete(look.counts, IGNORE_INDEX).any():
                reason = "its label holds ignored pixels alone"
            if reason:
                yield (split, look.image), reason
            elif look.fingerprint:
                seen[look.fingerprint] = look.image


def _write(datasets: Datasets, chosen: dict[str, list[Look]], bad: dict, root: Path, folder: Path) -> Mended:
    rewritten: Counter[str] = Counter()
    left_out = [LeftOut(split, image, reason) for (split, image), reason in bad.items()]
    kept: dict[str, list[Path]] = {split: [] for split in chosen}
    as_masks = _are_masks(datasets, chosen)
    for split, looks in chosen.items():
        read = getattr(datasets, split).read
        for look in progress(looks, f"writing {split}", len(looks), "pair"):
            try:
                origin = _write_label(read, look, folder / look.label.relative_to(root), as_masks)
            except InputError as error:
                left_out.append(LeftOut(split, look.image, str(error)))
                continue
            rewritten.update([origin] if origin else [])
            _link(look.image, folder / look.image.relative_to(root))
            kept[split].append(look.image)
        if not kept[split]:
            raise _nothing_left(split, left_out[-1].reason)
    gone = {split: {one.image.stem for one in left_out if one.split == split} for split in kept}
    _write_lists(root, folder, kept, gone)
    if isinstance(read.kind_of, ReaderOf):
        write_classes(folder / CLASSES_FILE, read.kind_of.classes)
    if left_out:
        lines = [f"{one.split}\t{one.image}\t{one.reason}\n" for one in left_out]
        (folder / EXCLUDED).write_text("".join(lines), encoding="utf-8", errors="surrogateescape")
    return Mended(sum(map(len, kept.values())), rewritten, tuple(left_out))


def _link(file: Path, link: Path) -> None:
    """A link to a file, or its copy where the file system has no links."""
    link.parent.mkdir(parents=True, exist_ok=True)
    if link.is_symlink() or link.exists():  # it is in two splits
        return
    try:
        link.symlink_to(os.path.abspath(file))
    except OSError:
        shutil.copyfile(file, link)


# ---- labels


def _are_masks(datasets: Datasets, chosen: dict[str, list[Look]]) -> bool:
    """Whether labels of two classes hold 0 and 255 alone, all of them: then 255 is meant to be the second class."""
    info = datasets.used[0].info
    present = np.zeros(256, bool)
    for look in (look for looks in chosen.values() for look in looks if look.counts is not None):
        present |= look.counts > 0
    kinds = {type(getattr(datasets, split).read.kind_of(looks[0].label)) for split, looks in chosen.items()}
    return (
        kinds == {LabelTable} and len(info.class_names) == 2 and np.flatnonzero(present).tolist() == [0, IGNORE_INDEX]
    )


def _write_label(read: PairReader, look: Look, target: Path, as_masks: bool) -> str:
    """A link to the label, or what it holds as a file of its own; then, what it was.

    Raises InputError for a label that cannot be mended.
    """
    kind, file = read.kind_of(look.label), look.label
    error = next((message for path, message in look.errors if path == file), "")
    if look.counts is not None and error:
        raise InputError(error)  # of another size than its picture
    if look.counts is not None and not as_masks and kind.reads_as_before(file):
        _link(file, target)
        return ""
    if look.counts is None:
        values, origin = _rescued(kind, file, read.exif, error)
        check_sizes(look.image, file, look.size, values.shape)
    else:
        values, origin = kind.read(file, read.exif).values, ORIGIN[read_stored(file, read.exif).mode]
    if as_masks:
        values, origin = np.where(values == IGNORE_INDEX, np.uint8(1), values), "masks of 0 and 255"
    target.parent.mkdir(parents=True, exist_ok=True)
    _as_stored(kind, values).save(target.with_suffix(".png"))
    return origin


def _as_stored(kind: LabelKind, values: np.ndarray) -> Image.Image:
    """The picture of train ids [H, W] in the values and colours of the label table; of a mask, as it is."""
    if not isinstance(kind, LabelTable):
        return Image.fromarray(values)
    value_of = np.zeros(256, np.uint8)  # by train id
    usual = sorted(kind.known, key=lambda value: (value != IGNORE_INDEX, value))  # 255, where it is ignored
    for value in reversed(usual):
        value_of[kind.train_ids[value]] = value
    image = Image.fromarray(value_of[values])
    if kind.colours:
        image.putpalette([part for value in range(256) for part in kind.colours.get(value, (0, 0, 0))])
    return image


def _rescued(kind: LabelKind, path: Path, exif: str | None, error: str) -> tuple[np.ndarray, str]:
    """(What a label that training refuses holds, what it was). Raises InputError, `error`, where that is not clear."""
    try:
        stored = read_stored(path, exif)
    except InputError:
        raise InputError(error) from None
    if isinstance(kind, MaskFiles) and (mask := _mask_of(stored)) is not None:
        return mask, ORIGIN[stored.mode]
    if isinstance(kind, LabelTable) and stored.mode in ("RGB", "RGBA") and not kind.by_colour:
        return kind.in_colours().read(path, exif).values, ORIGIN[stored.mode]
    raise InputError(error)


def _mask_of(stored: Stored) -> np.ndarray | None:
    """0 and 255 of a mask that says them in another way: black and one colour, or one colour and transparency."""
    if stored.mode not in ORIGIN:
        return None
    if stored.picture is None or stored.mode == "L":
        pixels = np.repeat(stored.values[..., None], 3, axis=2)
        alpha = None
    else:
        *colours, alpha = np.moveaxis(np.asarray(stored.picture.convert("RGBA")), -1, 0)
        pixels = np.stack(colours, axis=-1)
    found = {tuple(colour) for colour in np.unique(pixels.reshape(-1, 3), axis=0).tolist()}
    opaque = alpha is None or alpha.min() == 255
    if opaque and len(found) == 2 and (0, 0, 0) in found:
        return np.where(pixels.any(axis=2), np.uint8(255), np.uint8(0))
    if not opaque and len(found) == 1 and set(np.unique(alpha).tolist()) == {0, 255}:
        return np.array(alpha)
    return None


# ---- lists


def _write_lists(root: Path, folder: Path, kept: dict[str, list[Path]], gone: dict[str, set[str]]) -> None:
    """The lists of names of the data set, without those that are left out of their split, or everywhere."""
    stems = {split: {path.stem for path in paths} for split, paths in kept.items()}
    everywhere = set().union(*gone.values()) - set().union(*stems.values())
    known = set().union(*stems.values(), *gone.values())
    split_of = {name: split for split, names in SPLITS.items() for name in names}
    for path in [path for depth in range(LIST_DEPTH) for path in root.glob("*/" * depth + "*.txt")]:
        try:
            lines = path.read_text(encoding="utf-8-sig").splitlines()
        except (OSError, UnicodeDecodeError):
            continue
        if known.isdisjoint(map(name_in_list, lines)):  # a text of another kind
            continue
        without = gone.get(split_of.get(path.stem.lower(), ""), everywhere)
        target = folder / path.relative_to(root)
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text("".join(f"{line}\n" for line in lines if name_in_list(line) not in without), encoding="utf-8")
