"""The crops of a picture and its label: what is drawn, and how it is cut out, on the host.

An image is an array [H, W, 3] uint8 in RGB, a label one [H, W] uint8 of class ids. Both stay bytes; colours change on
the device (`common.data.colours`). Sizes are (height, width).
"""

import math
from argparse import Namespace
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.errors import InputError

CROP_ATTEMPTS = 10
ALIGNMENT_REACH = 8  # pixels of the result among which a crop looks for a place to begin


class Cropping(NamedTuple):
    """How a training crop is taken: of pictures whose size `base_size` names, scaled by a random factor."""

    base_size: int  # pixels
    crop_size: tuple[int, int]  # height, width
    scales: tuple[float, float] = (0.5, 2.0)  # smallest and largest random factor
    augmented: bool = True  # else pictures are not mirrored, nor their colours changed
    flip_vertical: bool = False
    rotate: float = 0.0  # degrees to either side, at most

    @classmethod
    def of(cls, args: Namespace) -> "Cropping":
        """That of the command line. Raises InputError for an invalid range of scales."""
        check_scales((args.min_scale, args.max_scale), args.base_size)
        if not args.augment:
            if args.flip_vertical or args.rotate:
                raise InputError(
                    "--no_augment and --flip_vertical or --rotate cannot be combined; leave one of them out"
                )
            return cls(args.base_size, args.crop_size, (1.0, 1.0), augmented=False)
        if args.rotate > 180:
            raise InputError(f"--rotate {args.rotate}: degrees to either side; give 180 at most, which is any")
        scales = (args.min_scale, args.max_scale)
        return cls(args.base_size, args.crop_size, scales, True, args.flip_vertical, args.rotate)


def check_scales(scales: tuple[float, float], base_size: int) -> None:
    """Raise InputError for an invalid range of training scales, relative to `base_size` pixels."""
    if not 0 < scales[0] <= scales[1]:
        raise InputError(f"--min_scale {scales[0]} --max_scale {scales[1]}: give two factors, 0 < min <= max")
    if int(scales[0] * base_size) < 1:
        raise InputError(f"--min_scale {scales[0]} of --base_size {base_size} is less than a pixel; raise one of them")


# ---- which part of a picture, at which size


class Crop(NamedTuple):
    """A part of a scaled picture, and whether it is mirrored."""

    scaled: tuple[int, int]  # size of the whole picture after scaling
    top: int
    left: int
    size: tuple[int, int]  # what is cut out; smaller than asked for where the scaled picture is
    flipped: bool = False


def turned(
    image: np.ndarray, label: np.ndarray, rng: np.random.Generator, cropping: Cropping
) -> tuple[np.ndarray, np.ndarray]:
    """--flip_vertical and --rotate: the picture [H, W, 3] and its label [H, W] upside down, and turned.

    What comes in from beyond the picture is black, and ignored. Nothing is drawn where neither is asked for, so that
    the published recipes see what they have always seen.
    """
    if cropping.flip_vertical and rng.random() < 0.5:
        image, label = image[::-1], label[::-1]
    if cropping.rotate:
        degrees = rng.uniform(-cropping.rotate, cropping.rotate)
        image = np.array(Image.fromarray(image).rotate(degrees, Image.Resampling.BILINEAR))
        label = np.array(Image.fromarray(label).rotate(degrees, Image.Resampling.NEAREST, fillcolor=IGNORE_INDEX))
    return image, label


def draw_crop(picture: tuple[int, int], rng: np.random.Generator, cropping: Cropping) -> Crop:
    """Mirror with a probability of one half; a short side uniform in `scales` times base_size; any place."""
    base_size, crop_size, scales = cropping[:3]
    height, width = picture
    flipped = rng.random() < 0.5 and cropping.augmented
    short = int(rng.integers(int(scales[0] * base_size), int(scales[1] * base_size), endpoint=True))
    scaled = (short, int(width * short / height)) if width > height else (int(height * short / width), short)
    size = min(crop_size[0], scaled[0]), min(crop_size[1], scaled[1])
    top = int(rng.integers(0, scaled[0] - size[0], endpoint=True))
    left = int(rng.integers(0, scaled[1] - size[1], endpoint=True))
    return Crop(scaled, top, left, size, flipped)


def draw_varied_crop(
    label: np.ndarray, rng: np.random.Generator, cropping: Cropping, cat_max_ratio: float = 1.0
) -> Crop:
    """A uniform scale, and a place where no class covers all of the crop, as mmsegmentation draws them.

    The picture is scaled to fit into 2 base_size by base_size, times a factor uniform in `scales`. A place is drawn
    anew, up to ten times, while the crop of `label` [H, W] uint8 holds a single class, or one that covers
    `cat_max_ratio` of its labelled pixels. Mirrored with a probability of one half.
    """
    base_size, crop_size, scales = cropping[:3]
    height, width = label.shape
    ratio = rng.uniform(*scales)
    long_side, short_side = int(2 * base_size * ratio), int(base_size * ratio)
    factor = min(long_side / max(width, height), short_side / min(width, height))
    scaled = max(1, int(height * factor + 0.5)), max(1, int(width * factor + 0.5))
    size = min(crop_size[0], scaled[0]), min(crop_size[1], scaled[1])
    for attempt in range(CROP_ATTEMPTS + 1):
        top = int(rng.integers(0, scaled[0] - size[0], endpoint=True))
        left = int(rng.integers(0, scaled[1] - size[1], endpoint=True))
        crop = Crop(scaled, top, left, size)
        if cat_max_ratio >= 1 or attempt == CROP_ATTEMPTS or _is_varied(cut_label(label, crop), cat_max_ratio):
            break
    return crop._replace(flipped=rng.random() < 0.5 and cropping.augmented)


