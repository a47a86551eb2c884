"""Batches on the device, by workers that read files ahead.

A data set here gives items (image [H, W, 3] uint8, target [H, W], draws [k]), those of a training for the keys of
`common.data.order`; its `finish(images, draws)` turns a batch of images [B, 3, H, W] uint8 on the device into float32.
"""

import os
import sys
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, default_collate

from common.data.order import StepRange, StepSampler, steps_in_epoch
from common.data.skipping import Bad, Skips, candidates
from common.device.cores import cpu_cores
from common.device.stopping import stay_out_of_it
from common.device.world import World, seed_step
from common.errors import InputError, Unreachable

if sys.version_info < (3, 12):
    # Until then, a process forked while another thread enters the interpreter (one of gloo's, say, which gives tensors
    # back after a collective) may inherit a lock of the interpreter and wait for it for ever. Asking for the frames of
    # all threads takes that lock and gives it back: whoever held it has passed when the fork happens.
    os.register_at_fork(before=lambda: sys._current_frames())


# Steps whose batches are read before they are needed. Processes agree on an end after a step, and know of it after the
# next one (`Agreement.largest`): until then the one that cannot read its data has to take part.
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
    skips: Skips | None = None,
    unreadable: Callable[[InputError], None] | None = None,
) -> Iterator[tuple[int, Tensor, Tensor]]:
    """(step, images [B, 3, H, W] float32, target [B, H, W]) on the device, for every step that is left.

    Targets are int64, or floating where the data set gives such. A step of several parts comes as one batch for each.
    Before each of them everything random on the device is seeded by (seed, rank, step, part). One set of workers serves
    the whole run, and the next batch is on its way while the present one is used. Raises InputError, naming the file,
    for a sample that cannot be read, unless `skips` allows for it: then another one takes its place. unreadable: is
    told of the error AHEAD steps before.
    """
    keys = StepSampler(len(dataset), steps, world)
    loader = _loader(_Reporting(dataset, skips.most if skips else 0), keys, world, workers, default_collate)
    loaded = (_unpack(batch, skips) for batch in loader)
    if unreadable:
        loaded = _ahead(loaded, unreadable, AHEAD * steps.parts)
    first = steps.first_step * steps.parts
    for number, (images, target) in enumerate(_on_device(loaded, dataset, world), start=first):
        step, part = divmod(number, steps.parts)
        seed_step(steps.seed, world, step, part)
        yield step, images, target


class Feed(NamedTuple):
    """Where the batches of a training come from: its data set, unless somebody measures what the training does."""

    batches: Callable = batches
    steps_in_epoch: Callable = steps_in_epoch


