"""DynamicUNet: a U-Net whose decoder is grown to fit a ResNet encoder, by the rule of fastai's DynamicUnet.

The U-shape is that of Ronneberger, Fischer and Brox, "U-Net: Convolutional Networks for Biomedical Image Segmentation",
MICCAI 2015, arXiv 1505.04597. Wherever the encoder halves the size, its features are kept; the decoder doubles the size
step by step with sub-pixel convolutions (Aitken et al., "Checkerboard artifact free sub-pixel convolution", arXiv
1707.02937) and joins them.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.errors import InputError
from common.nets.backbone import PUBLISHED_CHANNELS, ResNet
from common.step.criteria import Criterion
from common.step.losses import at_least_float32, cross_entropy
from common.step.norm import trains_on_one_image
from DynamicUNet.weights import IMAGENET_FILES

COARSEST_STRIDE = 32  # of the encoder's last features, against the image
BN_BIAS = 1e-3  # initial bias of the decoder's batch norms
# kind of device -> the channels of the layers at full size are brought to a multiple of this by channels of zeros.
# CUDA's matrix units take those of half precision in eights; an NPU lays out 16 at a time by itself.
CHANNEL_MULTIPLE = {"cuda": 8}


class Convolution(nn.Conv2d):
    """3x3, of stride 1 and with a bias; starts from Kaiming's normal distribution over the fan-in, and bias 0."""

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int = 3):
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2)

    def reset_parameters(self) -> None:
        """Called by the constructor, so that no parameter is drawn twice: there are hundreds of millions."""
        nn.init.kaiming_normal_(self.weight)
        nn.init.zeros_(self.bias)


def batch_norm(channels: int) -> nn.BatchNorm2d:
    bn = nn.BatchNorm2d(channels)
    nn.init.constant_(bn.bias, BN_BIAS)
    return bn


def to_size(features: Tensor, size: Sequence[int]) -> Tensor:
    """Nearest neighbour, [B, C, h, w] -> [B, C, *size]; for odd sizes, where doubling gives one pixel too many."""
    return features if features.shape[-2:] == tuple(size) else F.interpolate(features, size=tuple(size), mode="nearest")


