"""Scores of lesion masks, from counts of pixels in each image."""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from common import IGNORE_INDEX
from common.device.world import World, sum_over_ranks
from common.scores.metrics import class_ids

MIN_JACCARD = 0.65  # below, the thresholded score of the ISIC challenge counts an image as 0


class LesionScores:
    """Counts true and false, positive and negative pixels of every image of a data set; lesion is positive.

    Scores come from the counts summed over the set, or from those of each image; the challenge takes the latter. Each
    is computed once, from whole numbers, so that batch size and number of processes do not matter.

    `counts` [images, 4] int64 on the device: true positives, false positives, false negatives, true negatives. The k-th
    image of this process is image rank + k * size of the set, as `common.data.loading.eval_batches` deals them out.
    """

    def __init__(self, images: int, world: World, class_names: Sequence[str] = ("background", "lesion")):
        self.world, self.seen, self.class_names = world, 0, class_names
        self.counts = torch.zeros(images, 4, dtype=torch.int64, device=world.device)

    def update(self, prediction: Tensor, target: Tensor) -> Tensor:
        """Count the pixels of a batch; [B, 3, 2] int64: of each image beside and on the lesion, right, true, predicted.

        prediction: logits [B, 1, H, W] ([B, 2, H, W] for two classes too). target [B, H, W] int64: 1 on the lesion, 0
        beside it, 255 for what does not count. ValueError for other shapes, and for more images than the set has.
        """
        if prediction.dim() != 4 or prediction.shape[1] > 2 or prediction[:, 0].shape != target.shape:
            raise ValueError(
                f"logits {list(prediction.shape)} and target {list(target.shape)}; lesion masks need [B, 1, H, W] and "
                "[B, H, W]: use a model of one class, and resize the logits to the target"
            )
        predicted, counts = class_ids(prediction) == 1, target != IGNORE_INDEX
        lesion = target == 1
        parts = (predicted & lesion, predicted & ~lesion & counts, ~predicted & lesion, ~predicted & ~lesion & counts)
        rows = torch.stack([part.sum(dim=(1, 2)) for part in parts], dim=1)  # [B, 4] int64
        places = range(self.world.rank, len(self.counts), self.world.size)[self.seen : self.seen + len(rows)]
        if len(places) < len(rows):
            raise ValueError(f"more than the {len(self.counts)} images of the set are counted; count each of them once")
        self.counts[places.start : places.stop : places.step] = rows
        self.seen += len(rows)
        tp, fp, fn, tn = rows.unbind(1)
        of_classes = [[tn, tp], [tn + fp, tp + fn], [tn + fn, tp + fp]]
        return torch.stack([torch.stack(pair, dim=1) for pair in of_classes], dim=1)

    def confusion(self) -> Tensor:
        """[2, 2] int64 on the CPU: pixels by (true class, predicted class)."""
        tp, fp, fn, tn = self.counts.sum(0).tolist()
        return torch.tensor([[tn, fp], [fn, tp]])

    def sum_over_ranks(self) -> None:
        """Bring the counts of all processes together: each has filled rows that are 0 in the others."""
        sum_over_ranks(self.counts)

    def scores(self) -> dict[str, float]:
        """The scores by name, in [0, 1], nan where nothing is counted; the first one chooses the best checkpoint."""
        tp, fp, fn, tn = self.counts.sum(0).tolist()
        # an image without a lesion, in which none is found, is right
        each = [_share(tp, tp + fp + fn, 1.0) for tp, fp, fn, _ in self.counts.tolist()]
        return {
            "jaccard": _share(tp, tp + fp + fn),
            "dice": _share(2 * tp, 2 * tp + fp + fn),
            "accuracy": _share(tp + tn, tp + fp + fn + tn),
            "sensitivity": _share(tp, tp + fn),
            "specificity": _share(tn, tn + fp),
            "precision": _share(tp, tp + fp, 0.0),  # where nothing is marked; so does the original
            "f1": _share(2 * tp, 2 * tp + fp + fn),  # dice by its other name; the original reports both
            "per_image_jaccard": _mean(each),
            "thresholded_jaccard": _mean([jaccard if jaccard >= MIN_JACCARD else 0.0 for jaccard in each]),
        }

    def pixels(self) -> int:
        """How many pixels are counted: those of every image that are not ignored, once."""
        return self.counts.sum().item()

    def class_scores(self) -> dict[str, float]:
        """IoU of what is not lesion and of what is."""
        tp, fp, fn, tn = self.counts.sum(0).tolist()
        beside, lesion = self.class_names
        return {beside: _share(tn, tn + fp + fn), lesion: _share(tp, tp + fp + fn)}


def _share(part: int, whole: int, otherwise: float = math.nan) -> float:
    """part / whole, or `otherwise` where there is nothing."""
    return part / whole if whole else otherwise


def _mean(values: list[float]) -> float:
    """The exactly rounded mean: it does not depend on the order."""
    return math.fsum(values) / len(values) if values else math.nan
