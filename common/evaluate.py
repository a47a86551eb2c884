"""Score a model on a validation set, each image exactly once however many processes there are."""

import time
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from common.data import eval_batches, to_device
from common.device import World, share_buffers, synchronize
from common.metrics import class_ids
from common.runlog import RunLog

Autocast = Callable[[], AbstractContextManager]
EXAMPLES = 3  # pictures kept of every evaluation
# cuDNN tries all kernels for each new shape of a convolution. That pays where all pictures have one size, and the last
# batch another; for a data set of many sizes it would be done for each batch.
SEARCHED_SHAPES = 2


class Metric(Protocol):
    """What is counted over a validation set: `common.metrics.ConfusionMatrix`, for example."""

    def update(self, prediction: Tensor, target: Tensor) -> None: ...

    def sum_over_ranks(self) -> None: ...

    def scores(self) -> dict[str, float]: ...

    def class_scores(self) -> dict[str, float]: ...


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    metric: Metric,
    batch_size: int,
    world: World,
    workers: int,
    autocast: Autocast = nullcontext,
) -> Metric:
    """Count the whole data set in `metric` (on the model's device), summed over all processes; returns it.

    model: takes [B, 3, H, W] and gives, in eval mode, logits [B, C, H, W]; it is left in the mode it came in.
    """
    was_training = model.training
    model.eval()
    share_buffers(model, world)
    searches, shapes = torch.backends.cudnn.benchmark, set()
    for images, target in eval_batches(dataset, batch_size, world, workers):
        shapes.add(images.shape)
        torch.backends.cudnn.benchmark = searches and len(shapes) <= SEARCHED_SHAPES
        with autocast():
            logits = model(images)
        metric.update(logits, target)
        del logits  # gigabytes, which the next batch would find taken
    torch.backends.cudnn.benchmark = searches
    metric.sum_over_ranks()
    model.train(was_training)
    return metric


@torch.no_grad()
def example_predictions(
    model: nn.Module,
    dataset: Dataset,
    count: int,
    world: World,
    autocast: Autocast = nullcontext,
) -> list[tuple[Tensor, Tensor, Tensor]]:
    """The first images with truth and prediction, for people to look at; on the main process alone.

    Each is (image [3, H, W] normalised, target [H, W] int64, prediction [H, W] int64) on the CPU.
    """
    if not world.is_main:
        return []
    was_training = model.training
    model.eval()
    examples = []
    for index in range(min(count, len(dataset))):
        images, target = to_device(default_collate([dataset[index]]), dataset, world)
        with autocast():
            logits = model(images)  # [1, C, H, W]
        examples.append((images[0].cpu(), target[0].cpu(), class_ids(logits)[0].cpu()))
    model.train(was_training)
    return examples


def validate(
    log: RunLog,
    model: nn.Module,
    dataset: Dataset,
    metric: Metric,
    batch_size: int,
    world: World,
    workers: int,
    autocast: Autocast,
    show: Callable[[Tensor, Tensor, Tensor], np.ndarray],
) -> bool:
    """Score the validation set during training and report it; returns whether it is the best score so far.

    show: (image [3, H, W], target [H, W], prediction [H, W]) -> a picture [h, w, 3] uint8, for a few examples.
    """
    evaluate(model, dataset, metric, batch_size, world, workers, autocast)
    is_best = log.eval(metric.scores(), metric.class_scores())
    log.pictures([show(*example) for example in example_predictions(model, dataset, EXAMPLES, world, autocast)])
    return is_best


def evaluate_only(
    log: RunLog,
    model: nn.Module,
    dataset: Dataset,
    metric: Metric,
    batch_size: int,
    world: World,
    workers: int,
    autocast: Autocast,
) -> dict:
    """Score a data set without training, report that as the run's result, and return it."""
    started = time.perf_counter()
    evaluate(model, dataset, metric, batch_size, world, workers, autocast)
    synchronize(world)
    log.rate(len(dataset), time.perf_counter() - started)
    log.eval(metric.scores(), metric.class_scores())
    return log.finish()