def _is_varied(label: np.ndarray, cat_max_ratio: float) -> bool:
    """Whether the label has two classes or more, none of which covers `cat_max_ratio` of the labelled pixels."""
    counts = np.array(Image.fromarray(label).histogram())
    counts[IGNORE_INDEX] = 0
    return np.count_nonzero(counts) > 1 and counts.max() < cat_max_ratio * counts.sum()


def cut_image(image: np.ndarray, crop: Crop) -> Tensor:
    """The crop of an image [H, W, 3] uint8: [h, w, 3] uint8, bilinear, antialiased when shrinking.

    Only what the crop needs is read and resized. The result is that of resizing everything and cropping then, but for
    the crop's place, which can be further up and left by a fraction of a pixel of the picture (an eighth or so).
    """
    rows = _span(crop.top, crop.size[0], image.shape[0], crop.scaled[0])
    columns = _span(crop.left, crop.size[1], image.shape[1], crop.scaled[1])
    region = np.ascontiguousarray(image[rows.start : rows.stop, columns.start : columns.stop])
    pixels = torch.from_numpy(region)[None].permute(0, 3, 1, 2)  # [1, 3, h, w], channels_last: torch is fastest so
    if rows.factor != 1 or columns.factor != 1:
        pixels = F.interpolate(
            pixels, scale_factor=(rows.factor, columns.factor), mode="bilinear", antialias=True,
            recompute_scale_factor=False,
        )  # fmt: skip
    pixels = pixels[0].permute(1, 2, 0)[
        rows.skipped : rows.skipped + crop.size[0], columns.skipped : columns.skipped + crop.size[1]
    ]
    return pixels.flip(1) if crop.flipped else pixels


def resize_image(image: np.ndarray, size: tuple[int, int]) -> Tensor:
    """[H, W, C] uint8 -> [*size, C] uint8, bilinear, antialiased when shrinking."""
    return cut_image(image, Crop(size, 0, 0, size))


def cut_label(label: np.ndarray, crop: Crop) -> np.ndarray:
    """The crop of a label [H, W] uint8: [h, w] uint8, the nearest pixel, at the same place as `cut_image`."""
    rows = _span(crop.top, crop.size[0], label.shape[0], crop.scaled[0]).nearest(crop.size[0])
    columns = _span(crop.left, crop.size[1], label.shape[1], crop.scaled[1]).nearest(crop.size[1])
    return label.take(rows, axis=0).take(columns[::-1] if crop.flipped else columns, axis=1)


class _Span(NamedTuple):
    """Of one direction: the pixels that a crop needs, and the scale at which they are resized."""

    start: int
    stop: int
    skipped: int  # resized pixels in front of the crop, whose only use is to be beside it
    source: int  # pixels of the whole picture
    scaled: int  # and of the whole picture after scaling

    @property
    def factor(self) -> float:
        """The scale for torch, which rounds the size of the result down: a hair more, so that no pixel is lost."""
        return 1.0 if self.source == self.scaled else self.scaled / self.source * (1 + 1e-9)

    def nearest(self, count: int) -> np.ndarray:
        """The pixels of the picture that hold the centres of `count` pixels of the crop; in whole numbers, exactly."""
        positions = np.arange(self.skipped, self.skipped + count)
        return self.start + (2 * positions + 1) * self.source // (2 * self.scaled)


def _span(first: int, count: int, source: int, scaled: int) -> _Span:
    if source == scaled:
        return _Span(first, first + count, 0, source, scaled)
    # a filter reaches one pixel of the picture or of the result, whichever is larger, to both sides
    margin = math.ceil(max(1.0, scaled / source)) + 1
    # torch resizes from a whole pixel on: the one that is nearest to where a pixel of the result begins
    candidates = range(min(first, margin), min(first, margin + ALIGNMENT_REACH) + 1)
    skipped = min(candidates, key=lambda skipped: (first - skipped) * source % scaled)
    start = (first - skipped) * source // scaled
    stop = min(source, start + math.ceil((skipped + count + margin) * source / scaled))
    return _Span(start, stop, skipped, source, scaled)


def pad(picture: np.ndarray | Tensor, size: tuple[int, int], value: int) -> Tensor:
    """[h, w] or [h, w, C] -> [H, W] or [H, W, C] of `size`, filled up at the right and below with a constant."""
    picture = np.asarray(picture)
    height, width = picture.shape[:2]
    canvas = np.empty((*size, *picture.shape[2:]), picture.dtype)
    canvas[:height, :width] = picture
    canvas[height:] = canvas[:height, width:] = value
    return torch.from_numpy(canvas)
