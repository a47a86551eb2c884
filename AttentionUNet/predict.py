"""Mark the lesions that a trained Attention U-Net sees in pictures: a mask, an overlay and class ids for each."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from AttentionUNet import presets
from common.predict import parse_predict_args, predict

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    ARGS = parse_predict_args(
        {"arch": presets.CHOICES["arch"], "t": presets.BASE["t"], "image_size": presets.BASE["image_size"]},
        description=__doc__,
    )

    from functools import partial

    from AttentionUNet.data import to_input
    from AttentionUNet.isic import PALETTE
    from AttentionUNet.model import build_model, from_reference
    from common.checkpoint import read
    from common.device import exit_codes

    with exit_codes():
        options = read(ARGS.checkpoint).get("options", {})  # our files say what size their network was trained on
        size = options.get("image_size", ARGS.image_size)
        predict(ARGS, build_model, from_reference, partial(to_input, image_size=size), PALETTE, num_classes=1)
