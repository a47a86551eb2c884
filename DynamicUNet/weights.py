"""Weights of other programs for DynamicUNet, under their names here; the published ImageNet weights of its encoder."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.errors import InputError
from common.nets.backbone import find_imagenet, plain_state_dict

# ImageNet weights of torchvision under IMAGENET_URL. The first file of each pair is that of the original's time; both
# hold the same numbers.
IMAGENET_FILES = {
    "resnet18": ("resnet18-5c106cde.pth", "resnet18-f37072fd.pth"),
    "resnet34": ("resnet34-333f7ec4.pth", "resnet34-b627a593.pth"),
    "resnet50": ("resnet50-19c8e357.pth", "resnet50-0676ba61.pth"),
    "resnet101": ("resnet101-5d3b4d8f.pth", "resnet101-63fe2227.pth"),
    "resnet152": ("resnet152-b121ed2d.pth", "resnet152-394f9c45.pth"),
}
IMAGENET_URL = "https://download.pytorch.org/models/"
# Names of the reference, which numbers the layers of one sequence, and ours; the longer ones come first.
REFERENCE_NAMES = (
    ("layers.0.0.", "encoder.conv1."),
    ("layers.0.1.", "encoder.bn1."),
    *((f"layers.0.{stage + 3}.", f"encoder.layer{stage}.") for stage in (1, 2, 3, 4)),
    ("layers.1.", "encoder_bn."),
    *((f"layers.3.{index}.0.", f"middle.{index}.") for index in (0, 1)),
    *(
        (f"layers.{index + 4}.{theirs}", f"blocks.{index}.{ours}")
        for index in (0, 1, 2, 3)
        for theirs, ours in (
            ("shuf.0.0.", "upsample.conv."),
            ("bn.", "skip_bn."),
            ("conv1.0.", "conv1."),
            ("conv2.0.", "conv2."),
        )
    ),
    ("layers.8.0.0.", "upsample.conv."),
    ("layers.11.convpath.0.0.", "cross_block.conv1."),
    ("layers.11.convpath.1.0.", "cross_block.conv2."),
    ("layers.12.0.", "classifier."),
)
WEIGHT_NORM = (".weight_g", ".weight_v", ".parametrizations.weight.original0", ".parametrizations.weight.original1")


def imagenet_file(backbone: str, source: str) -> Path | None:
    """The file that `--pretrained SOURCE` means for this backbone (`common.nets.backbone.find_imagenet`)."""
    names = IMAGENET_FILES[backbone]
    return find_imagenet(source, names, IMAGENET_URL + names[0])


def from_reference(checkpoint: Mapping) -> dict[str, Tensor]:
    """A checkpoint of the reference, or of fastai's DynamicUnet, under the names of `model.py`.

    Accepts the state dict itself or one wrapped in {"state_dict": ...} or {"model": ...}, with or without `module.`
    prefixes. Names that are ours already stay. InputError for one whose convolutions are weight-normalised, as those
    that fastai builds by default: it holds two factors of each weight, and is of another network.

        layers.0.{0,1}, layers.0.{4..7}   -> encoder.{conv1,bn1}, encoder.layer{1..4}
        layers.1                          -> encoder_bn
        layers.3.{0,1}.0                  -> middle.{0,1}
        layers.{4..7}                     -> blocks.{0..3}: shuf.0.0, bn, conv1.0, conv2.0
                                             -> upsample.conv, skip_bn, conv1, conv2
        layers.8.0.0                      -> upsample.conv
        layers.11.convpath.{0,1}.0        -> cross_block.conv{1,2}
        layers.12.0                       -> classifier
    """
    renamed = {}
    for name, value in plain_state_dict(checkpoint).items():
        if name.endswith(WEIGHT_NORM):
            raise InputError(
                f"the checkpoint holds {name}: its network has weight normalisation, DynamicUNet has none; "
                "give one of a network that was built with norm_type=None"
            )
        for theirs, ours in REFERENCE_NAMES:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
                break
        renamed[name] = value
    return renamed
