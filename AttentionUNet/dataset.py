"""Split the pictures of ISIC 2018, task 1, with their masks into train, valid and test: copies, drawn from a seed."""

import argparse
import json
import os
import shutil
import sys
from collections.abc import Callable
from contextlib import suppress
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import NamedTuple

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from AttentionUNet.isic import MASK_ENDING, Pair, first, is_picture, match
from common.args import FLAGS, Parser
from common.errors import InputError
from common.terminal import progress

SPLITS = ("train", "valid", "test")
HERE = Path(__file__).resolve().parent
# flag -> what the folder holds, and where the original README has it: beside this file, as the archives unpack it
ORIGINS = {
    "origin_data_path": ("pictures", HERE / "ISIC" / "dataset" / "ISIC2018_Task1-2_Training_Input"),
    "origin_GT_path": ("masks", HERE / "ISIC" / "dataset" / "ISIC2018_Task1_Training_GroundTruth"),
}
LISTS = "split.json"  # beside the folder train: which pictures are in which split, and how that was drawn


class Target(NamedTuple):
    """Where the pictures and the masks of a split go."""

    images: Path
    masks: Path


def parse(argv: list[str] | None = None):
    """The flags of the original README, and --seed and --overwrite."""
    default, parser = HERE / "dataset", Parser(description=__doc__)
    for flag, (what, folder) in ORIGINS.items():
        parser.add_argument(f"--{flag}", default=folder, help=f"folder of the {what}; default: {folder}")
    for split in SPLITS:
        for flag, folder in ((f"--{split}_path", split), (f"--{split}_GT_path", f"{split}_GT")):
            parser.add_argument(flag, default=default / folder, type=Path, help=f"default: {default / folder}")
    for split, ratio in zip(SPLITS, ("0.7", "0.1", "0.2"), strict=True):
        parser.add_argument(
            f"--{split}_ratio", type=_ratio, default=ratio, help=f"share of the pictures; default: {ratio}"
        )
    parser.add_argument(
        "--seed", type=FLAGS["devices"]["seed"][0], default=12345, help="seed of the shuffling; default: 12345"
    )
    parser.add_argument(
        "--overwrite", action="store_true", help="replace an earlier split; files of other names are never touched"
    )
    return parser.parse_args(argv)


def _ratio(text: str) -> Fraction:
    """Exactly what is written: 0.7 / (0.7 + 0.1 + 0.2) of floating-point numbers is not 0.7."""
    try:
        ratio = Fraction(text)
    except (ValueError, ZeroDivisionError):
        ratio = Fraction(-1)
    if ratio < 0:
        raise argparse.ArgumentTypeError(f"'{text}' is not a number of at least 0")
    return ratio


def main(args) -> dict[str, list[str]]:
    """Draw the splits and copy their files; returns the names in each split."""
    for flag, (what, _) in ORIGINS.items():
        if not Path(getattr(args, flag)).is_dir():
            raise InputError(f"no folder {getattr(args, flag)}; unpack the {what} of ISIC 2018 there, or name --{flag}")
    pairs = match(Path(args.origin_data_path), Path(args.origin_GT_path))
    targets = {split: Target(getattr(args, f"{split}_path"), getattr(args, f"{split}_GT_path")) for split in SPLITS}
    lists = targets["train"].images.parent / LISTS
    check_folders([Path(args.origin_data_path), Path(args.origin_GT_path), *_folders(targets)])
    ratios = [getattr(args, f"{split}_ratio") for split in SPLITS]
    splits = dict(zip(SPLITS, draw_splits(pairs, ratios, args.seed), strict=True))

    old = earlier_files(targets, pairs, lists)
    if (old or lists.exists()) and not args.overwrite:
        there = old or [lists]
        raise InputError(
            f"{there[0].parent} is not empty ({first([path.name for path in there])}); "
            "name other folders, or replace the split in these with --overwrite"
        )
    copies = {
        source: folder / source.name
        for split, target in targets.items()
        for pair in splits[split]
        for source, folder in zip(pair, target, strict=True)
    }
    gone = set(old) - set(copies.values())
    for path in gone:
        remove(path)
    for source, copy in progress(copies.items(), "copying", len(copies), "file"):
        write_atomically(copy, partial(shutil.copyfile, source))
    for folder in {path.parent for path in gone}:
        with suppress(OSError):  # there are files in it
            folder.rmdir()  # empty, it would be taken for a split that lacks its pictures
    names = {split: [pair.image.stem for pair in splits[split]] for split in SPLITS}
    content = {"seed": args.seed, "ratios": [str(ratio) for ratio in ratios], **names}
    text = json.dumps(content, indent=1) + "\n"
    write_atomically(lists, lambda path: path.write_text(text, encoding="utf-8"))
    for split, target in targets.items():
        print(f"{split}: {len(names[split])} pictures in {target.images}, masks in {target.masks}")
    print(f"the lists are in {lists}")
    return names


