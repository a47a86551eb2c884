"""Write a trained Attention U-Net as an ONNX or OM file, which is compared with it first."""

import sys
from pathlib import Path

if not __package__:  # started as a script: make the repository root importable
    sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from AttentionUNet import presets
from common.scores.export import export, parse_export_args

if __name__ == "__main__":  # before torch is imported, so that --help and a wrong flag are answered at once
    OPTIONS = {"arch": presets.CHOICES["arch"], "t": presets.BASE["t"], "image_size": presets.BASE["image_size"]}
    ARGS = parse_export_args(OPTIONS, "224x224", description=__doc__)

    from AttentionUNet.data import INFO
    from AttentionUNet.model import build_model
    from AttentionUNet.weights import from_reference
    from common.device.exits import exit_codes

    with exit_codes():
        export(ARGS, build_model, from_reference, INFO)
