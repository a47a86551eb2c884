"""ISIC 2018 as Attention U-Net trains and evaluates on it: everything is resized to a square."""

from argparse import Namespace
from collections.abc import Sized
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from AttentionUNet.isic import (
    CLASS_NAMES,
    PALETTE,
    find_pairs,
    find_pictures,
    has_split,
    lesion_mask,
    read_pair,
    submission_name,
)
from AttentionUNet.metrics import LesionScores
from AttentionUNet.presets import LAYOUT
from common import IGNORE_INDEX
from common.data.cache import CachedReader, cached
from common.data.classes import Classes
from common.data.colours import Distortion, distort_colours, normalize
from common.data.labels import THRESHOLD
from common.data.order import sample_rng
from common.data.own import FOLDER, own_sources
from common.data.pairs import PairReader, PicturesAlone
from common.data.pictures import DatasetInfo, Datasets, LabelledPictures, Source, SubmissionForm
from common.data.transforms import Crop, cut_label, resize_image
from common.device.world import World
from common.samples.layout import data_root

MEAN = STD = (0.5, 0.5, 0.5)  # colours are -1 to 1
# The augmentation is told in pixels of the original's images, which are 224 wide; it grows with the size.
ORIGINAL_SIZE = 224
WORKING_WIDTHS = (300, 320)
CROP_WIDTHS = (250, 270)  # of the working width
MAX_TRIM = 20  # taken off each side
MAX_DEGREES = 10
QUARTER_TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
BRIGHTNESS, CONTRAST, HUE = 0.2, 0.2, 0.02  # largest changes; that of the hue in full circles

# image [H, W, 3], mask [H, W], inside [H, W] (0 beyond the image, else 255), all uint8
Arrays = tuple[np.ndarray, np.ndarray, np.ndarray]


def lesion_scores(info: DatasetInfo, dataset: Sized, world: World) -> LesionScores:
    """What the masks of a data set are counted in."""
    return LesionScores(len(dataset), world, info.class_names)


# of the 2,594 published pictures, as dataset.py splits them
COUNTS = {"train": (1815,), "val": (259,), "test": (520,)}
SUBMISSION = SubmissionForm(submission_name, lesion_mask)
INFO = DatasetInfo(CLASS_NAMES, PALETTE, 1, MEAN, STD, lesion_scores, COUNTS, SUBMISSION)


def build_datasets(args: Namespace) -> Datasets:
    """The splits train, valid and, where there is one, test of a folder in the layout of ISIC 2018, as a run uses them.

    With --evaluate there is one data set: --eval_split. The folder may be the embedded sample, drawn if need be.
    Raises InputError for a folder that does not fit.
    """
    if args.dataset == FOLDER:
        return _own_datasets(args)
    root, read = data_root(args.data_path, LAYOUT), read_pair._replace(exif=args.exif)

    def scored(split: str) -> EvalSet:
        if args.evaluate and split == "test" and not Path(root, f"{split}_GT").is_dir():
            pictures = [(image, None) for image in find_pictures(root, split)]
            return EvalSet(Source(pictures, PicturesAlone(args.exif), INFO, "", split), args.image_size)
        return EvalSet(Source(find_pairs(root, split), cached(args, read, LAYOUT), INFO, "", split), args.image_size)

    if args.evaluate:
        return Datasets(None, scored(args.eval_split))
    source = Source(find_pairs(root, "train"), training_reader(args), INFO, "", "train")
    train_set = TrainSet(source, args.image_size, args.seed, args.augmentation_prob, args.mask_resize)
    if not args.validate:
        return Datasets(train_set, None)
    return Datasets(train_set, scored("valid"), scored("test") if has_split(root, "test") else None)


def _own_datasets(args: Namespace) -> Datasets:
    """Pictures and masks of one's own; their labels are class ids, whatever --mask_resize says."""
    train, val = own_sources(args, own_info)
    val_set = ClassEvalSet(val, args.image_size) if args.evaluate or args.validate else None
    if args.evaluate:
        return Datasets(None, val_set)
    return Datasets(ClassTrainSet(train, args.image_size, args.seed, args.augmentation_prob), val_set)


def own_info(classes: Classes) -> DatasetInfo:
    """Of two classes, one channel of logits tells them apart, as of lesion and skin; else each has its own."""
    names = classes.names
    if len(names) == 2:
        return DatasetInfo(names, classes.palette, 1, MEAN, STD, lesion_scores)
    return DatasetInfo(names, classes.palette, None, MEAN, STD)