def draw_splits(pairs: list[Pair], ratios: list[Fraction], seed: int) -> list[list[Pair]]:
    """Shuffle the pairs, which are sorted, and deal them out; the last split of a ratio takes what rounding leaves."""
    if not sum(ratios):
        raise InputError("--train_ratio, --valid_ratio and --test_ratio are all 0; give shares such as 0.7, 0.1, 0.2")
    order = np.random.Generator(np.random.PCG64(seed)).permutation(len(pairs))
    counts = [int(ratio / sum(ratios) * len(pairs)) for ratio in ratios]
    counts[max(index for index, ratio in enumerate(ratios) if ratio)] += len(pairs) - sum(counts)
    train, valid, _ = counts
    parts = order[:train], order[train : train + valid], order[train + valid :]
    if not train or not valid:
        raise InputError(
            f"{len(pairs)} pictures give {train} for training and {valid} for validation; "
            "raise --train_ratio or --valid_ratio, or add pictures"
        )
    return [[pairs[index] for index in sorted(part)] for part in parts]


def check_folders(folders: list[Path]) -> None:
    """Raise InputError when two of the origin and target folders are one, or a target is a file."""
    known: dict[Path, Path] = {}
    for folder in folders:
        if folder.exists() and not folder.is_dir():
            raise InputError(f"{folder} is a file; name a folder")
        if folder.resolve() in known:
            raise InputError(f"{folder} is named twice; pictures and masks of each split need folders of their own")
        known[folder.resolve()] = folder


def earlier_files(targets: dict[str, Target], pairs: list[Pair], lists: Path) -> list[Path]:
    """The files of an earlier split in the target folders: named as the origin's are, or in the lists of that split.

    Raises InputError for other pictures and masks there: they would become part of the data set, and are not ours to
    remove.
    """
    own = {pair.image.stem for pair in pairs}
    if lists.exists():
        try:
            earlier = json.loads(lists.read_text(encoding="utf-8"))
            own |= {name for split in SPLITS for name in earlier[split]}
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise InputError(f"{lists} is not of an earlier split; remove it, or name other folders") from error
    found = []
    for folder in _folders(targets):
        for path in sorted(folder.iterdir()) if folder.is_dir() else []:
            is_file = is_picture(path)
            if is_file and path.stem.removesuffix(MASK_ENDING) not in own:
                raise InputError(f"{path} is not of this split, and is not touched; remove it, or name other folders")
            found += [path] if is_file else []
    return found


def _folders(targets: dict[str, Target]) -> list[Path]:
    return [folder for target in targets.values() for folder in target]


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Call `write` with another name beside `path` first: under its own a file is always whole."""
    temporary = path.with_name(f".{path.name}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write(temporary)
        os.replace(temporary, path)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink()
        raise InputError(f"cannot write {path} ({error}); free some space, or name other folders") from error


def remove(path: Path) -> None:
    try:
        path.unlink()
    except OSError as error:
        raise InputError(f"cannot remove {path} ({error}); remove it, or name other folders") from error


if __name__ == "__main__":
    try:
        main(parse())
    except InputError as error:
        print(f"dataset.py: error: {error}", file=sys.stderr)
        sys.exit(2)
