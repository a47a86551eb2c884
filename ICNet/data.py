"""Cityscapes as ICNet trains and evaluates on it."""

from collections.abc import Sequence
from pathlib import Path

from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from common.cityscapes import KNOWN_LABEL_IDS, TRAIN_ID_OF_LABEL_ID, Pair, find_pairs
from common.data import sample_rng
from common.errors import InputError
from common.sample import cityscapes_sample
from common.transforms import blur, flip, normalize, read_image, read_label, scale_and_crop, to_class_ids


def build_datasets(
    data_path: str | Path,
    base_size: int,
    crop_size: int,
    seed: int,
    scales: tuple[float, float] = (0.5, 2.0),
    train: bool = True,
    val: bool = True,
) -> tuple["TrainSet | None", "EvalSet | None"]:
    """The splits train and val of a folder in the Cityscapes layout, None for one that is not asked for.

    'sample' is the embedded sample, drawn where it is not there yet. Raises InputError for a folder that does not fit.
    """
    if not 0 < scales[0] <= scales[1]:
        raise InputError(f"--min_scale {scales[0]} --max_scale {scales[1]}: give two factors, 0 < min <= max")
    if int(scales[0] * base_size) < 1:
        raise InputError(f"--min_scale {scales[0]} of --base_size {base_size} is less than a pixel; raise one of them")
    root = cityscapes_sample() if data_path == "sample" else data_path
    train_set = TrainSet(find_pairs(root, "train"), base_size, crop_size, seed, scales) if train else None
    val_set = EvalSet(find_pairs(root, "val")) if val else None
    return train_set, val_set


class TrainSet(Dataset):
    """Augmented crops; the item (epoch, index) depends on (seed, epoch, index) alone.

    The original's order of augmentations: flip, scale, pad and crop, blur.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        base_size: int,
        crop_size: int,
        seed: int,
        scales: tuple[float, float] = (0.5, 2.0),
    ):
        self.pairs, self.base_size, self.scales, self.seed = pairs, base_size, scales, seed
        self.crop_size = (crop_size, crop_size)

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor]:
        """image [3, crop, crop] float32 normalised; target [crop, crop] int64, 255 = ignore."""
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image, label = _read(self.pairs[index])
        image, label = flip(image, label, rng)
        image, label = scale_and_crop(image, label, rng, self.base_size, self.crop_size, self.scales)
        image = blur(image, rng)
        return normalize(image), to_class_ids(label)


class EvalSet(Dataset):
    """Whole images at their own size, neither resized nor cropped."""

    def __init__(self, pairs: Sequence[Pair]):
        self.pairs = pairs

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
        """image [3, H, W] float32 normalised; target [H, W] int64, 255 = ignore."""
        image, label = _read(self.pairs[index])
        return normalize(image), to_class_ids(label)


def _read(pair: Pair) -> tuple[Image.Image, Image.Image]:
    """A picture and its train ids. Raises InputError, naming the file, for what cannot be decoded or does not fit."""
    image, label = read_image(pair.image), read_label(pair.label, TRAIN_ID_OF_LABEL_ID, KNOWN_LABEL_IDS)
    if image.size != label.size:
        raise InputError(f"{pair.image} is {image.size} and its label {label.size} pixels; they must be of one size")
    return image, label
