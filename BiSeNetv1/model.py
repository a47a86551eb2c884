"""BiSeNetV1: the two paths of "BiSeNet: Bilateral Segmentation Network for Real-time Semantic Segmentation".

Yu, Wang, Peng, Gao, Yu and Sang, ECCV 2018, arXiv 1808.00897. A shallow spatial path keeps the detail at 1/8 of the
image, a ResNet with global pooling (the context path) sees far, and a fusion module weighs the two. The network is that
of mmsegmentation, which the published weights and scores are of; where it differs from the paper, a class says so.
"""

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.errors import InputError
from common.nets.backbone import PUBLISHED_CHANNELS, ResNet, scaled
from common.nets.pooling import image_mean
from common.nets.upsampling import UpsampledConv2d
from common.step.criteria import Criterion
from common.step.losses import at_least_float32, upsampled_cross_entropy
from common.step.norm import trains_on_one_image


class Widths(NamedTuple):
    """Channels of one variant (the two configurations of mmsegmentation)."""

    context: tuple[int, int, int]  # layer2, layer3 and layer4 of the ResNet; the first is the context path's width too
    spatial: tuple[int, int, int, int]  # the layers of the spatial path
    fused: int  # the fusion module and the main head
    auxiliary: int  # inside the auxiliary heads

    def scaled(self, base_channels: int) -> "Widths":
        """All of them in proportion to the channels of the ResNet's first stage."""
        context, spatial = (tuple(scaled(width, base_channels) for width in widths) for widths in self[:2])
        return Widths(context, spatial, scaled(self.fused, base_channels), scaled(self.auxiliary, base_channels))


_BOTTLENECK = Widths((512, 1024, 2048), (256, 256, 256, 512), 1024, 256)
WIDTHS = {
    "resnet18": Widths((128, 256, 512), (64, 64, 64, 128), 256, 64),
    "resnet50": _BOTTLENECK,
    "resnet101": _BOTTLENECK,
}

# main head, auxiliary heads at 1/8 and 1/16 (paper, formula 2 with alpha = 1)
LOSS_WEIGHTS = {"main": 1.0, "aux0": 1.0, "aux1": 1.0}
DROPOUT = 0.1  # of whole channels, before each classifier


class ConvBN(nn.Module):
    """Convolution without bias, "same" padding, and batch norm. Kaiming normal over the fan-out at first."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, stride: int = 1):
        super().__init__()
        self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, stride, padding=kernel_size // 2, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class ConvBNReLU(ConvBN):
    """`ConvBN` and ReLU."""

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(super().forward(x), inplace=True)


class UpConvBNReLU(nn.Module):
    """Enlargement by nearest neighbour, then `ConvBNReLU` with a 3x3 convolution."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv = UpsampledConv2d(channels, channels, bias=False)
        self.bn = nn.BatchNorm2d(channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor, size: Sequence[int]) -> Tensor:
        """x [B, channels, h, w] -> [B, channels, *size]."""
        return F.relu(self.bn(self.conv(x, size)), inplace=True)


class SpatialPath(nn.Module):
    """Three convolutions of stride 2, and here a 1x1 convolution behind them ("Spatial path")."""

    def __init__(self, widths: Sequence[int]):
        super().__init__()
        self.conv1 = ConvBNReLU(3, widths[0], kernel_size=7, stride=2)
        self.conv2 = ConvBNReLU(widths[0], widths[1], kernel_size=3, stride=2)
        self.conv3 = ConvBNReLU(widths[1], widths[2], kernel_size=3, stride=2)
        self.conv4 = ConvBNReLU(widths[2], widths[3], kernel_size=1)

    def forward(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> [B, widths[3], H/8, W/8], sides rounded up."""
        return self.conv4(self.conv3(self.conv2(self.conv1(images))))


class AttentionRefinement(nn.Module):
    """ARM: weighs the channels by what their means over the image say ("Attention refinement module").

    A 3x3 convolution first brings the features to the width of the context path.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels, kernel_size=3)
        self.attention = ConvBN(out_channels, out_channels, kernel_size=1)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, h, w] -> [B, out_channels, h, w]."""
        x = self.conv(x)
        return x * torch.sigmoid(self.attention(image_mean(x)))


class ContextPath(nn.Module):
    """ResNet, global average pooling, and attention refinement of its last two stages ("Context path").

    Coarse features are enlarged to the next finer stage by nearest neighbour, and smoothed by a 3x3 convolution.
    """

    def __init__(self, backbone: str, widths: Sequence[int], base_channels: int):
        super().__init__()
        width, width16, width32 = widths
        self.backbone = ResNet(backbone, zero_init_residual=True, base_channels=base_channels)
        self.arm16 = AttentionRefinement(width16, width)
        self.arm32 = AttentionRefinement(width32, width)
        self.conv_head16 = UpConvBNReLU(width)
        self.conv_head32 = UpConvBNReLU(width)
        self.global_conv = ConvBNReLU(width32, width, kernel_size=1)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """images [B, 3, H, W] -> context at 1/8 and at 1/16 of the image, both with the width of the path."""
        _, eighth, sixteenth, last = self.backbone(images)  # layer2 to layer4 at 1/8, 1/16 and 1/32
        context = self.arm32(last) + self.global_conv(image_mean(last))  # + [B, width, 1, 1]
        context16 = self.conv_head32(context, sixteenth.shape[-2:])
        context = self.arm16(sixteenth) + context16
        context8 = self.conv_head16(context, eighth.shape[-2:])
        return context8, context16


class FeatureFusion(nn.Module):
    """FFM: joins detail and context, then adds to the channels their weighted selves ("Feature fusion module").

    The attention has one convolution and ends with batch norm and ReLU before the sigmoid; in the paper it has two,
    without the batch norm.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, out_channels, kernel_size=1)
        self.attention = ConvBNReLU(out_channels, out_channels, kernel_size=1)

    def forward(self, spatial: Tensor, context: Tensor) -> Tensor:
        """Two [B, c, h, w] with in_channels together -> [B, out_channels, h, w]."""
        fused = self.conv(torch.cat((spatial, context), dim=1))
        return fused * (1 + torch.sigmoid(self.attention(image_mean(fused))))  # one pass; added afterwards, three


