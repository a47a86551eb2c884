"""Weights of other programs for ICNet, under their names here; the published ImageNet weights of its encoder."""

from collections.abc import Mapping
from pathlib import Path

from common.nets.imagenet import find_imagenet
from common.record.foreign import Format, Translated, always, network_options, translated

# ImageNet weights with the stem 64, 64, 128, published by PyTorch-Encoding as zip files under IMAGENET_URL
IMAGENET_FILES = {
    "resnet50": "resnet50-25c4b509.pth",
    "resnet101": "resnet101-2a57e44d.pth",
    "resnet152": "resnet152-0d43d698.pth",
}
IMAGENET_URL = "https://hangzh.s3.amazonaws.com/encoding/models/"
FORMATS = (
    Format(
        "ICNet of mmsegmentation",
        (r"^backbone\.psp_modules\.",),
        differs=always(
            "which convolves the means of its pyramid beside the features, and halves the features of layer2 for its "
            "third branch; here the means are added, and the third branch sees a quarter of the image"
        ),
    ),
    Format(
        "ICNet of ICNet-pytorch",
        (r"^pretrained\.layer1\.", r"^conv_sub1\.", r"^head\.cff_24\."),
        (
            (r"^pretrained\.", "backbone."),
            (r"^conv_sub1\.", "full_branch."),
            (r"^head\.conv_cls\.", "classifier."),
            (r"^head\.", ""),
            (r"\.conv_low_cls\.", ".label_guidance."),
        ),
        unused=r"pretrained\.fc\.",
    ),
)


def imagenet_file(backbone: str, source: str) -> Path | None:
    """The file that `--pretrained SOURCE` means for this backbone (`common.nets.imagenet.find_imagenet`)."""
    name = IMAGENET_FILES[backbone]
    return find_imagenet(source, [name], IMAGENET_URL + name.replace(".pth", ".zip"))


def from_reference(checkpoint: Mapping) -> Translated:
    """A checkpoint of ICNet-pytorch (or of the ModelZoo's version of it) under the names of `model.py`.

    Accepts the state dict itself or what it is wrapped in (`common.record.foreign`). Names that are ours already stay;
    the ImageNet classifier `pretrained.fc`, which some checkpoints carry along unused, is dropped.

        pretrained.*                -> backbone.*
        conv_sub1.*                 -> full_branch.*
        head.cff_{12,24}.*          -> cff_{12,24}.*
        ... .conv_low_cls.weight    -> ... .label_guidance.weight
        head.conv_cls.weight        -> classifier.weight
    """
    return translated(checkpoint, FORMATS, lambda state: network_options(state, "classifier", "backbone."))
