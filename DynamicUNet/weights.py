"""Weights of other programs for DynamicUNet, under their names here; the published ImageNet weights of its encoder."""

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from common.nets.imagenet import find_imagenet
from common.record.foreign import Format, Translated, network_options, translated

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
WEIGHT_NORM = (".weight_g", ".weight_v", ".parametrizations.weight.original0", ".parametrizations.weight.original1")


def _variant(state: Mapping[str, Tensor], content: Mapping) -> str:
    """In what a network that fastai's unet_learner built differs from the one here, by its arguments."""
    if any(name.endswith(".gamma") for name in state):
        return "with self_attention=True, which is not here"
    if any(name.endswith(".weight_orig") for name in state):
        return "with spectral normalisation, which is not here: only what norm_type=None builds is"
    if name := next((name for name in state if name.endswith(WEIGHT_NORM)), None):
        return f"whose {name} is of weight normalisation, which is not here: only what norm_type=None builds is"
    if "layers.3.0.1.weight" in state or "layers.3.0.2.weight" in state:
        return "with a batch norm behind each convolution of its decoder, where only norm_type=None is here"
    if "layers.0.0.weight" not in state or "layers.0.7.0.conv1.weight" not in state:
        return "with an encoder other than the ResNets of torchvision"
    if "layers.11.convpath.0.0.weight" not in state:
        return "with last_cross=False, or made for images of another kind: the image does not join its last layers"
    first, second = (state[f"layers.11.convpath.{index}.0.weight"] for index in (0, 1))
    if first.shape != second.shape:
        return "with bottle=True, which halves the channels of its last block"
    return ""


FORMATS = (
    Format(
        "DynamicUnet of fastai",
        (r"^layers\.\d+\.shuf\.0\.0\.",),
        (
            # its layers are numbered in one sequence
            (r"^layers\.0\.0\.", "encoder.conv1."),
            (r"^layers\.0\.1\.", "encoder.bn1."),
            *((rf"^layers\.0\.{stage + 3}\.", f"encoder.layer{stage}.") for stage in (1, 2, 3, 4)),
            (r"^layers\.1\.", "encoder_bn."),
            (r"^layers\.3\.([01])\.0\.", r"middle.\1."),
            *((rf"^layers\.{index + 4}\.", f"blocks.{index}.") for index in (0, 1, 2, 3)),
            (r"^layers\.8\.0\.0\.", "upsample.conv."),
            (r"^layers\.11\.convpath\.0\.0\.", "cross_block.conv1."),
            (r"^layers\.11\.convpath\.1\.0\.", "cross_block.conv2."),
            (r"^layers\.12\.0\.", "classifier."),
            (r"^(blocks\.\d)\.shuf\.0\.0\.", r"\1.upsample.conv."),
            (r"^(blocks\.\d)\.bn\.", r"\1.skip_bn."),
            (r"^(blocks\.\d\.conv[12])\.0\.", r"\1."),
        ),
        differs=_variant,
    ),
)


def imagenet_file(backbone: str, source: str) -> Path | None:
    """The file that `--pretrained SOURCE` means for this backbone (`common.nets.imagenet.find_imagenet`)."""
    names = IMAGENET_FILES[backbone]
    return find_imagenet(source, names, IMAGENET_URL + names[0])


def from_reference(checkpoint: Mapping) -> Translated:
    """A checkpoint of the reference, or of fastai's DynamicUnet, under the names of `model.py`.

    Accepts the state dict itself or what it is wrapped in (`common.record.foreign`). Names that are ours already stay.
    OtherNetwork for one that was built with other arguments, such as weight normalisation: it holds two factors of each
    weight.

        layers.0.{0,1}, layers.0.{4..7}   -> encoder.{conv1,bn1}, encoder.layer{1..4}
        layers.1                          -> encoder_bn
        layers.3.{0,1}.0                  -> middle.{0,1}
        layers.{4..7}                     -> blocks.{0..3}: shuf.0.0, bn, conv1.0, conv2.0
                                             -> upsample.conv, skip_bn, conv1, conv2
        layers.8.0.0                      -> upsample.conv
        layers.11.convpath.{0,1}.0        -> cross_block.conv{1,2}
        layers.12.0                       -> classifier
    """
    return translated(checkpoint, FORMATS, lambda state: network_options(state, "classifier", "encoder."))
