"""Weights of other programs for Attention U-Net, under their names here."""

from collections.abc import Mapping

from torch import Tensor

from AttentionUNet.model import ARCHS, LEVELS
from common.record.foreign import Format, Translated, always, translated

_UP, _ENCODER = {level: LEVELS - level for level in range(2, LEVELS + 1)}, range(1, LEVELS + 1)
FORMATS = (
    Format(
        "a network of Image_Segmentation",
        (r"^Conv_1x1\.", r"^Up_(conv|RRCNN)2\.", r"^(Conv|RRCNN)1\."),
        (
            (r"^Conv_1x1\.", "classifier."),
            *((rf"^(Conv{level}\.conv|RRCNN{level})\.", f"encoder.{level - 1}.") for level in _ENCODER),
            # up.0 is the resizing, which has no weights
            *((rf"^Up{level}\.up\.1\.", f"decoder.{index}.up.0.") for level, index in _UP.items()),
            *((rf"^Up{level}\.up\.2\.", f"decoder.{index}.up.1.") for level, index in _UP.items()),
            *((rf"^Att{level}\.(W_)?", f"decoder.{index}.gate.\\1") for level, index in _UP.items()),
            *(
                (rf"^(Up_conv{level}\.conv|Up_RRCNN{level})\.", f"decoder.{index}.conv.")
                for level, index in _UP.items()
            ),
            (r"\.gate\.W_", ".gate.w_"),
            (r"\.Conv_1x1\.", ".project."),
            (r"\.RCNN\.(\d)\.conv\.", r".recurrent.\1.unit."),
        ),
    ),
    Format(
        "the UNet of Pytorch-UNet",
        (r"^inc\.double_conv\.", r"^outc\.conv\."),
        differs=always(
            "which enlarges bilinearly or by transposed convolutions; here nearest neighbour and a 3x3 convolution do"
        ),
    ),
)


def from_reference(checkpoint: Mapping) -> Translated:
    """A checkpoint of LeeJunHyun/Image_Segmentation (or of the ModelZoo's version of it) under our names.

    Accepts the state dict itself or what it is wrapped in (`common.record.foreign`). Names that are ours already stay.
    A level k of the reference's is 1 where it is finest.

        Conv{k}.conv.*, RRCNN{k}.*           -> encoder.{k-1}.*
        Up{k}.up.{1,2}.*                     -> decoder.{5-k}.up.{0,1}.*
        Att{k}.{W_g,W_x,psi}.*               -> decoder.{5-k}.gate.{w_g,w_x,psi}.*
        Up_conv{k}.conv.*, Up_RRCNN{k}.*     -> decoder.{5-k}.conv.*
        ... RCNN.{0,1}.conv.*, Conv_1x1.*    -> ... recurrent.{0,1}.unit.*, project.*
        Conv_1x1.*                           -> classifier.*
    """
    return translated(checkpoint, FORMATS, _options)


def _options(state: Mapping[str, Tensor]) -> dict[str, object]:
    """Which of the networks it is, of how many channels and classes; how often its layers recur, no tensor tells."""
    if "classifier.weight" not in state:
        return {}
    parts = "decoder.0.gate.psi.0.weight" in state, "encoder.0.project.weight" in state
    num_classes, base_channels = state["classifier.weight"].shape[:2]
    arch = next(name for name, has in ARCHS.items() if has == parts)
    return {"num_classes": num_classes, "arch": arch, "base_channels": base_channels}
