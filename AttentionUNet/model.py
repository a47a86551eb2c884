"""Attention U-Net, and the networks that it is compared with: U-Net, R2U-Net, and R2U-Net with attention.

U-Net: Ronneberger, Fischer and Brox, arXiv 1505.04597. Attention gates: Oktay et al., "Attention U-Net: Learning Where
to Look for the Pancreas", arXiv 1804.03999. Recurrent residual units: Alom et al., "Recurrent Residual Convolutional
Neural Network based on U-Net (R2U-Net)", arXiv 1802.06955. The sizes are those of LeeJunHyun/Image_Segmentation, from
which the Ascend ModelZoo's AttU_Net_for_PyTorch comes.
"""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from common import IGNORE_INDEX
from common.errors import InputError
from common.nets.upsampling import UpsampledConv2d
from common.step.criteria import Criterion
from common.step.losses import at_least_float32, binary_cross_entropy, cross_entropy
from common.step.norm import trains_on_one_image

# name -> (attention gates on the skip connections, recurrent residual units)
ARCHS = {
    "AttU_Net": (True, False),
    "U_Net": (False, False),
    "R2U_Net": (False, True),
    "R2AttU_Net": (True, True),
}
LEVELS = 5
STRIDE = 2 ** (LEVELS - 1)  # of the coarsest features, against the image


class Layers(nn.Sequential):
    """Layers one after another, each convolution with a batch norm behind it.

    A batch norm takes away the mean, and with it what the bias of the convolution has added: in training the bias
    changes nothing but the running mean, and its gradient is zero. It is left out there; on features at full size it
    costs two passes forwards and one backwards. A frozen batch norm, which stays in eval mode, takes nothing away.
    """

    leaves_biases_out = True

    def forward(self, x: Tensor, *size: Sequence[int]) -> Tensor:
        """x [B, C, H, W] -> what the last layer gives; size: for a first layer that enlarges."""
        layers = list(self)
        for index, layer in enumerate(layers):
            if isinstance(layer, nn.Conv2d):
                bias = layer.bias if self.leaves_biases_out and layers[index + 1].training else None
                x = layer(x, *size) if bias is None else _WithoutBias.apply(_convolve(layer, x, *size), bias)
                size = ()
            else:
                x = layer(x)
                if isinstance(layer, nn.modules.batchnorm._BatchNorm) and bias is not None:
                    # .data: the way back, which has the running mean on record, does not read it
                    layer.running_mean.data.add_(bias.data, alpha=layer.momentum)
        return x


def _convolve(layer: nn.Conv2d, x: Tensor, *size: Sequence[int]) -> Tensor:
    """The convolution without its bias."""
    return layer.convolve(x, *size, None) if size else F.conv2d(x, layer.weight, padding=layer.padding)


class _WithoutBias(torch.autograd.Function):
    """The features themselves; the bias that was left out gets the gradient that it has: zero."""

    @staticmethod
    def forward(ctx, x: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(bias)
        return x.view_as(x)

    @staticmethod
    def backward(ctx, gradient: Tensor) -> tuple[Tensor, Tensor]:
        return gradient, torch.zeros_like(*ctx.saved_tensors)


class ConvBNReLU(Layers):
    """3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=1),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class UpConv(Layers):
    """The up-convolution of U-Net: enlargement by nearest neighbour, 3x3 convolution, batch norm, ReLU."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(
            UpsampledConv2d(in_channels, out_channels),
            nn.BatchNorm2d(out_channels),
            nn.ReLU(inplace=True),
        )


class DoubleConv(Layers):
    """The unit of U-Net: two 3x3 convolutions."""

    def __init__(self, in_channels: int, out_channels: int):
        super().__init__(*ConvBNReLU(in_channels, out_channels), *ConvBNReLU(out_channels, out_channels))


