"""Cityscapes as data sets: its splits train and val, augmented in one of two ways."""

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

from common.data.cache import cached
from common.data.cityscapes import (
    CLASS_NAMES,
    PALETTE,
    find_pairs,
    find_pictures,
    label_id_picture,
    left_out,
    read_pair,
    submission_name,
)
from common.data.crops import BlurredCrops, DistortedCrops, WholePictures
from common.data.own import FOLDER, Augmenting, own_datasets
from common.data.pairs import PicturesAlone
from common.data.pictures import TRAINVAL, DatasetInfo, Datasets, LabelledPictures, Source, SubmissionForm
from common.data.transforms import Cropping
from common.errors import InputError
from common.samples.layout import data_root

LAYOUT = "cityscapes"  # of the folder, and of the embedded sample
INFO = DatasetInfo(
    CLASS_NAMES,
    PALETTE,
    official_counts={"train": (2975,), "val": (500,)},
    submission=SubmissionForm(submission_name, label_id_picture),
)


def blurred_datasets(args: Namespace) -> Datasets:
    """Mirrored, scaled, cropped and blurred: see `BlurredCrops`. Raises InputError for a folder that does not fit."""
    return _datasets(args, _blurred)


def distorted_datasets(args: Namespace) -> Datasets:
    """Augmented as mmsegmentation does: see `DistortedCrops`. Raises InputError for a folder that does not fit."""
    return _datasets(args, _distorted)


def _blurred(args: Namespace) -> Callable[[Source], LabelledPictures]:
    cropping = Cropping.of(args)
    return lambda source: BlurredCrops(source, cropping, args.seed)


def _distorted(args: Namespace) -> Callable[[Source], LabelledPictures]:
    cropping, ratio = Cropping.of(args), args.cat_max_ratio
    if ratio <= 0:
        raise InputError(f"--cat_max_ratio {ratio} refuses every crop; give a share above 0 (1: any crop)")
    return lambda source: DistortedCrops(source, cropping, args.seed, ratio)


def _datasets(args: Namespace, augmenting: Augmenting) -> Datasets:
    """The splits that the run uses, of the folder --data_path or of the embedded sample, drawn if it is not there."""
    if args.dataset == FOLDER:
        return own_datasets(args, augmenting)
    augmented, root = augmenting(args), data_root(args.data_path, LAYOUT)
    read = cached(args, read_pair._replace(exif=args.exif), LAYOUT)

    def source(split: str) -> Source:
        if split == "test":  # its labels are not published; the files of that name hold what is ignored
            pictures = [(image, None) for image in find_pictures(root, split)]
            return Source(pictures, PicturesAlone(args.exif), INFO, left_out(root, split), split)
        parts = ("train", "val") if split == TRAINVAL else (split,)
        pairs = [pair for part in parts for pair in find_pairs(root, part)]
        note = "; ".join(filter(None, (left_out(root, part) for part in parts)))
        return Source(pairs, read, INFO, note, split)

    if args.evaluate:
        return Datasets(None, WholePictures(source(args.eval_split)))
    return Datasets(augmented(source(args.train_split)), WholePictures(source("val")) if args.validate else None)


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split val."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "val")]
