"""--loss, --class_weights and --label_smoothing: what a run is trained with in place of its recipe's cross entropy."""

import hashlib
import json
import math
import os
from argparse import Namespace
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from common.data.cache import CachedReader
from common.data.labels import class_counts
from common.data.pairs import CHECKING_THREADS, RULES, PairReader
from common.data.pictures import LabelledPictures
from common.errors import InputError
from common.record.files import write_json
from common.record.origin import fingerprint
from common.step.criteria import Criterion, PixelOptions
from common.terminal import progress
from common.values import loss_terms

WEIGHTED = ("ce", "ohem", "focal")  # sums over pixels; the others take the classes one by one anyway
SMOOTHED = ("ce", "ohem")


def chosen_criterion(args: Namespace, train_set: LabelledPictures) -> Criterion | None:
    """That of the flags, on the CPU; None for the recipe's own.

    Raises InputError for flags that cannot be combined, for a file of weights that does not fit the classes, and for
    labels that cannot be counted.
    """
    terms = loss_terms(args.loss)
    if args.class_weights and not terms.keys() & set(WEIGHTED):
        raise InputError(f"--class_weights is for {', '.join(WEIGHTED)}, and --loss is {args.loss}; leave one out")
    if args.label_smoothing and not terms.keys() & set(SMOOTHED):
        raise InputError(f"--label_smoothing is for {', '.join(SMOOTHED)}, and --loss is {args.loss}; leave one out")
    if list(terms) == ["ce"] and terms["ce"] == 1 and not args.class_weights and not args.label_smoothing:
        return None
    if getattr(args, "mask_resize", "nearest") != "nearest":
        raise InputError(
            f"--mask_resize {args.mask_resize} gives soft edges, which only the recipe's loss takes; give "
            "--mask_resize nearest"
        )
    weights = None
    if args.class_weights:
        weights = torch.tensor(class_weights(args.class_weights, train_set), dtype=torch.float32)
    # the recipe's divisor, where it has that choice
    over_all_pixels = not getattr(args, "avg_non_ignore", True)
    return Criterion(terms, PixelOptions(weights, args.label_smoothing, over_all_pixels))


def class_weights(wanted: str, train_set: LabelledPictures) -> list[float]:
    """The weight of each class: of a JSON file {name: weight}, or for 'auto' 1 / ln(1.02 + share of the pixels).

    The rule is that of ENet (arXiv:1606.02147, 5.2), from 1.4 for a class that is everywhere to 50 for one that hardly
    is; shares are of the labelled pixels of the training set. Raises InputError.
    """
    names = train_set.info.class_names
    if wanted == "auto":
        counts = labelled_pixels(train_set)[: len(names)]
        if not counts.sum():
            raise InputError("--class_weights auto: no training label has a pixel that counts; check the labels")
        return (1 / np.log(1.02 + counts / counts.sum())).tolist()
    return _of_file(Path(wanted), names)


def _of_file(path: Path, names: tuple[str, ...]) -> list[float]:
    needed = f"a JSON file such as {json.dumps(dict.fromkeys(names[:2], 1.0))} with all {len(names)} classes, or 'auto'"
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is no JSON"
        raise InputError(f"--class_weights {path} cannot be read ({reason}); give {needed}") from error
    if not isinstance(content, dict) or content.keys() != set(names):
        odd = sorted(set(content) ^ set(names))[:3] if isinstance(content, dict) else []
        which = f" ({', '.join(odd)} in one alone)" if odd else ""
        raise InputError(f"--class_weights {path} does not name the classes of the data{which}; give {needed}")
    values = [content[name] for name in names]
    if not all(isinstance(value, int | float) and math.isfinite(value) and value >= 0 for value in values) or not any(
        values
    ):
        raise InputError(f"--class_weights {path}: weights are finite numbers of at least 0, not all 0")
    return [float(value) for value in values]


def labelled_pixels(dataset: LabelledPictures) -> np.ndarray:
    """[256] pixels of all labels by class id; kept in the user's cache for the same files, read in the same way."""
    read = dataset.read.read if isinstance(dataset.read, CachedReader) else dataset.read
    key = json.dumps([RULES, read.exif, dataset.info.class_names, fingerprint(dataset.pairs)])
    kept = _cache_folder() / f"class_counts-{hashlib.sha256(key.encode()).hexdigest()[:20]}.json"
    try:
        counts = np.array(json.loads(kept.read_text())["pixels"], np.int64)
        if counts.shape == (256,):
            return counts
    except (OSError, ValueError, KeyError, TypeError):
        pass  # counted anew
    counts = _count(dataset, read)
    try:
        write_json(kept, {"pixels": counts.tolist()})
    except OSError as error:
        print(f"note: the pixels of each class cannot be kept ({error}) and are counted anew each time", flush=True)
    return counts


def _count(dataset: LabelledPictures, read: PairReader) -> np.ndarray:
    def count(pair) -> np.ndarray:
        kind = read.kind_of(pair[1])
        return class_counts(kind, kind.read(pair[1], read.exif).values)

    with ThreadPoolExecutor(min(CHECKING_THREADS, os.cpu_count() or 1)) as pool:  # decoders free the interpreter's lock
        counts = progress(pool.map(count, dataset.pairs), "counting the classes", len(dataset.pairs), "file")
        return sum(counts, np.zeros(256, np.int64))


def _cache_folder() -> Path:
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "segmentation-zoo"
