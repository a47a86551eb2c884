"""One's own data (--dataset folder) as data sets: its pairs, and its classes instead of published ones."""

import os
from argparse import Namespace
from collections.abc import Callable, Sequence, Sized
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

from common.data.cache import cached
from common.data.classes import CLASSES_FILE, Classes, classes_of_masks, find_classes
from common.data.crops import WholePictures
from common.data.fitting import fit
from common.data.labels import Colour, LabelTable, shown_values
from common.data.own_files import OwnFiles, Pair, find_files
from common.data.pairs import PairReader
from common.data.pictures import DatasetInfo, Datasets, LabelledPictures, Source
from common.device.world import World
from common.errors import InputError
from common.scores.metrics import BinaryScores
from common.terminal import progress

FOLDER = "folder"  # of --dataset

Augmenting = Callable[[Namespace], Callable[[Source], LabelledPictures]]  # how training pictures are, by the flags


class ReaderOf(NamedTuple):
    """All label files of one's own data are read alike; a class, as loader workers take it along."""

    table: LabelTable
    classes: Classes

    def __call__(self, path: Path) -> LabelTable:
        return self.table


class OwnData(NamedTuple):
    """What a folder holds: pairs, classes and, for people, how they were found."""

    files: OwnFiles
    classes: Classes
    note: str


def find_own(root: str | Path) -> OwnData:
    """The pairs and the classes of a folder: see `find_files`, `find_classes` and, without a list, `classes_of_masks`.

    Raises InputError for a folder that does not fit.
    """
    files = find_files(root)
    found = find_classes(files.folders)
    classes, said_by = found if found else (_scanned([*files.train, *files.val], root), "the masks")
    shown = ", ".join(classes.names[:6]) + (", ..." if len(classes.names) > 6 else "")
    return OwnData(files, classes, f"{len(classes.names)} classes from {said_by}: {shown}; {files.note}")


def _scanned(pairs: Sequence[Pair], root: str | Path) -> Classes:
    """The classes that the masks show; one that cannot be read is refused, or left out, by whoever reads the data."""

    def look(pair: Pair) -> tuple[set[int], set[Colour]] | InputError:
        try:
            return shown_values(pair.mask)
        except InputError as error:
            return error

    with ThreadPoolExecutor(max_workers=min(32, os.cpu_count() or 1)) as pool:
        seen = list(progress(pool.map(look, pairs), "looking for classes", len(pairs), "mask"))
    readable = [found for found in seen if not isinstance(found, InputError)]
    if not readable:
        raise seen[0]
    values, colours = (set().union(*parts) for parts in zip(*readable, strict=True))
    return classes_of_masks(values, colours, f"{root}, which has no {CLASSES_FILE},")


def binary_scores(info: DatasetInfo, dataset: Sized, world: World) -> BinaryScores:
    """What masks of two classes are counted in."""
    return BinaryScores(2, device=world.device, class_names=info.class_names)


def own_info(classes: Classes) -> DatasetInfo:
    """What a network and its scores must know; of two classes, the second is the foreground."""
    new_metric = binary_scores if len(classes.names) == 2 else None
    return DatasetInfo(classes.names, classes.palette, new_metric=new_metric)


def own_sources(args: Namespace, info_of: Callable[[Classes], DatasetInfo] = own_info) -> tuple[Source, Source]:
    """(training, validation) of the folder --data_path, with `args` made to fit them: see `fit`."""
    for flag, usual in (("train_split", ("train",)), ("eval_split", ("val", "valid"))):
        if (given := getattr(args, flag, usual[0])) not in usual:
            raise InputError(f"--{flag} {given} is for the published data sets; leave it out for --dataset {FOLDER}")
    data = find_own(args.data_path)
    chosen = fit(args, data.files.train)
    note = data.note + (f"; chosen: {chosen}" if chosen else "")
    if not args.evaluate and not args.load_from and getattr(args, "pretrained", "") == "none":
        note += (
            "; training starts from random weights: with few pictures better from --pretrained FILE (ImageNet), or "
            "from --load_from FILE --new_head (another network)"
        )
    read = PairReader(ReaderOf(data.classes.table(), data.classes), args.exif)
    read, info = cached(args, read, f"{FOLDER} {data.classes!r}"), info_of(data.classes)
    # said once, by the set that is there
    return (
        Source(data.files.train, read, info, note, "train"),
        Source(data.files.val, read, info, note if args.evaluate else "", "val"),
    )


def own_datasets(args: Namespace, augmenting: Augmenting) -> Datasets:
    """The splits that a run uses, for networks that train on crops and are scored on whole pictures.

    Raises InputError for a folder that does not fit.
    """
    train, val = own_sources(args)
    train_set = None if args.evaluate else augmenting(args)(train)
    return Datasets(train_set, WholePictures(val) if args.evaluate or args.validate else None)
