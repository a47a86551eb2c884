"""Segmentation scores from one confusion matrix, summed over all images and all processes."""

from collections.abc import Sequence
from typing import Protocol

import torch
from torch import Tensor

from common import IGNORE_INDEX
from common.device.world import sum_over_ranks

EVAL_LOSS = "eval_loss"  # the loss of an evaluation, among its scores


class Metric(Protocol):
    """What is counted over a data set: `ConfusionMatrix`, for example."""

    def update(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Count a batch; [B, 3, C] int64: of each image and class, pixels that are right, true, predicted."""

    def sum_over_ranks(self) -> None: ...

    def confusion(self) -> Tensor:
        """[C, C] int64 on the CPU: pixels by (true class, predicted class)."""

    def scores(self) -> dict[str, float]: ...

    def class_scores(self) -> dict[str, float]: ...

    def pixels(self) -> int: ...


def class_ids(logits: Tensor) -> Tensor:
    """[B, C, H, W] logits -> [B, H, W] int64 class ids: the largest; of a single channel, 1 where it is above 0.

    A logit above 0 is a probability above 0.5.
    """
    return logits.max(dim=1).indices if logits.shape[1] > 1 else (logits[:, 0] > 0).long()


class ConfusionMatrix:
    """Pixel counts by (true class, predicted class), kept on the device in int64.

    A score of a data set is computed once, from the sum over all its images: the mean of scores of batches depends on
    the order of the images and on the batch size. Nothing in `update` waits for the device or has a shape that depends
    on the data; the scores are what is waited for.
    """

    def __init__(
        self,
        num_classes: int,
        ignore_index: int = IGNORE_INDEX,
        device: torch.device | str = "cpu",
        class_names: Sequence[str] = (),
    ):
        self.num_classes, self.class_names = num_classes, class_names
        self.ignore_index = ignore_index
        # a bin for each pair of classes, one for ignored pixels, and one for pixels with an id that is no class
        self.bins = torch.zeros(num_classes**2 + 2, dtype=torch.int64, device=device)

    def update(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Count the pixels of a batch; returns what is counted of each image: see `Metric`.

        prediction: logits [B, C, H, W] floating ([B, 1, H, W] for two classes too), or class ids [B, H, W] integer.
        target: [B, H, W] integer, [0, C) or `ignore_index`. ValueError for other shapes; other ids are an error when
        the counts are read, since looking at them here would be waiting for them.
        """
        if prediction.is_floating_point():
            channels = 1 if self.num_classes == 2 and prediction.shape[1] == 1 else self.num_classes
            if prediction.dim() != 4 or prediction.shape[1] != channels:
                raise ValueError(
                    f"logits have the shape {list(prediction.shape)}; {self.num_classes} classes need "
                    f"[B, {self.num_classes}, H, W]: use a model of as many classes"
                )
            prediction = class_ids(prediction)  # [B, C, H, W] -> [B, H, W]
        if prediction.shape != target.shape:
            raise ValueError(
                f"predictions {list(prediction.shape)} and target {list(target.shape)} differ in shape: "
                "resize the logits to the target, not the target to the logits"
            )
        target, prediction = target.long(), prediction.long()
        known = (target >= 0) & (target < self.num_classes) & (prediction >= 0) & (prediction < self.num_classes)
        pair, ignored, unknown = target * self.num_classes + prediction, self.num_classes**2, self.num_classes**2 + 1
        bins = torch.where(target == self.ignore_index, ignored, torch.where(known, pair, unknown)).flatten(0, 1)
        images = len(target)
        # Each row of pixels has bins of its own, so that not all threads of a device add to the same few numbers; they
        # are smaller than the logits. torch.bincount makes the host wait: its result is as long as the largest value.
        rows = torch.zeros(len(bins), len(self.bins), dtype=torch.int32, device=bins.device)  # [B * H, C * C + 2]
        rows.scatter_add_(1, bins, torch.ones_like(bins, dtype=torch.int32))
        of_each = rows.view(images, -1, len(self.bins)).sum(1)  # [B, C * C + 2] int64
        self.bins += of_each.sum(0)
        counts = of_each[:, :-2].view(images, self.num_classes, self.num_classes)
        return torch.stack([counts.diagonal(dim1=1, dim2=2), counts.sum(2), counts.sum(1)], dim=1)

    @property
    def counts(self) -> Tensor:
        """[C, C] int64 on the CPU: a row per true class, a column per predicted class, as scikit-learn has them.

        ValueError when a target or a prediction was no class.
        """
        bins = self.bins.cpu()
        if bins[-1]:
            raise ValueError(
                f"the target or the prediction holds a class id beyond {self.num_classes - 1}: "
                f"map labels to 0..{self.num_classes - 1}, and those that do not count to {self.ignore_index}"
            )
        return bins[:-2].view(self.num_classes, self.num_classes)

    def confusion(self) -> Tensor:
        """`counts`, under the name that every metric has."""
        return self.counts

    def sum_over_ranks(self) -> None:
        """Add up the counts of all processes, equal on each of them from then on."""
        sum_over_ranks(self.bins)

    def intersection(self) -> Tensor:
        """[C] int64: correctly predicted pixels of each class."""
        return self.counts.diagonal()

    def union(self) -> Tensor:
        """[C] int64: pixels that are of the class in truth, in prediction, or in both."""
        counts = self.counts
        return counts.sum(0) + counts.sum(1) - counts.diagonal()

    def iou(self) -> Tensor:
        """[C] float64: intersection over union (Jaccard index); nan for a class that occurs nowhere."""
        return self.intersection().double() / self.union().double()

    def class_accuracy(self) -> Tensor:
        """[C] float64: recall of each class; nan for a class without true pixels."""
        return self.intersection().double() / self.counts.sum(1).double()

    def miou(self) -> float:
        """Mean IoU over the classes that occur in truth or prediction, in [0, 1]; nan when there is none."""
        return self.iou().nanmean().item()

    def mean_class_accuracy(self) -> float:
        """Mean recall over the classes with true pixels, in [0, 1]; nan when there is none."""
        return self.class_accuracy().nanmean().item()

    def pixel_accuracy(self) -> float:
        """Share of the labelled pixels that are predicted correctly, in [0, 1]; nan when there is none."""
        total = self.counts.sum().item()
        return self.intersection().sum().item() / total if total else float("nan")

    def frequency_weighted_iou(self) -> float:
        """Mean IoU weighted by the true pixels of each class, in [0, 1]; nan when there is none."""
        share = self.counts.sum(1).double() / self.counts.sum()
        return (share * self.iou()).nansum().item() if self.counts.sum() else float("nan")

    def dice(self) -> Tensor:
        """[C] float64: 2 TP / (2 TP + FP + FN), the F1 score; nan for a class that occurs nowhere."""
        return 2 * self.intersection().double() / (self.counts.sum(0) + self.counts.sum(1)).double()

    def mean_dice(self) -> float:
        """Mean Dice over the classes that occur in truth or prediction, in [0, 1]; nan when there is none."""
        return self.dice().nanmean().item()

    def pixels(self) -> int:
        """How many pixels are counted: the labelled ones of every image, once."""
        return self.counts.sum().item()

    def class_scores(self) -> dict[str, float]:
        """IoU by class name; nan for a class that occurs nowhere."""
        return dict(zip(self.class_names, self.iou().tolist(), strict=True)) if self.class_names else {}

    def scores(self) -> dict[str, float]:
        """The scores of a validation set by name; the first one chooses the best checkpoint."""
        return {
            "miou": self.miou(),
            "pixel_accuracy": self.pixel_accuracy(),
            "mean_class_accuracy": self.mean_class_accuracy(),
            "frequency_weighted_iou": self.frequency_weighted_iou(),
            "mean_dice": self.mean_dice(),
        }


class BinaryScores(ConfusionMatrix):
    """Scores of two classes, the second of which is the foreground."""

    def scores(self) -> dict[str, float]:
        """IoU (Jaccard index) and Dice of the foreground, nan where it occurs nowhere; then those of any classes."""
        (_, false_positive), (false_negative, true_positive) = self.counts.tolist()
        wrong = false_positive + false_negative
        foreground = {
            "foreground_iou": true_positive / (true_positive + wrong) if true_positive + wrong else float("nan"),
            "dice": 2 * true_positive / (2 * true_positive + wrong) if true_positive + wrong else float("nan"),
        }
        return foreground | super().scores()
