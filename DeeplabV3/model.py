"""DeepLabV3: the network of "Rethinking Atrous Convolution for Semantic Image Segmentation".

Chen, Papandreou, Schroff and Adam, arXiv 1706.05587. A ResNet dilated to stride 8, and on its last features atrous
spatial pyramid pooling: parallel 3x3 convolutions of growing dilation beside a 1x1 convolution and the mean of the
whole image. The variant here is mmsegmentation's: a deep stem, a 3x3 convolution behind the pyramid where the paper
has a 1x1, and an auxiliary FCN head in training.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.errors import InputError
from common.nets.atrous import AtrousConv2d
from common.nets.backbone import PUBLISHED_CHANNELS, ResNet, scaled
from common.nets.pooling import image_mean
from common.step.criteria import Criterion
from common.step.losses import at_least_float32, upsampled_cross_entropy
from common.step.norm import trains_on_one_image
from DeeplabV3.weights import IMAGENET_FILES

FEATURES = {"resnet18": 512, "resnet50": 2048, "resnet101": 2048}  # channels of layer4; layer3 has half as many
DILATIONS = (12, 24, 36)  # of the 3x3 branches at stride 8: twice those at stride 16 (section 3.3)
DROPOUT = 0.1
LOSS_WEIGHTS = {"main": 1.0, "aux0": 0.4}  # of the main and of the auxiliary logits


class ConvBNReLU(nn.Module):
    """1x1 or 3x3 convolution that keeps the size, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, dilation: int = 1):
        super().__init__()
        if kernel_size == 3:
            self.conv = AtrousConv2d(in_channels, out_channels, dilation)
        else:
            self.conv = nn.Conv2d(in_channels, out_channels, kernel_size, bias=False)
        self.bn = nn.BatchNorm2d(out_channels)
        nn.init.kaiming_normal_(self.conv.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn(self.conv(x)))


class ASPP(nn.Module):
    """Atrous spatial pyramid pooling with image-level features (section 3.3), [B, C, h, w] -> [B, channels, h, w]."""

    def __init__(self, in_channels: int, channels: int, dilations: Sequence[int] = DILATIONS):
        super().__init__()
        self.image_pooling = ConvBNReLU(in_channels, channels, kernel_size=1)
        self.branches = nn.ModuleList(
            [ConvBNReLU(in_channels, channels, kernel_size=1)]
            + [ConvBNReLU(in_channels, channels, kernel_size=3, dilation=dilation) for dilation in dilations]
        )
        self.fuse = ConvBNReLU((2 + len(dilations)) * channels, channels, kernel_size=3)

    def forward(self, x: Tensor) -> Tensor:
        pooled = self.image_pooling(image_mean(x))  # [B, channels, 1, 1]
        branches = [branch(x) for branch in self.branches]
        pooled = pooled.expand_as(branches[0])  # what bilinear upsampling makes of a single pixel
        if self.training:  # in the layout of the branches: beside an expanded tensor torch.cat turns all of them round
            pooled = torch.empty_like(branches[0]).copy_(pooled)
        return self.fuse(torch.cat([pooled, *branches], dim=1))


