"""Cityscapes as ICNet trains and evaluates on it."""

from pathlib import Path

from common.cache import cached
from common.cityscapes import find_pairs, read_pair
from common.crops import BlurredCrops, WholePictures
from common.sample import data_root
from common.transforms import check_scales
from ICNet.presets import LAYOUT


def build_datasets(
    data_path: str | Path,
    base_size: int,
    crop_size: tuple[int, int],
    seed: int,
    scales: tuple[float, float] = (0.5, 2.0),
    cache: str = "",
    train: bool = True,
    val: bool = True,
) -> tuple[BlurredCrops | None, WholePictures | None]:
    """The splits train and val of a folder in the Cityscapes layout, None for one that is not asked for.

    'sample' is the embedded sample, drawn where it is not there yet. cache: a folder for decoded pictures, or none.
    Raises InputError for a folder that does not fit.
    """
    check_scales(scales, base_size)
    root = data_root(data_path, LAYOUT)
    read = cached(cache, read_pair, LAYOUT)
    train_set = BlurredCrops(find_pairs(root, "train"), read, base_size, crop_size, seed, scales) if train else None
    val_set = WholePictures(find_pairs(root, "val"), read) if val else None
    return train_set, val_set


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split val."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "val")]
