"""Cityscapes as DeepLabV3 trains and evaluates on it."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from common import IGNORE_INDEX
from common.cityscapes import EvalSet, Pair, find_pairs, read_pair
from common.data import sample_rng
from common.errors import InputError
from common.sample import data_root
from common.transforms import (
    MEAN_COLOR,
    flip,
    normalize,
    pad,
    photometric_distortion,
    scale_and_crop_varied,
    to_class_ids,
)
from DeeplabV3.presets import LAYOUT


def build_datasets(
    data_path: str | Path,
    base_size: int,
    crop_size: tuple[int, int],
    seed: int,
    scales: tuple[float, float] = (0.5, 2.0),
    cat_max_ratio: float = 0.75,
    train: bool = True,
    val: bool = True,
) -> tuple["TrainSet | None", EvalSet | None]:
    """The splits train and val of a folder in the Cityscapes layout, None for one that is not asked for.

    'sample' is the embedded sample, drawn where it is not there yet. Raises InputError for a folder that does not fit.
    """
    if not 0 < scales[0] <= scales[1]:
        raise InputError(f"--min_scale {scales[0]} --max_scale {scales[1]}: give two factors, 0 < min <= max")
    if int(scales[0] * base_size) < 1:
        raise InputError(f"--min_scale {scales[0]} of --base_size {base_size} is less than a pixel; raise one of them")
    if cat_max_ratio == 0:
        raise InputError(
            "--cat_max_ratio 0: no crop has such a share of its largest class; give 0.75, or 1 for any crop"
        )
    root = data_root(data_path, LAYOUT)
    train_pairs = find_pairs(root, "train") if train else []
    train_set = TrainSet(train_pairs, base_size, crop_size, seed, scales, cat_max_ratio) if train else None
    val_set = EvalSet(find_pairs(root, "val")) if val else None
    return train_set, val_set


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split val."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "val")]


class TrainSet(Dataset):
    """Augmented crops; the item (epoch, index) depends on (seed, epoch, index) alone.

    The original's order of augmentations: scale, crop where no class covers most of it, flip, distort the colours.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        base_size: int,
        crop_size: tuple[int, int],
        seed: int,
        scales: tuple[float, float] = (0.5, 2.0),
        cat_max_ratio: float = 0.75,
    ):
        self.pairs, self.base_size, self.crop_size = pairs, base_size, crop_size
        self.scales, self.cat_max_ratio, self.seed = scales, cat_max_ratio, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """image [3, *crop_size] float32 normalised; target [*crop_size] int64, 255 = ignore."""
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image, label = read_pair(self.pairs[index])
        image, label = scale_and_crop_varied(
            image, label, rng, self.base_size, self.crop_size, self.scales, self.cat_max_ratio
        )
        image, label = flip(image, label, rng)
        image = photometric_distortion(image, rng)
        image, label = pad(image, self.crop_size, MEAN_COLOR), pad(label, self.crop_size, IGNORE_INDEX)
        return normalize(image), to_class_ids(label)
