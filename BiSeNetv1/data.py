"""Cityscapes as BiSeNetV1 trains and evaluates on it."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from BiSeNetv1.presets import LAYOUT
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
    if cat_max_ratio <= 0:
        raise InputError(f"--cat_max_ratio {cat_max_ratio} refuses every crop; give a share above 0 (1: any crop)")
    root = data_root(data_path, LAYOUT)
    train_set = None
    if train:
        train_set = TrainSet(find_pairs(root, "train"), base_size, crop_size, seed, scales, cat_max_ratio)
    return train_set, EvalSet(find_pairs(root, "val")) if val else None


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split val."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "val")]


class TrainSet(Dataset):
    """Augmented crops; the item (epoch, index) depends on (seed, epoch, index) alone.

    The augmentations of mmsegmentation in its order: scale, crop, flip, colours, pad (with 0 after normalisation).
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
        self.pairs, self.base_size, self.crop_size, self.seed = pairs, base_size, crop_size, seed
        self.scales, self.cat_max_ratio = scales, cat_max_ratio

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
