"""Cityscapes as ICNet trains and evaluates on it."""

from collections.abc import Sequence
from pathlib import Path

from torch import Tensor
from torch.utils.data import Dataset

from common.cityscapes import EvalSet, Pair, find_pairs, read_pair
from common.data import sample_rng
from common.sample import data_root
from common.transforms import blur, check_scales, flip, normalize, scale_and_crop, to_class_ids
from ICNet.presets import LAYOUT


def build_datasets(
    data_path: str | Path,
    base_size: int,
    crop_size: tuple[int, int],
    seed: int,
    scales: tuple[float, float] = (0.5, 2.0),
    train: bool = True,
    val: bool = True,
) -> tuple["TrainSet | None", EvalSet | None]:
    """The splits train and val of a folder in the Cityscapes layout, None for one that is not asked for.

    'sample' is the embedded sample, drawn where it is not there yet. Raises InputError for a folder that does not fit.
    """
    check_scales(scales, base_size)
    root = data_root(data_path, LAYOUT)
    train_set = TrainSet(find_pairs(root, "train"), base_size, crop_size, seed, scales) if train else None
    val_set = EvalSet(find_pairs(root, "val")) if val else None
    return train_set, val_set


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split val."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "val")]


class TrainSet(Dataset):
    """Augmented crops; the item (epoch, index) depends on (seed, epoch, index) alone.

    The original's order of augmentations: flip, scale, pad and crop, blur.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        base_size: int,
        crop_size: tuple[int, int],
        seed: int,
        scales: tuple[float, float] = (0.5, 2.0),
    ):
        self.pairs, self.base_size, self.crop_size = pairs, base_size, crop_size
        self.scales, self.seed = scales, seed

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """image [3, *crop_size] float32 normalised; target [*crop_size] int64, 255 = ignore."""
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image, label = read_pair(self.pairs[index])
        image, label = flip(image, label, rng)
        image, label = scale_and_crop(image, label, rng, self.base_size, self.crop_size, self.scales)
        image = blur(image, rng)
        return normalize(image), to_class_ids(label)
