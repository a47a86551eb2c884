"""Which sample comes when, and how long a training is.

Training items are asked for by the key (epoch, index) and draw all their randomness from (seed, epoch, index): the
batches of a run do not depend on the number of workers, and a run can start at any step without replaying those before.
"""

from argparse import Namespace
from collections.abc import Iterator, Sized
from typing import NamedTuple

import numpy as np

from common.device.world import World
from common.errors import InputError


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one training sample."""
    return np.random.default_rng((seed, epoch, index))


def steps_in_epoch(dataset: Sized, images_per_step: int) -> int:
    """Steps that fit into one epoch; the remaining images (fewer than a step's) come in another epoch's order.

    Raises InputError when there is not even one.
    """
    steps = len(dataset) // images_per_step
    if steps == 0:
        raise InputError(
            f"{len(dataset)} training images are fewer than the {images_per_step} of one step over all devices; "
            "lower --device_batch_size, --devices or --accumulate, or add images"
        )
    return steps


class StepRange(NamedTuple):
    """The steps that a run has still to do, and what their order depends on."""

    device_batch_size: int
    seed: int
    first_step: int
    total_steps: int
    parts: int = 1  # of a step: so often a device takes `device_batch_size` images


class StepSampler:
    """Keys [(epoch, index), ...] of each part of this process's share of a step, from `first_step` to `total_steps`.

    Every epoch is shuffled by (seed, epoch) and dealt out in steps of device_batch_size * parts * world.size images, of
    which rank r takes the r-th block: the blocks of all ranks one after the other are the batch of a single process.
    The parts of a block come one after the other: together they are what a larger device would take at once.
    """

    def __init__(self, dataset_length: int, steps: StepRange, world: World):
        self.dataset_length, self.rank = dataset_length, world.rank
        self.device_batch_size, self.seed, self.first_step, self.total_steps, self.parts = steps
        self.images_per_step = steps.device_batch_size * steps.parts * world.size

    def __len__(self) -> int:
        return (self.total_steps - self.first_step) * self.parts

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps_per_epoch = self.dataset_length // self.images_per_step
        order, order_epoch = None, -1
        for step in range(self.first_step, self.total_steps):
            epoch, step_in_epoch = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                # the last number keeps the shuffle apart from the samples' own generators
                order = sample_rng(self.seed, epoch, self.dataset_length).permutation(self.dataset_length)
                order_epoch = epoch
            for part in range(self.rank * self.parts, (self.rank + 1) * self.parts):
                start = step_in_epoch * self.images_per_step + part * self.device_batch_size
                yield [(epoch, int(index)) for index in order[start : start + self.device_batch_size]]


class Length(NamedTuple):
    """How long a training is, in optimizer steps."""

    steps_per_epoch: int
    schedule_steps: int  # of the whole training: what the learning rate follows
    total_steps: int  # of this run, which --max_steps may end earlier

    def is_due(self, step: int, every: int) -> bool:
        """Whether what is done every so many steps (0: never), and at the end, comes after this 0-based step."""
        done = step + 1
        return every > 0 and (done % every == 0 or done == self.total_steps)


def images_of_one_device(args: Namespace, processes: int) -> int:
    """Training images of one device at a time, from --device_batch_size or, where it is given, --total_batch_size."""
    total = getattr(args, "total_batch_size", None)
    if total is None:
        return args.device_batch_size
    parts = processes * args.accumulate
    if total % parts:
        words = f"{processes} devices" if args.accumulate == 1 else f"{processes} x {args.accumulate} (--accumulate)"
        raise InputError(
            f"--total_batch_size {total} images cannot be shared by {words}; "
            f"give a multiple of {parts}, or the images of one device with --device_batch_size"
        )
    return total // parts
