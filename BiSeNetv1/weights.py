"""Weights of other programs for BiSeNetV1, under their names here; the published ImageNet weights of its encoder."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.nets.imagenet import find_imagenet
from common.record.foreign import Format, Translated, always, network_options, translated

# torchvision's ImageNet weights: the file that is downloaded first, then older ones of the same network
IMAGENET_FILES = {
    "resnet18": ("resnet18-f37072fd.pth", "resnet18-5c106cde.pth"),
    "resnet50": ("resnet50-0676ba61.pth", "resnet50-19c8e357.pth"),
    "resnet101": ("resnet101-63fe2227.pth", "resnet101-5d3b4d8f.pth"),
}
IMAGENET_URL = "https://download.pytorch.org/models/"


def _fusion(state: Mapping[str, Tensor], content: Mapping) -> str:
    """In what the network of CoinCheung's differs from the one here: the attention of its feature fusion module."""
    layers = "two convolutions" if "ffm.conv2.weight" in state else "no ReLU before the sigmoid"
    return f"whose feature fusion has {layers} in its attention, where one convolution, batch norm and ReLU are here"


FORMATS = (
    Format(
        "BiSeNetV1 of mmsegmentation",
        (r"^backbone\.context_path\.", r"^backbone\.ffm\."),
        (
            (r"^backbone\.context_path\.", "context_path."),
            (r"^backbone\.spatial_path\.layer", "spatial_path.conv"),
            (r"^backbone\.ffm\.conv1\.", "feature_fusion.conv."),
            (r"^backbone\.ffm\.conv_atten\.0\.", "feature_fusion.attention."),
            (r"^decode_head\.", "head."),
            (r"^auxiliary_head\.", "auxiliary_heads."),
            (r"\.conv_layer\.", ".conv."),
            (r"\.atten_conv_layer\.1\.", ".attention."),
            (r"\.gap_conv\.1\.", ".global_conv."),
            (r"\.convs\.0\.", ".conv."),
            (r"\.conv_seg\.", ".classifier."),
        ),
        unused=r"data_preprocessor\.",
    ),
    Format("BiSeNetV1 of CoinCheung", (r"^cp\.resnet\.", r"^sp\.conv1\.", r"^ffm\."), differs=_fusion),
    Format("BiSeNetV2 of mmsegmentation", (r"^backbone\.detail\.",), differs=always("which is another network")),
    Format("BiSeNetV2 of CoinCheung", (r"^detail\.", r"^bga\."), differs=always("which is another network")),
)


def imagenet_file(backbone: str, source: str) -> Path | None:
    """The file that `--pretrained SOURCE` means for this backbone (`common.nets.imagenet.find_imagenet`)."""
    names = IMAGENET_FILES[backbone]
    return find_imagenet(source, names, IMAGENET_URL + names[0])


def from_reference(checkpoint: Mapping) -> Translated:
    """A checkpoint of mmsegmentation (or of the ModelZoo's version of it) under the names of `model.py`.

    Accepts the state dict itself or what it is wrapped in (`common.record.foreign`). Names that are ours already stay.

        backbone.context_path.*                  -> context_path.*
        backbone.spatial_path.layer{1..4}.*      -> spatial_path.conv{1..4}.*
        backbone.ffm.{conv1,conv_atten.0}.*      -> feature_fusion.{conv,attention}.*
        decode_head.*, auxiliary_head.{0,1}.*    -> head.*, auxiliary_heads.{0,1}.*
        ... .{conv_layer,convs.0}.*              -> ... .conv.*
        ... .atten_conv_layer.1.*, .gap_conv.1.* -> ... .attention.*, .global_conv.*
        ... .conv_seg.{weight,bias}              -> ... .classifier.{weight,bias}
    """
    return translated(
        checkpoint, FORMATS, lambda state: network_options(state, "head.classifier", "context_path.backbone.")
    )
