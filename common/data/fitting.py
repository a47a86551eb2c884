"""The numbers that the preset `own` leaves open, from the pictures and the device."""

import math
from argparse import Namespace
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from common.data.decode import picture_size
from common.device.cuda import bytes_of_a_card
from common.device.launch import process_count
from common.device.world import find_device_type
from common.errors import InputError

LARGEST_CROP, SMALLEST_CROP = 768, 64  # pixels of a side
LARGEST_SQUARE = 512  # of networks that resize whole pictures
CROP_STEP = 32  # the coarsest stride of the networks
MEASURED_PICTURES = 200  # whose sizes decide about the crop
STEPS, STEPS_OF_A_CPU = 4000, 400  # of a training
SMALLEST_EPOCHS = 4
EVALUATIONS = 10  # in a training
BATCH_OF_A_CPU = 4
BATCHES = (2, 16)  # smallest and largest on an accelerator
BYTES_OF_A_PIXEL = 16_000  # of memory in training, for the larger networks in float32
BYTES_OF_AN_NPU = 32 << 30  # of the smaller cards that there are


def fit(args: Namespace, pairs: Sequence[tuple[Path, Path]]) -> str:
    """Give the flags that are None, as in the preset `own`, values for these training pictures; says which.

    Pictures are scaled about their own size, and crops are as large as their shorter side, up to LARGEST_CROP. Batches
    are as large as memory has room for; the length is counted in steps, however few pictures there are. What is given
    on the command line stays.
    """
    chosen: dict[str, object] = {}

    def choose(name: str, value: object) -> None:
        if getattr(args, name, 0) is None:  # flags that a folder does not have are left alone
            setattr(args, name, value)
            chosen[name] = value

    if any(getattr(args, name, 0) is None for name in ("base_size", "crop_size", "image_size")):
        short = _short_side(pairs)
        side = min(LARGEST_CROP, max(SMALLEST_CROP, short // CROP_STEP * CROP_STEP))
        choose("base_size", short)
        choose("crop_size", (side, side))
        choose("image_size", min(LARGEST_SQUARE, side))
    device = find_device_type(args.device)
    height, width = getattr(args, "crop_size", None) or (args.image_size, args.image_size)
    parts = process_count(args) * args.accumulate
    choose("device_batch_size", max(2, min(_batch(device, height * width), len(pairs) // parts)))
    steps = STEPS_OF_A_CPU if device == "cpu" else STEPS
    steps_per_epoch = max(1, len(pairs) // (args.device_batch_size * parts))
    if not hasattr(args, "total_steps"):
        choose("epochs", max(SMALLEST_EPOCHS, math.ceil(steps / steps_per_epoch)))
    elif args.epochs is None:
        choose("total_steps", steps)
    else:
        steps = args.epochs * steps_per_epoch
    choose("eval_every_epochs", max(1, (args.epochs or 0) // EVALUATIONS))
    choose("eval_every_steps", max(1, (getattr(args, "total_steps", None) or steps) // EVALUATIONS))
    return " ".join(f"--{name}={_shown(value)}" for name, value in chosen.items())


def _shown(value: object) -> str:
    return "x".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _short_side(pairs: Sequence[tuple[Path, Path]]) -> int:
    """The median of the shorter sides. Raises InputError where no picture can be read."""
    sides, error = [], None
    for image, _ in pairs[:: max(1, len(pairs) // MEASURED_PICTURES)]:
        try:
            sides.append(min(picture_size(image, "turn")))
        except InputError as unreadable:  # is refused, or left out, by whoever reads the data
            error = unreadable
    if not sides:
        raise error
    return int(np.median(sides))


def _batch(device: str, pixels: int) -> int:
    """The power of two of images that a device has memory for."""
    if device == "cpu":
        return BATCH_OF_A_CPU
    memory = bytes_of_a_card() if device == "cuda" else BYTES_OF_AN_NPU
    images = memory / (BYTES_OF_A_PIXEL * pixels)
    return int(min(BATCHES[1], max(BATCHES[0], 2 ** math.floor(math.log2(max(images, 1))))))
