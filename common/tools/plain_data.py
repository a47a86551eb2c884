"""The plain form of the training data, against which `benchmark data` compares ours: what the references do.

Decode with Pillow, resize the whole picture and the whole label to a random scale, crop, augment, and normalise in
float32 with NumPy, one sample at a time and all of it on the host. It is the yardstick, so nothing here is taken from
`common.data.transforms` or the data sets. A sample is (image [3, H, W] float32, target [H, W]), of class ids in int64
or, of lesions, of shares in float32.
"""

from argparse import Namespace
from collections.abc import Callable
from functools import partial
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance, ImageFilter, ImageOps

from common import IGNORE_INDEX
from common.data.cityscapes import TRAIN_ID_OF_LABEL_ID

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet; RGB in [0, 1]
BILINEAR, NEAREST = Image.Resampling.BILINEAR, Image.Resampling.NEAREST
# picture file, label file, generator -> (image, target)
PlainSample = Callable[[Path, Path, np.random.Generator], tuple[np.ndarray, np.ndarray]]


def plain_sample(layout: str, args: Namespace) -> PlainSample:
    """The pipeline of the folders of this layout ("cityscapes", "voc" or "isic") with these values of a preset."""
    if layout == "isic":
        return partial(lesion, image_size=args.image_size, augmentation_prob=args.augmentation_prob)
    options = {"base_size": args.base_size, "crop_size": args.crop_size, "scales": (args.min_scale, args.max_scale)}
    if hasattr(args, "cat_max_ratio"):
        return partial(distorted_crop, cat_max_ratio=args.cat_max_ratio, **options)
    return partial(blurred_crop, **options)


def blurred_crop(
    image_file: Path,
    label_file: Path,
    rng: np.random.Generator,
    base_size: int,
    crop_size: tuple[int, int],
    scales: tuple[float, float],
) -> tuple[np.ndarray, np.ndarray]:
    """As the references of `BlurredCrops`: flip, scale by the short side, pad, crop, blur, map the ids of the crop."""
    image, label = Image.open(image_file).convert("RGB"), _open_label(label_file)
    if rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
        label = label.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    short = rng.integers(int(base_size * scales[0]), int(base_size * scales[1]), endpoint=True)
    factor = short / min(image.size)
    size = tuple(short if side == min(image.size) else int(side * factor) for side in image.size)
    image, label = image.resize(size, BILINEAR), label.resize(size, NEAREST)
    height, width = crop_size
    border = (0, 0, max(0, width - image.width), max(0, height - image.height))
    image, label = ImageOps.expand(image, border, fill=0), ImageOps.expand(label, border, fill=0)
    left = rng.integers(0, image.width - width, endpoint=True)
    top = rng.integers(0, image.height - height, endpoint=True)
    box = (left, top, left + width, top + height)
    image, label = image.crop(box), label.crop(box)
    if rng.random() < 0.5:
        image = image.filter(ImageFilter.GaussianBlur(radius=rng.random()))
    return _normalize(np.asarray(image)), _train_ids(np.asarray(label), label_file).astype(np.int64)


def distorted_crop(
    image_file: Path,
    label_file: Path,
    rng: np.random.Generator,
    base_size: int,
    crop_size: tuple[int, int],
    scales: tuple[float, float],
    cat_max_ratio: float,
) -> tuple[np.ndarray, np.ndarray]:
    """As mmsegmentation: scale, crop anew while one class fills it, flip, change colours, pad."""
    image, label = Image.open(image_file).convert("RGB"), _open_label(label_file)
    ratio = rng.uniform(*scales)
    factor = min(
        int(2 * base_size * ratio) / max(image.size),
        int(base_size * ratio) / min(image.size),
    )
    size = tuple(int(side * factor + 0.5) for side in image.size)
    pixels = np.asarray(image.resize(size, BILINEAR))
    ids = _train_ids(np.asarray(label.resize(size, NEAREST)), label_file)
    height, width = crop_size
    for _ in range(11):
        top = rng.integers(0, max(pixels.shape[0] - height, 0), endpoint=True)
        left = rng.integers(0, max(pixels.shape[1] - width, 0), endpoint=True)
        part = ids[top : top + height, left : left + width]
        classes, counts = np.unique(part, return_counts=True)
        counts = counts[classes != IGNORE_INDEX]
        if len(counts) > 1 and counts.max() / counts.sum() < cat_max_ratio:
            break
    pixels, ids = pixels[top : top + height, left : left + width], part
    if rng.random() < 0.5:
        pixels, ids = pixels[:, ::-1], ids[:, ::-1]
    image = _normalize(_distort(pixels, rng))
    below, right = height - ids.shape[0], width - ids.shape[1]
    ids = np.pad(ids, ((0, below), (0, right)), constant_values=IGNORE_INDEX)
    return np.pad(image, ((0, 0), (0, below), (0, right))), ids.astype(np.int64)