class RecurrentConv(nn.Module):
    """Recurrent convolutional layer: one convolution, applied t + 1 times with the same weights.

    Each time after the first it sees its input plus what it gave before; its batch norm takes note of every time.
    """

    def __init__(self, channels: int, t: int):
        super().__init__()
        self.t = t
        self.unit = ConvBNReLU(channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        state = self.unit(x)
        for _ in range(self.t):
            state = self.unit(x + state)
        return state


class RecurrentResidualUnit(nn.Module):
    """The unit of R2U-Net: a 1x1 convolution to the new channels, and two recurrent layers beside it."""

    def __init__(self, in_channels: int, out_channels: int, t: int):
        super().__init__()
        self.project = nn.Conv2d(in_channels, out_channels, kernel_size=1)
        self.recurrent = nn.Sequential(RecurrentConv(out_channels, t), RecurrentConv(out_channels, t))

    def forward(self, x: Tensor) -> Tensor:
        x = self.project(x)
        return x + self.recurrent(x)


class AttentionGate(nn.Module):
    """Additive attention: scales each pixel of a skip connection by a number in (0, 1).

    The gating signal is the upsampled decoder feature, of the skip connection's size; the paper gates with the coarser
    one and resamples.
    """

    def __init__(self, channels: int):
        super().__init__()
        between = channels // 2
        self.w_g = Layers(nn.Conv2d(channels, between, kernel_size=1), nn.BatchNorm2d(between))
        self.w_x = Layers(nn.Conv2d(channels, between, kernel_size=1), nn.BatchNorm2d(between))
        self.psi = Layers(nn.Conv2d(between, 1, kernel_size=1), nn.BatchNorm2d(1))

    def forward(self, gating: Tensor, skip: Tensor) -> Tensor:
        """gating, skip [B, C, H, W] -> [B, C, H, W]."""
        coefficients = torch.sigmoid(self.psi(F.relu(self.w_g(gating) + self.w_x(skip))))  # [B, 1, H, W]
        return skip * coefficients


class DecoderLevel(nn.Module):
    """Doubles the size of the features, halves their channels, and merges the skip connection of that size."""

    def __init__(self, channels: int, gated: bool, unit):
        super().__init__()
        self.up = UpConv(2 * channels, channels)
        self.gate = AttentionGate(channels) if gated else None
        self.conv = unit(2 * channels, channels)

    def forward(self, x: Tensor, skip: Tensor) -> Tensor:
        """x [B, 2 C, h, w], skip [B, C, 2 h, 2 w] -> [B, C, 2 h, 2 w]."""
        x = self.up(x, skip.shape[-2:])
        if self.gate is not None:
            skip = self.gate(x, skip)
        return self.conv(torch.cat([skip, x], dim=1))


class AttentionUNet(nn.Module):
    """Five levels down and up again, with skip connections; logits at the size of the image.

    num_classes: output channels; 1 for a lesion and what is not: a logit above 0 is a lesion.
    arch: one of ARCHS.
    t: recurrences of the recurrent layers of R2U_Net and R2AttU_Net.
    base_channels: channels of the first level (64 in the reference); each level below has twice as many.
    image_size: side of the square images that it is trained on, for whoever makes its input; it takes others too.
    All weights start from PyTorch's own initial values.
    """

    classifiers = ("classifier.",)  # what is new for other classes, by the beginnings of names

    def __init__(
        self,
        num_classes: int = 1,
        arch: str = "AttU_Net",
        t: int = 3,
        base_channels: int = 64,
        image_size: int = 224,
    ):
        super().__init__()
        if arch not in ARCHS:
            raise InputError(f"no network {arch!r}: choose one of {', '.join(ARCHS)}")
        gated, recurrent = ARCHS[arch]
        if base_channels < 2:
            raise InputError(
                f"{base_channels} channels at the first level: an attention gate halves them; give 2 or more"
            )
        self.options = {
            "num_classes": num_classes,
            "arch": arch,
            "t": t,
            "base_channels": base_channels,
            "image_size": image_size,
        }

        def unit(in_channels: int, out_channels: int) -> nn.Module:
            return (
                RecurrentResidualUnit(in_channels, out_channels, t)
                if recurrent
                else DoubleConv(in_channels, out_channels)
            )

        widths = [base_channels * 2**level for level in range(LEVELS)]
        self.encoder = nn.ModuleList(map(unit, [3, *widths], widths))
        self.decoder = nn.ModuleList(DecoderLevel(width, gated, unit) for width in reversed(widths[:-1]))
        self.classifier = nn.Conv2d(base_channels, num_classes, kernel_size=1)

    def forward(self, images: Tensor) -> tuple[Tensor] | Tensor:
        """images [B, 3, H, W] -> logits [B, num_classes, H, W]: in training a tuple of them alone, else the tensor.

        The latter is float32 or, for float64 images, float64. ValueError for sides that are no multiples of 16.
        """
        self.check_shape(images.shape)
        skips = [self.encoder[0](images)]  # [B, C, H, W]
        for level in self.encoder[1:]:
            skips.append(level(F.max_pool2d(skips[-1], kernel_size=2)))  # [B, 2 C, H/2, W/2], ... [B, 16 C, H/16, W/16]
        x = skips.pop()
        for level in self.decoder:
            x = level(x, skips.pop())  # [B, 8 C, H/8, W/8], ... [B, C, H, W]
        logits = self.classifier(x)
        return (logits,) if self.training else at_least_float32(logits)

    def compute_like_the_reference(self) -> None:
        """Add the biases that change nothing in training: for the benchmark, which compares with the published code."""
        for module in self.modules():
            if isinstance(module, Layers):
                module.leaves_biases_out = False

    def check_shape(self, shape: Sequence[int]) -> None:
        """Raise InputError, which is a ValueError, for images of a shape that the network does not take."""
        if len(shape) != 4 or shape[1] != 3:
            raise InputError(f"images have the shape {list(shape)}; Attention U-Net needs RGB images [B, 3, H, W]")
        batch_size, _, height, width = shape
        if height % STRIDE or width % STRIDE or not height or not width:
            padded = [max(1, -(-side // STRIDE)) * STRIDE for side in (height, width)]
            raise InputError(
                f"images have the shape {list(shape)}; Attention U-Net needs sides that are multiples of {STRIDE}: "
                f"pad or resize them to {padded[0]} x {padded[1]}"
            )
        if trains_on_one_image(self, batch_size) and height == width == STRIDE:
            raise InputError(
                f"images have the shape {list(shape)}; a batch norm cannot train on the single pixel that is left of "
                f"one image of {STRIDE} pixels: take {2 * STRIDE} pixels or two images"
            )


def build_model(
    num_classes: int = 1, arch: str = "AttU_Net", t: int = 3, base_channels: int = 64, image_size: int = 224
) -> AttentionUNet:
    """The network with random initial weights; `model.options` holds the arguments, for its checkpoints."""
    return AttentionUNet(num_classes, arch, t, base_channels, image_size)


def training_loss(
    outputs: tuple[Tensor],
    target: Tensor,
    ignore_index: int = IGNORE_INDEX,
    criterion: Criterion | None = None,
) -> dict[str, Tensor]:
    """Binary cross entropy of the lesion's probability, the sigmoid of the logits; the mean over the pixels that count.

    outputs: (logits [B, 1, H, W],) of any floating type. target [B, H, W]: int64 with 1 on the lesion, 0 beside it and
    `ignore_index`; or floating, in [0, 1] or `ignore_index`, for masks with soft edges. 0 where no pixel counts.
    For logits of several channels: cross entropy with class ids. criterion: of --loss, in place of either; a single
    channel is to it the second of two classes, the first of which has logits of 0. Returns {"main": a scalar in float32
    (float64 for float64 logits)}.
    """
    logits = outputs[0]
    if criterion and logits.shape[1] == 1:
        logits = torch.cat([torch.zeros_like(logits), logits], dim=1)
    if logits.shape[1] > 1:
        return {"main": (criterion or cross_entropy)(logits, target, ignore_index)}
    return {"main": binary_cross_entropy(logits[:, 0], target, ignore_index)}
