"""PASCAL VOC 2012 as DynamicUNet trains and evaluates on it."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from common.cache import cached
from common.crops import BlurredCrops, Reader, WholePictures
from common.sample import data_root
from common.transforms import check_scales
from DynamicUNet.presets import LAYOUT
from DynamicUNet.voc import Pair, find_pairs, read_pair


def build_datasets(
    data_path: str | Path,
    base_size: int,
    crop_size: tuple[int, int],
    seed: int,
    scales: tuple[float, float] = (0.5, 2.0),
    dataset: str = "pascal_voc",
    eval_protocol: str = "whole",
    cache: str = "",
    train: bool = True,
    val: bool = True,
) -> tuple[BlurredCrops | None, WholePictures | None]:
    """The splits train and val of a VOCdevkit folder, None for one that is not asked for.

    'sample' is the embedded sample, drawn where it is not there yet. dataset: see `voc.find_pairs`. eval_protocol:
    "whole" pictures at their own size, or "center_crop". cache: a folder for decoded pictures, or none.
    Raises InputError for a folder that does not fit.
    """
    check_scales(scales, base_size)
    root = data_root(data_path, LAYOUT)
    read = cached(cache, read_pair, LAYOUT)
    train_set = val_set = None
    if train:
        train_set = BlurredCrops(find_pairs(root, "train", dataset), read, base_size, crop_size, seed, scales)
    if val:
        pairs = find_pairs(root, "val")
        centered = eval_protocol == "center_crop"
        val_set = CenterCrops(pairs, read, crop_size) if centered else WholePictures(pairs, read)
    return train_set, val_set


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split val."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "val")]


class CenterCrops(WholePictures):
    """Pictures scaled and cut as the original validates: see `center_crop`."""

    def __init__(self, pairs: Sequence[Pair], read: Reader, crop_size: tuple[int, int]):
        super().__init__(pairs, read)
        self.crop_size = crop_size

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
