"""The losses that --loss can name besides the recipe's own: of one pair of logits and labels, and sums of them.

All are in float32 (float64 for float64 logits) whatever the precision of the logits, have shapes that do not depend on
the labels, fetch no value from the device, and are 0 with gradients of 0 where every pixel is ignored. Logits are
[B, C, h, w], labels [B, h, w] int64 in [0, C) or `ignore_index`, which is not in [0, C).
"""

import math
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.nets.resize import resize
from common.step.losses import at_least_float32

FOCAL_GAMMA = 2.0
OHEM_PROBABILITY = 0.7  # a pixel whose true class has less is hard
OHEM_SHARE = 16  # one pixel of so many is kept at least


class PixelOptions(NamedTuple):
    """What the losses that are sums over pixels can do besides."""

    class_weights: Tensor | None = None  # [C] float32 on the device of the logits
    label_smoothing: float = 0.0  # the share of the truth that is dealt out to all classes alike
    over_all_pixels: bool = False  # of "ce" alone: divide by the number of all pixels, ignored ones included


class Criterion(NamedTuple):
    """The weighted sum of the losses that --loss names."""

    terms: Mapping[str, float]  # name in LOSSES -> weight
    options: PixelOptions = PixelOptions()

    def on(self, device: torch.device) -> "Criterion":
        """This one, for logits on that device."""
        weights = self.options.class_weights
        return (
            self if weights is None else self._replace(options=self.options._replace(class_weights=weights.to(device)))
        )

    def __call__(self, logits: Tensor, labels: Tensor, ignore_index: int = IGNORE_INDEX) -> Tensor:
        """A scalar. Logits of another size than the labels' are resized to it, bilinearly, corners not aligned."""
        logits = at_least_float32(logits)
        if logits.shape[2:] != labels.shape[1:]:
            logits = resize(logits, labels.shape[1:])
        return sum(
            weight * LOSSES[name](logits, labels, ignore_index, self.options) for name, weight in self.terms.items()
        )


def ce(logits: Tensor, labels: Tensor, ignore_index: int, options: PixelOptions) -> Tensor:
    """Cross entropy, the mean over the labelled pixels; with class weights the weighted mean, as torch's.

    Over all pixels: that mean times the share of the labelled ones, so that class weights do not change its size.
    """
    losses, shares = _cross_entropies(logits, labels, ignore_index, options)
    if not options.over_all_pixels:
        return _mean(losses, shares)
    if options.class_weights is None:
        return losses.mean()
    return _mean(losses, shares) * (labels != ignore_index).to(losses.dtype).mean()


