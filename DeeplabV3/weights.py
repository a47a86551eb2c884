"""Weights of other programs for DeepLabV3, under their names here; the published ImageNet weights of its encoder."""

import re
from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.nets.imagenet import find_imagenet
from common.record.foreign import Format, Translated, always, network_options, translated

# ImageNet weights with the stem 32, 32, 64 ("v1c"), published by OpenMMLab under IMAGENET_URL
IMAGENET_FILES = {
    "resnet18": "resnet18_v1c-b5776b93.pth",
    "resnet50": "resnet50_v1c-2cccc1ad.pth",
    "resnet101": "resnet101_v1c-e67eebb6.pth",
}
IMAGENET_URL = "https://download.openmmlab.com/pretrain/third_party/"
TORCHVISION_PYRAMID = (
    "with 256 channels in its pyramid, a 1x1 and a 3x3 convolution behind it, and a stem of one 7x7 convolution; here "
    "they are 512, one 3x3, and three 3x3"
)


def _variant(state: Mapping[str, Tensor], content: Mapping) -> str:
    """In what a network of mmsegmentation differs: by its tensors, and by the configuration beside them."""
    if any(name.startswith("decode_head.c1_bottleneck.") for name in state):
        return "in its form DeepLabV3+, whose decoder also sees layer1"
    if "backbone.conv1.weight" in state:
        return "with a stem of one 7x7 convolution (its configurations r50b-d8 ...), where three 3x3 are here"
    meta = content.get("meta")
    configuration = str((meta.get("config") or meta.get("cfg") or "") if isinstance(meta, Mapping) else "")
    if re.search(r"\bmulti_grid\s*=\s*\(", configuration):
        return "with multi-grid dilations at stride 16 (its configurations d16-mg124), where stride 8 is here"
    if re.search(r"\balign_corners\s*=\s*True", configuration):
        return "which enlarges its logits with aligned corners (its 769x769 configurations), where they are not here"
    return ""


FORMATS = (
    Format(
        "DeepLabV3 of mmsegmentation",
        (r"^decode_head\.image_pool\.1\.", r"^decode_head\.bottleneck\."),
        (
            (r"^backbone\.stem\.7\.", "backbone.bn1."),
            (r"^backbone\.stem\.", "backbone.conv1."),
            (r"^decode_head\.image_pool\.1\.", "aspp.image_pooling."),
            (r"^decode_head\.aspp_modules\.", "aspp.branches."),
            (r"^decode_head\.bottleneck\.", "aspp.fuse."),
            (r"^decode_head\.conv_seg\.", "classifier."),
            (r"^auxiliary_head\.convs\.0\.", "auxiliary_head.conv_bn."),
            (r"^auxiliary_head\.conv_seg\.", "auxiliary_head.classifier."),
        ),
        unused=r"data_preprocessor\.",
        differs=_variant,
    ),
    Format(
        "DeepLabV3 of torchvision",
        (r"^classifier\.0\.convs\.0\.0\.", r"^backbone\.layer4\."),
        differs=always(TORCHVISION_PYRAMID),
    ),
    Format(
        "DeepLabV3 of segmentation_models.pytorch",
        (r"^decoder\.(aspp|0)\.convs\.0\.0\.",),
        differs=always(
            f"{TORCHVISION_PYRAMID}; and the first blocks of its layer3 and layer4 are dilated as the others"
        ),
    ),
)


def imagenet_file(backbone: str, source: str) -> Path | None:
    """The file that `--pretrained SOURCE` means for this backbone (`common.nets.imagenet.find_imagenet`)."""
    name = IMAGENET_FILES[backbone]
    return find_imagenet(source, [name, f"{backbone}_v1c.pth"], IMAGENET_URL + name)


def from_reference(checkpoint: Mapping) -> Translated:
    """A checkpoint of mmsegmentation (or of the ModelZoo's version of it) under the names of `model.py`.

    Accepts the state dict itself or what it is wrapped in (`common.record.foreign`). Names that are ours already stay.

        backbone.stem.{0,1,3,4,6}.*     -> backbone.conv1.{0,1,3,4,6}.*
        backbone.stem.7.*               -> backbone.bn1.*
        decode_head.image_pool.1.*      -> aspp.image_pooling.*
        decode_head.aspp_modules.{i}.*  -> aspp.branches.{i}.*
        decode_head.bottleneck.*        -> aspp.fuse.*
        decode_head.conv_seg.*          -> classifier.*
        auxiliary_head.convs.0.*        -> auxiliary_head.conv_bn.*
        auxiliary_head.conv_seg.*       -> auxiliary_head.classifier.*
    """
    return translated(checkpoint, FORMATS, lambda state: network_options(state, "classifier", "backbone."))