class Head(nn.Module):
    """3x3 convolution, dropout, classification."""

    def __init__(self, in_channels: int, channels: int, num_classes: int):
        super().__init__()
        self.conv = ConvBNReLU(in_channels, channels, kernel_size=3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = nn.Conv2d(channels, num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.weight, std=0.01)
        nn.init.zeros_(self.classifier.bias)

    def forward(self, x: Tensor) -> Tensor:
        """x [B, in_channels, h, w] -> logits [B, num_classes, h, w]."""
        return self.classifier(self.dropout(self.conv(x)))


class BiSeNetV1(nn.Module):
    """The two paths, their fusion, the head on it and, for training, two heads on the context.

    backbone: resnet18 (a quarter of the channels everywhere), resnet50 or resnet101, with the 7x7 stem and stride 32.
    base_channels: of the first stage of the ResNet, 64 in the published network; all channels are in proportion.
    """

    classifiers = (
        "head.classifier.",
        "auxiliary_heads.0.classifier.",
        "auxiliary_heads.1.classifier.",
    )  # what is new for other classes, by the beginnings of names

    def __init__(self, num_classes: int = 19, backbone: str = "resnet50", base_channels: int = PUBLISHED_CHANNELS):
        super().__init__()
        if backbone not in WIDTHS:
            raise InputError(f"no BiSeNetV1 with backbone {backbone!r}: choose one of {', '.join(WIDTHS)}")
        self.options = {"num_classes": num_classes, "backbone": backbone, "base_channels": base_channels}
        widths = WIDTHS[backbone].scaled(base_channels)
        context = widths.context[0]
        self.context_path = ContextPath(backbone, widths.context, base_channels)
        self.spatial_path = SpatialPath(widths.spatial)
        self.feature_fusion = FeatureFusion(widths.spatial[3] + context, widths.fused)
        self.head = Head(widths.fused, widths.fused, num_classes)
        self.auxiliary_heads = nn.ModuleList(Head(context, widths.auxiliary, num_classes) for _ in range(2))

    def features(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images [B, 3, H, W] -> fused features at 1/8, and the context at 1/8 and at 1/16 of the image."""
        self.check_shape(images.shape)
        context8, context16 = self.context_path(images)
        return self.feature_fusion(self.spatial_path(images), context8), context8, context16

    def heads(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """images [B, 3, H, W] -> logits [B, num_classes, h, w] of the main and both auxiliary heads, in any mode.

        They are at 1/8, 1/8 and 1/16 of the image; sides are rounded up.
        """
        fused, context8, context16 = self.features(images)
        return self.head(fused), self.auxiliary_heads[0](context8), self.auxiliary_heads[1](context16)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor, Tensor] | Tensor:
        """images [B, 3, H, W] -> in training the logits of `heads`; else those of the main head at the images' size.

        The latter are [B, num_classes, H, W] in float32 or, for float64 images, float64. Raises InputError for a shape
        that `check_shape` refuses.
        """
        if self.training:
            return self.heads(images)
        logits = at_least_float32(self.head(self.features(images)[0]))  # [B, num_classes, H/8, W/8]
        return F.interpolate(logits, size=images.shape[-2:], mode="bilinear", align_corners=False)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise InputError, which is a ValueError, for images of a shape that the network does not take."""
        if len(shape) != 4 or shape[1] != 3:
            raise InputError(f"images have the shape {list(shape)}; BiSeNetV1 needs RGB images [B, 3, H, W]")
        if min(shape) < 1:
            raise InputError(f"images have the shape {list(shape)}; BiSeNetV1 needs at least one pixel: give others")
        if trains_on_one_image(self, shape[0]):
            raise InputError(
                f"images have the shape {list(shape)}; the batch norms behind the global pooling cannot train on one "
                "image per device: raise --device_batch_size to 2 or more"
            )


def build_model(
    num_classes: int = 19, backbone: str = "resnet50", base_channels: int = PUBLISHED_CHANNELS
) -> BiSeNetV1:
    """The network with random initial weights; `model.options` holds the arguments, for its checkpoints."""
    return BiSeNetV1(num_classes, backbone, base_channels)


def training_loss(
    outputs: tuple[Tensor, Tensor, Tensor],
    target: Tensor,
    avg_non_ignore: bool = False,
    ignore_index: int = IGNORE_INDEX,
    criterion: Criterion | None = None,
) -> dict[str, Tensor]:
    """The weighted cross entropies of the main and both auxiliary heads ("Loss function"); the loss is their sum.

    outputs: logits [B, C, h, w] of any floating type; each is resized to the target, bilinearly. target: [B, H, W]
    int64, [0, C) or `ignore_index`. Each is a scalar in float32 (float64 for float64 logits).

    avg_non_ignore: the mean over the labelled pixels. Without it, as in the reference, over all pixels: ignored ones
    have no loss but count in the divisor.

    criterion: of --loss; None: cross entropy.
    """
    loss = criterion or partial(upsampled_cross_entropy, over_all_pixels=not avg_non_ignore)
    return {
        name: weight * loss(logits, target, ignore_index)
        for (name, weight), logits in zip(LOSS_WEIGHTS.items(), outputs, strict=True)
    }
