"""Pictures with their labels, and what a network and its scores must know of a data set."""

from collections.abc import Callable, Sequence, Sized
from pathlib import Path
from typing import NamedTuple

import numpy as np
from torch import Tensor
from torch.utils.data import Dataset

from common.data.colours import IMAGENET_MEAN, IMAGENET_STD, normalize
from common.device.world import World
from common.scores.metrics import ConfusionMatrix, Metric

# a pair of files -> image [H, W, 3] uint8 in RGB and label [H, W] uint8, IGNORE_INDEX for what does not count
Reader = Callable[[tuple], tuple[np.ndarray, np.ndarray]]
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


class DatasetInfo(NamedTuple):
    """What a data set is about: its classes, how its colours are normalised, and how it is scored."""

    class_names: tuple[str, ...]  # of the ids 0, 1, ...
    palette: tuple[Colour, ...]
    check_pairs: Callable[[Sequence[tuple], bool], None]  # (pairs, decode_images); InputError for what cannot be used
    channels: int | None = None  # of a network's logits; None: one for each class
    mean: Sequence[float] = IMAGENET_MEAN  # of red, green and blue, for pixels in [0, 1]
    std: Sequence[float] = IMAGENET_STD
    new_metric: Callable[["DatasetInfo", Sized, World], Metric] | None = None  # None: a confusion matrix

    @property
    def num_classes(self) -> int:
        """Channels of a network's logits."""
        return self.channels or len(self.class_names)


class Source(NamedTuple):
    """Pairs of files, how one is read, and what they are about."""

    pairs: Sequence[tuple[Path, Path]]
    read: Reader
    info: DatasetInfo


class LabelledPictures(Dataset):
    """A data set of pairs of files: `pairs`, `read` and `info` as in `Source`."""

    def __init__(self, source: Source):
        self.pairs, self.read, self.info = source

    def __len__(self) -> int:
        return len(self.pairs)

    def check(self, decode_images: bool) -> None:
        """Open every label; raise InputError, naming the file, for what training or evaluation could not use."""
        self.info.check_pairs(self.pairs, decode_images)

    def normalized(self, pixels: Tensor) -> Tensor:
        """[..., 3, H, W] of 0 to 255 -> float32, as a network of this data set takes it."""
        return normalize(pixels, self.info.mean, self.info.std)

    def metric(self, world: World) -> Metric:
        """What the pictures are counted in when a network is scored on them."""
        if self.info.new_metric:
            return self.info.new_metric(self.info, self, world)
        names = self.info.class_names
        return ConfusionMatrix(len(names), device=world.device, class_names=names)


class Datasets(NamedTuple):
    """The splits that a run uses; None for one that it does not use."""

    train: LabelledPictures | None
    val: LabelledPictures | None
    test: LabelledPictures | None = None

    @property
    def used(self) -> list[LabelledPictures]:
        """Those that there are."""
        return [dataset for dataset in self if dataset is not None]
