"""Score a model on a validation set, each image exactly once however many processes there are."""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import NamedTuple

import numpy as np
import torch
from torch import nn
from torch.utils.data import Dataset, default_collate

from common.data.colours import denormalize
from common.data.loading import eval_batches, to_device
from common.data.pictures import LabelledPictures
from common.device.placement import share_buffers
from common.device.stopping import Orders
from common.device.watching import mark
from common.device.world import World
from common.errors import InputError, Stopped, Unreachable
from common.scores.drawing import panel
from common.scores.metrics import Metric, class_ids

# cuDNN tries all kernels for each new shape of a convolution. That pays where all pictures have one size, and the last
# batch another; for a data set of many sizes it would be done for each batch.
SEARCHED_SHAPES = 2


class Evaluation(NamedTuple):
    """How a network is evaluated: on which device, by how many images at a time, in which precision; until when."""

    world: World
    batch_size: int = 1  # images of one device at a time
    workers: int = 0
    autocast: Callable[[], AbstractContextManager] = nullcontext
    orders: Orders | None = None  # what may end it before it is done


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, metric: Metric, how: Evaluation) -> Metric:
    """Count the whole data set in `metric` (on the model's device), summed over all processes; returns it.

    model: takes [B, 3, H, W] and gives, in eval mode, logits [B, C, H, W]; it is left in the mode it came in.
    Raises Stopped, in all processes, when one of them has been asked to end meanwhile, or cannot read a picture.
    """
    was_training = model.training
    model.eval()
    share_buffers(model, how.world)
    searches, shapes = torch.backends.cudnn.benchmark, set()
    for images, target in _readable(eval_batches(dataset, how.batch_size, how.world, how.workers), how.orders):
        mark("evaluate")
        shapes.add(images.shape)
        torch.backends.cudnn.benchmark = searches and len(shapes) <= SEARCHED_SHAPES
        with how.autocast():
            logits = model(images)
        metric.update(logits, target)
        del logits  # gigabytes, which the next batch would find taken
        if how.orders and how.orders.here:
            break
    torch.backends.cudnn.benchmark = searches
    model.train(was_training)
    if how.orders and how.orders.after_evaluation():
        raise Stopped
    metric.sum_over_ranks()
    return metric


def _readable(pictures: Iterator, orders: Orders | None) -> Iterator:
    """Up to the first that cannot be read: the run is asked to end, as by a signal. Without orders it is an error."""
    try:
        yield from pictures
    except InputError as error:
        if orders is None:
            raise
        orders.stop.unreadable(error)


@torch.no_grad()
def example_panels(model: nn.Module, dataset: LabelledPictures, count: int, how: Evaluation) -> list[np.ndarray]:
    """The first images with truth and prediction side by side, [H, W, 3] uint8 each; on the main process alone."""
    if not how.world.is_main:
        return []
    was_training = model.training
    model.eval()
    panels = []
    for index in range(min(count, len(dataset))):
        try:
            item = dataset[index]
        except Unreachable:  # it was there a moment ago, and a run does not end for want of a panel
            break
        images, target = to_device(default_collate([item]), dataset, how.world)
        with how.autocast():
            prediction = class_ids(model(images))  # [1, C, H, W] -> [1, H, W]
        image = denormalize(images[0], dataset.info.mean, dataset.info.std)
        panels.append(panel(image, target[0].cpu().numpy(), prediction[0].cpu().numpy(), dataset.info.palette))
    model.train(was_training)
    return panels
