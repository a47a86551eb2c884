"""What is in a data set, and what is wrong with it: every pair of files is read whole, and none ends the search."""

import os
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from hashlib import blake2b
from pathlib import Path
from typing import NamedTuple

import numpy as np

from common import IGNORE_INDEX
from common.data.cache import CachedReader
from common.data.decode import check_sizes, read_image
from common.data.labels import THRESHOLD, LabelKind, MaskFiles, class_counts
from common.data.pairs import CHECKING_THREADS, PairReader
from common.data.pictures import LabelledPictures
from common.errors import InputError
from common.terminal import progress

SOFT_SHARE = 0.01  # of the pixels of a mask that are neither black nor white, from which on it is said
FEW_CLASSES_SHARE = 0.5  # of the labels that hold one class alone, from which on it is said


class Problem(NamedTuple):
    """What is wrong with some files, and what can be done about it."""

    files: tuple[str, ...]
    reason: str
    remedy: str
    serious: bool  # a training refuses these files, or what it learns of them or scores is not what was meant


class Look(NamedTuple):
    """What was seen of one pair of files."""

    image: Path
    label: Path
    size: tuple[int, int] | None = None  # height, width of the picture
    fingerprint: str = ""  # of its pixels
    counts: np.ndarray | None = None  # [256] pixels of the label by class id, IGNORE_INDEX for what does not count
    soft_share: float = 0.0  # of the pixels of a mask that are neither 0 nor 255
    note: str = ""  # of the reader of labels
    errors: tuple[tuple[Path, str], ...] = ()  # (file, what is wrong with it: reason; remedy)


class Survey(NamedTuple):
    """What was seen of one split."""

    looks: tuple[Look, ...]
    class_names: tuple[str, ...]
    official_counts: tuple[int, ...] = ()  # of pictures of this split in the published data set
    note: str = ""  # what else lies in the folder and is left out

    @property
    def counts(self) -> np.ndarray:
        """[256] pixels of all labels that could be read, by class id."""
        return sum((look.counts for look in self.looks if look.counts is not None), np.zeros(256, np.int64))

    def summary(self) -> dict:
        """For people and for programs: pictures, sizes, classes with their share of the labelled pixels, notes."""
        counts = self.counts
        labelled = max(1, int(counts[:IGNORE_INDEX].sum()))
        sizes = Counter(f"{look.size[1]}x{look.size[0]}" for look in self.looks if look.size)
        return {
            "pictures": len(self.looks),
            "official_pictures": list(self.official_counts),
            "sizes": dict(sizes.most_common()),
            "ignored_share": float(counts[IGNORE_INDEX] / max(1, int(counts.sum()))),
            "classes": [
                {
                    "id": number,
                    "name": name,
                    "share": float(counts[number] / labelled),
                    "pictures": sum(bool(look.counts is not None and look.counts[number]) for look in self.looks),
                }
                for number, name in enumerate(self.class_names)
            ],
            "notes": [note for note in (self.note, *_counted([look.note for look in self.looks if look.note])) if note],
        }


def survey(dataset: LabelledPictures, split: str) -> Survey:
    """Read every pair of a data set whole; nothing is raised for what is wrong with one."""
    read = dataset.read.read if isinstance(dataset.read, CachedReader) else dataset.read
    with ThreadPoolExecutor(min(CHECKING_THREADS, os.cpu_count() or 1)) as pool:  # decoders free the interpreter's lock
        looks = pool.map(lambda pair: look_at(pair, read), dataset.pairs)
        looks = tuple(progress(looks, f"reading {split}", len(dataset.pairs), "pair"))
    info = dataset.info
    return Survey(looks, tuple(info.class_names), tuple(info.official_counts.get(split, ())), dataset.note)


def look_at(pair: Sequence[Path], read: PairReader) -> Look:
    """What is in a picture and its label, each read for itself."""
    image_file, label_file = map(Path, pair)
    look, errors, shapes = Look(image_file, label_file), [], []
    try:
        image = read_image(image_file, exif=read.exif)
        shapes.append(image.shape[:2])
        digest = blake2b(repr(image.shape).encode(), digest_size=16)
        digest.update(np.ascontiguousarray(image))
        look = look._replace(size=image.shape[:2], fingerprint=digest.hexdigest())
    except InputError as error:
        errors.append((image_file, str(error)))
    try:
        kind = read.kind_of(label_file)
        values, note = kind.read(label_file, read.exif)
        shapes.append(values.shape)
        look = look._replace(counts=class_counts(kind, values), soft_share=_soft_share(kind, values), note=note)
        if len(shapes) == 2:
            check_sizes(image_file, label_file, *shapes)
    except InputError as error:
        errors.append((label_file, str(error)))
    return look._replace(errors=tuple(errors))


def _soft_share(kind: LabelKind, values: np.ndarray) -> float:
    if not isinstance(kind, MaskFiles) or not values.size:
        return 0.0
    return float(((values > 0) & (values < 255) & (values != THRESHOLD + 1)).mean())


# ---- what is wrong