def lesion(
    image_file: Path,
    label_file: Path,
    rng: np.random.Generator,
    image_size: int,
    augmentation_prob: float,
) -> tuple[np.ndarray, np.ndarray]:
    """Of pictures of lesions: resize, augment a share of them, resize; masks are blended like pictures.

    The reference's lengths in pixels are those of pictures of 224; they grow with the size.
    """
    image, mask = Image.open(image_file).convert("RGB"), Image.open(label_file).convert("L")
    scale = image_size / 224
    aspect = image.height / image.width
    width = round(rng.integers(300, 320, endpoint=True) * scale)
    pictures = [picture.resize((width, max(1, int(width * aspect))), BILINEAR) for picture in (image, mask)]
    if rng.random() < augmentation_prob:
        pictures = _augment_lesion(pictures, aspect, scale, rng)
    image, mask = (picture.resize((image_size, image_size), BILINEAR) for picture in pictures)
    return _normalize(np.asarray(image), (0.5,) * 3, (0.5,) * 3), np.asarray(mask, np.float32) / 255


def _augment_lesion(pictures: list, aspect: float, scale: float, rng: np.random.Generator) -> list:
    quarter_turns = rng.integers(4)
    aspect = 1 / aspect if quarter_turns % 2 else aspect
    degrees = rng.integers(-10, 10, endpoint=True)
    pictures = [picture.rotate(90 * quarter_turns).rotate(degrees) for picture in pictures]
    crop_width = int(rng.integers(250, 270, endpoint=True) * scale)
    crop_height = int(crop_width * aspect)
    width, height = pictures[0].size
    left, top = (width - crop_width) // 2, (height - crop_height) // 2
    pictures = [picture.crop((left, top, left + crop_width, top + crop_height)) for picture in pictures]
    width, height = pictures[0].size
    trims = rng.integers(0, int(min(20 * scale, width // 4, height // 4)), endpoint=True, size=4)
    box = (trims[0], trims[1], width - trims[2], height - trims[3])
    pictures = [picture.crop(box) for picture in pictures]
    for mirror in (Image.Transpose.FLIP_LEFT_RIGHT, Image.Transpose.FLIP_TOP_BOTTOM):
        if rng.random() < 0.5:
            pictures = [picture.transpose(mirror) for picture in pictures]
    image, mask = pictures
    for change in rng.permutation(3):
        if change == 0:
            image = ImageEnhance.Brightness(image).enhance(rng.uniform(0.8, 1.2))
        elif change == 1:
            image = ImageEnhance.Contrast(image).enhance(rng.uniform(0.8, 1.2))
        else:
            image = _turn_hue(image, rng.uniform(-0.02, 0.02))
    return [image, mask]


def _distort(pixels: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Brightness, contrast, saturation and hue of [H, W, 3] uint8, each with a probability of one half."""
    if rng.random() < 0.5:
        pixels = _linear(pixels, 1.0, rng.uniform(-32, 32))
    contrast_first = rng.random() < 0.5
    if contrast_first and rng.random() < 0.5:
        pixels = _linear(pixels, rng.uniform(0.5, 1.5))
    if rng.random() < 0.5:
        hsv = np.array(Image.fromarray(pixels).convert("HSV"))
        hsv[..., 1] = _linear(hsv[..., 1], rng.uniform(0.5, 1.5))
        pixels = np.asarray(Image.fromarray(hsv, "HSV").convert("RGB"))
    if rng.random() < 0.5:
        pixels = np.asarray(_turn_hue(Image.fromarray(pixels), rng.integers(-18, 18) / 180))
    if not contrast_first and rng.random() < 0.5:
        pixels = _linear(pixels, rng.uniform(0.5, 1.5))
    return pixels


def _linear(values: np.ndarray, factor: float, offset: float = 0.0) -> np.ndarray:
    """factor * values + offset of bytes, cut off at 0 and 255."""
    return np.clip(values.astype(np.float32) * np.float32(factor) + np.float32(offset), 0, 255).astype(np.uint8)


def _turn_hue(image: Image.Image, circles: float) -> Image.Image:
    hsv = np.array(image.convert("HSV"))
    hsv[..., 0] += np.uint8(round(256 * circles) % 256)  # wraps around by itself
    return Image.fromarray(hsv, "HSV").convert("RGB")


def _open_label(path: Path) -> Image.Image:
    """A picture of ids: a PNG or, of SBD, a .mat file."""
    if path.suffix != ".mat":
        return Image.open(path)
    from scipy.io import loadmat  # for SBD alone

    return Image.fromarray(loadmat(path)["GTcls"]["Segmentation"][0, 0])


def _train_ids(values: np.ndarray, path: Path) -> np.ndarray:
    """[H, W] class ids of what a label file holds."""
    return TRAIN_ID_OF_LABEL_ID[values] if path.name.endswith("_labelIds.png") else values


def _normalize(pixels: np.ndarray, mean=MEAN, std=STD) -> np.ndarray:
    """[H, W, 3] uint8 -> [3, H, W] float32: (value / 255 - mean) / std."""
    image = pixels.transpose(2, 0, 1).astype(np.float32, order="C")
    image /= 255
    image -= np.float32(mean)[:, None, None]
    image /= np.float32(std)[:, None, None]
    return image
