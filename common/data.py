"""Which sample comes when, and batches on the device.

A data set here is a `torch.utils.data.Dataset` whose training items are asked for by the key (epoch, index) and draw
all their randomness from (seed, epoch, index): the batches of a run do not depend on the number of workers, and a run
can start at any step without replaying the steps before it. Its items are (image [H, W, 3] uint8, target [H, W],
draws [k]), and its `finish(images, draws)` turns a batch of images [B, 3, H, W] uint8 on the device into float32.
"""

import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from functools import cache

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from common.cores import cpu_cores
from common.device import World, seed_step
from common.errors import InputError

if sys.version_info < (3, 12):
    # Until then, a process forked while another thread enters the interpreter (one of gloo's, say, which gives tensors
    # back after a collective) may inherit a lock of the interpreter and wait for it for ever. Asking for the frames of
    # all threads takes that lock and gives it back: whoever held it has passed when the fork happens.
    os.register_at_fork(before=lambda: sys._current_frames())


def sample_rng(seed: int, epoch: int, index: int) -> np.random.Generator:
    """The generator of one training sample."""
    return np.random.default_rng((seed, epoch, index))


def worker_count(workers: int | str, world: World) -> int:
    """Processes that read data for this device; 'auto' shares out the cores of the machine, at most 16 each.

    A run on the CPU keeps half of its cores for the computation.
    """
    if workers != "auto":
        return workers
    cores = cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(16, cores // 2 if world.device.type == "cpu" else cores - 1))


def steps_in_epoch(dataset: Sized, images_per_step: int) -> int:
    """Steps that fit into one epoch; the remaining images (fewer than a step's) come in another epoch's order.

    Raises InputError when there is not even one.
    """
    steps = len(dataset) // images_per_step
    if steps == 0:
        raise InputError(
            f"{len(dataset)} training images are fewer than the {images_per_step} of one step over all devices; "
            "lower --device_batch_size or --devices, or add images"
        )
    return steps


class StepSampler:
    """Keys [(epoch, index), ...] of this process's part of each step, from `first_step` to `total_steps`.

    Every epoch is shuffled by (seed, epoch) and dealt out in steps of device_batch_size * world.size images, of which
    rank r takes the r-th block: the blocks of all ranks one after the other are the batch of a single process.
    """

    def __init__(
        self,
        dataset_length: int,
        device_batch_size: int,
        world: World,
        seed: int,
        first_step: int,
        total_steps: int,
    ):
        self.dataset_length, self.device_batch_size, self.seed = dataset_length, device_batch_size, seed
        self.rank, self.images_per_step = world.rank, device_batch_size * world.size
        self.first_step, self.total_steps = first_step, total_steps

    def __len__(self) -> int:
        return self.total_steps - self.first_step

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        steps_per_epoch = self.dataset_length // self.images_per_step
        order, order_epoch = None, -1
        for step in range(self.first_step, self.total_steps):
            epoch, step_in_epoch = divmod(step, steps_per_epoch)
            if epoch != order_epoch:
                # the last number keeps the shuffle apart from the samples' own generators
                order = sample_rng(self.seed, epoch, self.dataset_length).permutation(self.dataset_length)
                order_epoch = epoch
            start = step_in_epoch * self.images_per_step + self.rank * self.device_batch_size
            yield [(epoch, int(index)) for index in order[start : start + self.device_batch_size]]


def batches(
    dataset: Dataset,
    device_batch_size: int,
    world: World,
    seed: int,
    workers: int,
    first_step: int,
    total_steps: int,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, images [B, 3, H, W] float32, target [B, H, W]) on the device, for every step that is left.

    Targets are int64, or floating where the data set gives such. Before each step everything random on the device is
    seeded by (seed, rank, step). One set of workers serves the whole run, and the next batch is on its way while the
    present one is used. Raises InputError, naming the file, for a sample that cannot be read.
    """
    sampler = StepSampler(len(dataset), device_batch_size, world, seed, first_step, total_steps)
    loader = _loader(dataset, sampler, world, workers, default_collate)
    for step, (images, target) in enumerate(_on_device(map(_unpack, loader), dataset, world), start=first_step):
        seed_step(seed, world, step)
        yield step, images, target


def eval_batches(dataset: Dataset, batch_size: int, world: World, workers: int) -> Iterator[tuple[Tensor, Tensor]]:
    """(images [b, 3, H, W] float32, target [b, H, W]) on the device, covering this process's share of the data set.

    The processes take images rank, rank + size, ... without padding: together they see each image exactly once.
    Images of one batch that differ in size come as several smaller batches.
    """
    share = range(world.rank, len(dataset), world.size)
    keys = [list(share[start : start + batch_size]) for start in range(0, len(share), batch_size)]
    loader = _loader(dataset, keys, world, workers, _collate_by_size)
    yield from _on_device((batch for groups in map(_unpack, loader) for batch in groups), dataset, world)


def to_device(batch: Sequence[Tensor], dataset: Dataset, world: World) -> tuple[Tensor, Tensor]:
    """(images [B, 3, H, W] float32 finished and in the world's memory format, target [B, H, W]) of a collated batch.

    batch: images [B, H, W, 3] uint8, target [B, H, W], draws [B, k].
    """
    images, target, draws = batch
    images = images.to(world.device, non_blocking=True).permute(0, 3, 1, 2)  # bytes, of channels_last strides
    images = dataset.finish(images.contiguous(memory_format=world.memory_format), draws)
    target = target.to(world.device, non_blocking=True)
    return images, target if target.is_floating_point() else target.long()


def _on_device(loaded: Iterable, dataset: Dataset, world: World) -> Iterator[tuple[Tensor, Tensor]]:
    """`to_device` of each batch, on an accelerator on a stream of its own.

    The host is ahead of an accelerator: while that one still computes the step before, the bytes of the next batch are
    copied and finished beside it. The stream that computes waits for them, and not the host.
    """
    if world.device.type == "cpu":
        for batch in loaded:
            yield to_device(batch, dataset, world)
        return
    backend = getattr(torch, world.device.type)  # torch.cuda or torch.npu
    beside = _stream_beside(world.device)
    for batch in loaded:
        with backend.stream(beside):
            ready = to_device(batch, dataset, world)
        computing = backend.current_stream()
        computing.wait_stream(beside)
        for tensor in ready:
            tensor.record_stream(computing)  # its memory is not given away before that stream has used it
        yield ready


@cache
def _stream_beside(device: torch.device) -> torch.Stream:
    """One for the whole run: memory that was taken on a stream is used again on that stream alone."""
    return getattr(torch, device.type).Stream(device)


class _Reporting(Dataset):
    """Hands an InputError of the data set on as an item, so that it reaches the user from a worker as one line."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, key):
        try:
            return self.dataset[key]
        except InputError as error:
            return error

    def __len__(self) -> int:
        return len(self.dataset)


def _loader(dataset: Dataset, keys: Sequence, world: World, workers: int, collate: Callable) -> DataLoader:
    return DataLoader(
        _Reporting(dataset),
        batch_sampler=keys,
        num_workers=workers,
        collate_fn=_Collate(collate),
        pin_memory=world.device.type != "cpu",
    )


class _Collate:
    """Collate items unless one of them is an error: then the error is the batch."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, items: list):
        errors = [item for item in items if isinstance(item, InputError)]
        return errors[0] if errors else self.collate(items)


def _unpack(batch):
    if isinstance(batch, InputError):
        raise batch
    return batch


def _collate_by_size(items: list[tuple[Tensor, ...]]) -> list[list[Tensor]]:
    by_size: dict[torch.Size, list] = {}
    for item in items:
        by_size.setdefault(item[0].shape, []).append(item)
    return [default_collate(group) for group in by_size.values()]
