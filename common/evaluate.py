"""Score a model on a validation set, each image exactly once however many processes there are."""

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext

import torch
from torch import Tensor, nn
from torch.utils.data import Dataset

from common.data import eval_batches
from common.device import World, share_buffers, sum_over_ranks
from common.metrics import ConfusionMatrix


@torch.no_grad()
def evaluate(
    model: nn.Module,
    dataset: Dataset,
    num_classes: int,
    batch_size: int,
    world: World,
    workers: int,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
) -> ConfusionMatrix:
    """The confusion matrix of the whole data set, summed over all processes and equal on each of them.

    model: takes [B, 3, H, W] and gives, in eval mode, logits [B, C, H, W]; it is left in the mode it came in.
    """
    was_training = model.training
    model.eval()
    share_buffers(model, world)
    matrix = ConfusionMatrix(num_classes, device=world.device)
    for images, target in eval_batches(dataset, batch_size, world, workers):
        with autocast():
            logits = model(images)
        matrix.update(logits, target)
    sum_over_ranks(matrix.counts)
    model.train(was_training)
    return matrix


@torch.no_grad()
def example_predictions(
    model: nn.Module,
    dataset: Dataset,
    count: int,
    world: World,
    autocast: Callable[[], AbstractContextManager] = nullcontext,
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
        image, target = dataset[index]
        with autocast():
            logits = model(image[None].to(world.device))  # [1, C, H, W]
        examples.append((image, target, logits[0].argmax(0).cpu()))
    model.train(was_training)
    return examples
