"""PASCAL VOC 2012 as DynamicUNet trains and evaluates on it."""

from argparse import Namespace
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.data.cache import cached
from common.data.crops import BlurredCrops, WholePictures
from common.data.own import FOLDER, own_datasets
from common.data.pairs import PicturesAlone
from common.data.pictures import DatasetInfo, Datasets, Source, SubmissionForm
from common.data.transforms import Cropping
from common.samples.layout import data_root
from DynamicUNet.presets import LAYOUT
from DynamicUNet.voc import (
    CLASS_NAMES,
    PALETTE,
    find_pairs,
    find_pictures,
    palette_mask,
    read_pair,
    submission_name,
)

# with SBD, train has 10,582
INFO = DatasetInfo(
    CLASS_NAMES,
    PALETTE,
    official_counts={"train": (1464, 10582), "val": (1449,)},
    submission=SubmissionForm(submission_name, palette_mask),
)


def build_datasets(args: Namespace) -> Datasets:
    """The splits train and val that the run uses, of a VOCdevkit folder or of the embedded sample, drawn if need be.

    --dataset: see `voc.find_pairs`. --eval_protocol: "whole" pictures at their own size, or "center_crop".
    Raises InputError for a folder that does not fit.
    """
    if args.dataset == FOLDER:
        return own_datasets(args, _augmenting)
    augmented = _augmenting(args)
    root = data_root(args.data_path, LAYOUT)
    read = cached(args, read_pair._replace(exif=args.exif), LAYOUT)
    train_set = val_set = None
    if not args.evaluate:
        train_set = augmented(
            Source(find_pairs(root, args.train_split, args.dataset), read, INFO, "", args.train_split)
        )
    if args.evaluate or args.validate:
        split = args.eval_split if args.evaluate else "val"
        if split == "test":  # its labels are not published
            pictures = [(image, None) for image in find_pictures(root, split)]
            source = Source(pictures, PicturesAlone(args.exif), INFO, "", split)
        else:
            source = Source(find_pairs(root, split), read, INFO, "", split)
        centered = args.eval_protocol == "center_crop"
        val_set = CenterCrops(source, args.crop_size) if centered else WholePictures(source)
    return Datasets(train_set, val_set)


def _augmenting(args: Namespace) -> Callable[[Source], BlurredCrops]:
    cropping = Cropping.of(args)
    return lambda source: BlurredCrops(source, cropping, args.seed)


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split val."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "val")]


class CenterCrops(WholePictures):
    """Pictures scaled and cut as the original validates: see `center_crop`."""

    def __init__(self, source: Source, crop_size: tuple[int, int]):
        super().__init__(source)
        self.crop_size = crop_size
        self.scored_size = crop_size
        self.scored_at = f"centre crops of {crop_size[0]}x{crop_size[1]}"

    def scored_sizes(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        """None: all are of the size of the crop, which training has too."""
        return iter(())

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """image [*crop_size, 3] uint8; target [*crop_size] uint8, 255 = ignore; nothing is drawn."""
        image, label = self.read(self.pairs[index])
        image = center_crop(Image.fromarray(image), self.crop_size, Image.Resampling.BILINEAR)
        label = center_crop(Image.fromarray(label), self.crop_size, Image.Resampling.NEAREST)
        return torch.from_numpy(np.array(image)), torch.from_numpy(np.array(label)), torch.empty(0)


def center_crop(picture: Image.Image, size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """Scale the short side to the longer side of `size` (height, width), and cut that out of the middle.

    How the original validates: it scores neither the rim of a picture nor its true size.
    """
    short, (width, height) = max(size), picture.size
    if width > height:
        width, height = int(width * short / height), short
    else:
        width, height = short, int(height * short / width)
    left, top = round((width - size[1]) / 2), round((height - size[0]) / 2)
    return picture.resize((width, height), resampling).crop((left, top, left + size[1], top + size[0]))