def ohem(logits: Tensor, labels: Tensor, ignore_index: int, options: PixelOptions) -> Tensor:
    """Cross entropy of the hard pixels (online hard example mining, arXiv:1604.03540, by pixels).

    The mean over those whose true class has a probability below 0.7; where these are fewer than a sixteenth of all
    pixels, over that many with the largest losses.
    """
    losses, shares = _cross_entropies(logits, labels, ignore_index, options)
    hardness = losses.detach()
    if options.class_weights is not None or options.label_smoothing:  # how hard a pixel is does not depend on these
        hardness, _ = _cross_entropies(logits.detach(), labels, ignore_index, PixelOptions())
    least = hardness.flatten().topk(max(1, hardness.numel() // OHEM_SHARE)).values[-1]
    hard = (hardness >= least.clamp(max=-math.log(OHEM_PROBABILITY))) & (shares > 0)
    return _mean(losses * hard, shares * hard)


def focal(logits: Tensor, labels: Tensor, ignore_index: int, options: PixelOptions) -> Tensor:
    """Cross entropy times (1 - p)^2, p the probability of the true class (arXiv:1708.02002, gamma 2, no alpha).

    The mean over the labelled pixels, as `ce`.
    """
    losses, shares = _cross_entropies(logits, labels, ignore_index, options._replace(label_smoothing=0.0))
    true = torch.where(labels == ignore_index, 0, labels)[:, None]
    probability = logits.softmax(dim=1).gather(1, true)[:, 0]
    return _mean(losses * (1 - probability) ** FOCAL_GAMMA, shares)


def dice(logits: Tensor, labels: Tensor, ignore_index: int, options: PixelOptions) -> Tensor:
    """1 - 2 |P T| / (|P| + |T|) of each class that the labels hold, the mean over these (arXiv:1606.04797).

    P: probabilities, T: truth; sums over the labelled pixels of the whole batch, and sums of P itself in the divisor
    in place of its squares.
    """
    counted = (labels != ignore_index)[:, None]
    truth = _one_for_each_class(logits, labels)
    probabilities = logits.softmax(dim=1) * counted
    overlap = (probabilities * truth).sum((0, 2, 3))
    sizes = truth.sum((0, 2, 3))
    score = 2 * overlap / (probabilities.sum((0, 2, 3)) + sizes).clamp(min=1)  # 1 at least where the class is
    return _mean(1 - score, (sizes > 0).to(logits.dtype))


def lovasz(logits: Tensor, labels: Tensor, ignore_index: int, options: PixelOptions) -> Tensor:
    """The Lovasz extension of 1 - IoU, of each class that the labels hold, the mean over these (arXiv:1705.08790).

    Errors |T - P| over the labelled pixels of the whole batch, in falling order, each times what its pixel adds to the
    Jaccard loss.
    """
    counted = (labels != ignore_index)[:, None]
    truth = _one_for_each_class(logits, labels)
    errors = (truth.to(logits.dtype) - logits.softmax(dim=1)).abs() * counted  # ignored ones come last, as 0
    errors, order = errors.transpose(0, 1).flatten(1).sort(dim=1, descending=True)  # [C, B h w]
    truth = truth.transpose(0, 1).flatten(1).gather(1, order)
    sizes = truth.sum(1, keepdim=True, dtype=torch.int32)
    overlap = sizes - truth.cumsum(1, dtype=torch.int32)
    union = sizes + (~truth).cumsum(1, dtype=torch.int32)
    jaccard = 1 - overlap.to(logits.dtype) / union  # of the first 1, 2, ... pixels taken wrongly
    added = torch.cat([jaccard[:, :1], jaccard.diff(dim=1)], dim=1)
    return _mean((errors * added).sum(1), (sizes[:, 0] > 0).to(logits.dtype))


LOSSES: dict[str, Callable[[Tensor, Tensor, int, PixelOptions], Tensor]] = {
    "ce": ce,
    "ohem": ohem,
    "focal": focal,
    "dice": dice,
    "lovasz": lovasz,
}


def _cross_entropies(logits: Tensor, labels: Tensor, ignore_index: int, options: PixelOptions) -> tuple[Tensor, Tensor]:
    """(cross entropy of each pixel times the weight of its class, that weight), [B, h, w]; both 0 where ignored."""
    weights = options.class_weights
    losses = F.cross_entropy(
        logits,
        labels,
        None if weights is None else weights.to(logits.dtype),
        ignore_index=ignore_index,
        reduction="none",
        label_smoothing=options.label_smoothing,
    )
    counted = labels != ignore_index
    if weights is None:
        return losses, counted.to(logits.dtype)
    shares = weights.to(logits.dtype).index_select(0, torch.where(counted, labels, 0).flatten()).view(labels.shape)
    return losses, shares * counted


def _mean(values: Tensor, shares: Tensor) -> Tensor:
    """The sum of the values where `shares` is not 0, over that of the shares; 0 where all of them are 0."""
    total = shares.sum()
    return torch.where(shares > 0, values, 0).sum() / torch.where(total > 0, total, 1)


def _one_for_each_class(logits: Tensor, labels: Tensor) -> Tensor:
    """[B, C, h, w] bool: where the label is that class."""
    return labels[:, None] == torch.arange(logits.shape[1], device=labels.device).view(-1, 1, 1)
