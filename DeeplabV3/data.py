"""Cityscapes as DeepLabV3 trains and evaluates on it."""

from pathlib import Path

from common.cache import cached
from common.cityscapes import find_pairs, read_pair
from common.crops import DistortedCrops, WholePictures
from common.errors import InputError
from common.sample import data_root
from common.transforms import check_scales
from DeeplabV3.presets import LAYOUT


def build_datasets(
    data_path: str | Path,
    base_size: int,
    crop_size: tuple[int, int],
    seed: int,
    scales: tuple[float, float] = (0.5, 2.0),
    cat_max_ratio: float = 0.75,
    cache: str = "",
    train: bool = True,
    val: bool = True,
) -> tuple[DistortedCrops | None, WholePictures | None]:
    """The splits train and val of a folder in the Cityscapes layout, None for one that is not asked for.

    'sample' is the embedded sample, drawn where it is not there yet. cache: a folder for decoded pictures, or none.
    Raises InputError for a folder that does not fit.
    """
    check_scales(scales, base_size)
    if cat_max_ratio <= 0:
        raise InputError(f"--cat_max_ratio {cat_max_ratio} refuses every crop; give a share above 0 (1: any crop)")
    root = data_root(data_path, LAYOUT)
    read = cached(cache, read_pair, LAYOUT)
    train_set = None
    if train:
        pairs = find_pairs(root, "train")
        train_set = DistortedCrops(pairs, read, base_size, crop_size, seed, scales, cat_max_ratio)
    return train_set, WholePictures(find_pairs(root, "val"), read) if val else None


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split val."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "val")]
