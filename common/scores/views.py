"""How a network is shown the pictures of an evaluation: whole, by windows, at several scales, mirrored.

Whole and once, the logits are the network's own. Else, as mmsegmentation's slide mode and its test-time augmentation
do (open-mmlab/mmsegmentation, mmseg/models/segmentors/encoder_decoder.py and base.py):

- Windows overlap, and the logits of a pixel are the mean of those of all windows that it is in.
- Each scale, and at each scale the mirrored picture, is a view of its own: its logits are enlarged to the picture, and
  p(class) = 1/n sum over the n views of softmax(logits)(class), or of the sigmoid where there is one channel.
"""

from argparse import Namespace
from collections.abc import Callable, Iterator
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common.data.pictures import LabelledPictures
from common.errors import InputError
from common.scores.windows import windows
from common.step.losses import at_least_float32

Size = tuple[int, int]  # height and width in pixels
Network = Callable[[Tensor], Tensor]  # images [B, 3, H, W] -> logits [B, C, H, W]


class Views(NamedTuple):
    """What a network is shown of each picture.

    window: height and width of the windows; None: the whole picture. stride: from one window to the next, down and to
    the right; None: two thirds of the window. scales: factors of height and width. flip: at each scale also mirrored.
    """

    window: Size | None = None
    stride: Size | None = None
    scales: tuple[float, ...] = (1.0,)
    flip: bool = False

    @classmethod
    def of(cls, args: Namespace) -> "Views":
        """Those that the flags ask for. Raises InputError for a stride that leaves gaps, or has no window."""
        window, stride = args.window, args.stride
        if stride and not window:
            raise InputError(
                f"--stride {stride[0]}x{stride[1]} is given without --window; give the size of the windows"
            )
        if stride and (stride[0] > window[0] or stride[1] > window[1]):
            raise InputError(
                f"--stride {stride[0]}x{stride[1]} leaves gaps between windows of {window[0]}x{window[1]}; give a "
                "smaller one, or leave it out: it is two thirds of the window then"
            )
        return cls(window, stride, tuple(args.scales), args.flip)

    def described(self) -> dict[str, object]:
        """For result.json."""
        stride = self._stride if self.window else None
        return {
            "window": list(self.window) if self.window else None,
            "stride": list(stride) if stride else None,
            "scales": list(self.scales),
            "flip": self.flip,
        }

    @property
    def _stride(self) -> Size:
        return self.stride or tuple(max(1, 2 * side // 3) for side in self.window)

    def shapes(self, size: Size) -> Iterator[Size]:
        """Height and width of what the network is given of a picture of this size."""
        for scale in self.scales:
            scaled = _scaled(size, scale)
            yield tuple(map(min, scaled, self.window)) if self.window else scaled

    def __call__(self, network: Network, images: Tensor) -> Tensor:
        """Logits [B, C, H, W] of images [B, 3, H, W]; of several views, those whose softmax is the mean probability."""
        if self.scales == (1.0,) and not self.flip:
            return self._by_windows(network, images)
        total = None
        for scale in self.scales:
            seen = self._probabilities(network, images, scale)
            if self.flip:  # the two are added first: the sum of a symmetric picture is symmetric, bit for bit
                seen += self._probabilities(network, images.flip(-1), scale).flip(-1)
            total = seen if total is None else total.add_(seen)
            del seen
        count = len(self.scales) * (2 if self.flip else 1)
        least = torch.finfo(total.dtype).tiny
        if total.shape[1] == 1:
            return total.clamp(min=least).log_() - (count - total).clamp_(min=least).log_()
        return total.div_(count).clamp_(min=least).log_()

    def _probabilities(self, network: Network, images: Tensor, scale: float) -> Tensor:
        """[B, C, H, W] float32: what the network sees in images [B, 3, H, W] at a scale."""
        view = _resized(images, _scaled(images.shape[-2:], scale))
        logits = _resized(at_least_float32(self._by_windows(network, view)), images.shape[-2:])
        return logits.sigmoid() if logits.shape[1] == 1 else logits.softmax(dim=1)

    def _by_windows(self, network: Network, images: Tensor) -> Tensor:
        """Logits [B, C, H, W] of images [B, 3, H, W]: those of the network, or their mean over the windows."""
        height, width = images.shape[-2:]
        if self.window is None or (height <= self.window[0] and width <= self.window[1]):
            return network(images)
        total = counts = None
        for rows in windows(height, self.window[0], self._stride[0]):
            for columns in windows(width, self.window[1], self._stride[1]):
                place = ..., slice(rows.start, rows.end), slice(columns.start, columns.end)
                logits = at_least_float32(network(images[place].contiguous(memory_format=_layout(images))))
                if total is None:
                    total = logits.new_zeros(*logits.shape[:2], height, width)
                    counts = logits.new_zeros(height, width)
                total[place] += logits
                counts[place] += 1
        return total.div_(counts)


def check_views(views: Views, dataset: LabelledPictures | None, model: nn.Module) -> None:
    """Raise InputError, which names the flag, for windows and scales at which a network takes no image."""
    if dataset is None or views == Views():
        return
    sizes = {size for _, size in dataset.scored_sizes()} or {dataset.scored_size}
    for shape in {shape for size in filter(None, sizes) for shape in views.shapes(size)}:
        try:
            model.check_shape((2, 3, *shape))  # of two: what one image is too few for is training alone
        except InputError as error:
            flags = " and ".join(["--window"] * bool(views.window) + ["--scales"] * (views.scales != (1.0,)))
            raise InputError(f"{flags} cannot be: {error}") from error


def _layout(images: Tensor) -> torch.memory_format:
    """The layout that the images of the run have, which a part of them keeps."""
    last = images.is_contiguous(memory_format=torch.channels_last) and not images.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


def _scaled(size: Size, scale: float) -> Size:
    """Both sides times a factor, rounded half up, and 1 at least."""
    return tuple(max(1, int(side * scale + 0.5)) for side in size)


def _resized(images: Tensor, size: Size) -> Tensor:
    """Bilinear, as mmsegmentation resizes images and logits; the same tensor where the size is right."""
    if tuple(images.shape[-2:]) == tuple(size):
        return images
    return F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False)
