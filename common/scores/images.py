"""What each image of a data set scores, and the validation loss."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common.device.world import World, sum_over_ranks
from common.step.losses import at_least_float32, binary_cross_entropy, cross_entropy


class ImageScores:
    """One row for each image of a data set, by its index: so sums do not depend on who has counted which image.

    `pixels` [images, 3, C] int64: pixels of each class that are right, true, predicted. `losses` [images] float32: the
    mean cross entropy of the labelled pixels; where there are several views, of the averaged probabilities.
    """

    def __init__(self, images: int, world: World):
        self.images, self.world = images, world
        self._counted: list[tuple[Tensor, Tensor, Tensor]] = []  # of this process, on the device
        self.pixels = self.losses = None

    def update(self, indices: Tensor, pixels: Tensor, logits: Tensor, target: Tensor) -> None:
        """Note a batch. indices [B] on the CPU; pixels [B, 3, C] as `Metric.update` gives them; logits, target: of it.

        Image by image: the loss needs as much memory as the logits that it is of.
        """
        losses = [image_loss(logits[place : place + 1], target[place : place + 1]) for place in range(len(target))]
        self._counted.append((indices, pixels, torch.stack(losses)))

    def sum_over_ranks(self, classes: int) -> None:
        """Bring the rows of all processes together, after the last update; a row is of one of them, and else 0."""
        device = self.world.device
        pixels = torch.zeros(self.images, 3, classes, dtype=torch.int64, device=device)
        losses = torch.zeros(self.images, device=device)
        if self._counted:
            indices, counts, values = (torch.cat(parts) for parts in zip(*self._counted, strict=True))
            indices = indices.to(device)
            pixels[indices], losses[indices] = counts, values
        self.pixels, self.losses = sum_over_ranks(pixels).cpu(), sum_over_ranks(losses).cpu()

    def loss(self) -> float:
        """Mean cross entropy over all labelled pixels; nan where there is none."""
        labelled = self.pixels[:, 1].sum(1).tolist()
        total = math.fsum(loss * count for loss, count in zip(self.losses.tolist(), labelled, strict=True))
        return total / sum(labelled) if sum(labelled) else math.nan

    def scores(self) -> list[float]:
        """Of each image, the mean IoU of the classes that are in its truth or its prediction; nan without a label."""
        right, true, predicted = self.pixels.double().unbind(1)
        return (right / (true + predicted - right)).nanmean(1).tolist()


def image_loss(logits: Tensor, target: Tensor) -> Tensor:
    """Mean cross entropy over the labelled pixels, 0 where there are none. logits [1, C, H, W], target [1, H, W]."""
    logits = at_least_float32(logits)
    if logits.shape[1] > 1:
        return cross_entropy(logits, target)
    return binary_cross_entropy(logits[:, 0], target)


def ranked(scores: Sequence[float]) -> dict[str, int]:
    """{"worst", "median", "best": index of an image}, of those that have a score; none where there are fewer."""
    order = sorted((index for index, score in enumerate(scores) if not math.isnan(score)), key=lambda i: scores[i])
    if not order:
        return {}
    places = {"worst": 0, "median": (len(order) - 1) // 2, "best": len(order) - 1}
    return {name: order[place] for name, place in places.items()}
