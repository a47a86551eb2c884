"""Colours of pictures: blur and distortion of training images, and the normalisation of all; on the device."""

from collections.abc import Sequence
from functools import cache
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.nn import functional as F

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
BLUR_REACH = 3  # pixels to either side
CHUNK_PIXELS = 1 << 17  # of a float32 plane that stays in a core's cache


def draw_blur(rng: np.random.Generator, probability: float = 0.5) -> float:
    """The radius of a Gaussian blur in pixels: with the given probability uniform in [0, 1), else 0."""
    return rng.random() if rng.random() < probability else 0.0


def blur(images: Tensor, rows: slice, weights: Sequence[float] | Sequence[Tensor]) -> Tensor:
    """These rows of images [B, 3, H, W], blurred by the weights of `blur_weights`: [B, 3, rows, W] float32.

    weights: numbers for all images alike, or a tensor [B, 1, 1, 1] on their device for each offset. The pixels at the
    rim are repeated beyond it. Additions of shifted planes are faster than a convolution of three channels on the CPU,
    and exact where convolutions round to fewer bits (HF32, TF32).
    """
    reach = len(weights) - 1
    first, last = max(0, rows.start - reach), min(images.shape[2], rows.stop + reach)
    beyond = (reach, reach, reach - (rows.start - first), reach - (last - rows.stop))
    pixels = images[:, :, first:last].to(torch.float32, memory_format=torch.contiguous_format)
    pixels = F.pad(pixels, beyond, mode="replicate")
    for dim in (2, 3):
        count = pixels.shape[dim] - 2 * reach
        smooth = pixels.narrow(dim, reach, count) * weights[0]
        for offset, weight in enumerate(weights[1:], start=1):
            beside = pixels.narrow(dim, reach - offset, count) + pixels.narrow(dim, reach + offset, count)
            smooth = (
                smooth.addcmul_(beside, weight) if isinstance(weight, Tensor) else smooth.add_(beside, alpha=weight)
            )
        pixels = smooth
    return pixels


def blurred(images: Tensor, weights: Tensor) -> Tensor:
    """Images [B, 3, H, W] uint8, each with its own weights [B, k] of the same device: float32, in a few operators.

    For accelerators, which a host that launches operators for one picture after the other would keep waiting.
    """
    return blur(images, slice(0, images.shape[2]), weights[:, :, None, None, None].unbind(1))


def blur_weights(radius: float) -> list[float]:
    """Of a Gaussian of standard deviation `radius`, in [0, 1] pixels; together (both sides) 1.

    The weight of a pixel itself, and of those that are 1, 2, ... pixels off to one side, BLUR_REACH at most.

    Three passes of a box of three pixels, as Pillow's GaussianBlur, put together. What would change no byte by more
    than a quarter is left out.
    """
    side = radius**2 / 6  # a pass then has a third of the variance
    box = np.array([side, 1 - 2 * side, side])
    weights = np.convolve(np.convolve(box, box), box)[3:]
    weights = weights[weights >= 1 / 1024]
    return (weights / (2 * weights.sum() - weights[0])).tolist()


class Distortion(NamedTuple):
    """Changes of brightness, contrast, saturation and hue (SSD, arXiv:1512.02325, 2.2)."""

    brightness: float = 0.0  # added, in [-32, 32] of 255
    contrast: float = 1.0  # factor in [0.5, 1.5]
    saturation: float = 1.0  # factor in [0.5, 1.5]
    hue_degrees: float = 0.0  # in [-36, 36]
    contrast_first: float = 0.0  # 1: contrast changes before saturation and hue; 0: after them


def draw_distortion(rng: np.random.Generator) -> Distortion:
    """Each change with a probability of one half; contrast first or last as chance has it."""
    brightness = rng.uniform(-32, 32) if rng.random() < 0.5 else 0.0
    contrast_first = float(rng.random() < 0.5)
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue_degrees = rng.uniform(-36, 36) if rng.random() < 0.5 else 0.0
    return Distortion(brightness, contrast, saturation, hue_degrees, contrast_first)