class PixelShuffleICNR(nn.Module):
    """Doubles height and width: a 1x1 convolution to four times the channels, ReLU, and a pixel shuffle.

    ICNR: the four channels that become neighbouring pixels start from the same weights, as if a small picture had been
    resized by nearest neighbour; so there is no checkerboard at first.
    """

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__()
        self.conv = Convolution(in_channels, 4 * out_channels, kernel_size=1)
        with torch.no_grad():
            self.conv.weight.copy_(self.conv.weight[::4].repeat_interleave(4, dim=0))

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, h, w] -> [B, C', 2h, 2w]."""
        return pixel_shuffle(F.relu(self.conv(x), inplace=True))


def pixel_shuffle(x: Tensor) -> Tensor:
    """F.pixel_shuffle by 2, [B, 4 C, h, w] -> [B, C, 2h, 2w], which stays in the layout channels_last.

    torch's on CUDA gives contiguous features, which the layers behind it would turn round again.
    """
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return F.pixel_shuffle(x, 2)
    batch, channels, height, width = x.shape
    x = x.permute(0, 2, 3, 1).view(batch, height, width, channels // 4, 2, 2).permute(0, 1, 4, 2, 5, 3)
    return x.reshape(batch, 2 * height, 2 * width, channels // 4).permute(0, 3, 1, 2)


def convolve(conv: nn.Conv2d, x: Tensor, out_channels: int) -> Tensor:
    """`conv` on x [B, C, H, W], whose channels beyond those of the weights are zeros; as many as are asked for."""
    outputs, inputs = out_channels - conv.out_channels, x.shape[1] - conv.in_channels
    weight, bias = conv.weight, conv.bias
    if inputs or outputs:
        weight, bias = F.pad(weight, (0, 0, 0, 0, 0, inputs, 0, outputs)), F.pad(bias, (0, outputs))
    return F.conv2d(x, weight, bias, padding=conv.padding)


class UnetBlock(nn.Module):
    """One step up: doubled features beside the normalised features of the encoder, then two 3x3 convolutions."""

    def __init__(self, up_channels: int, skip_channels: int, is_last: bool):
        super().__init__()
        self.upsample = PixelShuffleICNR(up_channels, up_channels // 2)
        self.skip_bn = batch_norm(skip_channels)
        joined = up_channels // 2 + skip_channels
        self.out_channels = joined // 2 if is_last else joined
        self.conv1 = Convolution(joined, self.out_channels)
        self.conv2 = Convolution(self.out_channels, self.out_channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x [B, up_channels, h/2, w/2], skip [B, skip_channels, h, w] -> [B, out_channels, h, w]."""
        x = to_size(self.upsample(x), skip.shape[-2:])  # [B, up_channels, h/2, w/2] -> [B, up_channels / 2, h, w]
        # the activation of both: what was doubled is the output of a ReLU, and so is not below 0
        x = torch.cat([x, F.relu(self.skip_bn(skip), inplace=True)], dim=1)
        x = F.relu(self.conv1(x), inplace=True)
        return F.relu(self.conv2(x), inplace=True)


class ResidualBlock(nn.Module):
    """Two 3x3 convolutions around which the input is added; no batch norm."""

    def __init__(self, channels: int):
        super().__init__()
        self.conv1 = Convolution(channels, channels)
        self.conv2 = Convolution(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        """[B, C, H, W] -> the same shape; channels beyond `channels` are zeros and stay so."""
        inner = F.relu(convolve(self.conv1, x, x.shape[1]), inplace=True)
        return F.relu(x + convolve(self.conv2, inner, x.shape[1]), inplace=True)


class DynamicUNet(nn.Module):
    """The encoder, the decoder grown on it, and a residual block that sees the image itself once more.

    backbone: a torchvision ResNet (v1.5) of any depth. The features kept are those before each change of size: of the
    stem, of layer1, layer2 and layer3.

    base_channels: of its first stage, 64 in the published network; the decoder grows on however many there are.
    """

    classifiers = ("classifier.",)  # what is new for other classes, by the beginnings of names

    def __init__(self, num_classes: int = 21, backbone: str = "resnet50", base_channels: int = PUBLISHED_CHANNELS):
        super().__init__()
        if backbone not in IMAGENET_FILES:
            raise InputError(f"no DynamicUNet with backbone {backbone!r}: choose one of {', '.join(IMAGENET_FILES)}")
        self.options = {"num_classes": num_classes, "backbone": backbone, "base_channels": base_channels}
        self.encoder = ResNet(backbone, base_channels=base_channels)
        expansion = self.encoder.layer1[0].expansion  # 4 for bottleneck blocks, 1 for basic ones
        *skip_channels, channels = base_channels, *(base_channels * width * expansion for width in (1, 2, 4, 8))
        self.encoder_bn = batch_norm(channels)
        self.middle = nn.Sequential(Convolution(channels, 2 * channels), Convolution(2 * channels, channels))
        self.blocks = nn.ModuleList()
        while skip_channels:
            block = UnetBlock(channels, skip_channels.pop(), is_last=not skip_channels)
            self.blocks.append(block)
            channels = block.out_channels
        self.upsample = PixelShuffleICNR(channels, channels)
        self.cross_block = ResidualBlock(channels + 3)
        self.classifier = nn.Conv2d(channels + 3, num_classes, kernel_size=1)
        nn.init.normal_(self.classifier.bias, std=0.01)

    def logits(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> [B, num_classes, H, W], in any mode."""
        self.check_shape(images.shape)
        encoder = self.encoder
        skips = [encoder.stem(images)]  # [B, 64, H/2, W/2]
        x = encoder.maxpool(skips[0])
        for stage in (encoder.layer1, encoder.layer2, encoder.layer3):  # -> strides 4, 8 and 16
            x = stage(x)
            skips.append(x)
        x = F.relu(self.encoder_bn(encoder.layer4(x)), inplace=True)  # [B, C, H/32, W/32]
        for conv in self.middle:
            x = F.relu(conv(x), inplace=True)
        for block in self.blocks:
            x = block(x, skips.pop())  # stride 32 -> 16 -> 8 -> 4 -> 2
        x = to_size(self.upsample(x), images.shape[-2:])  # -> [B, C, H, W]
        # In mixed precision the image joins in the precision of the features: promoted, all of them would be float32.
        zeros = -(x.shape[1] + 3) % CHANNEL_MULTIPLE.get(x.device.type, 1)
        image = F.pad(images.to(x.dtype), (0, 0, 0, 0, 0, zeros))
        x = self.cross_block(torch.cat([x, image], dim=1))  # [B, C + 3 + zeros, H, W]
        return convolve(self.classifier, x, self.classifier.out_channels)

    def forward(self, images: Tensor) -> tuple[Tensor] | Tensor:
        """images [B, 3, H, W] -> logits [B, num_classes, H, W]: in training in a tuple; else in float32.

        float64 images give float64 logits. ValueError for images of a shape that the network does not take.
        """
        logits = self.logits(images)
        return (logits,) if self.training else at_least_float32(logits)

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise InputError, which is a ValueError, for images of a shape that the network does not take."""
        if len(shape) != 4 or shape[1] != 3:
            raise InputError(f"images have the shape {list(shape)}; DynamicUNet needs RGB images [B, 3, H, W]")
        batch_size, _, height, width = shape
        if min(shape) < 1:
            raise InputError(f"images have the shape {list(shape)}; DynamicUNet needs sides of 1 pixel or more")
        if trains_on_one_image(self, batch_size) and max(height, width) <= COARSEST_STRIDE:
            raise InputError(
                f"images have the shape {list(shape)}; a batch norm cannot train on the single pixel that is left of "
                f"one image of {COARSEST_STRIDE} pixels or less: take a larger crop or two images"
            )


def build_model(
    num_classes: int = 21, backbone: str = "resnet50", base_channels: int = PUBLISHED_CHANNELS
) -> DynamicUNet:
    """The network with random initial weights; `model.options` holds the arguments, for its checkpoints."""
    return DynamicUNet(num_classes, backbone, base_channels)


def training_loss(
    outputs: tuple[Tensor],
    target: Tensor,
    ignore_index: int = IGNORE_INDEX,
    criterion: Criterion | None = None,
) -> dict[str, Tensor]:
    """Cross entropy, the mean over the pixels that are not ignored, and 0 where there are none.

    outputs: a tuple of the logits [B, C, H, W] of any floating type. target: [B, H, W] int64, [0, C) or `ignore_index`.
    criterion: of --loss; None: cross entropy. Returns {"main": a scalar in float32 (float64 for float64 logits)}.
    """
    (logits,) = outputs
    return {"main": (criterion or cross_entropy)(logits, target, ignore_index)}
