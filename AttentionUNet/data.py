"""ISIC 2018 as Attention U-Net trains and evaluates on it: everything is resized to a square."""

from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageEnhance
from torch import Tensor
from torch.utils.data import Dataset

from AttentionUNet.isic import THRESHOLD, Pair, find_pairs, has_split, read_mask
from AttentionUNet.presets import LAYOUT
from common import IGNORE_INDEX
from common.cache import cached
from common.crops import Reader
from common.data import sample_rng
from common.decode import check_sizes, open_image, picture_size, read_image
from common.sample import data_root
from common.transforms import normalize, picture_to_input

MEAN = STD = (0.5, 0.5, 0.5)  # colours are -1 to 1
RESAMPLINGS = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}
# The augmentation is told in pixels of the original's images, which are 224 wide; it grows with the size.
ORIGINAL_SIZE = 224
WORKING_WIDTHS = (300, 320)
CROP_WIDTHS = (250, 270)  # of the working width
MAX_TRIM = 20  # taken off each side
MAX_DEGREES = 10
QUARTER_TURNS = (None, Image.Transpose.ROTATE_90, Image.Transpose.ROTATE_180, Image.Transpose.ROTATE_270)
BRIGHTNESS, CONTRAST, HUE = 0.2, 0.2, 0.02  # largest changes; that of the hue in full circles

Pictures = tuple[Image.Image, Image.Image, Image.Image]  # image (RGB), mask (L), inside (L): 0 beyond the image


def build_datasets(
    data_path: str | Path,
    image_size: int,
    seed: int,
    augmentation_prob: float = 0.4,
    mask_resize: str = "nearest",
    cache: str = "",
    scored: bool = True,
) -> tuple["TrainSet", "EvalSet | None", "EvalSet | None"]:
    """The splits train, valid and, where there is one, test of a folder in the layout of ISIC 2018.

    scored: False for a training that needs the first alone. 'sample' is the embedded sample, drawn where it is not yet.
    cache: a folder for decoded pictures, or none. Raises InputError for a folder that does not fit.
    """
    root = data_root(data_path, LAYOUT)
    read = training_reader(cache, image_size)
    train_set = TrainSet(find_pairs(root, "train"), read, image_size, seed, augmentation_prob, mask_resize)
    if not scored:
        return train_set, None, None
    val_set = build_eval_set(root, image_size, "valid", cache)
    return train_set, val_set, build_eval_set(root, image_size, "test", cache) if has_split(root, "test") else None


def build_eval_set(data_path: str | Path, image_size: int, split: str, cache: str = "") -> "EvalSet":
    """One split (valid or test) of such a folder, to be scored."""
    read = cached(cache, read_pair, LAYOUT)
    return EvalSet(find_pairs(data_root(data_path, LAYOUT), split), read, image_size)


def training_reader(cache: str, image_size: int) -> Reader:
    """Reads pairs of twice the working size or more: what is larger would be shrunk to that size all the same."""
    side = 2 * WORKING_WIDTHS[1] * image_size // ORIGINAL_SIZE
    return cached(cache, partial(read_reduced_pair, side=side), f"{LAYOUT} of {side} pixels")


def validation_images(data_path: str | Path) -> list[Path]:
    """The pictures of the split valid."""
    return [pair.image for pair in find_pairs(data_root(data_path, LAYOUT), "valid")]


def read_pair(pair: Pair) -> tuple[np.ndarray, np.ndarray]:
    """A picture [H, W, 3] in RGB and its mask [H, W] of 0 to 255, both uint8. Raises InputError, naming the file."""
    image, mask = read_image(pair.image), np.array(read_mask(pair.mask))
    check_sizes(*pair, image.shape[:2], mask.shape)
    return image, mask


def read_reduced_pair(pair: Pair, side: int) -> tuple[np.ndarray, np.ndarray]:
    """As `read_pair`, but of a JPEG several times as large as `side` pixels in both directions only every so many.

    The picture is averaged over them as it is decoded (`common.decode.open_image`); of the mask the nearest are kept.
    """
    image, mask = open_image(pair.image, (side, side)), read_mask(pair.mask)
    check_sizes(*pair, picture_size(pair.image), mask.size[::-1])
    if image.size != mask.size:
        mask = mask.resize(image.size, Image.Resampling.NEAREST)
    return np.array(image), np.array(mask)


def to_input(image: Image.Image, image_size: int) -> Tensor:
    """What the network takes of a picture: [3, image_size, image_size] float32."""
    return picture_to_input(image.resize((image_size, image_size), Image.Resampling.BILINEAR), MEAN, STD)


