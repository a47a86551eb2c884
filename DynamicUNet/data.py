"""PASCAL VOC 2012 as DynamicUNet trains and evaluates on it."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common.data import sample_rng
from common.sample import data_root
from common.transforms import blur, check_scales, flip, normalize, scale_and_crop, to_class_ids
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
    train: bool = True,
    val: bool = True,
) -> tuple["TrainSet | None", "EvalSet | None"]:
    """The splits train and val of a VOCdevkit folder, None for one that is not asked for.

    'sample' is the embedded sample, drawn where it is not there yet. dataset: see `voc.find_pairs`. eval_protocol: see
    `EvalSet`. Raises InputError for a folder that does not fit.
    """
    check_scales(scales, base_size)
    root = data_root(data_path, LAYOUT)
    train_set = TrainSet(find_pairs(root, "train", dataset), base_size, crop_size, seed, scales) if train else None
    val_set = EvalSet(find_pairs(root, "val"), crop_size if eval_protocol == "center_crop" else None) if val else None
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


class EvalSet(Dataset):
    """Whole pictures at their own size or, with a `crop_size` (height, width), scaled and cut as `center_crop` does."""

    def __init__(self, pairs: Sequence[Pair], crop_size: tuple[int, int] | None = None):
        self.pairs, self.crop_size = pairs, crop_size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """image [3, H, W] float32 normalised; target [H, W] int64, 255 = ignore."""
        image, label = read_pair(self.pairs[index])
        if self.crop_size:
            image = center_crop(image, self.crop_size, Image.Resampling.BILINEAR)
            label = center_crop(label, self.crop_size, Image.Resampling.NEAREST)
        return normalize(image), to_class_ids(label)


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