def distort_colours(pixels: Tensor, distortion: Distortion) -> Tensor:
    """[3, H, W] floating, 0 to 255 -> the same of changed colours, cut off at 0 and 255; `pixels` is overwritten.

    Saturation and hue are those of the HSV model. Values are not rounded between the steps.
    """
    if distortion.brightness:
        pixels.add_(distortion.brightness).clamp_(0, 255)
    if distortion.contrast_first and distortion.contrast != 1:
        pixels.mul_(distortion.contrast).clamp_(0, 255)
    if distortion.saturation != 1 or distortion.hue_degrees:
        pixels = _turn_hue_and_saturate(pixels, distortion.saturation, distortion.hue_degrees)
    if not distortion.contrast_first and distortion.contrast != 1:
        pixels.mul_(distortion.contrast).clamp_(0, 255)
    return pixels


def _turn_hue_and_saturate(pixels: Tensor, saturation: float, hue_degrees: float) -> Tensor:
    red, green, blue = pixels
    value = torch.maximum(torch.maximum(red, green), blue)  # V of HSV, [H, W]
    chroma = value - torch.minimum(torch.minimum(red, green), blue)  # S times V
    inverse = 1 / chroma.clamp(min=1e-3)  # grey has no hue: whatever it gets is multiplied by a chroma of 0
    if not hue_degrees:
        factor = (value * inverse).clamp_(max=saturation)  # S is 1 at most
        return torch.addcmul(value, pixels - value, factor)
    # the hue in sextants of the circle, by the channel that is largest: 0 red, 2 green, 4 blue
    hue = (red - green).mul_(inverse).add_(4)
    hue = _where_zero(value - green, (blue - red).mul_(inverse).add_(2), hue)
    hue = _where_zero(value - red, (green - blue).mul_(inverse), hue)
    hue = hue.add_(hue_degrees / 60 + 6).div_(6).frac_().mul_(6)  # in [0, 6)
    chroma = torch.minimum(chroma * saturation, value)
    low = value - chroma
    # a channel is full within one sextant of its own hue, and falls to the lowest value over the next
    shares = (
        (hue - 3).abs_().sub_(1).clamp_(0, 1),
        (hue - 2).abs_().neg_().add_(2).clamp_(0, 1),
        (hue - 4).abs_().neg_().add_(2).clamp_(0, 1),
    )
    for channel, share in zip(pixels, shares, strict=True):
        torch.addcmul(low, share, chroma, out=channel)
    return pixels


def _where_zero(difference: Tensor, then: Tensor, otherwise: Tensor) -> Tensor:
    """`torch.where(difference == 0, then, otherwise)` for differences of colours; a third of its time on the CPU."""
    return torch.lerp(then, otherwise, difference.mul_(1e8).clamp_(max=1))  # no two colours differ by less than 1e-8


def chunks(height: int, width: int, device: torch.device) -> list[slice]:
    """Rows of a picture to work on at a time: on the CPU few enough to stay in a core's cache, elsewhere all."""
    rows = max(1, CHUNK_PIXELS // width) if device.type == "cpu" else height
    return [slice(first, min(first + rows, height)) for first in range(0, height, rows)]


def normalize(images: Tensor, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> Tensor:
    """[..., 3, H, W] uint8 or floating, 0 to 255 -> float32 of the same memory layout: (value / 255 - mean) / std."""
    scale, offset = _scale_and_offset(mean, std, images.device)
    pixels = images.movedim(-3, -1)  # [..., H, W, 3]
    if not pixels.is_contiguous():
        return (images.float() * scale.view(3, 1, 1)).sub_(offset.view(3, 1, 1))
    # channels_last: whole lines of red, green, blue, red, ... are several times as fast as three values at a time
    width = images.shape[-1]
    lines = (pixels.flatten(-2).float() * scale.repeat(width)).sub_(offset.repeat(width))
    return lines.unflatten(-1, (width, 3)).movedim(-1, -3)


@cache
def _scale_and_offset(mean: tuple[float, ...], std: tuple[float, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """[3] each, float32: made once for each device, as a copy from the host would wait for it every time."""
    mean, std = torch.tensor(mean, dtype=torch.float64), torch.tensor(std, dtype=torch.float64)
    return (1 / (255 * std)).float().to(device), (mean / std).float().to(device)


def picture_to_input(picture: Image.Image, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> Tensor:
    """A PIL picture in RGB -> what a network takes of it: [3, H, W] float32, normalised."""
    return normalize(torch.from_numpy(np.array(picture)).permute(2, 0, 1).contiguous(), mean, std)


def denormalize(image: Tensor, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> np.ndarray:
    """[3, H, W] normalised -> [H, W, 3] uint8 in [0, 255], for pictures to look at."""
    pixels = image.permute(1, 2, 0).float().cpu().numpy() * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)
