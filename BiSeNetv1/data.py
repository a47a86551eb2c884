"""Cityscapes as BiSeNetV1 trains and evaluates on it."""

from pathlib import Path

from BiSeNetv1.presets import LAYOUT
from common.cityscapes import DistortedCrops, EvalSet, find_pairs
from common.errors import InputError
from common.sample import data_root
from common.transforms import check_scales


def build_datasets(
    data_path: str | Path,
    base_size: int,
    crop_size: tuple[int, int],
    seed: int,
    scales: tuple[float, float] = (0.5, 2.0),
    cat_max_ratio: float = 0.75,
    train: bool = True,
    val: bool = True,
) -> tuple[DistortedCrops | None, EvalSet | None]:
    """The splits train and val of a folder in the Cityscapes layout, None for one that is not asked for.

    'sample' is the embedded sample, drawn where it is not there yet. Raises InputError for a folder that does not fit.
    """
    check_scales(scales, base_size)
    if cat_max_ratio <= 0:
        raise InputError(f"--cat_max_ratio {cat_max_ratio} refuses every crop; give a share above 0 (1: any crop)")
    root = data_root(data_path, LAYOUT)
    train_pairs = find_pairs(root, "train") if train else []
    train_set = DistortedCrops(train_pairs, base_size, crop_size, seed, scales, cat_max_ratio) if train else None
    return train_set, EvalSet(find_pairs(root, "val")) if val else None


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split val."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "val")]