def training_reader(args: Namespace) -> PairReader | CachedReader:
    """Reads pairs of twice the working width or more: what is larger would be shrunk to that width all the same."""
    width = 2 * WORKING_WIDTHS[1] * args.image_size // ORIGINAL_SIZE
    return cached(args, read_pair._replace(exif=args.exif, width=width), f"{LAYOUT}, {width} pixels wide")


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split valid."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "valid")]


def to_input(image: Image.Image, options: dict) -> Tensor:
    """What the network of these options takes of a picture: [3, image_size, image_size] float32."""
    image_size = options["image_size"]
    images = resize_image(np.array(image), (image_size, image_size)).permute(2, 0, 1)
    return normalize(images.contiguous(), MEAN, STD)


class EvalSet(LabelledPictures):
    """Whole pictures, resized to a square."""

    def __init__(self, source: Source, image_size: int):
        super().__init__(source)
        self.image_size = image_size
        self.scored_size = (image_size, image_size)
        self.scored_at = f"each picture resized to {image_size}x{image_size}"

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """image [S, S, 3] uint8; target [S, S] uint8, 1 on the lesion and else 0; nothing is drawn."""
        image, mask = self.read(self.pairs[index])
        size = (self.image_size, self.image_size)
        target = self._target(resize_mask(mask, size, "nearest"))
        return resize_image(image, size), torch.from_numpy(target), torch.empty(0)

    def finish(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, 3, S, S] uint8 -> float32, normalised."""
        return normalize(images, MEAN, STD)

    def _target(self, mask: np.ndarray) -> np.ndarray:
        return (mask > THRESHOLD).astype(np.uint8)


class ClassEvalSet(EvalSet):
    """The same of labels that are class ids."""

    def _target(self, mask: np.ndarray) -> np.ndarray:
        return mask


def resize_mask(mask: np.ndarray, size: tuple[int, int], mask_resize: str) -> np.ndarray:
    """[H, W] uint8 -> [*size] uint8: the "nearest" pixel, or "bilinear"."""
    if mask_resize == "nearest":
        return cut_label(mask, Crop(size, 0, 0, size))
    return resize_image(mask[..., None], size).numpy()[..., 0]


class TrainSet(LabelledPictures):
    """Squares of pictures, a share of them augmented; the item (epoch, index) depends on (seed, epoch, index) alone.

    augmentation_prob: share of the items that are augmented. mask_resize: "nearest", or "bilinear" for targets with
    soft edges, as the original trains on.
    """

    def __init__(
        self, source: Source, image_size: int, seed: int, augmentation_prob: float = 0.4, mask_resize: str = "nearest"
    ):
        super().__init__(source)
        self.image_size, self.seed = image_size, seed
        self.augmentation_prob, self.mask_resize = augmentation_prob, mask_resize
        self.trained_size = (image_size, image_size)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """image [S, S, 3] uint8; target [S, S] uint8: 1 on the lesion, 0 beside it, 255 = ignore; draws [6]: `Jitter`.

        With bilinear masks the target is float32: the share of lesion in a pixel, or 255.
        """
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image, mask = self.read(self.pairs[index])
        inside, jitter = None, NO_JITTER
        if rng.random() < self.augmentation_prob:
            scale = self.image_size / ORIGINAL_SIZE
            width = round(rng.integers(*WORKING_WIDTHS, endpoint=True) * scale)
            size = max(1, width * image.shape[0] // image.shape[1]), width
            image, mask = resize_image(image, size).numpy(), resize_mask(mask, size, self.mask_resize)
            image, mask, inside = augment((image, mask, np.full(size, 255, np.uint8)), rng, scale)
            jitter = draw_jitter(rng)
        size = (self.image_size, self.image_size)
        target = self._target(resize_mask(mask, size, self.mask_resize), inside)
        return resize_image(image, size), torch.from_numpy(target), torch.tensor(jitter)

    def finish(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, 3, S, S] uint8, draws [B, 6] on the CPU -> float32, of jittered colours and normalised."""
        finished = normalize(images, MEAN, STD)
        for image, result, draw in zip(images, finished, draws.tolist(), strict=True):
            if (jitter := Jitter(*draw)) != NO_JITTER:
                pixels = image.to(torch.float32, memory_format=torch.contiguous_format)
                result.copy_(normalize(jitter_colours(pixels, jitter), MEAN, STD))
        return finished

    def _target(self, mask: np.ndarray, inside: np.ndarray | None) -> np.ndarray:
        target = self._of_mask(mask)
        if inside is not None:  # a pixel counts when all that it was mixed from is of the picture
            target[resize_mask(inside, mask.shape, "bilinear") != 255] = IGNORE_INDEX
        return target

    def _of_mask(self, mask: np.ndarray) -> np.ndarray:
        return (mask > THRESHOLD).astype(np.uint8) if self.mask_resize == "nearest" else mask / np.float32(255)


