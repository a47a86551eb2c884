"""Weights of other programs for Attention U-Net, under their names here."""

import re
from collections.abc import Mapping

from torch import Tensor

from AttentionUNet.model import LEVELS
from common.nets.backbone import plain_state_dict

# module of the reference's at level k (1 is the finest) -> ours
REFERENCE_MODULES = {
    "Conv": "encoder.{down}.",
    "RRCNN": "encoder.{down}.",
    "Up": "decoder.{up}.up.",
    "Att": "decoder.{up}.gate.",
    "Up_conv": "decoder.{up}.conv.",
    "Up_RRCNN": "decoder.{up}.conv.",
}
REFERENCE_LAYERS = (  # within such a module
    (r"^conv\.", ""),
    (r"^up\.1\.", "0."),  # up.0 is the resizing, which has no weights
    (r"^up\.2\.", "1."),
    (r"^W_", "w_"),
    (r"^Conv_1x1\.", "project."),
    (r"^RCNN\.(\d)\.conv\.", r"recurrent.\1.unit."),
)


def from_reference(checkpoint: Mapping) -> dict[str, Tensor]:
    """A checkpoint of LeeJunHyun/Image_Segmentation (or of the ModelZoo's version of it) under our names.

    Accepts the state dict itself or one wrapped in {"state_dict": ...} or {"model": ...}, with or without `module.`
    prefixes. Names that are ours already stay. A level k of the reference's is 1 where it is finest.

        Conv{k}.conv.*, RRCNN{k}.*           -> encoder.{k-1}.*
        Up{k}.up.{1,2}.*                     -> decoder.{5-k}.up.{0,1}.*
        Att{k}.{W_g,W_x,psi}.*               -> decoder.{5-k}.gate.{w_g,w_x,psi}.*
        Up_conv{k}.conv.*, Up_RRCNN{k}.*     -> decoder.{5-k}.conv.*
        ... RCNN.{0,1}.conv.*, Conv_1x1.*    -> ... recurrent.{0,1}.unit.*, project.*
        Conv_1x1.*                           -> classifier.*
    """
    return {_our_name(name): value for name, value in plain_state_dict(checkpoint).items()}


def _our_name(name: str) -> str:
    if name.startswith("Conv_1x1."):
        return name.replace("Conv_1x1.", "classifier.")
    match = re.match(r"(Conv|RRCNN|Up|Att|Up_conv|Up_RRCNN)([1-5])\.", name)
    if not match:
        return name
    level, layer = int(match[2]), name[match.end() :]
    for theirs, ours in REFERENCE_LAYERS:
        layer = re.sub(theirs, ours, layer)
    return REFERENCE_MODULES[match[1]].format(down=level - 1, up=LEVELS - level) + layer
