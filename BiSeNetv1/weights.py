"""Weights of other programs for BiSeNetV1, under their names here; the published ImageNet weights of its encoder."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.nets.backbone import find_imagenet, plain_state_dict

# torchvision's ImageNet weights: the file that is downloaded first, then older ones of the same network
IMAGENET_FILES = {
    "resnet18": ("resnet18-f37072fd.pth", "resnet18-5c106cde.pth"),
    "resnet50": ("resnet50-0676ba61.pth", "resnet50-19c8e357.pth"),
    "resnet101": ("resnet101-63fe2227.pth", "resnet101-5d3b4d8f.pth"),
}
IMAGENET_URL = "https://download.pytorch.org/models/"
REFERENCE_NAMES = (
    ("backbone.context_path.", "context_path."),
    ("backbone.spatial_path.layer", "spatial_path.conv"),
    ("backbone.ffm.conv1.", "feature_fusion.conv."),
    ("backbone.ffm.conv_atten.0.", "feature_fusion.attention."),
    ("decode_head.", "head."),
    ("auxiliary_head.", "auxiliary_heads."),
    (".conv_layer.", ".conv."),
    (".atten_conv_layer.1.", ".attention."),
    (".gap_conv.1.", ".global_conv."),
    (".convs.0.", ".conv."),
    (".conv_seg.", ".classifier."),
)


def imagenet_file(backbone: str, source: str) -> Path | None:
    """The file that `--pretrained SOURCE` means for this backbone (`common.nets.backbone.find_imagenet`)."""
    names = IMAGENET_FILES[backbone]
    return find_imagenet(source, names, IMAGENET_URL + names[0])


def from_reference(checkpoint: Mapping) -> dict[str, Tensor]:
    """A checkpoint of mmsegmentation (or of the ModelZoo's version of it) under the names of `model.py`.

    Accepts the state dict itself or one wrapped in {"state_dict": ...} or {"model": ...}, with or without `module.`
    prefixes. Names that are ours already stay.

        backbone.context_path.*                  -> context_path.*
        backbone.spatial_path.layer{1..4}.*      -> spatial_path.conv{1..4}.*
        backbone.ffm.{conv1,conv_atten.0}.*      -> feature_fusion.{conv,attention}.*
        decode_head.*, auxiliary_head.{0,1}.*    -> head.*, auxiliary_heads.{0,1}.*
        ... .{conv_layer,convs.0}.*              -> ... .conv.*
        ... .atten_conv_layer.1.*, .gap_conv.1.* -> ... .attention.*, .global_conv.*
        ... .conv_seg.{weight,bias}              -> ... .classifier.{weight,bias}
    """
    renamed = {}
    for name, value in plain_state_dict(checkpoint).items():
        for theirs, ours in REFERENCE_NAMES:
            name = name.replace(theirs, ours)
        renamed[name] = value
    return renamed