def eval_batches(
    dataset: Dataset, batch_size: int, world: World, workers: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(images [b, 3, H, W] float32, target [b, H, W]) on the device, covering this process's share of the data set,
    and the indices [b] of the images, on the CPU.

    The processes take images rank, rank + size, ... without padding: together they see each image exactly once.
    Images of one batch that differ in size come as several smaller batches.
    """
    share = range(world.rank, len(dataset), world.size)
    keys = [list(share[start : start + batch_size]) for start in range(0, len(share), batch_size)]
    loader = _loader(_Reporting(_Numbered(dataset)), keys, world, workers, _collate_by_size)
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


def _ahead(loaded: Iterable, unreadable: Callable[[InputError], None], ahead: int) -> Iterator:
    """The batches, each given when so many more are read; an error is raised when those before it are used up."""
    waiting = deque()
    try:
        for batch in loaded:
            waiting.append(batch)
            if len(waiting) > ahead:
                yield waiting.popleft()
    except InputError as error:
        unreadable(error)
        yield from waiting
        raise
    yield from waiting


def _on_device(loaded: Iterable, dataset: Dataset, world: World) -> Iterator[tuple[Tensor, ...]]:
    """`to_device` of each batch, on an accelerator on a stream of its own; what a batch has besides goes along.

    The host is ahead of an accelerator: while that one still computes the step before, the bytes of the next batch are
    copied and finished beside it. The stream that computes waits for them, and not the host.
    """
    if world.device.type == "cpu":
        for batch in loaded:
            yield *to_device(batch[:3], dataset, world), *batch[3:]
        return
    backend = getattr(torch, world.device.type)  # torch.cuda or torch.npu
    beside = _stream_beside(world.device)
    for batch in loaded:
        with backend.stream(beside):
            ready = to_device(batch[:3], dataset, world)
        computing = backend.current_stream()
        computing.wait_stream(beside)
        for tensor in ready:
            tensor.record_stream(computing)  # its memory is not given away before that stream has used it
        yield *ready, *batch[3:]


@cache
def _stream_beside(device: torch.device) -> torch.Stream:
    """One for the whole run: memory that was taken on a stream is used again on that stream alone."""
    return getattr(torch, device.type).Stream(device)


class _Numbered(Dataset):
    """The items of a data set, each with its index."""

    def __init__(self, dataset: Dataset):
        self.dataset = dataset

    def __getitem__(self, index: int) -> tuple:
        return *self.dataset[index], index

    def __len__(self) -> int:
        return len(self.dataset)


class _Reporting(Dataset):
    """Hands an InputError of the data set on as an item, so that it reaches the user from a worker as one line.

    most_bad: samples that may be passed over until there is one that can be read.
    """

    def __init__(self, dataset: Dataset, most_bad: int = 0):
        self.dataset, self.most_bad = dataset, most_bad

    def __getitem__(self, key) -> tuple[object, list[Bad]]:
        """(the item, or the error of the last that was tried; the samples that were passed over for it)."""
        bad: list[Bad] = []
        for candidate in candidates(key, len(self), self.most_bad):
            try:
                return self.dataset[candidate], bad
            except InputError as error:
                last = error
                if isinstance(error, Unreachable):  # nothing is wrong with the sample: none can be read
                    break
                if self.most_bad:
                    bad.append((candidate[1], str(error)))
        return last, bad

    def __len__(self) -> int:
        return len(self.dataset)


def _loader(dataset: _Reporting, keys: Sequence, world: World, workers: int, collate: Callable) -> DataLoader:
    """On Linux the workers are forked, as before Python 3.14, which would have a server start them.

    That server is sent the signals of its process group too, and its end would be the end of the run; and each of its
    workers would import torch anew, for every evaluation.

    Python 3.12 and newer warn (DeprecationWarning, hidden by default) of a fork beside other threads, which torch has.
    A worker waits for none of them: torch gives it one thread, and the interpreter's own locks are free when it begins.
    """
    return DataLoader(
        dataset,
        batch_sampler=keys,
        num_workers=workers,
        multiprocessing_context="fork" if workers and sys.platform == "linux" else None,
        collate_fn=_Collate(collate),
        pin_memory=world.device.type != "cpu",
        worker_init_fn=stay_out_of_it,
    )


class _Collate:
    """(The batch of items, the samples that were passed over); where an item is an error, that is the batch."""

    def __init__(self, collate):
        self.collate = collate

    def __call__(self, reported: list) -> tuple[object, list[Bad]]:
        items = [item for item, _ in reported]
        errors = [item for item in items if isinstance(item, InputError)]
        return errors[0] if errors else self.collate(items), [one for _, bad in reported for one in bad]


def _unpack(reported: tuple[object, list[Bad]], skips: Skips | None = None):
    """The batch. Raises InputError for one that is an error, and for samples that are too many to be passed over."""
    batch, bad = reported
    if bad:
        skips.take(bad)
    if isinstance(batch, InputError):
        raise batch
    return batch


def _collate_by_size(items: list[tuple[Tensor, ...]]) -> list[list[Tensor]]:
    by_size: dict[torch.Size, list] = {}
    for item in items:
        by_size.setdefault(item[0].shape, []).append(item)
    return [default_collate(group) for group in by_size.values()]
