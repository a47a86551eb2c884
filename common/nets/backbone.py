"""ResNet backbones from torchvision."""

import sys
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType

import torch
from torch import Tensor, nn

from common.errors import InputError

PUBLISHED_CHANNELS = 64  # of the first stage of every ResNet
BASIC_DEPTHS = ("resnet18", "resnet34")  # their blocks have two 3x3 convolutions; those of the others are bottlenecks
BLOCKS = {
    "resnet18": (2, 2, 2, 2),
    "resnet34": (3, 4, 6, 3),
    "resnet50": (3, 4, 6, 3),
    "resnet101": (3, 4, 23, 3),
    "resnet152": (3, 8, 36, 3),
}  # of each stage

_operator_stubs: list[torch.library.Library] = []  # an operator disappears with the Library that defines it


def torchvision_models() -> ModuleType:
    """`torchvision.models`, also where torchvision's compiled operators do not load.

    A torchvision wheel built for CUDA beside a torch for CPU or NPU cannot load its operators, and `import torchvision`
    then ends in "RuntimeError: operator torchvision::nms does not exist": it describes the shapes of operators that are
    not there. The networks need none of them, so their names are declared, without code, and the import is repeated.
    """
    # torch 2.6 computes as torchvision is imported for the first time, also where a network is built on `meta`
    with torch.device("cpu"):
        _forget_failed_import()
        try:
            import torchvision.models
        except RuntimeError as error:
            if _operator_stubs or "operator torchvision::" not in str(error):
                raise
            library = torch.library.Library("torchvision", "DEF")
            _operator_stubs.append(library)
            for name in ("nms", "qnms"):  # those that torchvision describes without asking whether they were loaded
                library.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
            _forget_failed_import()
            import torchvision.models
    return torchvision.models


def _forget_failed_import() -> None:
    """Drop the submodules that an import which failed has left behind: with them the next one would not be complete."""
    if "torchvision" not in sys.modules:
        for name in [name for name in sys.modules if name.startswith("torchvision.")]:
            del sys.modules[name]


def scaled(channels: int, base_channels: int) -> int:
    """So many channels of a published network in one that begins with `base_channels` instead of 64.

    Raises InputError for a number that the channels of all layers cannot be in proportion to.
    """
    if base_channels < 8 or base_channels % 8:
        raise InputError(f"{base_channels} channels at the first stage: give a multiple of 8, such as 16 or 32")
    return channels * base_channels // PUBLISHED_CHANNELS


def _torchvision_resnet(name: str, base_channels: int) -> Callable[..., nn.Module]:
    """What builds torchvision's ResNet of this name, whose options have no number of channels, with so many."""
    models = torchvision_models()
    if base_channels == PUBLISHED_CHANNELS:
        return getattr(models, name)

    class Scaled(models.ResNet):
        def _make_layer(self, block: type[nn.Module], planes: int, *arguments: object, **options: object):
            if planes == PUBLISHED_CHANNELS:  # the first stage: the stem before it is made anew
                self.inplanes = scaled(planes, base_channels)
                self.conv1 = nn.Conv2d(3, self.inplanes, kernel_size=7, stride=2, padding=3, bias=False)
                self.bn1 = nn.BatchNorm2d(self.inplanes)
            return super()._make_layer(block, scaled(planes, base_channels), *arguments, **options)

    block = models.resnet.BasicBlock if name in BASIC_DEPTHS else models.resnet.Bottleneck
    return partial(Scaled, block, BLOCKS[name])


