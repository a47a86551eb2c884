"""Pictures with their labels, and what a network and its scores must know of a data set."""

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.data.cache import CachedReader
from common.data.colours import IMAGENET_MEAN, IMAGENET_STD, normalize
from common.data.pairs import PairReader, PicturesAlone, check_pairs
from common.device.launch import is_checked
from common.device.world import World
from common.errors import InputError
from common.scores.metrics import ConfusionMatrix, Metric

TRAINVAL = "trainval"  # a split of the pictures of two
Colour = tuple[int, int, int]  # red, green, blue, 0 to 255


class SubmissionForm(NamedTuple):
    """What a server that scores a data set takes.

    name: (picture file, split) -> where its prediction belongs, below a folder. picture: class ids [H, W] uint8 -> what
    is written there.
    """

    name: Callable[[Path, str], Path]
    picture: Callable[[np.ndarray], Image.Image]


class DatasetInfo(NamedTuple):
    """What a data set is about: its classes, how its colours are normalised, and how it is scored."""

    class_names: tuple[str, ...]  # of the ids 0, 1, ...
    palette: tuple[Colour, ...]
    channels: int | None = None  # of a network's logits; None: one for each class
    mean: Sequence[float] = IMAGENET_MEAN  # of red, green and blue, for pixels in [0, 1]
    std: Sequence[float] = IMAGENET_STD
    new_metric: Callable[["DatasetInfo", Sized, World], Metric] | None = None  # None: a confusion matrix
    # split -> how many pictures it has as published; several numbers where there are several editions
    official_counts: Mapping[str, Sequence[int]] = {}  # noqa: RUF012
    submission: SubmissionForm | None = None  # None: class ids, under the name of the picture

    def described(self) -> dict[str, object]:
        """What a checkpoint says of it, in plain lists: `of_description` makes it again, but for the scores."""
        return {
            "class_names": list(self.class_names),
            "palette": [list(colour) for colour in self.palette],
            "mean": list(self.mean),
            "std": list(self.std),
        }

    @classmethod
    def of_description(cls, content: Mapping[str, object]) -> "DatasetInfo":
        """That of a checkpoint."""
        palette = tuple(map(tuple, content["palette"]))
        return cls(tuple(content["class_names"]), palette, mean=tuple(content["mean"]), std=tuple(content["std"]))

    def of_network(self, model: nn.Module) -> "DatasetInfo":
        """That of the data which a network was trained on, as its file says; this one where the file says nothing."""
        return self.of_description(model.data_info) if model.data_info else self

    @property
    def num_classes(self) -> int:
        """Channels of a network's logits."""
        return self.channels or len(self.class_names)


class Source(NamedTuple):
    """Pairs of files, how one is read, and what they are about."""

    pairs: Sequence[tuple[Path, Path]]
    read: PairReader | CachedReader | PicturesAlone
    info: DatasetInfo
    note: str = ""  # what else lies in the folder and is left out
    split: str = ""


class LabelledPictures(Dataset):
    """A data set of pairs of files: `pairs`, `read`, `info`, `note` and `split` as in `Source`."""

    trained_size: tuple[int, int] | None = None  # height and width of training images, for checkpoints
    scored_size: tuple[int, int] | None = None  # height and width where all are brought to one for an evaluation
    scored_at = "each picture at its own size"  # in a score's protocol

    def __init__(self, source: Source):
        self.pairs, self.read, self.info, self.note, self.split = source

    def __len__(self) -> int:
        return len(self.pairs)

    def file_of(self, index: int) -> str:
        """The file of a picture."""
        return str(self.pairs[index][0])

    def name_of(self, index: int) -> str:
        """What a picture is called, without the suffix."""
        return self.pairs[index][0].stem

    def check(self, decode_images: bool, most_bad: int = 0) -> None:
        """Open every label; raise InputError, naming the file, for what training or evaluation could not use.

        most_bad: pairs that training may replace by others.
        """
        if self.note:
            print(f"note: {self.note}", flush=True)
        check_pairs(self.pairs, self.reader, decode_images, most_bad)

    @property
    def reader(self) -> PairReader | PicturesAlone:
        """What reads a pair where no cache holds it."""
        return self.read.read if isinstance(self.read, CachedReader) else self.read

    @property
    def has_labels(self) -> bool:
        """Whether it can be scored."""
        return not isinstance(self.read, PicturesAlone)

    def scored_sizes(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        """(picture, height and width) of those that a network has to take at their own size when it is scored."""
        return iter(())

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

    def with_network(self, model: nn.Module) -> tuple["Datasets", nn.Module]:
        """(these, model), once it is known that the network takes every picture that it is to be scored on.

        Raises InputError, naming the first one that it does not take: before training rather than after an epoch.
        """
        info = self.used[0].info
        trained = getattr(model, "data_info", None)
        if trained and trained["class_names"] != list(info.class_names):
            raise InputError(
                f"the checkpoint tells {', '.join(trained['class_names'])} apart, and the data has "
                f"{', '.join(info.class_names)}; score it on data of its own classes"
            )
        model.data_info = info.described()  # for its checkpoints
        if self.train is not None:
            model.data_info["trained_size"] = list(self.train.trained_size or ())
            model.data_info["trained_split"] = self.train.split
        self._say_what_was_trained_on(model.data_info if self.train else trained or {})
        if not is_checked():
            for scored in filter(None, (self.val, self.test)):
                for path, size in scored.scored_sizes():
                    try:
                        model.check_shape((2, 3, *size))  # of two: what one image is too few for is training alone
                    except InputError as error:
                        raise InputError(f"{path} cannot be evaluated: {error}") from error
        return self, model

    def _say_what_was_trained_on(self, data_info: Mapping[str, object]) -> None:
        """A line for a score of pictures that the network was trained on. data_info: of the network or its file."""
        trained = data_info.get("trained_split", "")
        if self.val is None or is_checked():
            return
        if trained == TRAINVAL and self.val.split in (TRAINVAL, "train", "val") or trained == self.val.split == "train":
            print(
                f"note: the split {self.val.split} is training data (--train_split {trained}): its scores say nothing "
                "of new pictures",
                flush=True,
            )

    @property
    def used(self) -> list[LabelledPictures]:
        """Those that there are."""
        return [dataset for dataset in self if dataset is not None]
