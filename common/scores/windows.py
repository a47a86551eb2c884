"""Overlapping windows, and prediction of a picture by them: what a network needs then depends on the window alone.

In prediction the middle of each window is kept, where the network has seen what is around a pixel; the rim is that of a
neighbour, but for the rim of the picture (the overlap-tile strategy of Ronneberger et al., "U-Net", MICCAI 2015): a
picture of any size needs the logits of one window. In an evaluation they are averaged: see `common.scores.views`.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional as F

from common.device.world import World
from common.scores.metrics import class_ids
from common.step.losses import at_least_float32

WINDOW = 2048  # pixels of a side; a multiple of what any network here wants
WHOLE_PIXELS = 1 << 23  # a picture of no more is predicted in one piece, four times the size of Cityscapes
RIM = 8  # of a window's side so many-th parts are not kept, on each side where a neighbour has them


class Window(NamedTuple):
    """One side of a window: from `start` to `end` is seen, and of that from `keep` to `until` is kept."""

    start: int
    end: int
    keep: int
    until: int


def windows(side: int, window: int, stride: int | None = None) -> list[Window]:
    """Windows of equal length that cover `side` pixels, whose kept parts meet without a gap.

    stride: pixels from one to the next; the last one ends where the side does (as mmsegmentation's slide mode places
    them). None: evenly, as few as leave each its rim.
    """
    if side <= window:
        return [Window(0, side, 0, side)]
    last = side - window
    count = -(-last // (stride or window - 2 * (window // RIM))) + 1
    if stride:
        starts = [min(number * stride, last) for number in range(count)]
    else:
        starts = [round(number * last / (count - 1)) for number in range(count)]
    edges = [0, *((start + before + window) // 2 for before, start in zip(starts, starts[1:], strict=False)), side]
    return [Window(start, start + window, *edges[number : number + 2]) for number, start in enumerate(starts)]


class Seen(NamedTuple):
    """What a network sees in a picture."""

    ids: np.ndarray  # [H, W] uint8, class ids
    probability: np.ndarray | None = None  # [H, W] uint16: of class 1, 65535 is 1; of networks of two classes alone


class Segmenter(NamedTuple):
    """How pictures are predicted.

    model: in eval mode, on the device of `world`. to_input: a PIL picture in RGB -> what the network takes of it,
    [3, h, w]. window: side in pixels of the windows of pictures above WHOLE_PIXELS; 0: all in one piece. threshold: of
    two classes, the probability from which on a pixel is of class 1; None: 0.5, or the larger logit. views: (model,
    images) -> logits, for scales and mirrored pictures (`common.scores.views.Views`); None: the model's own.
    """

    model: nn.Module
    to_input: Callable[[Image.Image], Tensor]
    world: World
    window: int = 0
    threshold: float | None = None
    probabilities: bool = False
    views: Callable[[nn.Module, Tensor], Tensor] | None = None

    def __call__(self, image: Image.Image) -> Seen:
        """What is seen in a picture in RGB. Raises ValueError for a size that the model does not take."""
        return self.see([image])[0]

    def see(self, images: Sequence[Image.Image]) -> list[Seen]:
        """The same of pictures of one size, which go through the network together."""
        height, width = images[0].height, images[0].width
        ids = np.empty((len(images), height, width), np.uint8)
        probability = np.empty(ids.shape, np.uint16) if self.probabilities else None
        for place, kept in self._kept_logits(images):
            if self.threshold is None and probability is None:
                ids[place] = class_ids(kept).to(torch.uint8).cpu().numpy()
                continue
            chance = foreground(kept)
            seen = class_ids(kept) if self.threshold is None else chance >= self.threshold
            ids[place] = seen.to(torch.uint8).cpu().numpy()
            if probability is not None:
                probability[place] = (chance.cpu().numpy() * 65535).round().astype(np.uint16)
        return [Seen(ids[place], None if probability is None else probability[place]) for place in range(len(images))]

    def class_probabilities(self, images: Sequence[Image.Image]) -> list[np.ndarray]:
        """[C, H, W] float32 of each of pictures of one size: the probability of each class."""
        found = None
        for (_, rows, columns), kept in self._kept_logits(images):
            if kept.shape[1] == 1:
                chance = foreground(kept)[:, None]
                kept = torch.cat([1 - chance, chance], dim=1)
            else:
                kept = at_least_float32(kept).softmax(dim=1)
            if found is None:
                found = np.empty((len(images), kept.shape[1], images[0].height, images[0].width), np.float32)
            found[:, :, rows, columns] = kept.cpu().numpy()
        return list(found)

    def _kept_logits(self, images: Sequence[Image.Image]) -> Iterator[tuple[tuple[slice, slice, slice], Tensor]]:
        """(its place in [B, H, W], logits [B, C, h, w]) of what is kept of each window."""
        for rows, columns in self._windows(images[0]):
            box = columns.start, rows.start, columns.end, rows.end
            logits = self._logits([image.crop(box) for image in images])
            kept = logits[..., rows.keep - rows.start : rows.until - rows.start, :]
            kept = kept[..., columns.keep - columns.start : columns.until - columns.start]
            yield (slice(None), slice(rows.keep, rows.until), slice(columns.keep, columns.until)), kept

    def _windows(self, image: Image.Image) -> Iterator[tuple[Window, Window]]:
        """Rows and columns of each piece that is predicted."""
        whole = not self.window or image.width * image.height <= WHOLE_PIXELS
        window = max(image.size) if whole else self.window
        for rows in windows(image.height, window):
            for columns in windows(image.width, window):
                yield rows, columns

    @torch.no_grad()
    def _logits(self, images: Sequence[Image.Image]) -> Tensor:
        """[B, C, H, W] of pictures, or parts of some, of one size."""
        batch = torch.stack([self.to_input(image) for image in images])
        batch = batch.to(self.world.device, memory_format=self.world.memory_format)
        logits = self.views(self.model, batch) if self.views else self.model(batch)
        size = (images[0].height, images[0].width)
        if logits.shape[-2:] != size:
            logits = F.interpolate(at_least_float32(logits), size=size, mode="bilinear", align_corners=False)
        return logits


def foreground(logits: Tensor) -> Tensor:
    """[B, C, H, W] logits of one channel, or of two -> [B, H, W] float32: the probability of class 1."""
    logits = at_least_float32(logits)
    return torch.sigmoid(logits[:, 0] if logits.shape[1] == 1 else logits[:, 1] - logits[:, 0])
