"""Batches on the device, by workers that read files ahead.

A data set here gives items (image [H, W, 3] uint8, target [H, W], draws [k]), those of a training for the keys of
`common.data.order`; its `finish(images, draws)` turns a batch of images [B, 3, H, W] uint8 on the device into float32.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from common.data.order import StepRange, StepSampler
from common.device.cores import cpu_cores
from common.device.stopping import stay_out_of_it
from common.device.world import World, seed_step
from common.errors import InputError

if sys.version_info < (3, 12):
    # Until then, a process forked while another thread enters the interpreter (one of gloo's, say, which gives tensors
    # back after a collective) may inherit a lock of the interpreter and wait for it for ever. Asking for the frames of
    # all threads takes that lock and gives it back: whoever held it has passed when the fork happens.
    os.register_at_fork(before=lambda: sys._current_frames())


# Batches that are read before they are needed. Processes agree on an end after a step, and know of it after the next
# one (`Agreement.largest`): until then the one that cannot read its data has to take part.
AHEAD = 2


def worker_count(workers: int | str, world: World) -> int:
    """Processes that read data for this device; 'auto' shares out the cores of the machine, at most 16 each.

    A run on the CPU keeps half of its cores for the computation.
    """
    if workers != "auto":
        return workers
    cores = cpu_cores() // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
    return max(1, min(16, cores // 2 if world.device.type == "cpu" else cores - 1))


def batches(
    dataset: Dataset,
    steps: StepRange,
    world: World,
    workers: int,
    unreadable: Callable[[InputError], None] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, images [B, 3, H, W] float32, target [B, H, W]) on the device, for every step that is left.

    Targets are int64, or floating where the data set gives such. Before each step everything random on the device is
    seeded by (seed, rank, step). One set of workers serves the whole run, and the next batch is on its way while the
    present one is used. Raises InputError, naming the file, for a sample that cannot be read; unreadable: is told of
    it AHEAD steps before.
    """
    loaded = map(_unpack, _loader(dataset, StepSampler(len(dataset), steps, world), world, workers, default_collate))
    if unreadable:
        loaded = _ahead(loaded, unreadable)
    for step, (images, target) in enumerate(_on_device(loaded, dataset, world), start=steps.first_step):
        seed_step(steps.seed, world, step)
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


def _ahead(loaded: Iterable, unreadable: Callable[[InputError], None]) -> Iterator:
    """The batches, each given when the next AHEAD are read too; an error is raised when those before it are used up."""
    waiting = deque()
    try:
        for batch in loaded:
            waiting.append(batch)
            if len(waiting) > AHEAD:
                yield waiting.popleft()
    except InputError as error:
        unreadable(error)
        yield from waiting
        raise
    yield from waiting


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
        worker_init_fn=stay_out_of_it,
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
