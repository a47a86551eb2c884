"""Decoded pictures kept on disk (--cache DIR): read by region, shared by processes and runs.

Decoding is most of what a training sample costs. A cache file holds one picture and its label as bare bytes; it is
mapped into memory, so a crop touches only the pages of its rows, and the operating system keeps the pages of pictures
that were used lately, once for all processes. Files are written whole and then renamed: whoever finds one may use it.
"""

import contextlib
import errno
import json
import math
import mmap
import os
import shutil
import sys
import time
from argparse import Namespace
from collections.abc import Iterable, Sequence
from hashlib import blake2b
from pathlib import Path
from uuid import uuid4

import numpy as np

from common.data.pairs import RULES, PairReader
from common.errors import InputError

FORMAT = 1  # of the files; those of another are written anew
HEADER_BYTES = 4096  # a page: what follows begins at one
SUFFIX, UNFINISHED = ".pair", ".tmp"
SAMPLED_PAIRS = 16  # decoded to estimate the size of a cache
SPARE_BYTES = 1 << 30  # left free on the disk of a cache
STALE_SECONDS = 3600  # an unfinished file of this age has no writer any more


class CachedReader:
    """A reader of pairs that decodes each pair once, and from then on reads what it kept.

    contents: says what `read` gives, for caches of several readers in one folder. A file is taken as long as name, size
    and time of change of the two sources are those that it was made from, and the rules of reading those of now (or
    such that they give the same of these sources). Where the cache cannot be written any more, or would take of the
    disk what is left free for checkpoints and logs, pictures are decoded, with one warning.
    share: of the pictures that are kept, in (0, 1]; the same ones in every process and run, the others are decoded
    each time.
    """

    def __init__(self, folder: str | Path, read: PairReader, contents: str, share: float = 1.0):
        self.folder, self.read, self.contents, self.share = Path(folder), read, contents, share
        self._verified: set[Path] = set()  # by this process
        self._warned = False

    def __call__(self, pair: Sequence[Path]) -> tuple[np.ndarray, np.ndarray]:
        """The pair's image and label, of the cache or decoded and put there. The arrays must not be written to."""
        if not self.keeps(pair):
            return self.read(pair)
        path = self.path_of(pair)
        if (arrays := self._load(path, pair)) is not None:
            return arrays
        image, label = self.read(pair)
        try:
            self._store(path, pair, image, label)
        except OSError as error:
            if not self._warned:
                reason = error.strerror or error
                print(f"warning: --cache {self.folder} cannot take more ({reason}): decoding instead", file=sys.stderr)
            self._warned = True
        return image, label

    def keeps(self, pair: Sequence[Path]) -> bool:
        """Whether the pair belongs to the share that is kept: a matter of chance, by its names."""
        return self.share == 1 or int(self.path_of(pair).name[:8], 16) < self.share * 2**32

    def holds(self, pair: Sequence[Path]) -> bool:
        """Whether the pair is there as it is now."""
        return self._load(self.path_of(pair), pair) is not None

    def path_of(self, pair: Sequence[Path]) -> Path:
        """The cache file of a pair."""
        text = json.dumps([self.contents, *(os.path.abspath(path) for path in pair)])
        return self.folder / (blake2b(text.encode(), digest_size=16).hexdigest() + SUFFIX)

    def _load(self, path: Path, pair: Sequence[Path]) -> tuple[np.ndarray, np.ndarray] | None:
        try:
            with open(path, "rb") as file:
                header = json.loads(file.read(HEADER_BYTES))
                if header["format"] != FORMAT:
                    return None
                height, width = header["size"]
                if path not in self._verified:
                    if header["sources"] != _sources(pair) or os.fstat(file.fileno()).st_size != _bytes(height, width):
                        return None
                    if not self._rules_hold(header.get("rules", 1), pair):
                        return None
                    self._verified.add(path)
                # private: the arrays are writable, as torch wants them, and a change would never reach the file
                mapped = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        except (OSError, ValueError, KeyError, TypeError):  # not there, or not one of ours: it is written anew
            return None
        pixels = 3 * height * width
        image = np.frombuffer(mapped, np.uint8, pixels, HEADER_BYTES).reshape(height, width, 3)
        label = np.frombuffer(mapped, np.uint8, height * width, HEADER_BYTES + pixels).reshape(height, width)
        return image, label

    def _rules_hold(self, rules: int, pair: Sequence[Path]) -> bool:
        """Whether what was read by these rules is what is read today; files of version 1 say nothing of rules."""
        return rules == RULES or (rules == 1 and self.read.reads_as_before(pair))

    def _store(self, path: Path, pair: Sequence[Path], image: np.ndarray, label: np.ndarray) -> None:
        if shutil.disk_usage(self.folder).free < SPARE_BYTES + _bytes(*label.shape):
            raise OSError(errno.ENOSPC, f"the last {SPARE_BYTES / 1e9:.1f} GB of its disk are left free")
        header = {"format": FORMAT, "rules": RULES, "size": label.shape, "sources": _sources(pair)}
        scratch = path.with_name(f".{uuid4().hex}{UNFINISHED}")
        try:
            with open(scratch, "wb") as file:
                file.write(json.dumps(header).encode().ljust(HEADER_BYTES))
                file.write(np.ascontiguousarray(image))
                file.write(np.ascontiguousarray(label))
                file.flush()
                os.fsync(file.fileno())  # the name must not outlive a power cut that the bytes do not
            os.replace(scratch, path)
        except BaseException:
            scratch.unlink(missing_ok=True)
            raise


