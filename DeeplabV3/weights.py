"""Weights of other programs for DeepLabV3, under their names here; the published ImageNet weights of its encoder."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.nets.backbone import find_imagenet, plain_state_dict, without_open_mmlab_stem

# ImageNet weights with the stem 32, 32, 64 ("v1c"), published by OpenMMLab under IMAGENET_URL
IMAGENET_FILES = {
    "resnet18": "resnet18_v1c-b5776b93.pth",
    "resnet50": "resnet50_v1c-2cccc1ad.pth",
    "resnet101": "resnet101_v1c-e67eebb6.pth",
}
IMAGENET_URL = "https://download.openmmlab.com/pretrain/third_party/"
REFERENCE_PREFIXES = (
    ("decode_head.image_pool.1.", "aspp.image_pooling."),
    ("decode_head.aspp_modules.", "aspp.branches."),
    ("decode_head.bottleneck.", "aspp.fuse."),
    ("decode_head.conv_seg.", "classifier."),
    ("auxiliary_head.convs.0.", "auxiliary_head.conv_bn."),
    ("auxiliary_head.conv_seg.", "auxiliary_head.classifier."),
)


def imagenet_file(backbone: str, source: str) -> Path | None:
    """The file that `--pretrained SOURCE` means for this backbone (`common.nets.backbone.find_imagenet`)."""
    name = IMAGENET_FILES[backbone]
    return find_imagenet(source, [name, f"{backbone}_v1c.pth"], IMAGENET_URL + name)


def from_reference(checkpoint: Mapping) -> dict[str, Tensor]:
    """A checkpoint of mmsegmentation (or of the ModelZoo's version of it) under the names of `model.py`.

    Accepts the state dict itself or one wrapped in {"state_dict": ...} or {"model": ...}, with or without `module.`
    prefixes. Names that are ours already stay.

        backbone.stem.{0,1,3,4,6}.*     -> backbone.conv1.{0,1,3,4,6}.*
        backbone.stem.7.*               -> backbone.bn1.*
        decode_head.image_pool.1.*      -> aspp.image_pooling.*
        decode_head.aspp_modules.{i}.*  -> aspp.branches.{i}.*
        decode_head.bottleneck.*        -> aspp.fuse.*
        decode_head.conv_seg.*          -> classifier.*
        auxiliary_head.convs.0.*        -> auxiliary_head.conv_bn.*
        auxiliary_head.conv_seg.*       -> auxiliary_head.classifier.*
    """
    renamed = {}
    for name, value in plain_state_dict(checkpoint).items():
        for theirs, ours in REFERENCE_PREFIXES:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        renamed[without_open_mmlab_stem(name)] = value
    return renamed