class ClassTrainSet(TrainSet):
    """The same of labels that are class ids."""

    def _of_mask(self, mask: np.ndarray) -> np.ndarray:
        return mask.copy()  # of the reader's


def augment(arrays: Arrays, rng: np.random.Generator, scale: float) -> Arrays:
    """The original's order: quarter turns, a few degrees, crop, flips. `scale`: pixels here to pixels there.

    A quarter turn takes the shape of the picture with it. What a turn by degrees brings in from beyond the picture is
    black, and 0 in `inside`. (The original keeps the shape and crops beyond it: black bands, labelled as skin.)
    """
    pictures = [Image.fromarray(array) for array in arrays]
    width = pictures[0].width
    if (turn := QUARTER_TURNS[rng.integers(len(QUARTER_TURNS))]) is not None:
        pictures = [picture.transpose(turn) for picture in pictures]
    degrees = int(rng.integers(-MAX_DEGREES, MAX_DEGREES, endpoint=True))
    pictures = [picture.rotate(degrees, Image.Resampling.NEAREST) for picture in pictures]
    box = crop_box(pictures[0].size, rng.integers(*CROP_WIDTHS, endpoint=True) * scale / width, rng, MAX_TRIM * scale)
    pictures = [picture.crop(box) for picture in pictures]
    for mirror in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        if rng.random() < 0.5:
            pictures = [picture.transpose(mirror) for picture in pictures]
    image, mask, inside = map(np.array, pictures)
    return image, mask, inside


def crop_box(
    size: tuple[int, int], share: float, rng: np.random.Generator, max_trim: float
) -> tuple[int, int, int, int]:
    """(left, top, right, bottom): `share` of the width and of the height around the centre, trimmed on each side.

    Up to `max_trim` pixels are taken off, and never more than a quarter of the side: something is left of a narrow one.
    """
    starts, ends = [], []
    for side in size:
        length = max(1, int(side * share))
        trims = rng.integers(0, min(int(max_trim), length // 4), endpoint=True, size=2)
        start = (side - length) // 2
        starts.append(int(start + trims[0]))
        ends.append(int(start + length - trims[1]))
    return (*starts, *ends)


class Jitter(NamedTuple):
    """Changes of brightness, contrast and hue, and the order in which they are made."""

    first: float  # 0: brightness, 1: contrast, 2: hue
    second: float
    third: float
    brightness: float = 1.0  # factor
    contrast: float = 1.0  # factor of the distance to the mean grey
    hue_degrees: float = 0.0


NO_JITTER = Jitter(0.0, 1.0, 2.0)


def draw_jitter(rng: np.random.Generator) -> Jitter:
    """A change of each, uniform between its bounds, in an order that is drawn too."""
    return Jitter(
        *map(float, rng.permutation(3)),
        rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS),
        rng.uniform(1 - CONTRAST, 1 + CONTRAST),
        360 * rng.uniform(-HUE, HUE),
    )


def jitter_colours(pixels: Tensor, jitter: Jitter) -> Tensor:
    """[3, H, W] floating, 0 to 255 -> the same of changed colours, cut off at 0 and 255; `pixels` is overwritten."""
    for change in jitter[:3]:
        if change == 0:
            pixels.mul_(jitter.brightness).clamp_(0, 255)
        elif change == 1:
            red, green, blue = pixels
            grey = (0.299 * red + 0.587 * green + 0.114 * blue).mean()  # ITU-R BT.601, as Pillow's
            pixels.sub_(grey).mul_(jitter.contrast).add_(grey).clamp_(0, 255)
        else:
            pixels = distort_colours(pixels, Distortion(hue_degrees=jitter.hue_degrees))
    return pixels
