"""Weights of other programs for ICNet, under their names here; the published ImageNet weights of its encoder."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.nets.backbone import find_imagenet, plain_state_dict

# ImageNet weights with the stem 64, 64, 128, published by PyTorch-Encoding as zip files under IMAGENET_URL
IMAGENET_FILES = {
    "resnet50": "resnet50-25c4b509.pth",
    "resnet101": "resnet101-2a57e44d.pth",
    "resnet152": "resnet152-0d43d698.pth",
}
IMAGENET_URL = "https://hangzh.s3.amazonaws.com/encoding/models/"
REFERENCE_PREFIXES = (
    ("pretrained.", "backbone."),
    ("conv_sub1.", "full_branch."),
    ("head.conv_cls.", "classifier."),
    ("head.", ""),
)


def imagenet_file(backbone: str, source: str) -> Path | None:
    """The file that `--pretrained SOURCE` means for this backbone (`common.nets.backbone.find_imagenet`)."""
    name = IMAGENET_FILES[backbone]
    return find_imagenet(source, [name], IMAGENET_URL + name.replace(".pth", ".zip"))


def from_reference(checkpoint: Mapping) -> dict[str, Tensor]:
    """A checkpoint of ICNet-pytorch (or of the ModelZoo's version of it) under the names of `model.py`.

    Accepts the state dict itself or one wrapped in {"state_dict": ...} or {"model": ...}, with or without `module.`
    prefixes. Names that are ours already stay; the ImageNet classifier `pretrained.fc`, which some checkpoints carry
    along unused, is dropped.

        pretrained.*                -> backbone.*
        conv_sub1.*                 -> full_branch.*
        head.cff_{12,24}.*          -> cff_{12,24}.*
        ... .conv_low_cls.weight    -> ... .label_guidance.weight
        head.conv_cls.weight        -> classifier.weight
    """
    renamed = {}
    for name, value in plain_state_dict(checkpoint).items():
        if name.startswith("pretrained.fc."):
            continue
        for theirs, ours in REFERENCE_PREFIXES:
            if name.startswith(theirs):
                name = ours + name.removeprefix(theirs)
        renamed[name.replace(".conv_low_cls.", ".label_guidance.")] = value
    return renamed
