"""Score a model on a validation set, each image exactly once however many processes there are."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data import Dataset, default_collate

from common.data.colours import denormalize
from common.data.loading import eval_batches, to_device
from common.data.pictures import LabelledPictures
from common.device.exits import is_out_of_memory
from common.device.placement import share_buffers
from common.device.stopping import Orders
from common.device.watching import mark
from common.device.world import World
from common.errors import InputError, Stopped, Unreachable
from common.scores.drawing import panel
from common.scores.images import ImageScores
from common.scores.metrics import Metric, class_ids
from common.scores.views import Views
from common.terminal import progress

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
    views: Views = Views()  # what the network is shown of each picture

    def network(self, model: nn.Module) -> Callable[[Tensor], Tensor]:
        """images [B, 3, H, W] -> logits [B, C, H, W] of the views of each, in the precision of the evaluation."""

        def once(images: Tensor) -> Tensor:
            with self.autocast():
                return model(images)

        return partial(self.views, once)


class OutOfMemory(MemoryError):
    """A device has no memory for an evaluation. Raised in all processes; `shape`: of the images of this one, or None
    where it was another process."""

    def __init__(self, said: str, shape: tuple[int, ...] | None):
        super().__init__(f"out of memory: {said}")
        self.shape = shape


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    metric: Metric | None,
    how: Evaluation,
    images: ImageScores | None = None,
    keep: Callable[[Tensor, Tensor], None] | None = None,
) -> Metric | None:
    """Count the whole data set in `metric` (on the model's device), summed over all processes; returns it.

    model: takes [B, 3, H, W] and gives, in eval mode, logits [B, C, H, W]; it is left in the mode it came in.
    metric: None for pictures without labels. images: what each image scores, likewise summed. keep: is handed the
    indices [B] and the logits of each batch. Raises Stopped, in all processes, when one of them has been asked to end
    meanwhile or cannot read a picture, and OutOfMemory, in all of them, when one has no memory for a batch.
    """
    was_training = model.training
    model.eval()
    share_buffers(model, how.world)
    searches, shapes = torch.backends.cudnn.benchmark, set()
    network, said, shape = how.network(model), "", None
    batches = _readable(eval_batches(dataset, how.batch_size, how.world, how.workers), how.orders)
    if how.world.is_main:  # the others keep step with it
        pictures = how.world.size
        batches = progress(batches, "evaluating", len(dataset), "picture", lambda batch: pictures * len(batch[2]))
    for batch, target, indices in batches:
        mark("evaluate")
        shapes.add(batch.shape)
        torch.backends.cudnn.benchmark = searches and len(shapes) <= SEARCHED_SHAPES
        try:
            logits = network(batch)
            if metric is not None:
                pixels = metric.update(logits, target)
                if images is not None:
                    images.update(indices, pixels, logits, target)
            if keep is not None:
                keep(indices, logits)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            said, shape = " ".join(str(error).split()), tuple(batch.shape)
            break
        finally:
            logits = None  # gigabytes, which the next batch would find taken
        if how.orders and how.orders.here:
            break
    torch.backends.cudnn.benchmark = searches
    model.train(was_training)
    if how.orders.any_now(shape is not None) if how.orders else shape is not None:
        raise OutOfMemory(said or "in another process", shape)
    if how.orders and how.orders.after_evaluation():
        raise Stopped
    if metric is not None:
        metric.sum_over_ranks()
        if images is not None:
            images.sum_over_ranks(len(metric.confusion()))
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
def example_panels(
    model: nn.Module, dataset: LabelledPictures, indices: Iterable[int], how: Evaluation
) -> list[np.ndarray]:
    """These images with truth and prediction side by side, [H, W, 3] uint8 each; on the main process alone."""
    if not how.world.is_main:
        return []
    was_training = model.training
    model.eval()
    panels, network = [], how.network(model)
    for index in indices:
        try:
            item = dataset[index]
        except Unreachable:  # it was there a moment ago, and a run does not end for want of a panel
            break
        images, target = to_device(default_collate([item]), dataset, how.world)
        prediction = class_ids(network(images))  # [1, C, H, W] -> [1, H, W]
        image = denormalize(images[0], dataset.info.mean, dataset.info.std)
        panels.append(panel(image, target[0].cpu().numpy(), prediction[0].cpu().numpy(), dataset.info.palette))
    model.train(was_training)
    return panels