def _bytes(height: int, width: int) -> int:
    return HEADER_BYTES + 4 * height * width


def _sources(pair: Iterable[Path]) -> list[list]:
    """What tells a changed file from the one that was decoded; as JSON gives it back."""
    states = [(path, os.stat(path)) for path in pair]
    return [[os.path.basename(path), state.st_size, state.st_mtime_ns] for path, state in states]


def cached(args: Namespace, read: PairReader, contents: str) -> PairReader | CachedReader:
    """`read` itself, or over a cache where --cache names a folder. Raises InputError for a --cache_share of no use."""
    if not args.cache:
        return read
    if not 0 < args.cache_share <= 1:
        raise InputError(f"--cache_share {args.cache_share}: give a share of the pictures above 0, and 1 at most")
    contents = f"{contents}, exif {read.exif}" if read.exif else contents
    return CachedReader(args.cache, read, contents, args.cache_share)


def check_cache(folder: str | Path, datasets: Iterable) -> None:
    """Make the folder of a cache, if one is named, and print a line that says what is in it and what is to come.

    datasets: those of the run (None for one that it does not use); what has no `CachedReader` is not kept.
    Raises InputError when the folder cannot be made or, with pictures to come, not be written, and when the disk has no
    room for these. A cache that holds all pictures may be read-only.
    """
    if not folder:
        return
    folder, used = Path(folder), [each for each in datasets if each and isinstance(each.read, CachedReader)]
    kept = [[pair for pair in dataset.pairs if dataset.read.keeps(pair)] for dataset in used]
    absent = [[pair for pair in pairs if not d.read.holds(pair)] for pairs, d in zip(kept, used, strict=True)]
    missing = sum(map(len, absent))
    there = sum(map(len, kept)) - missing
    _check_folder(folder, to_write=missing > 0)
    _remove_unfinished(folder)
    needed = sum(_estimate(pairs, dataset.read) for pairs, dataset in zip(absent, used, strict=True))
    free = max(0, shutil.disk_usage(folder).free - SPARE_BYTES)
    if needed > free:
        share = math.floor(95 * used[0].read.share * free / needed) / 100  # with a margin: what is needed is estimated
        what_fits = f", keep a part of them with --cache_share {share:g}" if share else ""
        raise InputError(
            f"--cache {folder} needs about {needed / 1e9:.1f} GB more for {missing} pictures, and the disk has "
            f"{free / 1e9:.1f} GB to spare; free some, name a folder on another disk{what_fits}, or leave --cache out"
        )
    to_come = f", {missing} (about {needed / 1e9:.2f} GB) are to come" if missing else ""
    left_out = sum(len(dataset.pairs) for dataset in used) - there - missing
    decoded = f", {left_out} are decoded each time" if left_out else ""
    print(f"cache {folder}: {there} pictures are there{to_come}{decoded}", flush=True)


def _check_folder(folder: Path, to_write: bool) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
        if to_write:
            probe = folder / f".{uuid4().hex}{UNFINISHED}"
            probe.touch()
            probe.unlink()
    except OSError as error:
        reason = "it is a file" if folder.is_file() else error.strerror
        raise InputError(f"--cache {folder} cannot be written to ({reason}); give another folder") from error


def _remove_unfinished(folder: Path) -> None:
    """Take away what killed processes have left."""
    for unfinished in folder.glob(f".*{UNFINISHED}"):
        # another run was faster, or the file is another user's and the folder sticky
        with contextlib.suppress(OSError):
            if time.time() - unfinished.stat().st_mtime > STALE_SECONDS:
                unfinished.unlink()


def _estimate(pairs: Sequence, reader: CachedReader) -> float:
    """Bytes of the cache files of `pairs`, from some of them: only decoding tells what a reader gives."""
    chosen = pairs[:: max(1, len(pairs) // SAMPLED_PAIRS)][:SAMPLED_PAIRS]
    sizes = []
    for pair in chosen:
        with contextlib.suppress(InputError):  # it is refused, or replaced, by whoever trains on it
            sizes.append(_bytes(*reader.read(pair)[1].shape))
    return len(pairs) * float(np.mean(sizes)) if sizes else 0.0