class ResNet(nn.Module):
    """The stem and the four stages of a torchvision ResNet ("Deep Residual Learning", arXiv 1512.03385), no classifier.

    name: resnet18, resnet34, resnet50, resnet101 or resnet152 (v1.5: the stride is in the 3x3 convolution).
    replace_stride_with_dilation: for layer2, layer3 and layer4, whether the stage keeps its resolution and dilates its
        3x3 convolutions instead. The first block of a stage still has the dilation of the stage before it. In the
        blocks of resnet18 and resnet34 the first of the two convolutions is dilated, as in mmsegmentation.
    stem_widths: None for the 7x7 stem; three channel counts for a deep stem of three 3x3 convolutions (ResNet v1c:
        32, 32, 64; v1s: 64, 64, 128). A last width other than 64 needs a bottleneck depth.
    zero_init_residual: whether the last batch norm of each residual block starts from 0, so that the block starts as
        the identity ("Accurate, Large Minibatch SGD", arXiv 1706.02677, 5.1).
    base_channels: of the first stage's 3x3 convolutions, 64 in the published networks; those of the 7x7 stem and of the
        other stages are in proportion. `stem_widths` are taken as they are. InputError unless a multiple of 8.

    Tensors are named as in the published files: torchvision's, and PyTorch-Encoding's for a deep stem (`conv1.0`,
    `conv1.1`, `conv1.3`, `conv1.4`, `conv1.6`, then `bn1`). Convolutions start from Kaiming's normal distribution over
    the fan-out, batch norms from 1 and 0.
    """

    def __init__(
        self,
        name: str,
        replace_stride_with_dilation: Sequence[bool] = (False, False, False),
        stem_widths: Sequence[int] | None = None,
        zero_init_residual: bool = False,
        base_channels: int = PUBLISHED_CHANNELS,
    ):
        super().__init__()
        is_basic = name in BASIC_DEPTHS
        network = _torchvision_resnet(name, base_channels)(
            # torchvision refuses to dilate basic blocks; that is done below
            replace_stride_with_dilation=[False] * 3 if is_basic else list(replace_stride_with_dilation),
            zero_init_residual=zero_init_residual,
        )
        self.conv1, self.bn1, self.relu, self.maxpool = network.conv1, network.bn1, network.relu, network.maxpool
        self.layer1, self.layer2 = network.layer1, network.layer2
        self.layer3, self.layer4 = network.layer3, network.layer4
        if is_basic:
            self._dilate_basic_blocks(replace_stride_with_dilation)
        if stem_widths is not None:
            self._deepen_stem(*stem_widths)

    def _dilate_basic_blocks(self, replace_stride_with_dilation: Sequence[bool]) -> None:
        dilation = 1
        for stage, dilated in zip((self.layer2, self.layer3, self.layer4), replace_stride_with_dilation, strict=True):
            before = dilation
            if dilated:
                dilation *= 2
                stage[0].conv1.stride = stage[0].downsample[0].stride = (1, 1)
            for index, block in enumerate(stage):
                rate = before if index == 0 else dilation
                block.conv1.dilation = block.conv1.padding = (rate, rate)

    def _deepen_stem(self, first: int, second: int, third: int) -> None:
        self.conv1 = nn.Sequential(
            _convolution(3, first, kernel_size=3, stride=2, padding=1),
            nn.BatchNorm2d(first),
            nn.ReLU(inplace=True),
            _convolution(first, second, kernel_size=3, padding=1),
            nn.BatchNorm2d(second),
            nn.ReLU(inplace=True),
            _convolution(second, third, kernel_size=3, padding=1),
        )
        self.bn1 = nn.BatchNorm2d(third)
        block = self.layer1[0]
        if third != block.conv1.in_channels:
            block.conv1 = _convolution(third, block.conv1.out_channels, kernel_size=1)
            block.downsample[0] = _convolution(third, block.downsample[0].out_channels, kernel_size=1)

    # What a compiler takes whole (`common.step.compiling`): a module around the layers of the stem would put its name
    # in front of those in the published files.
    compiled_methods = ("stem", "pooled_stem")

    def stem(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> [B, stem width, H/2, W/2], before the max pooling."""
        return self.relu(self.bn1(self.conv1(images)))

    def pooled_stem(self, images: Tensor) -> Tensor:
        """images [B, 3, H, W] -> [B, stem width, H/4, W/4]."""
        return self.maxpool(self.stem(images))

    def forward(self, images: Tensor, stages: int = 4) -> list[Tensor]:
        """images [B, 3, H, W] -> the outputs of layer1, layer2 ... as far as `stages`.

        Without dilation: [B, 256, H/4, W/4], [B, 512, H/8, W/8], [B, 1024, H/16, W/16], [B, 2048, H/32, W/32] (a
        quarter of these channels for resnet18 and resnet34); sides are rounded up.
        """
        features = self.pooled_stem(images)
        outputs = []
        for stage in (self.layer1, self.layer2, self.layer3, self.layer4)[:stages]:
            features = stage(features)
            outputs.append(features)
        return outputs


def _convolution(in_channels: int, out_channels: int, **options: int) -> nn.Conv2d:
    """A bias-free convolution with the initial values of torchvision's ResNet."""
    convolution = nn.Conv2d(in_channels, out_channels, bias=False, **options)
    nn.init.kaiming_normal_(convolution.weight, mode="fan_out", nonlinearity="relu")
    return convolution