class EvalSet(Dataset):
    """Whole pictures, resized to a square."""

    def __init__(self, pairs: Sequence[Pair], read: Reader, image_size: int):
        self.pairs, self.read, self.image_size = pairs, read, image_size

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """image [S, S, 3] uint8; target [S, S] uint8, 1 on the lesion and else 0; nothing is drawn."""
        image, mask = map(Image.fromarray, self.read(self.pairs[index]))
        size = (self.image_size, self.image_size)
        mask = np.asarray(mask.resize(size, Image.Resampling.NEAREST))
        return to_bytes(image, size), torch.from_numpy((mask > THRESHOLD).astype(np.uint8)), torch.empty(0)

    def finish(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, 3, S, S] uint8 -> float32, normalised."""
        return normalize(images, MEAN, STD)


def to_bytes(image: Image.Image, size: tuple[int, int]) -> Tensor:
    """A picture resized to (width, height): [height, width, 3] uint8."""
    return torch.from_numpy(np.array(image.resize(size, Image.Resampling.BILINEAR)))


class TrainSet(Dataset):
    """Squares of pictures, a share of them augmented; the item (epoch, index) depends on (seed, epoch, index) alone.

    augmentation_prob: share of the items that are augmented. mask_resize: "nearest", or "bilinear" for targets with
    soft edges, as the original trains on.
    """

    def __init__(
        self,
        pairs: Sequence[Pair],
        read: Reader,
        image_size: int,
        seed: int,
        augmentation_prob: float = 0.4,
        mask_resize: str = "nearest",
    ):
        self.pairs, self.read, self.image_size, self.seed = pairs, read, image_size, seed
        self.augmentation_prob, self.mask_resize = augmentation_prob, mask_resize

    def __len__(self) -> int:
        return len(self.pairs)

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """image [S, S, 3] uint8; target [S, S] uint8: 1 on the lesion, 0 beside it, 255 = ignore; no draws.

        With bilinear masks the target is float32: the share of lesion in a pixel, or 255.
        """
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        scale, resampling = self.image_size / ORIGINAL_SIZE, RESAMPLINGS[self.mask_resize]
        image, mask = map(Image.fromarray, self.read(self.pairs[index]))
        width = round(rng.integers(*WORKING_WIDTHS, endpoint=True) * scale)
        size = (width, max(1, width * image.height // image.width))
        image, mask = image.resize(size, Image.Resampling.BILINEAR), mask.resize(size, resampling)
        pictures = image, mask, Image.new("L", size, 255)
        if rng.random() < self.augmentation_prob:
            pictures = augment(pictures, rng, scale)
        return self._to_tensors(pictures, resampling)

    def finish(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, 3, S, S] uint8 -> float32, normalised."""
        return normalize(images, MEAN, STD)

    def _to_tensors(self, pictures: Pictures, resampling: Image.Resampling) -> tuple[Tensor, Tensor, Tensor]:
        image, mask, inside = pictures
        size = (self.image_size, self.image_size)
        mask = np.asarray(mask.resize(size, resampling))
        # a pixel counts when all that it was mixed from is of the picture
        inside = np.asarray(inside.resize(size, Image.Resampling.BILINEAR)) == 255
        if self.mask_resize == "nearest":
            target = np.where(inside, mask > THRESHOLD, IGNORE_INDEX).astype(np.uint8)
        else:
            target = np.where(inside, mask / np.float32(255), np.float32(IGNORE_INDEX))
        return to_bytes(image, size), torch.from_numpy(target), torch.empty(0)


def augment(pictures: Pictures, rng: np.random.Generator, scale: float) -> Pictures:
    """The original's order: quarter turns, a few degrees, crop, flips, colours. `scale`: pixels here to pixels there.

    A quarter turn takes the shape of the picture with it. What a turn by degrees brings in from beyond the picture is
    black, and 0 in `inside`. (The original keeps the shape and crops beyond it: black bands, labelled as skin.)
    """
    width = pictures[0].width
    if (turn := QUARTER_TURNS[rng.integers(len(QUARTER_TURNS))]) is not None:
        pictures = tuple(picture.transpose(turn) for picture in pictures)
    degrees = int(rng.integers(-MAX_DEGREES, MAX_DEGREES, endpoint=True))
    pictures = tuple(picture.rotate(degrees, Image.Resampling.NEAREST) for picture in pictures)
    box = crop_box(pictures[0].size, rng.integers(*CROP_WIDTHS, endpoint=True) * scale / width, rng, MAX_TRIM * scale)
    pictures = tuple(picture.crop(box) for picture in pictures)
    if rng.random() < 0.5:
        pictures = tuple(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for picture in pictures)
    if rng.random() < 0.5:
        pictures = tuple(picture.transpose(Image.Transpose.FLIP_TOP_BOTTOM) for picture in pictures)
    image, mask, inside = pictures
    return jitter_colours(image, rng), mask, inside


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


def jitter_colours(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast and hue, in an order that is drawn too."""
    for change in rng.permutation(3):
        if change == 0:
            image = ImageEnhance.Brightness(image).enhance(rng.uniform(1 - BRIGHTNESS, 1 + BRIGHTNESS))
        elif change == 1:
            image = ImageEnhance.Contrast(image).enhance(rng.uniform(1 - CONTRAST, 1 + CONTRAST))
        else:
            hsv = np.array(image.convert("HSV"))
            hsv[..., 0] += np.uint8(round(256 * rng.uniform(-HUE, HUE)) % 256)  # wraps around by itself
            image = Image.fromarray(hsv, "HSV").convert("RGB")
    return image
