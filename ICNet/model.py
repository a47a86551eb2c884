"""ICNet: the image cascade network of "ICNet for Real-Time Semantic Segmentation on High-Resolution Images".

Zhao, Qi, Shen, Shi and Jia, ECCV 2018, arXiv 1704.08545. Only a quarter-size copy of the image goes through the whole
(dilated) ResNet; a half-size copy goes through its first half, and the full image through three convolutions. Two
cascade feature fusion units merge the three, coarse to fine.
"""

from collections.abc import Sequence
from functools import cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.errors import InputError
from common.nets.backbone import PUBLISHED_CHANNELS, ResNet, scaled
from common.nets.resize import interpolation
from common.nets.resize import resize as resize_bilinear
from common.step.criteria import Criterion
from common.step.losses import at_least_float32, cross_entropy
from common.step.norm import trains_on_one_image
from ICNet.weights import IMAGENET_FILES

LOSS_WEIGHTS = {"main": 1.0, "aux0": 0.4, "aux1": 0.4}  # of the logits at 1/4, 1/8 and 1/16 of the image
MIN_SIDE = 4  # below, the quarter-size image has no pixel
COARSEST_STRIDE = 32  # of the features of the quarter-size branch, against the image


def resize(features: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners, [B, C, h, w] -> [B, C, *size]: how this network resizes everything."""
    return resize_bilinear(features, size, align_corners=True)


class ConvBNReLU(nn.Module):
    """3x3 convolution with stride 2, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size=3, stride=2, padding=1, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class PyramidPooling(nn.Module):
    """Adds to the features their means over 1x1, 2x2, 3x3 and 6x6 regions ("Network Architecture").

    PSPNet concatenates them behind 1x1 convolutions; the sum of ICNet keeps the number of channels and has no weights.
    """

    BINS = (1, 2, 3, 6)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> the same shape.

        Means and their enlargement are linear: in training two products of matrices give those of all bins together,
        where pooling and resizing them one after another reads and writes all features eight times, and again on the
        way back.
        """
        size = x.shape[-2:]
        if not self.training:  # pictures have any size, for each of which the matrices would have to be made
            pool = pool_for_onnx if torch.onnx.is_in_onnx_export() else F.adaptive_avg_pool2d
            return x + sum(resize(pool(x, bins), size) for bins in self.BINS)
        batch, channels, height, width = x.shape
        pool, enlarge = pyramid(self.BINS, (height, width), x.device, x.dtype)
        pixels = x.permute(0, 2, 3, 1).reshape(batch, height * width, channels)
        means = torch.bmm(pool.expand(batch, -1, -1), pixels)  # [B, 50, C]
        context = torch.bmm(enlarge.expand(batch, -1, -1), means)  # [B, h w, C]
        return x + context.view(batch, height, width, channels).permute(0, 3, 1, 2)


@cache  # on the device, for all steps
def pyramid(
    bins: tuple[int, ...], size: tuple[int, int], device: torch.device, dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """Matrices [regions, h w] and [h w, regions]: to the means over all regions, and from them back to `size`.

    They do what adaptive_avg_pool2d and `resize` do, which both treat rows and columns one after the other.
    """
    pool, enlarge = [], []
    for count in bins:
        pool.append(np.kron(*(means(length, count) for length in size)))
        enlarge.append(np.kron(*(interpolation(count, length, align_corners=True) for length in size)))
    exact = np.float64 if dtype == torch.float64 else np.float32  # an NPU has no float64
    matrices = np.concatenate(pool, dtype=exact), np.concatenate(enlarge, axis=1, dtype=exact)
    return tuple(torch.from_numpy(matrix).to(device, dtype) for matrix in matrices)


def means(length: int, count: int) -> np.ndarray:
    """[count, length] float64: the means over `count` parts of a line, which overlap where it does not divide."""
    matrix = np.zeros((count, length))
    for i in range(count):
        first, behind = i * length // count, -(-(i + 1) * length // count)
        matrix[i, first:behind] = 1 / (behind - first)
    return matrix


def pool_for_onnx(x: Tensor, bins: int) -> Tensor:
    """F.adaptive_avg_pool2d, [B, C, h, w] -> [B, C, bins, bins], of operators that ONNX has for every size."""
    rows, columns = (_means_for_onnx(length, bins, x) for length in x.shape[-2:])
    return rows @ x @ columns.T


def _means_for_onnx(length: int, count: int, x: Tensor) -> Tensor:
    """`means` in the type of x, of operators alone; length is recorded, and may be another one each time."""
    part, place = torch.arange(count, device=x.device), torch.arange(length, device=x.device)
    first = torch.div(part * length, count, rounding_mode="floor")
    behind = torch.div((part + 1) * length + (count - 1), count, rounding_mode="floor")
    inside = (place >= first[:, None]) & (place < behind[:, None])
    return inside.to(x.dtype) / (behind - first)[:, None].to(x.dtype)


class CascadeFeatureFusion(nn.Module):
    """Merges coarse features into finer ones ("Cascade Feature Fusion"), and classifies the coarse ones.

    The coarse features are brought to the finer size and refined by a dilated 3x3 convolution. Their classification is
    the auxiliary output in training ("Cascade Label Guidance").
    """

    def __init__(self, low_channels: int, high_channels: int, num_classes: int, channels: int):
        super().__init__()
        self.conv_low = nn.Sequential(
            nn.Conv2d(low_channels, channels, kernel_size=3, padding=2, dilation=2, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.conv_high = nn.Sequential(
            nn.Conv2d(high_channels, channels, kernel_size=1, bias=False),
            nn.BatchNorm2d(channels),
        )
        self.label_guidance = nn.Conv2d(channels, num_classes, kernel_size=1, bias=False)

    def forward(self, low: Tensor, high: Tensor) -> tuple[Tensor, Tensor]:
        """low [B, C, h/2, w/2], high [B, C', h, w] -> fused [B, channels, h, w], logits [B, num_classes, h, w]."""
        low = self.conv_low(resize(low, high.shape[-2:]))  # [B, C, h/2, w/2] -> [B, channels, h, w]
        return F.relu(low + self.conv_high(high)), self.label_guidance(low)


class ICNet(nn.Module):
    """The three branches and their cascade.

    backbone: resnet50, resnet101 or resnet152, with the stem 64, 64, 128, dilated in layer3 and layer4 to stride 8. The
    half-size and the quarter-size branch share its weights. Convolutions outside it keep PyTorch's initial values.
    base_channels: of the first stage of the ResNet, 64 in the published network; all channels are in proportion.
    """

    classifiers = (
        "classifier.",
        "cff_12.label_guidance.",
        "cff_24.label_guidance.",
    )  # what is new for other classes, by the beginnings of names

    def __init__(self, num_classes: int = 19, backbone: str = "resnet50", base_channels: int = PUBLISHED_CHANNELS):
        super().__init__()
        if backbone not in IMAGENET_FILES:
            raise InputError(f"no ICNet with backbone {backbone!r}: choose one of {', '.join(IMAGENET_FILES)}")
        self.options = {"num_classes": num_classes, "backbone": backbone, "base_channels": base_channels}
        c32, c64, c128, c512, c2048 = (scaled(channels, base_channels) for channels in (32, 64, 128, 512, 2048))
        self.backbone = ResNet(backbone, (False, True, True), stem_widths=(c64, c64, c128), base_channels=base_channels)
        self.full_branch = nn.Sequential(ConvBNReLU(3, c32), ConvBNReLU(c32, c32), ConvBNReLU(c32, c64))
        self.pyramid_pooling = PyramidPooling()
        self.cff_24 = CascadeFeatureFusion(c2048, c512, num_classes, c128)
        self.cff_12 = CascadeFeatureFusion(c128, c64, num_classes, c128)
        self.classifier = nn.Conv2d(c128, num_classes, kernel_size=1, bias=False)

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images [B, 3, H, W] -> logits [B, num_classes, h, w] at 1/4, 1/8 and 1/16 of the image, in any mode.

        The half-size branch ends with layer2, the last output that is used of it. Code that runs layer3 and layer4 on
        it as well computes the same logits, but updates the running statistics of these layers twice.
        """
        self.check_shape(images.shape)
        height, width = images.shape[-2:]
        half = self.backbone(resize(images, (height // 2, width // 2)), stages=2)[-1]  # [B, 512, H/16, W/16]
        quarter = self.backbone(resize(images, (height // 4, width // 4)))[-1]  # [B, 2048, H/32, W/32]
        fused, sixteenth = self.cff_24(self.pyramid_pooling(quarter), half)  # [B, 128, H/16, W/16]
        fused, eighth = self.cff_12(fused, self.full_branch(images))  # [B, 128, H/8, W/8]
        # Classes of the enlarged features: a 1x1 convolution and a resizing commute, and 19 channels are less than 128.
        quarter_logits = resize(at_least_float32(self.classifier(fused)), (2 * fused.shape[-2], 2 * fused.shape[-1]))
        return quarter_logits, eighth, sixteenth

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        """images [B, 3, H, W] -> in training the logits of `heads`; else the first of them at the size of the images.

        The latter are [B, num_classes, H, W] in float32 or, for float64 images, float64. ValueError for images that are
        too small.
        """
        logits = self.heads(images)
        if self.training:
            return logits
        return resize(at_least_float32(logits[0]), images.shape[-2:])

    def compute_like_the_reference(self) -> None:
        """Compute also what the published code computes and does not need: for the benchmark, which compares with it.

        It runs the half-size image through all four stages and uses the second one's output, and classifies features
        after their enlargement.
        """
        stages_of, classify = self.backbone.forward, self.classifier.forward
        self.backbone.forward = lambda images, stages=4: stages_of(images)[:stages]
        self.classifier.forward = lambda features: features
        self.register_forward_hook(lambda net, _, outputs: (classify(outputs[0]), *outputs[1:]))

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise InputError, which is a ValueError, for images of a shape that the network does not take."""
        if len(shape) != 4 or shape[1] != 3:
            raise InputError(f"images have the shape {list(shape)}; ICNet needs RGB images [B, 3, H, W]")
        batch_size, _, height, width = shape
        if min(height, width) < MIN_SIDE:
            raise InputError(
                f"images have the shape {list(shape)}; ICNet needs sides of {MIN_SIDE} pixels or more: "
                f"pad or enlarge them to {max(height, MIN_SIDE)} x {max(width, MIN_SIDE)}"
            )
        # Sides of the quarter-size branch are rounded down once (to whole pixels), then up by its strided layers.
        if trains_on_one_image(self, batch_size) and max(height, width) < COARSEST_STRIDE + MIN_SIDE:
            raise InputError(
                f"images have the shape {list(shape)}; a batch norm cannot train on the single pixel that is "
                f"left of one image below {COARSEST_STRIDE + MIN_SIDE} pixels: take a larger crop or two images"
            )


def build_model(num_classes: int = 19, backbone: str = "resnet50", base_channels: int = PUBLISHED_CHANNELS) -> ICNet:
    """The network with random initial weights; `model.options` holds the arguments, for its checkpoints."""
    return ICNet(num_classes, backbone, base_channels)


def training_loss(
    outputs: tuple[Tensor, Tensor, Tensor],
    target: Tensor,
    label_resize: str = "aligned",
    ignore_index: int = IGNORE_INDEX,
    criterion: Criterion | None = None,
) -> dict[str, Tensor]:
    """Cross entropy of the 1/4 logits, and 0.4 times those of the 1/8 and the 1/16 logits ("Cascade Label Guidance").

    outputs: logits [B, C, h, w] of any floating type. target: [B, H, W] int64, [0, C) or `ignore_index`; it is resized
    to each of the logits. Each term is the mean over the pixels that are not ignored, and 0 where there are none.
    The loss is their sum; each is a scalar in float32 (float64 for float64 logits).

    label_resize: "aligned" takes for each logit the label of the pixel that lies nearest to it, corners on corners, as
    this network enlarges its logits. The others are here to compare with other code, not to train with: "nearest" is
    torch's nearest neighbour, whose pixels lie above and left of the logits, by 1.5 pixels on average at 1/4 of the
    size and 7.5 at 1/16; "bilinear" is the arithmetic of the published code: class ids are interpolated as numbers and
    truncated, with -1 for ignored pixels, which invents classes along borders.

    criterion: of --loss; None: cross entropy.
    """
    terms = loss_terms(outputs, target, label_resize, ignore_index, criterion)
    return {name: weight * term for (name, weight), term in zip(LOSS_WEIGHTS.items(), terms, strict=True)}


def loss_terms(
    outputs: tuple[Tensor, Tensor, Tensor],
    target: Tensor,
    label_resize: str,
    ignore_index: int,
    criterion: Criterion | None = None,
) -> list[Tensor]:
    """The loss of each of the outputs, before weighting; see `training_loss`."""
    loss = criterion or cross_entropy
    if label_resize in ("aligned", "nearest"):
        resize_labels = aligned_labels if label_resize == "aligned" else nearest_labels
        return [loss(o, resize_labels(target, o.shape[-2:]), ignore_index) for o in outputs]
    if label_resize == "bilinear":
        target = torch.where(target == ignore_index, -1, target)
        return [loss(o, blend_labels(target, o.shape[-2:]), ignore_index=-1) for o in outputs]
    raise InputError(
        f"no label resize {label_resize!r}: choose aligned (or nearest or bilinear, to compare with other code)"
    )


def aligned_labels(target: Tensor, size: tuple[int, int]) -> Tensor:
    """The nearest pixel with aligned corners, [B, H, W] -> [B, *size]."""
    rows, columns = (_aligned_lines(*lengths, target.device) for lengths in zip(target.shape[1:], size, strict=True))
    return target.index_select(1, rows).index_select(2, columns)


@cache  # on the device, for all steps
def _aligned_lines(length: int, count: int, device: torch.device) -> Tensor:
    """The whole numbers [count] nearest to `count` places from 0 to length - 1, halves rounded up."""
    gaps = max(1, count - 1)
    return torch.tensor([(2 * i * (length - 1) + gaps) // (2 * gaps) for i in range(count)], device=device)


def nearest_labels(target: Tensor, size: tuple[int, int]) -> Tensor:
    """torch's nearest neighbour, [B, H, W] -> [B, *size] int64."""
    # float32 is what interpolate takes on every device, and holds class ids exactly.
    return F.interpolate(target[:, None].float(), size=size, mode="nearest")[:, 0].long()


def blend_labels(target: Tensor, size: tuple[int, int]) -> Tensor:
    """Bilinear with aligned corners, truncated towards zero, [B, H, W] -> [B, *size] int64."""
    return resize(target[:, None].float(), size)[:, 0].long()
