"""Augmentations of an image and its label, drawn from one random generator per sample.

An image is a PIL picture in RGB, a label a PIL picture of class ids in mode L, both of the same size.
Sizes are (height, width) as in tensors; PIL's own order is (width, height).
"""

import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from common import IGNORE_INDEX
from common.errors import UNREADABLE, InputError

IMAGENET_MEAN = (0.485, 0.456, 0.406)  # RGB in [0, 1]
IMAGENET_STD = (0.229, 0.224, 0.225)
MEAN_COLOR = tuple(round(255 * mean) for mean in IMAGENET_MEAN)  # 0 after normalisation, to half a grey level
CROP_ATTEMPTS = 10


def read_image(path) -> Image.Image:
    """The picture in RGB: grey is repeated, transparency dropped, 16 bits become 8.

    Raises InputError that names the file when it cannot be decoded, or holds numbers of an unknown range.
    """
    try:
        with Image.open(path) as image:
            if image.mode == "F":
                raise ValueError("it holds floating-point numbers and not 8-bit colours")
            if image.mode == "I" or image.mode.startswith("I;16"):  # convert() would cut off at 255: a white picture
                image = Image.fromarray((np.asarray(image) // 256).clip(0, 255).astype(np.uint8))
            return image.convert("RGB")
    except UNREADABLE as error:
        raise InputError(f"cannot decode the image {path} ({error}); unpack or download it again") from error


def read_label(path, train_id_of_value: np.ndarray, known_values: frozenset[int]) -> Image.Image:
    """The label with its values mapped to train ids [256] uint8. Raises InputError that names the file and values."""
    try:
        with Image.open(path) as label:
            mode, values = label.mode, np.asarray(label)  # mode P gives palette indices: the class ids
    except UNREADABLE as error:
        raise InputError(f"cannot decode the label file {path} ({error}); unpack or download it again") from error
    if mode not in ("L", "P"):
        raise InputError(f"{path} is a {mode} image; labels are 8-bit single-channel files of ids: give those")
    unknown = set(np.flatnonzero(np.bincount(values.ravel(), minlength=256)).tolist()) - known_values
    if unknown:
        raise InputError(
            f"{path} holds the values {sorted(unknown)[:5]}, which are not in the label table "
            f"({value_range(known_values)}); give the original label files"
        )
    return Image.fromarray(train_id_of_value[values])


def value_range(known_values: frozenset[int]) -> str:
    """What a label file may hold, for people: '0..18, and 255 for what is ignored'."""
    values = known_values - {IGNORE_INDEX}
    text = f"{min(values)}..{max(values)}"
    return f"{text}, and {IGNORE_INDEX} for what is ignored" if IGNORE_INDEX in known_values else text


def check_scales(scales: tuple[float, float], base_size: int) -> None:
    """Raise InputError for a range of training scales, relative to `base_size` pixels, that is none."""
    if not 0 < scales[0] <= scales[1]:
        raise InputError(f"--min_scale {scales[0]} --max_scale {scales[1]}: give two factors, 0 < min <= max")
    if int(scales[0] * base_size) < 1:
        raise InputError(f"--min_scale {scales[0]} of --base_size {base_size} is less than a pixel; raise one of them")


def flip(image: Image.Image, label: Image.Image, rng: np.random.Generator, probability: float = 0.5):
    """Mirror both left to right with the given probability."""
    if rng.random() < probability:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        label = label.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return image, label


def scale_and_crop(
    image: Image.Image,
    label: Image.Image,
    rng: np.random.Generator,
    base_size: int,
    crop_size: tuple[int, int],
    scales: tuple[float, float] = (0.5, 2.0),
):
    """Scale so that the short side is uniform in `scales` times base_size, then cut out `crop_size` anywhere.

    Where the scaled picture is smaller than the crop it is padded at the right and below, the image with 0 (black,
    before normalisation) and the label with IGNORE_INDEX. Only the part under the crop is resized: Pillow takes the
    filter's support from outside the box too, so this equals resizing everything and cropping then, at a fraction
    of the work. Bilinear (antialiased when shrinking) for the image, nearest for the label.
    """
    width, height = image.size
    short = int(rng.integers(int(scales[0] * base_size), int(scales[1] * base_size), endpoint=True))
    if width > height:
        scaled_height, scaled_width = short, int(width * short / height)
    else:
        scaled_height, scaled_width = int(height * short / width), short

    crop_height, crop_width = crop_size
    top = int(rng.integers(0, max(0, scaled_height - crop_height), endpoint=True))
    left = int(rng.integers(0, max(0, scaled_width - crop_width), endpoint=True))
    cut_height, cut_width = min(crop_height, scaled_height), min(crop_width, scaled_width)
    box = (
        left * width / scaled_width,
        top * height / scaled_height,
        min(width, (left + cut_width) * width / scaled_width),
        min(height, (top + cut_height) * height / scaled_height),
    )
    image = image.resize((cut_width, cut_height), Image.Resampling.BILINEAR, box=box)
    label = label.resize((cut_width, cut_height), Image.Resampling.NEAREST, box=box)
    return pad(image, crop_size, 0), pad(label, crop_size, IGNORE_INDEX)


def scale_and_crop_varied(
    image: Image.Image,
    label: Image.Image,
    rng: np.random.Generator,
    base_size: int,
    crop_size: tuple[int, int],
    scales: tuple[float, float] = (0.5, 2.0),
    cat_max_ratio: float = 1.0,
):
    """Scale by a uniform factor and cut out `crop_size` where no class covers all of it, as mmsegmentation does.

    The picture is scaled to fit into 2 base_size by base_size, times a factor uniform in `scales`. A crop is drawn
    anew, up to ten times, while it holds a single class or one that covers `cat_max_ratio` of its labelled pixels.
    Where the scaled picture is smaller than the crop, so is the result: it is padded last (`pad`), so that neither a
    mirror image nor its colours change what was added. As in `scale_and_crop`, only the part under the crop is resized.
    """
    width, height = image.size
    ratio = rng.uniform(*scales)
    long_side, short_side = int(2 * base_size * ratio), int(base_size * ratio)
    factor = min(long_side / max(width, height), short_side / min(width, height))
    scaled_width, scaled_height = max(1, int(width * factor + 0.5)), max(1, int(height * factor + 0.5))

    cut_height, cut_width = min(crop_size[0], scaled_height), min(crop_size[1], scaled_width)
    for attempt in range(CROP_ATTEMPTS + 1):
        top = int(rng.integers(0, scaled_height - cut_height, endpoint=True))
        left = int(rng.integers(0, scaled_width - cut_width, endpoint=True))
        box = (
            left * width / scaled_width,
            top * height / scaled_height,
            min(width, (left + cut_width) * width / scaled_width),
            min(height, (top + cut_height) * height / scaled_height),
        )
        cut_label = label.resize((cut_width, cut_height), Image.Resampling.NEAREST, box=box)
        if cat_max_ratio >= 1 or attempt == CROP_ATTEMPTS or _is_varied(cut_label, cat_max_ratio):
            break
    return image.resize((cut_width, cut_height), Image.Resampling.BILINEAR, box=box), cut_label


def _is_varied(label: Image.Image, cat_max_ratio: float) -> bool:
    """Whether the label has two classes or more, none of which covers `cat_max_ratio` of the labelled pixels."""
    counts = np.array(label.histogram())
    counts[IGNORE_INDEX] = 0
    return np.count_nonzero(counts) > 1 and counts.max() < cat_max_ratio * counts.sum()


def photometric_distortion(image: Image.Image, rng: np.random.Generator) -> Image.Image:
    """Brightness, contrast, saturation and hue, each with a probability of one half (SSD, arXiv:1512.02325, 2.2).

    Brightness moves by up to 32 of 255, contrast and saturation by a factor in [0.5, 1.5], hue by up to 36 degrees.
    Contrast comes before or after saturation and hue, as chance has it. Values are cut off at 0 and 255.
    """
    pixels = np.asarray(image)
    if rng.random() < 0.5:
        pixels = _scaled(pixels, 1.0, rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    contrast = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    saturation = rng.uniform(0.5, 1.5) if rng.random() < 0.5 else 1.0
    hue_degrees = rng.uniform(-36, 36) if rng.random() < 0.5 else 0.0
    if contrast_first:
        pixels = _scaled(pixels, contrast)
    if saturation != 1 or hue_degrees != 0:
        hsv = np.array(Image.fromarray(pixels).convert("HSV"))
        hsv[..., 0] += np.uint8(round(hue_degrees / 360 * 256) % 256)  # a full circle is 256: wraps around by itself
        hsv[..., 1] = _scaled(hsv[..., 1], saturation)
        pixels = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    if not contrast_first:
        pixels = _scaled(pixels, contrast)
    return Image.fromarray(pixels)


def _scaled(values: np.ndarray, factor: float, offset: float = 0.0) -> np.ndarray:
    """factor * values + offset, cut off to uint8."""
    if factor == 1 and offset == 0:
        return values
    table = (np.arange(256) * factor + offset).clip(0, 255).astype(np.uint8)
    return table[values]


def pad(picture: Image.Image, size: tuple[int, int], value: int | tuple[int, ...]) -> Image.Image:
    """Extend to at least `size` at the right and below with a constant."""
    width, height = max(size[1], picture.width), max(size[0], picture.height)
    if (width, height) == picture.size:
        return picture
    fill = (value,) * len(picture.getbands()) if picture.mode != "L" and isinstance(value, int) else value
    canvas = Image.new(picture.mode, (width, height), fill)
    canvas.paste(picture, (0, 0))
    return canvas


def blur(image: Image.Image, rng: np.random.Generator, probability: float = 0.5) -> Image.Image:
    """Gaussian blur of a radius uniform in [0, 1) pixels, with the given probability."""
    if rng.random() < probability:
        image = image.filter(ImageFilter.GaussianBlur(radius=rng.random()))
    return image


def normalize(image: Image.Image, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> Tensor:
    """[3, H, W] float32: (value / 255 - mean) / std for each channel."""
    scale = 1 / (255 * np.asarray(std, np.float32))
    offset = np.asarray(mean, np.float32) / np.asarray(std, np.float32)
    pixels = np.asarray(image) * scale - offset  # [H, W, 3] uint8 -> float32
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def denormalize(image: Tensor, mean=IMAGENET_MEAN, std=IMAGENET_STD) -> np.ndarray:
    """[3, H, W] normalised -> [H, W, 3] uint8 in [0, 255], for pictures to look at."""
    pixels = image.permute(1, 2, 0).float().cpu().numpy() * np.asarray(std, np.float32) + np.asarray(mean, np.float32)
    return (pixels * 255).round().clip(0, 255).astype(np.uint8)


def to_class_ids(label: Image.Image) -> Tensor:
    """[H, W] int64 class ids."""
    return torch.from_numpy(np.array(label, dtype=np.int64))