class FCNHead(nn.Module):
    """3x3 convolution and classification of the features of layer3: the auxiliary output in training."""

    def __init__(self, in_channels: int, channels: int, num_classes: int):
        super().__init__()
        self.conv_bn = ConvBNReLU(in_channels, channels, kernel_size=3)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = pixel_classifier(channels, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> logits [B, num_classes, h, w]."""
        return self.classifier(self.dropout(self.conv_bn(x)))


def pixel_classifier(in_channels: int, num_classes: int) -> nn.Conv2d:
    """1x1 convolution to logits that start close to 0."""
    classifier = nn.Conv2d(in_channels, num_classes, kernel_size=1)
    nn.init.normal_(classifier.weight, std=0.01)
    nn.init.zeros_(classifier.bias)
    return classifier


class DeepLabV3(nn.Module):
    """Dilated ResNet, atrous spatial pyramid pooling, and in training an auxiliary head.

    backbone: resnet18, resnet50 or resnet101, with the stem 32, 32, 64, dilated in layer3 and layer4 to stride 8. Each
    of its residual blocks starts as the identity. The pyramid has a quarter of the channels of layer4.
    base_channels: of the first stage of the ResNet, 64 in the published network; all channels are in proportion.
    """

    classifiers = (
        "classifier.",
        "auxiliary_head.classifier.",
    )  # what is new for other classes, by the beginnings of names

    def __init__(self, num_classes: int = 19, backbone: str = "resnet50", base_channels: int = PUBLISHED_CHANNELS):
        super().__init__()
        if backbone not in IMAGENET_FILES:
            raise InputError(f"no DeepLabV3 with backbone {backbone!r}: choose one of {', '.join(IMAGENET_FILES)}")
        self.options = {"num_classes": num_classes, "backbone": backbone, "base_channels": base_channels}
        features, *stem_widths = (scaled(channels, base_channels) for channels in (FEATURES[backbone], 32, 32, 64))
        self.backbone = ResNet(backbone, (False, True, True), stem_widths, True, base_channels)
        self.aspp = ASPP(features, features // 4)
        self.dropout = nn.Dropout2d(DROPOUT)
        self.classifier = pixel_classifier(features // 4, num_classes)
        self.auxiliary_head = FCNHead(features // 2, features // 8, num_classes)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor] | Tensor:
        """images [B, 3, H, W] -> in training main and auxiliary logits [B, num_classes, H/8, W/8], sides rounded up.

        In evaluation the main logits at the size of the images, [B, num_classes, H, W], in float32 or, for float64
        images, float64; the auxiliary head does not run. ValueError for images of another shape.
        """
        self.check_shape(images.shape)
        _, _, layer3, layer4 = self.backbone(images)  # [B, 1024, H/8, W/8], [B, 2048, H/8, W/8]; resnet18: a quarter
        logits = self.classifier(self.dropout(self.aspp(layer4)))
        if self.training:
            return logits, self.auxiliary_head(layer3)
        return F.interpolate(at_least_float32(logits), size=images.shape[-2:], mode="bilinear", align_corners=False)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise InputError, which is a ValueError, for images of a shape that the network does not take."""
        if len(shape) != 4 or shape[1] != 3 or min(shape) < 1:
            raise InputError(f"images have the shape {list(shape)}; DeepLabV3 needs RGB images [B, 3, H, W]")
        if trains_on_one_image(self, shape[0]):
            raise InputError(
                f"images have the shape {list(shape)}; the batch norm of the image pooling sees one value per image "
                "and cannot train on a single one: take two images or more, --device_batch_size 2"
            )


def build_model(
    num_classes: int = 19, backbone: str = "resnet50", base_channels: int = PUBLISHED_CHANNELS
) -> DeepLabV3:
    """The network with random initial weights; `model.options` holds the arguments, for its checkpoints."""
    return DeepLabV3(num_classes, backbone, base_channels)


def training_loss(
    outputs: tuple[Tensor, Tensor],
    target: Tensor,
    avg_non_ignore: bool = False,
    ignore_index: int = IGNORE_INDEX,
    criterion: Criterion | None = None,
) -> dict[str, Tensor]:
    """Cross entropy of the main logits, and 0.4 times that of the auxiliary ones; the loss is their sum.

    outputs: logits [B, C, h, w] of any floating type; they are resized bilinearly to target [B, H, W] int64, which is
    in [0, C) or `ignore_index`. Each is a scalar in float32 (float64 for float64 logits).

    avg_non_ignore: each term is the mean over the labelled pixels; else the sum over them divided by the number of all
    pixels, as in the runs of the reference: the more is ignored, the smaller are the steps.

    criterion: of --loss; None: cross entropy.
    """
    loss = criterion or partial(upsampled_cross_entropy, over_all_pixels=not avg_non_ignore)
    return {
        name: weight * loss(logits, target, ignore_index)
        for (name, weight), logits in zip(LOSS_WEIGHTS.items(), outputs, strict=True)
    }
