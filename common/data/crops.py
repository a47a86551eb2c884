"""The training and evaluation pictures of data sets whose labels are class ids.

A data set gives bytes: an item is (image [H, W, 3] uint8, target [H, W] uint8, draws [k] float32), and its `finish`
turns a batch of images on the device into what a network takes, with what was drawn for each of them. So a quarter of
the bytes of float32 goes from process to process and to the device, and the device does the arithmetic.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.data.colours import (
    BLUR_REACH,
    Distortion,
    blur,
    blur_weights,
    blurred,
    chunks,
    distort_colours,
    draw_blur,
    draw_distortion,
)
from common.data.decode import picture_size
from common.data.order import sample_rng
from common.data.pictures import LabelledPictures, Source
from common.data.transforms import Cropping, cut_image, cut_label, draw_crop, draw_varied_crop, pad, turned


class WholePictures(LabelledPictures):
    """Pictures at their own size, neither resized nor cropped, for evaluation."""

    def scored_sizes(self) -> Iterator[tuple[Path, tuple[int, int]]]:
        """(picture, height and width) of each, by its header."""
        return ((image, picture_size(image, "turn")) for image, _ in self.pairs)

    def __getitem__(self, index: int) -> tuple[Tensor, Tensor, Tensor]:
        """image [H, W, 3] uint8; target [H, W] uint8, 255 = ignore; nothing is drawn."""
        image, label = self.read(self.pairs[index])
        return torch.from_numpy(image), torch.from_numpy(label), torch.empty(0)

    def finish(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> float32, normalised."""
        return self.normalized(images)


class BlurredCrops(LabelledPictures):
    """Mirrored, scaled, cropped and blurred; the item (epoch, index) depends on (seed, epoch, index) alone.

    The augmentations of recipes that scale by the short side. What a picture does not fill is black, and ignored.
    """

    def __init__(self, source: Source, cropping: Cropping, seed: int):
        super().__init__(source)
        self.cropping, self.seed = cropping, seed
        self.trained_size = cropping.crop_size

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """image [*crop_size, 3] uint8; target [*crop_size] uint8, 255 = ignore; the weights of the blur [4]."""
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image, label = turned(*self.read(self.pairs[index]), rng, self.cropping)
        crop = draw_crop(label.shape, rng, self.cropping)
        image, label = cut_image(image, crop), cut_label(label, crop)
        weights = blur_weights(draw_blur(rng) if self.cropping.augmented else 0.0)
        draws = F.pad(torch.tensor(weights), (0, BLUR_REACH + 1 - len(weights)))
        size = self.cropping.crop_size
        return pad(image, size, 0), pad(label, size, IGNORE_INDEX), draws

    def fitting_base_size(self, height: int, width: int) -> int:
        """The base size with which pictures of this size are scaled by the random factor alone."""
        return min(height, width)

    def finish(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, 3, H, W] uint8, draws [B, 4] on the CPU (`blur_weights`, 0 behind them) -> float32, blurred, normalised.

        The CPU takes one picture after the other, in chunks that stay in its cache; an accelerator takes all of them.
        """
        if images.device.type != "cpu":
            finished = self.normalized(images)
            if chosen := [picture for picture, weights in enumerate(draws.tolist()) if weights[1]]:
                weights = draws.to(images.device, non_blocking=True)
                sharp, weights = (torch.stack([of[picture] for picture in chosen]) for of in (images, weights))
                smooth = self.normalized(blurred(sharp, weights))
                torch._foreach_copy_([finished[picture] for picture in chosen], list(smooth))
            return finished
        finished = torch.empty_like(images, dtype=torch.float32)
        for image, result, weights in zip(images[:, None], finished[:, None], draws.tolist(), strict=True):
            weights = [weight for weight in weights if weight]
            for rows in chunks(*image.shape[2:], image.device):
                part = blur(image, rows, weights) if weights[1:] else image[:, :, rows]
                result[:, :, rows] = self.normalized(part)
        return finished


class DistortedCrops(LabelledPictures):
    """Scaled, cropped, mirrored and changed in colour; the item (epoch, index) depends on (seed, epoch, index) alone.

    The augmentations of mmsegmentation's recipes for Cityscapes, in its order: scale, crop where no class covers too
    much, flip, colours, pad (with 0 after normalisation).
    """

    def __init__(self, source: Source, cropping: Cropping, seed: int, cat_max_ratio: float = 0.75):
        super().__init__(source)
        self.cropping, self.seed, self.cat_max_ratio = cropping, seed, cat_max_ratio
        self.trained_size = cropping.crop_size

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, Tensor, Tensor]:
        """image [*crop_size, 3] uint8; target [*crop_size] uint8, 255 = ignore; draws [7]: see `finish`."""
        epoch, index = key
        rng = sample_rng(self.seed, epoch, index)
        image, label = turned(*self.read(self.pairs[index]), rng, self.cropping)
        crop = draw_varied_crop(label, rng, self.cropping, self.cat_max_ratio)
        image, label = cut_image(image, crop), cut_label(label, crop)
        distortion = draw_distortion(rng) if self.cropping.augmented else Distortion()
        draws = torch.tensor([*crop.size, *distortion])
        size = self.cropping.crop_size
        return pad(image, size, 0), pad(label, size, IGNORE_INDEX), draws

    def fitting_base_size(self, height: int, width: int) -> int:
        """The base size with which pictures of this size are scaled by the random factor alone."""
        return max(min(height, width), (max(height, width) + 1) // 2)

    def finish(self, images: Tensor, draws: Tensor) -> Tensor:
        """[B, 3, H, W] uint8 -> float32, distorted and normalised, 0 beyond the picture.

        draws [B, 7] on the CPU: height and width of the picture within the crop, and its `Distortion`.
        """
        finished = torch.empty_like(images, dtype=torch.float32)
        for image, result, (height, width, *changes) in zip(images, finished, draws.tolist(), strict=True):
            for rows in chunks(*image.shape[1:], image.device):
                pixels = image[:, rows].to(torch.float32, memory_format=torch.contiguous_format)
                result[:, rows] = self.normalized(distort_colours(pixels, Distortion(*changes)))
            result[:, int(height) :] = 0
            result[:, :, int(width) :] = 0
        return finished


def note_on_scale(
    train_set: LabelledPictures, val_set: LabelledPictures | None, scored_scales: Sequence[float] = (1.0,)
) -> str:
    """A line for people whose pictures are trained on and scored at sizes that do not meet; '' for all others.

    A network finds things of the sizes that it has been shown. Of the validation pictures the first one is looked at.
    scored_scales: the factors of --scales.
    """
    if not isinstance(val_set, WholePictures) or not isinstance(train_set, BlurredCrops | DistortedCrops):
        return ""
    height, width = picture_size(val_set.pairs[0][0], "turn")
    fitting = train_set.fitting_base_size(height, width)
    low, high = (scale * train_set.cropping.base_size / fitting for scale in train_set.cropping.scales)
    if any(low <= scale <= high for scale in scored_scales):
        return ""
    return (
        f"note: pictures of {width} x {height} are scored at that size, and training shows them at {low:.2f} to "
        f"{high:.2f} times it; --base_size {fitting} brings the two together"
    )