def problems_of(surveys: Mapping[str, Survey]) -> list[Problem]:
    """Those of all splits, the serious ones first; what is wrong with a file of two splits comes once."""
    found = [problem for split, each in surveys.items() for problem in _problems_of_split(split, each)]
    found += _classes_never_trained(surveys)
    found += _duplicates(surveys)
    return sorted(dict.fromkeys(found), key=lambda problem: not problem.serious)


def split_message(message: str) -> tuple[str, str]:
    """(reason, remedy) of the one line of an InputError, which says what to do behind its last semicolon."""
    reason, _, remedy = message.rpartition("; ")
    return (reason, remedy) if reason else (remedy, "mend the file, or leave it out")


def _problems_of_split(split: str, survey: Survey) -> Iterator[Problem]:
    for look in survey.looks:
        for path, message in look.errors:
            yield Problem((str(path),), *split_message(message), serious=True)
    readable = [look for look in survey.looks if look.counts is not None]
    void, one_class, soft, as_two = [], [], [], []
    for look in readable:
        present = set(np.flatnonzero(look.counts).tolist())
        if not present - {IGNORE_INDEX}:
            void.append(look)
        elif present == {0, IGNORE_INDEX}:
            as_two.append(look)
        elif len(present - {IGNORE_INDEX}) == 1:
            one_class.append(look)
        if look.soft_share > SOFT_SHARE:
            soft.append(look)
    total, name = len(readable), survey.class_names[0]
    if void:
        yield Problem(
            _labels(void),
            f"{len(void)} of {total} labels of {split} hold ignored pixels alone",
            "leave them out",
            len(void) == total,
        )
    if as_two:
        every = len(as_two) == total
        yield Problem(
            _labels(as_two),
            f"{len(as_two)} of {total} labels of {split} hold {name} (0) and ignored pixels ({IGNORE_INDEX}) alone, as "
            f"masks of 0 and 255 do when they are read as class ids",
            "write the id of the class where they are 255, if it is meant to be learned",
            every,
        )
    if one_class and len(one_class) >= FEW_CLASSES_SHARE * total:
        yield Problem(
            _labels(one_class),
            f"{len(one_class)} of {total} labels of {split} hold a single class ({_names_of(one_class, survey)})",
            "look at some of them: colours or values may have been lost",
            False,
        )
    if soft:
        yield Problem(
            _labels(soft),
            f"{len(soft)} of {total} masks of {split} have greys beside 0 and 255: they may have been resized or "
            "compressed with loss",
            f"give the original masks; what is above {THRESHOLD} is taken for foreground",
            False,
        )
    labelled = survey.counts[:IGNORE_INDEX].sum()
    if total and labelled and survey.counts[: len(survey.class_names)].max() == labelled:
        yield Problem(
            (), f"all labelled pixels of {split} are of one class ({_names_of(readable, survey)}): nothing can be "
            "learned or scored", "give labels of the data set's classes", True,
        )  # fmt: skip


def _classes_never_trained(surveys: Mapping[str, Survey]) -> Iterator[Problem]:
    """Classes that a scored split has and the training split has not: their IoU can only be 0."""
    if "train" not in surveys:
        return
    trained = surveys["train"].counts
    for split, scored in surveys.items():
        names = [
            name for number, name in enumerate(scored.class_names) if scored.counts[number] and not trained[number]
        ]
        if split != "train" and names and trained.any():
            yield Problem(
                (), f"{split} has classes that no label of train has: {', '.join(names)}; their IoU can only be 0",
                "add training pictures of them, or look whether the splits are of one data set", False,
            )  # fmt: skip


def _duplicates(surveys: Mapping[str, Survey]) -> Iterator[Problem]:
    """The same pixels twice: between splits a score is not that of unseen pictures, within one they count twice."""
    seen: dict[str, list[tuple[str, Path]]] = {}
    for split, each in surveys.items():
        for look in each.looks:
            if look.fingerprint:
                seen.setdefault(look.fingerprint, []).append((split, look.image))
    across = [found for found in seen.values() if len({split for split, _ in found}) > 1]
    within = [found for found in seen.values() if len(found) > 1 and len({split for split, _ in found}) == 1]
    if across:
        yield Problem(
            _once(across),
            f"pictures that are in more than one split: {len(across)}; a score on them is not that of unseen pictures",
            "take them out of the training split", True,
        )  # fmt: skip
    if within:
        yield Problem(
            _once(within),
            f"pictures that are there several times in one split: {len(within)}",
            "leave all but one of each out", False,
        )  # fmt: skip


def _once(groups: Sequence[Sequence[tuple[str, Path]]]) -> tuple[str, ...]:
    """The files of all groups, each once."""
    return tuple(dict.fromkeys(str(path) for group in groups for _, path in group))


def _labels(looks: Sequence[Look]) -> tuple[str, ...]:
    return tuple(str(look.label) for look in looks)


def _names_of(looks: Sequence[Look], survey: Survey) -> str:
    """The classes of these labels: 'background'."""
    counts = sum(look.counts for look in looks)
    return ", ".join(name for number, name in enumerate(survey.class_names) if counts[number])


def _counted(notes: Sequence[str]) -> list[str]:
    """The first note, and how many there are like it."""
    if len(notes) < 2:
        return list(notes)
    return [f"{notes[0]} (and so for {len(notes) - 1} other label files)"]
